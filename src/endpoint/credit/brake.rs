//! How much an account may have in flight, learnt from its refusals: pure.
//!
//! The platform holds the estimated cost of what runs against an account's in-flight budget and refuses what does not fit;
//! neither the budget nor the estimate is published. So the cap is found as TCP finds its window, by additive increase and
//! multiplicative decrease over the cost *we* have in flight: whatever the factor between our estimate and theirs, it is in
//! both. What has ended counts with its bill for a moment longer, as it does there; were it left out, the cap would be right
//! for a steady stream only, and each change of pace be paid for with refusals. Until the first refusal there is no cap.

use std::time::Duration;

use tokio::time::Instant;

use super::Money;
use crate::clock;

/// What is left of the cost in flight after a refusal. TCP halves, since it must share fairly with strangers; here a small
/// step below what was refused is enough, and the next follows at once where it is not.
const CUT: f64 = 0.985;
/// Of each request that ends well while the cap is what holds others back, so much is added to the cap…
const STEP: f64 = 0.003;
/// …twice as much after each so many since the last cut, up to all of it, so that a budget that has grown is soon found.
const PATIENCE: f64 = 64.0;
/// The cap holds others back when this share of it is in flight.
const PRESSED: f64 = 0.8;
/// Bills count for this many slots of this length, two seconds and what is left of the first slot. The platform calls its own
/// window short, and no more; where it is another, the cap makes up for the difference.
const SLOTS: usize = 17;
const SLOT: Duration = Duration::from_millis(125);

#[derive(Debug, Clone, Default)]
pub(super) struct Brake {
    cap: Option<Money>,
    cut: Option<Instant>,
    /// One event lowers the cap no further than this: half of what it was.
    floor: Money,
    since_cut: u32,
    /// Bills of each slot, with the slot's number.
    bills: [(u64, Money); SLOTS],
}

fn slot_of(now: Instant) -> u64 {
    clock::nanos(now) / SLOT.as_nanos() as u64
}

impl Brake {
    /// The cap, once there is one.
    pub(super) fn cap(&self) -> Option<Money> {
        self.cap
    }

    /// Bills that still count as in flight.
    pub(super) fn settling(&self, now: Instant) -> Money {
        let slot = slot_of(now);
        self.bills.iter().filter(|(number, _)| number + SLOTS as u64 > slot).map(|(_, sum)| *sum).sum()
    }

    /// When the first of them no longer does.
    pub(super) fn eases_at(&self, now: Instant) -> Option<Instant> {
        let slot = slot_of(now);
        let standing = |(number, sum): &&(u64, Money)| number + SLOTS as u64 > slot && *sum > Money::ZERO;
        let first = self.bills.iter().filter(standing).map(|(number, _)| number + SLOTS as u64).min()?;
        Some(clock::instant(first.saturating_mul(SLOT.as_nanos() as u64)))
    }

    /// Something has ended with this bill.
    pub(super) fn bill(&mut self, cost: Money, now: Instant) {
        let slot = slot_of(now);
        let bill = &mut self.bills[(slot % SLOTS as u64) as usize];
        if bill.0 != slot {
            *bill = (slot, Money::ZERO);
        }
        bill.1 = bill.1 + cost;
    }

    /// Whether a request of `amount` may join what is in flight. A single one always may: only upstream can say no to it.
    pub(super) fn admits(&self, in_flight: Money, amount: Money) -> bool {
        self.cap.is_none_or(|cap| amount <= Money::ZERO || in_flight <= Money::ZERO || in_flight + amount <= cap)
    }

    /// Upstream refused a request of `amount`, which was `taken` then, when `in_flight` ran with it included.
    ///
    /// In a burst much of what is in flight will be refused itself, and only the last of these refusals sees what was let in.
    /// So those that were sent before the cut lower it further, as one event with it. With nothing else in flight there is
    /// nothing to learn.
    ///
    /// Says whether the cap is what holds back from here on. Where far less was in flight than it allows, something is held
    /// of which we do not know, bills that settle longer as like as not, and only a rest gets past that.
    pub(super) fn refused(&mut self, amount: Money, in_flight: Money, taken: Instant, now: Instant) -> bool {
        if in_flight <= amount {
            return false;
        }
        let mut pressed = true;
        let below = |level: Money| level.share(CUT).min(level - amount).max(amount);
        match self.cap {
            None => (self.cap, self.floor) = (Some(below(in_flight)), Money::ZERO),
            Some(cap) if self.cut.is_some_and(|cut| taken <= cut) => {
                self.cap = Some(cap.min(below(in_flight).max(self.floor)));
                return true;
            }
            Some(cap) => {
                pressed = in_flight >= cap.share(PRESSED);
                // so half of the way is believed
                let level = cap - (cap - in_flight).max(Money::ZERO).share(0.5);
                (self.cap, self.floor) = (Some(below(level).min(cap)), cap.share(0.5));
            }
        }
        (self.cut, self.since_cut) = (Some(now), 0);
        pressed
    }

    /// A request of `amount` ended well, when `in_flight` ran with it included.
    pub(super) fn served(&mut self, amount: Money, in_flight: Money) {
        let Some(cap) = &mut self.cap else { return };
        if in_flight >= cap.share(PRESSED) {
            let haste = libm::exp2(f64::from(self.since_cut) / PATIENCE);
            self.since_cut = self.since_cut.saturating_add(1);
            *cap = *cap + amount.share((STEP * haste).min(1.0));
        }
    }

    /// Takes over what another, which turned out to be for the same account, has learnt.
    pub(super) fn absorb(&mut self, other: &Self) {
        for (slot, sum) in other.bills {
            if let Some((_, own)) = self.bills.iter_mut().find(|(number, _)| *number == slot) {
                *own = *own + sum;
            }
        }
        if other.cap.is_some() && self.cap.is_none_or(|cap| other.cap < Some(cap)) {
            (self.cap, self.cut, self.floor) = (other.cap, other.cut, other.floor);
            self.since_cut = other.since_cut;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn usd(cents: i64) -> Money {
        Money::from_nanos(cents * 10_000_000)
    }

    #[test]
    fn there_is_no_cap_before_the_first_refusal_and_always_room_for_one() {
        let now = Instant::now();
        let mut brake = Brake::default();
        assert!(brake.admits(Money::MAX, usd(1)));
        brake.refused(usd(1), usd(100), now, now);
        assert_eq!(brake.cap(), Some(usd(100).share(CUT)));
        for (in_flight, amount, admitted) in
            [(90, 8, true), (90, 9, false), (0, 500, true), (99, 0, true), (200, 0, true)]
        {
            assert_eq!(brake.admits(usd(in_flight), usd(amount)), admitted, "{amount} beside {in_flight}");
        }
    }

    #[test]
    fn a_burst_is_one_event_and_what_it_leaves_in_flight_is_the_measure() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut brake = Brake::default();
        // two hundred were sent at once, and half of them are refused
        for refused in 0..=100 {
            brake.refused(usd(1), usd(200 - refused), now, now + second);
        }
        let cap = Some(usd(100).share(CUT));
        assert_eq!(brake.cap(), cap);
        brake.refused(usd(1), usd(120), now, now + second);
        assert_eq!(brake.cap(), cap, "a straggler does not cut twice");
        brake.refused(usd(1), usd(1), now + 2 * second, now + 3 * second);
        assert_eq!(brake.cap(), cap, "with nothing in flight there is nothing to learn");
        assert!(brake.refused(usd(1), usd(90), now + 2 * second, now + 3 * second));
        // half of the way from the cap to what was in flight, and a step below
        assert_eq!(brake.cap(), Some((usd(90) + usd(100).share(CUT)).share(0.5).share(CUT)));
        assert!(!brake.refused(usd(1), usd(10), now + 4 * second, now + 4 * second), "it is not we who fill it");
    }

    #[test]
    fn the_cap_grows_only_while_it_is_what_holds_back() {
        let now = Instant::now();
        let mut brake = Brake::default();
        brake.refused(usd(1), usd(100), now, now);
        let cap = brake.cap();
        brake.served(usd(1), usd(50));
        assert_eq!(brake.cap(), cap);
        brake.served(usd(1), usd(90));
        assert!(brake.cap() > cap);
    }

    #[test]
    fn a_bill_counts_for_two_seconds_and_a_slot_at_most() {
        let (now, mut brake) = (Instant::now(), Brake::default());
        brake.bill(usd(5), now);
        brake.bill(usd(7), now + 4 * SLOT);
        for (slots, settling) in [(0, 12), (16, 12), (17, 7), (20, 7), (21, 0)] {
            assert_eq!(brake.settling(now + slots * SLOT), usd(settling), "after {slots}");
        }
        let eases = brake.eases_at(now).unwrap();
        assert!((16 * SLOT..=17 * SLOT).contains(&(eases - now)), "{:?}", eases - now);
        assert_eq!((brake.settling(eases), brake.eases_at(now + 40 * SLOT)), (usd(7), None));
        brake.bill(usd(1), now + 17 * SLOT);
        assert_eq!(brake.settling(now + 17 * SLOT), usd(8), "an old slot is used anew");
    }

    /// A pool of requests of one cent, always as many as the brake admits, against a budget. Returns the share of attempts
    /// that were refused and the mean share of the budget in use.
    fn run(brake: &mut Brake, now: &mut Instant, budget: i64, served: usize) -> (f64, f64) {
        let (mut running, mut refusals, mut used) = (0, 0, 0);
        for _ in 0..served {
            *now += Duration::from_millis(1);
            while brake.admits(usd(running), usd(1)) {
                if running == budget {
                    refusals += 1;
                    brake.refused(usd(1), usd(running + 1), *now, *now);
                    *now += Duration::from_millis(1);
                } else {
                    running += 1;
                }
            }
            used += running;
            brake.served(usd(1), usd(running));
            running -= 1;
        }
        (f64::from(refusals) / served as f64, used as f64 / (served as f64 * budget as f64))
    }

    #[test]
    fn it_settles_just_below_budgets_of_any_size() {
        for budget in [20, 50, 200, 1_000] {
            let (mut brake, mut now) = (Brake::default(), Instant::now());
            run(&mut brake, &mut now, budget, 2_000);
            let (refused, used) = run(&mut brake, &mut now, budget, 10_000);
            assert!(refused < 0.01, "of {budget}: {refused} refused");
            assert!(used > 0.95, "of {budget}: {used} used");
            let (_, used) = run(&mut brake, &mut now, 2 * budget, 20_000);
            assert!(used > 0.85, "{budget} doubled: {used} used");
        }
    }

    proptest! {
        #[test]
        fn no_history_makes_a_cap_that_stops_all_or_overflows(
            steps in prop::collection::vec((any::<bool>(), 0i64..i64::MAX, 0i64..i64::MAX), 0..100),
        ) {
            let mut brake = Brake::default();
            let mut now = Instant::now();
            for (refused, amount, in_flight) in steps {
                now += Duration::from_millis(1);
                let (amount, in_flight) = (Money::from_nanos(amount), Money::from_nanos(in_flight));
                let before = brake.cap();
                if refused {
                    brake.refused(amount.min(in_flight), in_flight, now, now);
                    prop_assert!(before.is_none_or(|before| brake.cap() <= Some(before)));
                } else {
                    brake.served(amount, in_flight);
                    prop_assert!(brake.cap() >= before);
                }
                prop_assert!(brake.admits(Money::ZERO, amount));
            }
        }
    }
}
