use std::time::Duration;

use fastrand::Rng;
use http::HeaderMap;
use tokio::time::Instant;
use tower::BoxError;

use super::rotation::{Next, Rotation, SoFar, rotate};
use crate::lab::{Built, Stack, World};

/// How long a key rests after an error.
const REST: Duration = Duration::from_secs(5);
/// How often a request is sent at most: once and two retries.
const ATTEMPTS: usize = 3;

/// A random key of those that are not resting.
///
/// LiteLLM's router as it comes: `simple-shuffle`, 5 s of cooldown, two retries, and a 429 of its own when every key rests. It
/// wastes little upstream, and fails clients while there is capacity that a wait of seconds would reach.
#[derive(Debug, Clone, Copy)]
pub struct ShuffleRecipe;

impl Stack for ShuffleRecipe {
    fn name(&self) -> &str {
        "shuffle"
    }

    fn about(&self) -> &str {
        "a random key of those that are not resting, up to three; a key rests for 5 s after an error; when all rest, 429"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        let rests_until = vec![Instant::now(); world.keys().len()];
        rotate(world, Shuffle { rests_until, rng: Rng::with_seed(world.seed()) })
    }
}

struct Shuffle {
    rests_until: Vec<Instant>,
    rng: Rng,
}

impl Rotation for Shuffle {
    fn next(&mut self, so_far: &SoFar) -> Next {
        let now = Instant::now();
        let awake = (0..self.rests_until.len()).filter(|key| self.rests_until[*key] <= now);
        let awake: Vec<_> = awake.take_while(|_| so_far.attempts < ATTEMPTS).collect();
        self.rng.choice(awake).map_or(Next::GiveUp, Next::Send)
    }

    fn failed(&mut self, key: usize, _headers: &HeaderMap) {
        self.rests_until[key] = Instant::now() + REST;
    }
}
