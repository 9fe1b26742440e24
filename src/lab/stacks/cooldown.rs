use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tower::BoxError;

use super::rotation::{Next, Rotation, SoFar, rotate};
use crate::lab::{Built, Stack, World};

/// How many errors send a key to rest.
const ERRORS: u32 = 3;
/// For how long.
const REST: Duration = Duration::from_secs(60);
/// How often a request is sent at most.
const ATTEMPTS: usize = 10;

/// Round robin; a key that erred three times rests for a minute, and the next one is tried at once.
///
/// The rotation of the free-key proxies, and LiteLLM's with `allowed_fails: 3`, `cooldown_time: 60` and many retries. As in the
/// former, a request that finds all keys resting takes the next one all the same. It never waits, so above capacity every
/// request that cannot be served knocks at all doors: several refusals upstream for each success.
#[derive(Debug, Clone, Copy)]
pub struct CooldownRecipe;

impl Stack for CooldownRecipe {
    fn name(&self) -> &str {
        "cooldown"
    }

    fn about(&self) -> &str {
        "round robin; a key that erred three times rests for 60 s; on an error the next key at once, up to ten attempts; \
         when all rest, the next one all the same"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        let keys = vec![Key { errors: 0, rests_until: Instant::now() }; world.keys().len()];
        rotate(world, Cooldown { keys, turn: 0 })
    }
}

#[derive(Clone)]
struct Key {
    errors: u32,
    rests_until: Instant,
}

struct Cooldown {
    keys: Vec<Key>,
    turn: usize,
}

impl Rotation for Cooldown {
    fn next(&mut self, so_far: &SoFar) -> Next {
        if so_far.attempts == ATTEMPTS {
            return Next::GiveUp;
        }
        let (now, count) = (Instant::now(), self.keys.len());
        let in_turn = |step: &usize| (self.turn + step) % count;
        let awake = (0..count).map(|step| in_turn(&step)).find(|key| self.keys[*key].rests_until <= now);
        let key = awake.unwrap_or(self.turn % count);
        self.turn = key + 1;
        Next::Send(key)
    }

    fn failed(&mut self, key: usize, _headers: &HeaderMap) {
        let key = &mut self.keys[key];
        key.errors += 1;
        if key.errors >= ERRORS {
            *key = Key { errors: 0, rests_until: Instant::now() + REST };
        }
    }
}
