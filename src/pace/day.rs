//! So many requests per UTC day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::clock::{self, WallClock};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A count that starts anew at 00:00 UTC. The wall clock is read when a day begins, to know when it ends; between, only
/// monotonic time counts, so a clock that steps neither lengthens the day nor grants it twice.
#[derive(Debug, Clone)]
pub(super) struct Day {
    limit: u64,
    used: u64,
    ends: Instant,
    clock: WallClock,
}

impl Day {
    pub(super) fn new(limit: u64, clock: WallClock, now: Instant) -> Self {
        Self { limit, used: 0, ends: clock::after(now, to_midnight(clock())), clock }
    }

    /// From when on one more may be sent.
    pub(super) fn next(&self, now: Instant) -> Instant {
        if self.used >= self.limit && now < self.ends { self.ends } else { now }
    }

    pub(super) fn take(&mut self, now: Instant) {
        if now >= self.ends {
            let left = to_midnight((self.clock)());
            // a clock a little behind ours would say that the day which has just begun is about to end
            let left = if left < DAY / 2 { left + DAY } else { left };
            (self.used, self.ends) = (0, clock::after(now, left));
        }
        self.used += 1;
    }

    pub(super) fn give_back(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    pub(super) fn set(&mut self, limit: u64) {
        self.limit = limit;
    }
}

fn to_midnight(wall: SystemTime) -> Duration {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    DAY - Duration::from_nanos((since.as_nanos() % DAY.as_nanos()) as u64)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static WALL: Cell<u64> = const { Cell::new(0) });

    fn wall() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(WALL.get())
    }

    /// 2026-11-21 23:59:00 UTC.
    const LATE: u64 = 1_795_305_540;

    #[test]
    fn a_day_ends_at_midnight_utc() {
        WALL.set(LATE);
        let now = Instant::now();
        let mut day = Day::new(2, wall, now);
        day.take(now);
        assert_eq!(day.next(now), now);
        day.take(now);
        let midnight = now + Duration::from_secs(60);
        assert_eq!(day.next(now), midnight);
        assert_eq!(day.next(midnight), midnight);
        WALL.set(LATE + 60);
        day.take(midnight);
        day.take(midnight);
        assert_eq!(day.next(midnight), midnight + DAY);
        day.give_back();
        assert_eq!(day.next(midnight), midnight);
    }

    #[test]
    fn r047_a_wall_clock_that_steps_changes_nothing() {
        for step in [-3600, 0, 3600] {
            WALL.set(LATE);
            let now = Instant::now();
            let mut day = Day::new(1, wall, now);
            day.take(now);
            WALL.set(LATE.saturating_add_signed(step));
            assert_eq!(day.next(now), now + Duration::from_secs(60), "{step}");
            let midnight = now + Duration::from_secs(60);
            WALL.set((LATE + 60).saturating_add_signed(step.min(0) / 3600));
            day.take(midnight);
            assert!(day.next(midnight) >= midnight + DAY, "not granted twice");
        }
    }
}
