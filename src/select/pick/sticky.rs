use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fastrand::Rng;

use super::{Candidates, Pick, Prepared, Rank};
use crate::endpoint::{Endpoint, Money, Spendable};

/// How many keys one proposal looks at on its way to the next; the proposal after it goes on from there.
const STEPS: usize = 8;

/// Stays on one key until less than a floor may be spent with it, then goes on to the next in the pool's order; back to an
/// earlier one when that has been refilled.
///
/// For those who want one key used up before the next is begun, or one account's prompt caches kept warm. A key counts as
/// refilled when it has [`back`](Self::back) again, twice the floor unless set otherwise, so that requests which settle for
/// less than was set aside for them do not make it swing to and fro. A key that is unlimited, or of which nothing is known,
/// is never left for its credit; one that is out for another reason, such as a rest, is, until it comes back. With every
/// key under its floor it stays where it is: whether the rest may be spent, a filter decides.
///
/// ```
/// use tower_openrouter::{endpoint::Money, select::Sticky};
/// let pick = Sticky::new(Money::from_usd(1.0));
/// # let _ = pick;
/// ```
///
/// Back only once a key has ten dollars again:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, endpoint::Money, select::{CreditLimit, Pool, Sticky}};
/// let pool = Pool::new([ApiKey::new("key-a")?, ApiKey::new("key-b")?])?;
/// let pick = Sticky::new(Money::from_usd(1.0)).back(Money::from_usd(10.0));
/// let balancer = Balancer::builder(pool).pick(pick).filter(CreditLimit::new());
/// # let _ = balancer;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Debug)]
pub struct Sticky {
    floor: Money,
    back: Money,
    /// The key it is on, by the number of its id, and where in the order that was; 0 before the first.
    current: AtomicU64,
    place: AtomicUsize,
    /// Which of the earlier keys to look at next.
    glance: AtomicUsize,
}

impl Sticky {
    /// Leaves a key when less than `floor` may be spent with it.
    pub fn new(floor: Money) -> Self {
        Self {
            floor,
            back: floor + floor,
            current: AtomicU64::new(0),
            place: AtomicUsize::new(0),
            glance: AtomicUsize::new(0),
        }
    }

    /// Sets how much an earlier key must have again before it is used again; default twice the floor, and never less than
    /// the floor.
    #[must_use]
    pub fn back(mut self, back: Money) -> Self {
        self.back = back.max(self.floor);
        self
    }

    fn has(&self, candidates: &Candidates<'_>, index: usize, least: Money) -> bool {
        match candidates.endpoints[index].credit().spendable(candidates.now) {
            Spendable::Money(left) => {
                candidates.note("spendable_usd", index, left.nanos() as f64 / 1e9);
                left >= least
            }
            Spendable::Unknown | Spendable::Unlimited => true,
        }
    }

    /// Where the current key is now. One that is gone is followed by whoever took its place.
    fn here(&self, candidates: &Candidates<'_>) -> usize {
        let place = self.place.load(Ordering::Relaxed);
        let current = self.current.load(Ordering::Relaxed);
        let endpoints = candidates.endpoints;
        let is_current = |endpoint: &Endpoint| endpoint.id().get() == current;
        if endpoints.get(place).is_some_and(is_current) || current == 0 {
            return place.min(endpoints.len() - 1);
        }
        // once for each change of the snapshot, since the one found is current from then on
        let found = endpoints.iter().position(is_current).unwrap_or(place % endpoints.len());
        self.move_to(candidates, found);
        found
    }

    fn move_to(&self, candidates: &Candidates<'_>, index: usize) {
        self.place.store(index, Ordering::Relaxed);
        self.current.store(candidates.endpoints[index].id().get(), Ordering::Relaxed);
    }
}

impl Pick for Sticky {
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, _rng: &mut Rng) -> usize {
        let count = candidates.endpoints.len();
        let here = self.here(candidates);
        if turn > 0 {
            return (here + turn) % count;
        }
        if here > 0 {
            // one of the earlier ones each time, so that it takes no longer with many
            let earlier = self.glance.fetch_add(1, Ordering::Relaxed) % here;
            if self.has(candidates, earlier, self.back) {
                self.move_to(candidates, earlier);
                return earlier;
            }
        }
        if self.has(candidates, here, self.floor) {
            return here;
        }
        for step in 1..=STEPS.min(count - 1) {
            let next = (here + step) % count;
            if self.has(candidates, next, self.floor) {
                self.move_to(candidates, next);
                return next;
            }
        }
        if count > STEPS {
            self.move_to(candidates, (here + STEPS) % count);
        }
        here
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        for endpoint in endpoints {
            endpoint.credit();
        }
        None
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, _rng: &mut Rng) -> Option<Rank> {
        let count = candidates.endpoints.len();
        let after = (index + count - self.here(candidates)) % count;
        let tier = u32::from(!self.has(candidates, index, self.floor));
        Some(Rank { tier, order: after as f64 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        endpoint::KeyReport,
        select::pick::support::{endpoints, picks},
    };

    fn set(endpoint: &Endpoint, cents: i64) {
        let left = Spendable::Money(Money::from_nanos(cents * 10_000_000));
        endpoint.credit().report_key(KeyReport { left, ..KeyReport::default() }, Instant::now());
    }

    fn pick(sticky: &Sticky, endpoints: &[Endpoint]) -> usize {
        // the earlier ones are looked at one at a time
        picks(sticky, endpoints, 12, |_| false)[11]
    }

    #[test]
    fn it_stays_until_the_floor_and_returns_when_refilled() {
        let endpoints = endpoints(3, |_, key| key);
        let sticky = Sticky::new(Money::from_usd(1.0));
        endpoints.iter().for_each(|endpoint| set(endpoint, 500));
        for (name, index, cents, expected) in [
            ("at first", 0, 500, 0),
            ("on the floor", 0, 100, 0),
            ("below it", 0, 99, 1),
            ("a little more is no refill", 0, 150, 1),
            ("the second below it, too", 1, 50, 2),
            ("the second is refilled", 1, 500, 1),
            ("the first is refilled", 0, 200, 0),
        ] {
            set(&endpoints[index], cents);
            assert_eq!(pick(&sticky, &endpoints), expected, "{name}");
        }
    }

    #[test]
    fn what_is_unknown_is_stayed_on_and_with_all_below_it_stays() {
        let endpoints = endpoints(3, |_, key| key);
        let sticky = Sticky::new(Money::from_usd(1.0));
        assert_eq!(pick(&sticky, &endpoints), 0);
        endpoints.iter().for_each(|endpoint| set(endpoint, 50));
        assert_eq!(pick(&sticky, &endpoints), 0);
    }

    #[test]
    fn when_the_key_refuses_the_next_in_order_is_asked() {
        let endpoints = endpoints(5, |_, key| key);
        endpoints.iter().for_each(|endpoint| set(endpoint, 500));
        let sticky = Sticky::new(Money::from_usd(1.0));
        assert_eq!(picks(&sticky, &endpoints, 10, |index| index == 0), [1; 10]);
        assert_eq!(picks(&sticky, &endpoints, 10, |index| index < 4), [4; 10], "beyond the proposals too");
    }

    #[test]
    fn it_keeps_its_key_when_others_leave_and_goes_on_when_its_own_does() {
        let all = endpoints(4, |_, key| key);
        all.iter().for_each(|endpoint| set(endpoint, 500));
        set(&all[0], 10);
        set(&all[1], 10);
        let sticky = Sticky::new(Money::from_usd(1.0));
        assert_eq!(pick(&sticky, &all), 2);
        assert_eq!(pick(&sticky, &all[1..]), 1, "the same key, which is the second now");
        let without = [all[0].clone(), all[1].clone(), all[3].clone()];
        assert_eq!(pick(&sticky, &without), 2);
    }

    proptest! {
        #[test]
        fn it_ends_on_a_key_above_the_floor_if_there_is_one(cents in prop::collection::vec(0i64..300, 1..40)) {
            let endpoints = endpoints(cents.len(), |_, key| key);
            for (endpoint, cents) in endpoints.iter().zip(&cents) {
                set(endpoint, *cents);
            }
            let sticky = Sticky::new(Money::from_usd(1.0));
            let found = *picks(&sticky, &endpoints, 100, |_| false).last().unwrap();
            prop_assert!(cents[found] >= 100 || cents.iter().all(|cents| *cents < 100));
            // an earlier one only ever waits for its refill
            prop_assert!(cents[..found].iter().all(|cents| *cents < 200));
        }
    }
}
