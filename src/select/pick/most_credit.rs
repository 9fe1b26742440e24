use fastrand::Rng;

use super::{Candidates, Pick, Prepared, Rank, cheaper_of_two};
use crate::endpoint::{Endpoint, Spendable};

/// The richer of two endpoints chosen at random, so that credit drains evenly.
///
/// Compared is what may still be spent: the least of the key's cap, its workspace's budget and its account's balance, less
/// what is set aside for requests that run, which a [`CreditLimit`](crate::select::CreditLimit) does. A key without any cap
/// comes first; one of which nothing is known comes after those that are known to have something, and before those that are
/// known to have nothing. Two at random, not the richest of all: no more books are read with ten thousand keys, a crowd of
/// requests does not run to one key before the first of them is booked, and the poorest of the pool still gets nothing,
/// so they even out all the same. When both are refused, the others follow, the richest first.
///
/// ```
/// use tower_openrouter::select::MostCredit;
/// let pick = MostCredit::default();
/// # let _ = pick;
/// ```
///
/// With nothing sent that cannot be paid:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{CreditLimit, MostCredit, Pool}};
/// let pool = Pool::new([ApiKey::new("key-a")?, ApiKey::new("key-b")?])?;
/// let balancer = Balancer::builder(pool).pick(MostCredit::default()).filter(CreditLimit::new());
/// # let _ = balancer;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct MostCredit;

impl Pick for MostCredit {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, rng: &mut Rng) -> usize {
        let cost = |index| {
            let poverty = poverty(candidates, index);
            candidates.note("spendable_usd", index, 0.0 - poverty / 1e9);
            poverty
        };
        cheaper_of_two(candidates.endpoints.len(), rng, cost)
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        // so that no proposal has to make the books of a key
        for endpoint in endpoints {
            endpoint.credit();
        }
        None
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, _rng: &mut Rng) -> Option<Rank> {
        Some(poverty(candidates, index).into())
    }
}

fn poverty(candidates: &Candidates<'_>, index: usize) -> f64 {
    let (credit, now) = (candidates.endpoints[index].credit(), candidates.now);
    match credit.spendable(now) {
        Spendable::Unlimited => f64::NEG_INFINITY,
        // few keys may ask for the balance, and a key without a cap should not stand behind those with one for that
        Spendable::Unknown if credit.key_spendable(now) == Spendable::Unlimited => f64::NEG_INFINITY,
        Spendable::Unknown => 0.0,
        // whoever has nothing, too, comes after the unknown
        Spendable::Money(left) if left.nanos() <= 0 => 1.0 - left.nanos() as f64,
        Spendable::Money(left) => -(left.nanos() as f64),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        endpoint::{KeyReport, Money},
        select::pick::support::{endpoints, picks, shares},
    };

    fn with(lefts: &[Spendable]) -> Vec<Endpoint> {
        let endpoints = endpoints(lefts.len(), |_, key| key);
        for (endpoint, left) in endpoints.iter().zip(lefts) {
            endpoint.credit().report_key(KeyReport { left: *left, ..KeyReport::default() }, Instant::now());
        }
        endpoints
    }

    fn cents(cents: i64) -> Spendable {
        Spendable::Money(Money::from_nanos(cents * 10_000_000))
    }

    #[test]
    fn the_unlimited_come_first_then_the_rich_then_the_unknown_then_the_empty() {
        let order = [Spendable::Unlimited, cents(500), cents(1), Spendable::Unknown, cents(0), cents(-5)];
        for (first, rest) in order.iter().zip((1..).map(|from| &order[from..])) {
            for other in rest {
                let endpoints = with(&[*other, *first]);
                assert_eq!(
                    shares(&picks(&MostCredit, &endpoints, 20, |_| false), 2),
                    [0, 20],
                    "{first} before {other}"
                );
            }
        }
    }

    #[test]
    fn what_is_reserved_does_not_count() {
        let endpoints = with(&[cents(500), cents(400)]);
        assert!(endpoints[0].credit().take(Money::from_usd(2.0), Instant::now()));
        assert_eq!(shares(&picks(&MostCredit, &endpoints, 20, |_| false), 2), [0, 20]);
    }

    #[test]
    fn equal_keys_get_equal_shares() {
        for left in [cents(500), Spendable::Unknown, Spendable::Unlimited] {
            for share in shares(&picks(&MostCredit, &with(&[left; 5]), 100_000, |_| false), 5) {
                assert!((18_000..=22_000).contains(&share), "{share} of {left}");
            }
        }
    }

    #[test]
    fn when_the_proposed_refuse_the_richest_of_the_rest_is_next() {
        let endpoints = with(&[cents(900), cents(800), cents(100), cents(300), cents(200)]);
        let found = picks(&MostCredit, &endpoints, 100, |index| index < 2);
        let shares = shares(&found, 5);
        assert!(shares[3] > shares[4] && shares[2] == 0, "{shares:?}");
    }

    proptest! {
        #[test]
        fn the_poorest_of_many_is_never_proposed(lefts in prop::collection::hash_set(1i64..1_000, 2..12)) {
            let lefts: Vec<_> = lefts.into_iter().collect();
            let endpoints = with(&lefts.iter().map(|left| cents(*left)).collect::<Vec<_>>());
            let poorest = (0..lefts.len()).min_by_key(|index| lefts[*index]).unwrap();
            prop_assert_eq!(shares(&picks(&MostCredit, &endpoints, 100, |_| false), lefts.len())[poorest], 0);
        }
    }
}
