//! How much an account may have in flight, learnt from its refusals: pure.
//!
//! The platform holds the estimated cost of what runs against an account's in-flight budget and refuses what does not fit;
//! neither the budget nor the estimate is published. So the cap is found as TCP finds its window, by additive increase and
//! multiplicative decrease over the cost *we* have in flight: whatever the factor between our estimate and theirs, it is in
//! both. Until the first refusal there is no cap.

use tokio::time::Instant;

use super::Money;

/// What is left of the cost in flight after a refusal. TCP halves, since it must share fairly with strangers; here a small
/// step below what was refused is enough.
const CUT: f64 = 0.95;
/// Of each request that ends well while the cap is what holds others back, so much is added to the cap…
const STEP: f64 = 0.005;
/// …growing with the square of how often that happened since the last cut, so that a budget that has grown is soon found:
/// doubled, tripled, after this many.
const PATIENCE: f64 = 400.0;
/// The cap holds others back when this share of it is in flight.
const PRESSED: f64 = 0.8;

#[derive(Debug, Clone, Default)]
pub(super) struct Brake {
    cap: Option<Money>,
    cut: Option<Instant>,
    since_cut: u32,
}

impl Brake {
    /// The cap, once there is one.
    pub(super) fn cap(&self) -> Option<Money> {
        self.cap
    }

    /// Whether a request of `amount` may join what is in flight. A single one always may: only upstream can say no to it.
    pub(super) fn admits(&self, in_flight: Money, amount: Money) -> bool {
        self.cap.is_none_or(|cap| amount <= Money::ZERO || in_flight <= Money::ZERO || in_flight + amount <= cap)
    }

    /// Upstream refused a request that was `taken` while `in_flight` ran besides it. What was sent before the last cut
    /// belongs to the same event.
    pub(super) fn refused(&mut self, in_flight: Money, taken: Instant, now: Instant) {
        if self.cut.is_some_and(|cut| taken <= cut) {
            return;
        }
        let least = self.cap.map_or(in_flight, |cap| cap.min(in_flight));
        (self.cap, self.cut, self.since_cut) = (Some(least.share(CUT)), Some(now), 0);
    }

    /// A request of `amount` ended well, when `in_flight` ran with it included.
    pub(super) fn served(&mut self, amount: Money, in_flight: Money) {
        let Some(cap) = &mut self.cap else { return };
        if in_flight >= cap.share(PRESSED) {
            let haste = 1.0 + f64::from(self.since_cut) / PATIENCE;
            self.since_cut = self.since_cut.saturating_add(1);
            *cap = *cap + amount.share((STEP * haste * haste).min(1.0));
        }
    }

    /// Takes over what another, which turned out to be for the same account, has learnt.
    pub(super) fn absorb(&mut self, other: &Self) {
        if other.cap.is_some() && self.cap.is_none_or(|cap| other.cap < Some(cap)) {
            *self = other.clone();
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
        brake.refused(usd(100), now, now);
        assert_eq!(brake.cap(), Some(usd(95)));
        for (in_flight, amount, admitted) in
            [(90, 5, true), (90, 6, false), (0, 500, true), (95, 0, true), (200, 0, true)]
        {
            assert_eq!(brake.admits(usd(in_flight), usd(amount)), admitted, "{amount} beside {in_flight}");
        }
    }

    #[test]
    fn refusals_of_what_was_sent_together_cut_once() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut brake = Brake::default();
        for _ in 0..50 {
            brake.refused(usd(100), now, now + second);
        }
        assert_eq!(brake.cap(), Some(usd(95)));
        brake.refused(usd(90), now + 2 * second, now + 3 * second);
        assert_eq!(brake.cap(), Some(usd(90).share(CUT)));
    }

    #[test]
    fn the_cap_grows_only_while_it_is_what_holds_back() {
        let now = Instant::now();
        let mut brake = Brake::default();
        brake.refused(usd(100), now, now);
        brake.served(usd(1), usd(50));
        assert_eq!(brake.cap(), Some(usd(95)));
        brake.served(usd(1), usd(90));
        assert!(brake.cap() > Some(usd(95)));
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
                    brake.refused(usd(running), *now, *now);
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
                    brake.refused(in_flight, now, now);
                    prop_assert!(brake.cap() <= Some(in_flight) && before.is_none_or(|before| brake.cap() <= Some(before)));
                } else {
                    brake.served(amount, in_flight);
                    prop_assert!(brake.cap() >= before);
                }
                prop_assert!(brake.admits(Money::ZERO, amount));
            }
        }
    }
}
