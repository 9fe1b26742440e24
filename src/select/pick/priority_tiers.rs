use fastrand::Rng;

use super::{Candidates, LeastInFlight, Pick, Prepared, Rank};
use crate::endpoint::Endpoint;

/// Uses the keys of a [tier](crate::ApiKey::tier) only when no lower one has any to give, and another pick within it.
///
/// For keys that are there for the case of need: a prepaid account before one that pays by use, one's own before a partner's.
/// A tier has none to give when all its keys rest, are full, or cannot serve the request, for whatever reason of theirs. What
/// a request has tried already, and a new key that is still proving itself, are passed over in favour of higher tiers
/// too: a key that just failed the request has nothing to give it. When a lower tier is back, new requests use it at once.
///
/// The proposals are the inner pick's, from the lowest tier of the snapshot alone. Where that tier refuses all of them,
/// everybody is asked tier by tier; so a tier that rests costs nothing, and one that is full as long as it is long.
///
/// With [`LeastInFlight`] in each tier:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{Pool, PriorityTiers}};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-prepaid")?, ApiKey::new("sk-or-v1-by-use")?.tier(2)])?;
/// let builder = Balancer::builder(pool).pick(PriorityTiers::default());
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// By weight in each tier:
///
/// ```
/// use tower_openrouter::select::{PriorityTiers, WeightedRandom};
///
/// let pick = PriorityTiers::new(WeightedRandom::default());
/// # let _ = pick;
/// ```
#[derive(Debug)]
pub struct PriorityTiers<P = LeastInFlight> {
    inner: P,
}

impl Default for PriorityTiers {
    fn default() -> Self {
        Self::new(LeastInFlight)
    }
}

impl<P> PriorityTiers<P> {
    /// Picks by `inner` within a tier.
    pub fn new(inner: P) -> Self {
        Self { inner }
    }
}

/// A snapshot by tiers.
struct Tiers {
    /// The lowest first.
    tiers: Vec<Tier>,
    /// For each endpoint its tier, and its place there.
    places: Box<[(usize, usize)]>,
}

struct Tier {
    endpoints: Vec<Endpoint>,
    /// Where they are in the snapshot.
    indices: Vec<usize>,
    inner: Option<Prepared>,
}

impl Tier {
    fn candidates<'a>(&'a self, all: &Candidates<'a>) -> Candidates<'a> {
        all.among(&self.endpoints, self.inner.as_ref())
    }
}

impl<P: Pick> Pick for PriorityTiers<P> {
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, rng: &mut Rng) -> usize {
        let Some(lowest) = candidates.prepared::<Tiers>().and_then(|tiers| tiers.tiers.first()) else {
            return usize::MAX;
        };
        let proposed = self.inner.propose(&lowest.candidates(candidates), turn, rng);
        lowest.indices.get(proposed).copied().unwrap_or(usize::MAX)
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        let tier_of = |endpoint: &Endpoint| endpoint.key().tier_of();
        let mut numbers: Vec<_> = endpoints.iter().map(tier_of).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut tiers: Vec<_> =
            numbers.iter().map(|_| Tier { endpoints: Vec::new(), indices: Vec::new(), inner: None }).collect();
        let places = endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| {
                let at = numbers.partition_point(|number| *number < tier_of(endpoint));
                let tier = &mut tiers[at];
                tier.endpoints.push(endpoint.clone());
                tier.indices.push(index);
                (at, tier.indices.len() - 1)
            })
            .collect();
        for tier in &mut tiers {
            tier.inner = self.inner.prepare(&tier.endpoints);
        }
        Some(Box::new(Tiers { tiers, places }))
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, rng: &mut Rng) -> Option<Rank> {
        let tiers = candidates.prepared::<Tiers>()?;
        let (at, place) = tiers.places[index];
        let inner = self.inner.rank(&tiers.tiers[at].candidates(candidates), place, rng);
        Some(Rank { tier: at as u32, order: inner.map_or_else(|| rng.f64(), |rank| rank.order) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;
    use crate::select::{
        RoundRobin, SmoothWeighted,
        pick::support::{endpoints, picks, shares},
    };

    fn tiered(tiers: &[u32]) -> Vec<Endpoint> {
        endpoints(tiers.len(), |index, key| key.tier(tiers[index]))
    }

    #[test]
    fn a_higher_tier_serves_only_when_no_lower_one_can() {
        let pick = PriorityTiers::new(RoundRobin::default());
        for (tiers, out, expected) in [
            (&[1, 2, 1, 2][..], &[][..], &[50, 0, 50, 0][..]),
            (&[1, 2, 1, 2], &[0], &[0, 0, 100, 0]),
            (&[1, 1, 2, 3], &[0, 1], &[0, 0, 100, 0]),
            (&[7, 3, 9], &[], &[0, 100, 0]),
            (&[7, 3, 9], &[1, 0], &[0, 0, 100]),
        ] {
            let endpoints = tiered(tiers);
            let taken = picks(&pick, &endpoints, 100, |index| out.contains(&index));
            assert_eq!(shares(&taken, tiers.len()), expected, "{tiers:?} without {out:?}");
        }
    }

    #[test]
    fn the_inner_pick_goes_on_in_the_next_tier() {
        let weights = [1.0, 1.0, 3.0, 1.0];
        let endpoints = endpoints(4, |index, key| key.weight(weights[index]).unwrap().tier([1, 1, 2, 2][index]));
        let taken = picks(&PriorityTiers::new(SmoothWeighted::default()), &endpoints, 10_000, |index| index < 2);
        let shares = shares(&taken, 4);
        assert!((7_125..7_875).contains(&shares[2]), "{shares:?}");
    }

    proptest! {
        #[test]
        fn nobody_is_passed_over_for_a_higher_tier(
            tiers in proptest::collection::vec(1..4_u32, 1..20), refusals: u32,
        ) {
            let refuses = |index: usize| refusals >> index & 1 == 1;
            let lowest = (0..tiers.len()).filter(|index| !refuses(*index)).map(|index| tiers[index]).min();
            if let Some(lowest) = lowest {
                let taken = picks(&PriorityTiers::default(), &tiered(&tiers), 20, refuses);
                prop_assert!(taken.iter().all(|index| tiers[*index] == lowest));
            }
        }
    }
}
