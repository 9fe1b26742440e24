//! The generic cell rate algorithm: one instant instead of a bucket that somebody must fill.

use std::time::Duration;

use tokio::time::Instant;

use super::policy::PaceError;
use crate::clock;

/// From here on a millisecond is more than half a hundredth of a slot.
const COARSE: f64 = 5.0;

/// So many per second on average, and so many at once.
///
/// Any interval of `t` seconds admits at most `per second × t + burst`. By default the burst is 1, which is evenly spaced:
/// so the rate is kept in every window, whenever the windows of whoever counts begin. From 5 per second on it is 2, and one
/// more for each 1,000: timers are exact to a millisecond, and of single slots that would lose some.
///
/// ```
/// use tower_openrouter::pace::Rate;
///
/// // one every three seconds
/// let even = Rate::per_minute(20.0)?;
/// // the same on average; after a minute of nothing, ten at once
/// let bursty = Rate::per_minute(20.0)?.burst(10)?;
/// # let _ = (even, bursty);
/// # Ok::<(), tower_openrouter::pace::PaceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: u32,
}

impl Rate {
    /// So many per second, fractions too, evenly spaced.
    ///
    /// # Errors
    /// When it is not from one in a day to a billion per second.
    pub fn per_second(rate: f64) -> Result<Self, PaceError> {
        if !(1.0 / 86_400.0..=1e9).contains(&rate) {
            return Err(PaceError::Rate);
        }
        let burst = if rate < COARSE { 1 } else { 2 + (rate / 1_000.0) as u32 };
        Ok(Self { per_second: rate, burst })
    }

    /// So many per minute, fractions too, evenly spaced.
    ///
    /// # Errors
    /// When it is not from one in a day to a billion per second.
    pub fn per_minute(rate: f64) -> Result<Self, PaceError> {
        Self::per_second(rate / 60.0)
    }

    /// Sets how many may come at once, when there was a pause; default 1, or a few where the rate is high.
    ///
    /// # Errors
    /// When it is 0.
    pub fn burst(mut self, burst: u32) -> Result<Self, PaceError> {
        if burst == 0 {
            return Err(PaceError::Burst);
        }
        self.burst = burst;
        Ok(self)
    }

    /// The time that `amount` takes; rounded up, so that no drift ever admits more.
    fn time(&self, amount: u64) -> Duration {
        let time = Duration::try_from_secs_f64(amount as f64 / self.per_second).unwrap_or(clock::FOREVER);
        time.min(clock::FOREVER) + Duration::from_nanos(u64::from(amount > 0))
    }
}

/// A rate as it is used up.
#[derive(Debug, Clone)]
pub(crate) struct Gcra {
    rate: Rate,
    /// When all that was taken has been paid for.
    paid: Instant,
}

impl Gcra {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, paid: now }
    }

    /// From when on `amount` may be taken. More than the burst may be taken at once, when nothing is owed.
    pub(crate) fn next(&self, amount: u64) -> Instant {
        let ahead = u64::from(self.rate.burst).saturating_sub(amount);
        self.paid.checked_sub(self.rate.time(ahead)).unwrap_or(self.paid)
    }

    /// When the last of so many could start, each a request of its own, if all came now.
    pub(crate) fn start(&self, requests: u64) -> Instant {
        clock::after(self.next(1), self.rate.time(requests.saturating_sub(1)))
    }

    /// Takes `amount`, be it there or not.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) {
        self.paid = clock::after(self.paid.max(now), self.rate.time(amount)).min(clock::after(now, clock::FOREVER));
    }

    /// Gives back what was not used. What time has paid for meanwhile is not paid out.
    pub(crate) fn give_back(&mut self, amount: u64) {
        self.paid = self.paid.checked_sub(self.rate.time(amount)).unwrap_or(self.paid);
    }

    /// Another rate from now on; what is owed stays owed.
    pub(crate) fn set(&mut self, rate: Rate, now: Instant) {
        let owed = self.paid.saturating_duration_since(now).as_secs_f64() * self.rate.per_second;
        self.rate = rate;
        self.paid = clock::after(now, rate.time(owed.ceil() as u64));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: f64, burst: u32) -> Rate {
        Rate::per_second(per_second).unwrap().burst(burst).unwrap()
    }

    #[test]
    fn r117_r118_rates_that_make_no_sense_are_refused_and_extreme_ones_clamped() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10, 1e-6] {
            assert_eq!(Rate::per_second(bad), Err(PaceError::Rate), "{bad}");
        }
        assert_eq!(Rate::per_second(1.0).unwrap().burst(0), Err(PaceError::Burst));
        let now = Instant::now();
        let mut slow = Gcra::new(rate(1.0 / 86_400.0, u32::MAX), now);
        slow.take(u64::MAX, now);
        slow.take(u64::MAX, now);
        assert!(slow.next(u64::MAX) > now);
        slow.give_back(u64::MAX);
    }

    #[test]
    fn r043_ten_minutes_of_demand_are_served_at_the_rate() {
        for per_second in [0.1, 1.0 / 3.0, 1.7, 20.0, 333.3, 7_777.7] {
            let start = Instant::now();
            let (mut gcra, mut now, mut served) = (Gcra::new(rate(per_second, 1), start), start, 0);
            let end = start + Duration::from_secs(600);
            while now < end {
                gcra.take(1, now);
                served += 1;
                now = gcra.next(1);
            }
            let measured = f64::from(served - 1) / 600.0;
            assert!(
                measured <= per_second && f64::from(served) / 600.0 >= 0.99 * per_second,
                "{per_second}: {measured}"
            );
        }
    }

    #[test]
    fn what_is_given_back_can_be_used_and_no_more() {
        let now = Instant::now();
        let mut gcra = Gcra::new(rate(10.0, 100), now);
        gcra.take(100, now);
        assert!(gcra.next(50) > now);
        gcra.give_back(60);
        assert!(gcra.next(50) <= now && gcra.next(70) > now);
        // long after, nothing is left of what was given back
        let later = now + Duration::from_secs(60);
        gcra.give_back(40);
        gcra.take(100, later);
        assert!(gcra.next(1) > later);
    }

    proptest! {
        #[test]
        fn r042_no_interval_admits_more_than_rate_and_burst(
            per_second in 0.1..500.0f64, burst in 1u32..50, asks in prop::collection::vec(0u64..2_000, 1..400),
        ) {
            let start = Instant::now();
            let (mut gcra, mut now, mut admitted) = (Gcra::new(rate(per_second, burst), start), start, Vec::new());
            for wait in asks {
                now += Duration::from_millis(wait % 97);
                if gcra.next(1) <= now {
                    gcra.take(1, now);
                    admitted.push(now);
                }
            }
            for (index, from) in admitted.iter().enumerate() {
                for (more, to) in admitted[index..].iter().enumerate() {
                    let allowed = per_second * to.duration_since(*from).as_secs_f64() + f64::from(burst);
                    prop_assert!((more + 1) as f64 <= allowed + 1e-6);
                }
            }
        }

        #[test]
        fn r046_a_changed_rate_holds_from_its_change_on(
            changes in prop::collection::vec((0.5..200.0f64, 1u32..20, 1usize..60), 1..12),
        ) {
            let start = Instant::now();
            let (mut gcra, mut now) = (Gcra::new(rate(5.0, 3), start), start);
            for (per_second, burst, tries) in changes {
                gcra.set(rate(per_second, burst), now);
                let (from, mut admitted) = (now, 0u32);
                for _ in 0..tries {
                    now += Duration::from_millis(7);
                    if gcra.next(1) <= now {
                        gcra.take(1, now);
                        admitted += 1;
                    }
                }
                let allowed = per_second * now.duration_since(from).as_secs_f64() + f64::from(burst);
                prop_assert!(f64::from(admitted) <= allowed + 1e-6);
            }
        }
    }
}
