use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};
use tokio::time::Instant;
use tower::BoxError;

use super::rotation::{Next, Rotation, SoFar, rotate};
use crate::{
    lab::{Built, Stack, World},
    simulator::Simulator,
};

/// How long a key rests that does not say for how long.
const REST: Duration = Duration::from_secs(5);

/// Round robin that believes `Retry-After` and `X-RateLimit-Reset`, and waits for the first key to come back.
///
/// What a careful reader of the documentation writes. All who wait for a key wake in the same instant, and all of them send.
#[derive(Debug, Clone, Copy)]
pub struct WaitThenAllRecipe;

impl Stack for WaitThenAllRecipe {
    fn name(&self) -> &str {
        "wait-then-all"
    }

    fn about(&self) -> &str {
        "round robin; a key that erred rests for as long as it says, else 5 s; when all rest, everybody waits for the first \
         to come back and sends at once"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        let rests_until = vec![Instant::now(); world.keys().len()];
        let max_wait = Duration::from_secs_f64(world.patience().max_wait_s);
        rotate(world, Waiting { rests_until, turn: 0, max_wait, calendar: world.simulator().clone() })
    }
}

struct Waiting {
    rests_until: Vec<Instant>,
    turn: usize,
    max_wait: Duration,
    calendar: Simulator,
}

impl Rotation for Waiting {
    fn next(&mut self, so_far: &SoFar) -> Next {
        let (now, count) = (Instant::now(), self.rests_until.len());
        let key = (0..count).map(|step| (self.turn + step) % count).min_by_key(|key| self.rests_until[*key].max(now));
        let key = key.expect("there is a key");
        let until = self.rests_until[key];
        if until <= now {
            self.turn = key + 1;
            Next::Send(key)
        } else if until <= so_far.came + self.max_wait {
            Next::Sleep(until)
        } else {
            Next::GiveUp
        }
    }

    fn failed(&mut self, key: usize, headers: &HeaderMap) {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<i64>().ok();
        let after = number(RETRY_AFTER.as_str()).map(|seconds| seconds * 1_000);
        let reset = || Some(number("x-ratelimit-reset")? - self.calendar.wall_clock_ms());
        let rest = after.or_else(reset).map(|millis| Duration::from_millis(millis.max(0).unsigned_abs()));
        self.rests_until[key] = Instant::now() + rest.unwrap_or(REST);
    }
}
