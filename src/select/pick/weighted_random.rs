use fastrand::Rng;

use super::{
    Candidates, Pick, Prepared, Rank,
    shares::{self, Odds},
};
use crate::endpoint::Endpoint;

/// A random endpoint, each as likely as its [weight](crate::ApiKey::weight) says.
///
/// Unlike turns, chance needs no memory: many processes that share keys do not fall into step, and there is nothing for
/// threads to contend for. In return shares are even in the long run only; where that matters,
/// [`SmoothWeighted`](super::SmoothWeighted) is exact. A key that is out gives its share to the others in the ratio of theirs.
///
/// By the weights of the keys:
///
/// ```
/// use tower_openrouter::{ApiKey, select::{Pool, WeightedRandom}};
/// # use tower_openrouter::{Endpoint, KeySelectLayer, endpoint_fn};
/// # use tower::layer::util::Identity;
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.weight(0.9)?, ApiKey::new("sk-or-v1-b")?.weight(0.1)?])?;
/// # let per_key = endpoint_fn(|_: &Endpoint| Identity::new());
/// let layer = KeySelectLayer::new(pool, per_key).pick(WeightedRandom::default());
/// # let _ = layer;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// For requests that belong to no conversation, while the others keep to their account:
///
/// ```
/// use tower_openrouter::select::{Rendezvous, WeightedRandom};
///
/// let pick = Rendezvous::new(WeightedRandom::default());
/// # let _ = pick;
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct WeightedRandom;

impl Pick for WeightedRandom {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, rng: &mut Rng) -> usize {
        candidates.prepared::<Odds>().map_or(usize::MAX, |odds| odds.at(rng.u64(..)))
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        Some(Box::new(Odds::of(endpoints)?))
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, rng: &mut Rng) -> Option<Rank> {
        Some(shares::order(&candidates.endpoints[index], rng.f64()).into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;
    use crate::select::pick::support::{endpoints, picks, shares};

    fn shares_of(weights: &[f64], refuses: impl Fn(usize) -> bool) -> Vec<f64> {
        let endpoints = endpoints(weights.len(), |index, key| key.weight(weights[index]).unwrap());
        let taken = picks(&WeightedRandom, &endpoints, 100_000, refuses);
        shares(&taken, weights.len()).into_iter().map(|share| share as f64 / 100_000.0).collect()
    }

    #[test]
    fn shares_follow_the_weights_of_those_who_can_serve() {
        for (weights, out, expected) in [
            (&[3.0, 2.0, 1.0][..], None, &[0.5, 0.333, 0.167][..]),
            (&[3.0, 2.0, 1.0], Some(0), &[0.0, 0.667, 0.333]),
            (&[98.0, 1.0, 3.0], Some(0), &[0.0, 0.25, 0.75]),
            (&[1.0, 0.0, 1.0], None, &[0.5, 0.0, 0.5]),
        ] {
            for (share, expected) in shares_of(weights, |index| Some(index) == out).into_iter().zip(expected) {
                assert!((share - expected).abs() < 0.01, "{weights:?} without {out:?}: {share} for {expected}");
            }
        }
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20))]
        #[test]
        fn any_weights_get_their_due(weights in proptest::collection::vec(0.01..10.0_f64, 1..8)) {
            let total: f64 = weights.iter().sum();
            for (share, weight) in shares_of(&weights, |_| false).into_iter().zip(&weights) {
                prop_assert!((share - weight / total).abs() < 0.01, "{share} for {weight} of {total}");
            }
        }
    }
}
