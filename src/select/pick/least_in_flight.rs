use fastrand::Rng;

use super::{Candidates, Pick, Prepared, cheaper_of_two};
use crate::endpoint::{Endpoint, Loads};

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
///
/// In a stack of one's own, with the monitor that it reads:
///
/// ```
/// use tower_openrouter::{
///     ApiKey, Endpoint, KeySelectLayer, LoadMonitorLayer, endpoint_fn,
///     select::{LeastInFlight, Pool},
/// };
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?])?;
/// let layer = KeySelectLayer::new(pool, endpoint_fn(LoadMonitorLayer::endpoint)).pick(LeastInFlight::default());
/// # let _ = layer;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LeastInFlight;

impl Pick for LeastInFlight {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, rng: &mut Rng) -> usize {
        let (loads, now) = (candidates.prepared::<Loads>(), candidates.now);
        let load = |index: usize| {
            let load = loads.and_then(|loads| loads.load(index, now));
            let load = load.unwrap_or_else(|| candidates.endpoints[index].figures().load(now));
            candidates.note("load", index, load)
        };
        cheaper_of_two(candidates.endpoints.len(), rng, load)
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        Some(Box::new(Loads::of(endpoints)?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::{
        outcome::{Cause, Fault, Rest, Scope},
        select::pick::support::{endpoints, picks, shares},
    };

    fn of_hundred(endpoints: &[crate::Endpoint]) -> Vec<usize> {
        shares(&picks(&LeastInFlight, endpoints, 100, |_| false), endpoints.len())
    }

    #[test]
    fn r013_two_choices_are_even_over_equal_keys() {
        let endpoints = endpoints(5, |_, key| key);
        for share in shares(&picks(&LeastInFlight, &endpoints, 100_000, |_| false), 5) {
            assert!((18_000..=22_000).contains(&share), "{share}");
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let endpoints = endpoints(2, |_, key| key);
        endpoints[0].figures().start();
        assert_eq!(of_hundred(&endpoints), [0, 100]);
    }

    #[test]
    fn a_fast_failing_key_looks_busy() {
        let endpoints = endpoints(2, |_, key| key);
        let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(1)));
        endpoints[0].figures().start();
        endpoints[0].figures().leave();
        endpoints[0].figures().fail(&fault, Duration::from_millis(1), Instant::now());
        assert_eq!(of_hundred(&endpoints), [0, 100]);
    }

    proptest::proptest! {
        #[test]
        fn the_most_loaded_of_many_is_never_taken(loads in proptest::collection::vec(0..9_u32, 2..12)) {
            let endpoints = endpoints(loads.len(), |_, key| key);
            for (endpoint, load) in endpoints.iter().zip(&loads) {
                (0..*load).for_each(|_| endpoint.figures().start());
            }
            let most = loads.iter().max().unwrap();
            if loads.iter().filter(|load| *load == most).count() == 1 {
                let worst = loads.iter().position(|load| load == most).unwrap();
                proptest::prop_assert_eq!(of_hundred(&endpoints)[worst], 0);
            }
        }
    }
}
