use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tower::BoxError;

use super::rotation::{Next, Rotation, SoFar, rotate};
use crate::lab::{Built, Stack, World};

/// How long a key rests after an error.
const REST: Duration = Duration::from_secs(30);

/// The first key of the list that is not resting.
///
/// Primary and backups, as in most failover code. The first key takes all the load, its quota is spent first, and after each
/// rest it is tried again whatever became of it.
#[derive(Debug, Clone, Copy)]
pub struct FirstHealthyRecipe;

impl Stack for FirstHealthyRecipe {
    fn name(&self) -> &str {
        "first-healthy"
    }

    fn about(&self) -> &str {
        "always the first key that is not resting, the next one on an error; a key rests for 30 s after each"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        rotate(world, Failover { rests_until: vec![Instant::now(); world.keys().len()] })
    }
}

struct Failover {
    rests_until: Vec<Instant>,
}

impl Rotation for Failover {
    fn next(&mut self, _so_far: &SoFar) -> Next {
        let now = Instant::now();
        self.rests_until.iter().position(|until| *until <= now).map_or(Next::GiveUp, Next::Send)
    }

    fn failed(&mut self, key: usize, _headers: &HeaderMap) {
        self.rests_until[key] = Instant::now() + REST;
    }
}
