use tower::BoxError;

use super::Composed;
use crate::lab::{Built, Stack, World};

/// The default balancer as the gateway runs it without a file: a [`Composed`] stack with nothing said.
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
        Composed::from_toml(self.name(), "")?.build(world)
    }
}
