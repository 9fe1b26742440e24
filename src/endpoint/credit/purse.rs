//! What is left in one place, and what is spoken for: pure, with the time as an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::{Money, Spendable};
use crate::clock;

/// Counters of `GET /key` lag by minutes at times, so what was spent in the last one or two may be missing from a poll.
const LAG: Duration = Duration::from_secs(60);
/// How long we hold it against a place without a known amount that it refused a request as too dear.
const GRUDGE: Duration = Duration::from_secs(10 * 60);
const NANO: Money = Money::from_nanos(1);

/// The money of a key, a workspace or an account, as far as it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Purse {
    left: Spendable,
    reserved: Money,
    /// What we spent in this window of [`LAG`] and in the one before, by the windows' numbers.
    recent: [(u64, Money); 2],
    /// When what is left changes by itself, and to what: the budget's next period, or the end of a guess.
    turn: Option<(Instant, Spendable)>,
    /// Whether the amount is what we made of a refusal, rather than what a poll said.
    guessed: bool,
    refused: Option<Instant>,
}

/// Whether there is enough for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fits {
    /// There is.
    Yes,
    /// There would be, were it not reserved for others.
    Held,
    /// There is not, until this instant if it is known.
    Short(Option<Instant>),
}

impl Fits {
    /// What two purses that both must pay come to: the worse of the two, and the later instant.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Short(one), Self::Short(other)) => Self::Short(one.zip(other).map(|(one, other)| one.max(other))),
            (short @ Self::Short(_), _) | (_, short @ Self::Short(_)) => short,
            (Self::Held, _) | (_, Self::Held) => Self::Held,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }
}

impl Purse {
    /// What may still be spent, less what is reserved.
    pub(super) fn spendable(&self) -> Spendable {
        match self.left {
            Spendable::Money(left) => Spendable::Money(left - self.reserved),
            other => other,
        }
    }

    /// What is left, reserved or not.
    pub(super) fn left(&self) -> Spendable {
        self.left
    }

    /// What is reserved for requests that run.
    pub(super) fn reserved(&self) -> Money {
        self.reserved
    }

    /// When what is left changes by itself.
    pub(super) fn turns_at(&self) -> Option<Instant> {
        self.turn.map(|(at, _)| at)
    }

    /// Goes into the next period if its time has come.
    pub(super) fn roll(&mut self, now: Instant) {
        if let Some((at, left)) = self.turn
            && now >= at
        {
            (self.left, self.turn, self.guessed) = (left, None, false);
        }
    }

    pub(super) fn fits(&self, amount: Money) -> Fits {
        match self.left {
            Spendable::Money(left) if left - self.reserved >= amount => Fits::Yes,
            Spendable::Money(left) if left >= amount => Fits::Held,
            Spendable::Money(_) => Fits::Short(self.turns_at()),
            Spendable::Unknown | Spendable::Unlimited => Fits::Yes,
        }
    }

    pub(super) fn take(&mut self, amount: Money) {
        self.reserved = self.reserved + amount;
    }

    /// Ends a reservation; the request cost this much.
    pub(super) fn settle(&mut self, amount: Money, cost: Money, now: Instant) {
        self.reserved = self.reserved - amount;
        if cost > Money::ZERO {
            if let Spendable::Money(left) = &mut self.left {
                *left = *left - cost;
            }
            let window = window_of(now);
            if self.recent[0].0 != window {
                self.recent = [(window, Money::ZERO), self.recent[0]];
            }
            self.recent[0].1 = self.recent[0].1 + cost;
        }
    }

    /// A poll that was sent at `at` says what is left, and when that changes by itself.
    ///
    /// What it says is as of some moment of the last minutes. So our own account stands while it lies between that amount
    /// and that amount less all we spent since; outside, somebody else spent, or paid in, and the nearer end holds. A poll
    /// older than a refusal says nothing, and one that does not know leaves what was known.
    pub(super) fn report(&mut self, left: Spendable, turn: Option<(Instant, Spendable)>, at: Instant) {
        if left == Spendable::Unknown || self.refused.is_some_and(|refused| refused >= at) {
            return;
        }
        self.left = match (self.left, left) {
            (Spendable::Money(own), Spendable::Money(said)) if !self.guessed => {
                Spendable::Money(own.clamp(said - self.spent_lately(at), said))
            }
            (_, left) => left,
        };
        (self.turn, self.guessed) = (turn, false);
    }

    /// A request with a worst case of `amount`, no longer reserved, was refused as too dear.
    pub(super) fn too_dear(&mut self, amount: Money, now: Instant) {
        self.at_most(self.reserved + amount - NANO, clock::after(now, GRUDGE), now);
    }

    /// A request was refused because nothing is left, until `until` as far as we know.
    pub(super) fn spent_out(&mut self, until: Instant, now: Instant) {
        self.at_most(Money::ZERO, until, now);
    }

    fn at_most(&mut self, most: Money, until: Instant, now: Instant) {
        self.refused = Some(now);
        match self.left {
            Spendable::Money(left) if left <= most => return,
            Spendable::Money(_) => {
                self.turn.get_or_insert((until, Spendable::Unknown));
            }
            before => (self.turn, self.guessed) = (Some((until, before)), true),
        }
        self.left = Spendable::Money(most);
    }

    /// Adds what another purse, which turned out to be the same, knows and holds.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.reserved = self.reserved + other.reserved;
        if self.left == Spendable::Unknown {
            (self.left, self.turn, self.guessed, self.refused) = (other.left, other.turn, other.guessed, other.refused);
        }
        for (number, spent) in other.recent {
            if let Some((_, sum)) = self.recent.iter_mut().find(|(own, _)| *own == number) {
                *sum = *sum + spent;
            }
        }
    }

    fn spent_lately(&self, at: Instant) -> Money {
        let window = window_of(at);
        self.recent.iter().filter(|(number, _)| number + 1 >= window).map(|(_, spent)| *spent).sum()
    }
}

fn window_of(at: Instant) -> u64 {
    clock::nanos(at) / LAG.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usd(cents: i64) -> Money {
        Money::from_nanos(cents * 10_000_000)
    }

    fn purse(cents: i64, now: Instant) -> Purse {
        let mut purse = Purse::default();
        purse.report(Spendable::Money(usd(cents)), None, now);
        purse
    }

    #[test]
    fn what_is_reserved_cannot_be_reserved_again() {
        let now = Instant::now();
        let mut purse = purse(100, now);
        purse.take(usd(60));
        for (cents, fits) in [(40, Fits::Yes), (41, Fits::Held), (100, Fits::Held), (101, Fits::Short(None))] {
            assert_eq!(purse.fits(usd(cents)), fits, "{cents} cents");
        }
        purse.settle(usd(60), usd(20), now);
        assert_eq!(purse.spendable(), Spendable::Money(usd(80)));
    }

    #[test]
    fn unknown_and_unlimited_hold_nothing_back_but_remember_what_runs() {
        let now = Instant::now();
        let mut purse = Purse::default();
        assert_eq!(purse.fits(Money::MAX), Fits::Yes);
        purse.take(usd(60));
        purse.report(Spendable::Money(usd(100)), None, now);
        assert_eq!(purse.spendable(), Spendable::Money(usd(40)));
        purse.report(Spendable::Unlimited, None, now);
        assert_eq!(purse.fits(Money::MAX), Fits::Yes);
    }

    #[test]
    fn a_poll_moves_our_account_only_as_far_as_it_must() {
        let minute = Duration::from_secs(60);
        for (name, polled, after, left) in [
            ("as stale as can be", 100, minute, 70),
            ("up to date", 70, minute, 70),
            ("somebody else spent too", 50, minute, 50),
            ("somebody paid in", 500, minute, 470),
            ("long after", 100, 5 * minute, 100),
        ] {
            let now = Instant::now() + Duration::from_secs(3600);
            let mut purse = purse(100, now);
            purse.take(usd(40));
            purse.settle(usd(40), usd(30), now);
            purse.report(Spendable::Money(usd(polled)), None, now + after);
            assert_eq!(purse.left(), Spendable::Money(usd(left)), "{name}");
        }
    }

    #[test]
    fn r088_a_refusal_beats_an_older_poll_and_a_newer_poll_beats_the_refusal() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut purse = purse(100, now);
        purse.too_dear(usd(30), now + second);
        assert!(matches!(purse.fits(usd(30)), Fits::Short(_)));
        assert_eq!(purse.fits(usd(29)), Fits::Yes, "what is cheaper may still go");
        purse.report(Spendable::Money(usd(100)), None, now);
        assert!(matches!(purse.fits(usd(30)), Fits::Short(_)));
        purse.report(Spendable::Unlimited, None, now + 2 * second);
        assert_eq!(purse.fits(usd(30)), Fits::Yes);
    }

    #[test]
    fn a_refusal_where_nothing_was_known_is_forgotten_in_time() {
        let now = Instant::now();
        for before in [Spendable::Unknown, Spendable::Unlimited] {
            let mut purse = Purse { left: before, ..Purse::default() };
            purse.too_dear(usd(30), now);
            assert_eq!(purse.fits(usd(30)), Fits::Short(Some(now + GRUDGE)));
            purse.roll(now + GRUDGE);
            assert_eq!(purse.left(), before);
        }
    }

    #[test]
    fn a_new_period_fills_the_purse() {
        let now = Instant::now();
        let reset = now + Duration::from_secs(100);
        let mut purse = Purse::default();
        purse.report(Spendable::Money(usd(10)), Some((reset, Spendable::Money(usd(100)))), now);
        assert_eq!(purse.fits(usd(50)), Fits::Short(Some(reset)));
        purse.roll(reset);
        assert_eq!(purse.fits(usd(50)), Fits::Yes);
    }

    proptest! {
        #[test]
        fn no_run_of_requests_that_fit_spends_more_than_there_is(
            steps in prop::collection::vec((0i64..50, 0i64..50, any::<bool>()), 1..200),
        ) {
            let now = Instant::now();
            let mut purse = purse(300, now);
            let (mut running, mut spent) = (Vec::new(), 0);
            for (amount, cost, start) in steps {
                if start && purse.fits(usd(amount)) == Fits::Yes {
                    purse.take(usd(amount));
                    running.push((amount, cost.min(amount)));
                } else if let Some((amount, cost)) = running.pop() {
                    purse.settle(usd(amount), usd(cost), now);
                    spent += cost;
                }
                let worst: i64 = running.iter().map(|(amount, _)| amount).sum();
                prop_assert!(spent + worst <= 300);
                prop_assert_eq!(purse.spendable(), Spendable::Money(usd(300 - spent - worst)));
            }
        }
    }
}
