//! Spending per UTC day, week and month, as caps count it, and as `/key` reports it somewhat later.

use super::clock::Wall;
use super::scenario::Reset;
use super::stale::Delayed;

/// Sums of binary fractions miss the decimal sum they stand for by less than this, USD.
pub(super) const DUST: f64 = 1e-9;

/// USD spent, as it is and as it is shown.
#[derive(Clone, Debug)]
pub(super) struct Spend {
    shown: Delayed<Sums>,
    lag_ms: f64,
}

impl Spend {
    /// Spending from before the simulation, counted into the current periods. What is added is shown after `lag_ms`.
    pub(super) fn starting_with(amount: f64, now: Wall, lag_ms: f64) -> Self {
        let mut sums = Sums::default();
        sums.add(amount, now);
        Self { shown: Delayed::new(sums), lag_ms }
    }

    pub(super) fn add(&mut self, amount: f64, now: Wall) {
        let mut sums = self.shown.latest();
        sums.add(amount, now);
        self.shown.set(sums, now, self.lag_ms);
    }

    /// What was spent since the last reset.
    pub(super) fn since(&self, reset: Reset, now: Wall) -> f64 {
        self.shown.latest().since(reset, now)
    }

    /// The same as counters show it: as it was when they were last brought up to date.
    pub(super) fn shown_since(&self, reset: Reset, now: Wall) -> f64 {
        self.shown.seen(now).since(reset, now.later(-self.lag_ms))
    }
}

/// Sums of the current periods.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    total: f64,
    day: (i64, f64),
    week: (i64, f64),
    month: (i64, f64),
}

impl Sums {
    fn add(&mut self, amount: f64, now: Wall) {
        self.total += amount;
        roll(&mut self.day, now.day(), amount);
        roll(&mut self.week, now.week(), amount);
        roll(&mut self.month, now.month(), amount);
    }

    fn since(&self, reset: Reset, now: Wall) -> f64 {
        match reset {
            Reset::None => self.total,
            Reset::Daily => current(self.day, now.day()),
            Reset::Weekly => current(self.week, now.week()),
            Reset::Monthly => current(self.month, now.month()),
        }
    }
}

fn roll(slot: &mut (i64, f64), period: i64, amount: f64) {
    if slot.0 != period {
        *slot = (period, 0.0);
    }
    slot.1 += amount;
}

fn current(slot: (i64, f64), period: i64) -> f64 {
    if slot.0 == period { slot.1 } else { 0.0 }
}

impl Reset {
    /// When it happens next; never for a total.
    pub(super) fn next(self, now: Wall) -> Option<Wall> {
        match self {
            Self::None => None,
            Self::Daily => Some(now.next_day()),
            Self::Weekly => Some(now.next_week()),
            Self::Monthly => Some(now.next_month()),
        }
    }

    /// As the API spells it.
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Daily => Some("daily"),
            Self::Weekly => Some("weekly"),
            Self::Monthly => Some("monthly"),
        }
    }
}
