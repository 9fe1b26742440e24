//! Picks: which endpoint first?
//!
//! A pick proposes endpoints one at a time from an immutable snapshot; filters and readiness judge what it proposes. It need
//! not find the best of all, nor know who is out: two or three proposals nearly always hit, and if they do not, selection
//! scans. So no pick looks at more than a few endpoints, and none allocates.

use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use tokio::time::Instant;

use crate::{endpoint::Endpoint, request::RequestContext};

/// What a pick may look at.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// The endpoints that nothing holds back for everybody. Never empty.
    pub endpoints: &'a [Endpoint],
    /// The request.
    pub request: &'a RequestContext,
    /// The time.
    pub now: Instant,
}

impl Candidates<'_> {
    /// Notes figures that decide between endpoints, each with the endpoint's index. They are kept where the request is
    /// [explained](crate::explain), and cost next to nothing elsewhere.
    pub fn note(&self, figure: &'static str, values: &[(usize, f64)]) {
        if let Some(trace) = self.request.trace() {
            for (endpoint, value) in values {
                if let Some(endpoint) = self.endpoints.get(*endpoint) {
                    trace.compare(figure, endpoint.key().name(), *value);
                }
            }
        }
    }
}

/// Proposes an endpoint.
///
/// What is known of an endpoint is at hand: its [`key`](Endpoint::key) with the weight
/// ([`weight_of`](crate::ApiKey::weight_of)), and its [`figures`](Endpoint::figures) as a
/// [`LoadMonitorLayer`](crate::LoadMonitorLayer) writes them.
///
/// ```
/// use tower_openrouter::select::{Candidates, Pick, Rng};
///
/// /// Always starts with the first key.
/// struct FirstHealthy;
///
/// impl Pick for FirstHealthy {
///     fn propose(&self, candidates: &Candidates<'_>, turn: usize, _rng: &mut Rng) -> usize {
///         turn % candidates.endpoints.len()
///     }
/// }
/// ```
pub trait Pick: Send + Sync + 'static {
    /// The index of the endpoint proposed. `turn` counts the proposals for this attempt, from 0; an index out of bounds
    /// proposes nobody.
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, rng: &mut Rng) -> usize;
}

/// Each endpoint in turn. One counter for all clones, so that the turns are even across them.
///
/// ```
/// use tower_openrouter::select::RoundRobin;
/// let pick = RoundRobin::default();
/// # let _ = pick;
/// ```
#[derive(Debug, Default)]
pub struct RoundRobin(AtomicUsize);

impl Pick for RoundRobin {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, _rng: &mut Rng) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed) % candidates.endpoints.len()
    }
}

/// The less loaded of two endpoints chosen at random (the power of two choices, Mitzenmacher 2001).
///
/// Load is what is in flight until the end of its body, and for each failure that speaks, or may speak, against the key one
/// virtual request that melts away over the hint, at least 5 s and at most 300 s. So a key that refuses fast does not look
/// idle. It reads what a [`LoadMonitorLayer`](crate::LoadMonitorLayer) in the per-key stack writes.
///
/// ```
/// use tower_openrouter::select::LeastInFlight;
/// let pick = LeastInFlight::default();
/// # let _ = pick;
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LeastInFlight;

impl Pick for LeastInFlight {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, rng: &mut Rng) -> usize {
        let count = candidates.endpoints.len();
        let one = rng.usize(..count);
        if count == 1 {
            return one;
        }
        // distinct from the first, and uniform among the others
        let other = (one + rng.usize(1..count)) % count;
        let load = |index: usize| candidates.endpoints[index].figures().load(candidates.now);
        let (load_of_one, load_of_other) = (load(one), load(other));
        candidates.note("load", &[(one, load_of_one), (other, load_of_other)]);
        if load_of_other < load_of_one { other } else { one }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        ApiKey,
        outcome::{Cause, Fault, Rest, Scope},
    };

    fn endpoints(count: usize) -> Vec<Endpoint> {
        (0..count).map(|index| Endpoint::new(ApiKey::new(format!("key-{index}")).unwrap())).collect()
    }

    fn shares(pick: &impl Pick, endpoints: &[Endpoint], picks: usize) -> Vec<usize> {
        let (request, mut rng) = (RequestContext::new(), Rng::with_seed(7));
        let candidates = Candidates { endpoints, request: &request, now: Instant::now() };
        let mut shares = vec![0; endpoints.len()];
        for _ in 0..picks {
            shares[pick.propose(&candidates, 0, &mut rng)] += 1;
        }
        shares
    }

    #[test]
    fn r013_round_robin_is_even_across_threads() {
        let (pick, endpoints) = (Arc::new(RoundRobin::default()), endpoints(5));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (pick, endpoints) = (pick.clone(), endpoints.clone());
                std::thread::spawn(move || shares(&*pick, &endpoints, 12_500))
            })
            .collect();
        let mut sum = [0; 5];
        for thread in threads {
            for (sum, share) in sum.iter_mut().zip(thread.join().unwrap()) {
                *sum += share;
            }
        }
        assert_eq!(sum, [20_000; 5]);
    }

    #[test]
    fn r013_two_choices_are_even_over_equal_keys() {
        for share in shares(&LeastInFlight, &endpoints(5), 100_000) {
            assert!((18_000..=22_000).contains(&share), "{share}");
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let endpoints = endpoints(2);
        endpoints[0].figures().start();
        assert_eq!(shares(&LeastInFlight, &endpoints, 100), [0, 100]);
    }

    #[test]
    fn a_fast_failing_key_looks_busy() {
        let endpoints = endpoints(2);
        let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(1)));
        endpoints[0].figures().start();
        endpoints[0].figures().leave();
        endpoints[0].figures().fail(&fault, Duration::from_millis(1), Instant::now());
        assert_eq!(shares(&LeastInFlight, &endpoints, 100), [0, 100]);
    }
}
