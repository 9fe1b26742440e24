use http::HeaderMap;
use tower::BoxError;

use super::rotation::{Next, Rotation, SoFar, rotate};
use crate::lab::{Built, Stack, World};

/// Each request goes to the next key, once.
///
/// The first thing everybody writes: `keys[n++ % keys.len()]`. It knows no errors, so each key that is spent or dead fails its
/// share of the requests while the others have room.
#[derive(Debug, Clone, Copy)]
pub struct RoundRobinRecipe;

impl Stack for RoundRobinRecipe {
    fn name(&self) -> &str {
        "round-robin"
    }

    fn about(&self) -> &str {
        "each request goes to the next key, once; whatever comes back is the answer"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        rotate(world, InTurn { keys: world.keys().len(), turn: 0 })
    }
}

struct InTurn {
    keys: usize,
    turn: usize,
}

impl Rotation for InTurn {
    fn next(&mut self, so_far: &SoFar) -> Next {
        if so_far.attempts > 0 {
            return Next::GiveUp;
        }
        self.turn += 1;
        Next::Send((self.turn - 1) % self.keys)
    }

    fn failed(&mut self, _key: usize, _headers: &HeaderMap) {}
}
