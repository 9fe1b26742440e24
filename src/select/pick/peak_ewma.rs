use std::time::Duration;

use fastrand::Rng;

use super::{Candidates, Pick, Prepared, cheaper_of_two};
use crate::endpoint::{Endpoint, Loads};

/// What a request under way on a key of which nothing is known counts as: worse than any key that is known.
const UNKNOWN: Duration = Duration::from_secs(3600);

/// The cheaper of two endpoints chosen at random, by their time to the first byte.
///
/// Cost is the endpoint's [recent time to the first byte](crate::endpoint::Figures::recent_first_byte) times the requests
/// that would be in flight on it. That time is a mean that leaps to each new peak and comes down from it slowly (Finagle's
/// peak EWMA), so a key that turns slow is left at once and a key that was slow is tried again. Requests are in flight until
/// their body ends; what counts of the time is the first byte, since the rest is the length of the answer.
///
/// tower's own `PeakEwma` sends most to a key that fails fast, because a quick refusal is a quick answer to it. Here a failure
/// that speaks, or may speak, against the key counts as an answer that took as long as the rest it asks for, at least 5 s and
/// at most 300 s, and as one more request in flight that melts away over that time, so that it also weighs where hundreds
/// are in flight. And where tower presumes a time for keys it knows nothing of, here such a key is tried at once, but by one
/// request at a time.
///
/// Where answers are equally long, shares follow the inverse of the time to the first byte; where they are over with their
/// first byte, its square, since slow answers then also stay in flight longer. It reads what a
/// [`LoadMonitorLayer`](crate::LoadMonitorLayer) in the per-key stack writes.
///
/// In the default stack, which has that monitor:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{PeakEwma, Pool}};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?])?;
/// let builder = Balancer::builder(pool).pick(PeakEwma::default());
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// The fastest that can serve among the keys of the first tier, each conversation on an account of its own:
///
/// ```
/// use tower_openrouter::select::{PeakEwma, PriorityTiers, Rendezvous};
///
/// let pick = PriorityTiers::new(Rendezvous::new(PeakEwma::default()));
/// # let _ = pick;
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PeakEwma;

impl Pick for PeakEwma {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, rng: &mut Rng) -> usize {
        let (loads, now) = (candidates.prepared::<Loads>(), candidates.now);
        let figures = |index: usize| candidates.endpoints[index].figures();
        let cost = |index: usize| {
            let load = loads.and_then(|loads| loads.load(index, now)).unwrap_or_else(|| figures(index).load(now));
            let time = match loads {
                Some(loads) => loads.recent_first_byte(index, now),
                None => figures(index).recent_first_byte(now),
            };
            candidates.note("cost_s", index, cost(load, time))
        };
        cheaper_of_two(candidates.endpoints.len(), rng, cost)
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        Some(Box::new(Loads::of(endpoints)?))
    }
}

/// The cost of one more request, in seconds.
fn cost(load: f64, recent_first_byte: Option<Duration>) -> f64 {
    match recent_first_byte {
        Some(time) => time.as_secs_f64() * (load + 1.0),
        None => UNKNOWN.as_secs_f64() * load,
    }
}

#[cfg(test)]
mod tests {
    use std::{cmp::Reverse, collections::BinaryHeap};

    use http::HeaderMap;
    use proptest::prelude::{prop_assert, proptest};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        RequestContext,
        outcome::{Cause, Fault, Scope},
        select::pick::support::{endpoints, picks, shares},
    };

    const MS: Duration = Duration::from_millis(1);

    /// Shares of `count` requests that come every millisecond, where `serve` says after how long a key's first byte comes,
    /// or that it fails, and after how long its answer ends.
    fn simulate(keys: &[Endpoint], count: u32, serve: impl Fn(usize) -> (Option<Duration>, Duration)) -> Vec<f64> {
        let (start, rng) = (Instant::now(), &mut Rng::with_seed(7));
        let (request, headers) = (RequestContext::new(), HeaderMap::new());
        let (mut events, mut taken) = (BinaryHeap::new(), vec![0.0; keys.len()]);
        for at in (0..count).map(|index| start + MS * index) {
            while let Some(Reverse((when, key, is_first, began))) = events.peek().copied()
                && when <= at
            {
                events.pop();
                let figures = keys[key as usize].figures();
                match (is_first, serve(key as usize).0) {
                    (true, _) => figures.first_byte(when - began, when),
                    (false, Some(first)) => {
                        figures.leave();
                        figures.succeed(first, when - began);
                    }
                    (false, None) => {
                        figures.leave();
                        figures.fail(&Fault::new(Cause::UnknownLimit, Scope::Key), when - began, when);
                    }
                }
            }
            let candidates = Candidates::new(keys, &request, &headers, at);
            let key = PeakEwma.propose(&candidates, 0, rng);
            keys[key].figures().start();
            taken[key] += 1.0 / f64::from(count);
            let (first, end) = serve(key);
            if let Some(first) = first {
                events.push(Reverse((at + first, key as u32, true, at)));
            }
            events.push(Reverse((at + end, key as u32, false, at)));
        }
        taken
    }

    #[test]
    fn r015_shares_follow_the_inverse_of_the_time_to_the_first_byte() {
        let keys = endpoints(3, |_, key| key);
        let taken = simulate(&keys, 100_000, |key| (Some(MS * [100, 200, 400][key]), MS * 2000));
        for (share, due) in taken.iter().zip([4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0]) {
            assert!((share - due).abs() <= 0.15 * due, "{taken:?}");
        }
    }

    #[test]
    fn a_key_that_fails_fast_draws_no_more_than_a_slow_one() {
        let keys = endpoints(4, |_, key| key);
        let serve = |key| if key == 0 { (None, MS * 20) } else { (Some(MS * 2000), MS * 2000) };
        let taken = simulate(&keys, 100_000, serve);
        assert!(taken[0] < 0.15, "its fair share is 0.25: {taken:?}");
    }

    #[test]
    fn r015_a_key_without_history_is_tried_by_one_request_at_a_time() {
        let keys = endpoints(3, |_, key| key);
        for key in &keys[..2] {
            key.figures().first_byte(MS * 300, Instant::now());
        }
        let count = || shares(&picks(&PeakEwma, &keys, 1000, |_| false), 3)[2];
        assert!(count() > 500, "it is tried");
        keys[2].figures().start();
        assert_eq!(count(), 0, "but once");
    }

    #[test]
    fn at_a_cold_start_nobody_is_held_back() {
        let keys = endpoints(4, |_, key| key);
        keys.iter().for_each(|key| key.figures().start());
        for share in shares(&picks(&PeakEwma, &keys, 10_000, |_| false), 4) {
            assert!((2_000..3_000).contains(&share), "{share}");
        }
    }

    proptest! {
        #[test]
        fn the_dearest_of_many_is_never_taken(times in proptest::collection::vec(1..1000_u32, 2..10), load in 0..5_u32) {
            let keys = endpoints(times.len(), |_, key| key);
            let (now, most) = (Instant::now(), times.iter().max().unwrap());
            for (key, time) in keys.iter().zip(&times) {
                key.figures().first_byte(MS * *time, now);
                (0..load).for_each(|_| key.figures().start());
            }
            let taken = shares(&picks(&PeakEwma, &keys, 200, |_| false), keys.len());
            if times.iter().filter(|time| *time == most).count() == 1 {
                prop_assert!(taken[times.iter().position(|time| time == most).unwrap()] == 0, "{taken:?} of {times:?}");
            }
        }
    }
}
