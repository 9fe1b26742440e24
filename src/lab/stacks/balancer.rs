use std::time::Duration;

use tower::BoxError;

use crate::{
    Balancer, DeadlineLayer,
    lab::{Built, Stack, World},
    pace::PacePolicy,
};

/// The default balancer, with the pace it learns.
#[derive(Debug, Clone, Copy)]
pub struct DefaultStack;

impl Stack for DefaultStack {
    fn name(&self) -> &str {
        "default"
    }

    fn about(&self) -> &str {
        "the default balancer, with the pace it learns"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        let patience = world.patience();
        let balancer = Balancer::builder(world.pool()?)
            .pace(PacePolicy::default())
            .max_wait(Duration::from_secs_f64(patience.max_wait_s))
            .deadline(DeadlineLayer::new(Duration::from_secs_f64(patience.deadline_s))?)
            .build(world.leaf());
        let handle = balancer.handle().clone();
        Ok(Built::new(balancer).watch(handle))
    }
}
