//! A provider's shared pool: requests per window, whoever sends them.

use std::time::Duration;

use super::scenario::{Pool, PoolKind, Quota, RetryAfter};

/// The state of one pool. Times are since the simulator's start.
#[derive(Clone, Debug)]
pub(super) struct PoolState {
    rule: Pool,
    /// Fixed: requests in this window. Bucket: when the saved allowance would be full again, seconds.
    window: u64,
    used: u64,
    full_at: f64,
}

impl PoolState {
    pub(super) fn new(rule: Pool) -> Self {
        Self { rule, window: 0, used: 0, full_at: 0.0 }
    }

    /// Takes one request, or says after how many seconds there is room.
    pub(super) fn take(&mut self, elapsed: Duration) -> Result<(), f64> {
        let now = elapsed.as_secs_f64();
        let length = self.rule.window_s;
        if self.rule.requests == 0 {
            return Err(length);
        }
        match self.rule.kind {
            PoolKind::Fixed => {
                let window = (now / length) as u64;
                if window != self.window {
                    (self.window, self.used) = (window, 0);
                }
                if self.used >= self.rule.requests {
                    return Err((window + 1) as f64 * length - now);
                }
                self.used += 1;
                Ok(())
            }
            PoolKind::Bucket => {
                let each = length / self.rule.requests as f64;
                let full_at = self.full_at.max(now) + each;
                // A nanosecond of tolerance, or the wait just announced could be refused again.
                if full_at - now > length + 1e-9 {
                    return Err(full_at - now - length);
                }
                self.full_at = full_at;
                Ok(())
            }
        }
    }

    /// How many seconds after `elapsed` there will be room for one more than so many, as far as time alone brings it: 0 for
    /// at once, none for never.
    #[cfg(feature = "lab")]
    pub(super) fn opens(&self, elapsed: Duration, before: u64) -> Option<f64> {
        let mut pool = self.clone();
        // who is refused takes nothing
        let _full = (0..before).any(|_| pool.take(elapsed).is_err());
        (self.rule.requests > 0).then(|| pool.take(elapsed).err().unwrap_or(0.0))
    }

    /// How many more it lets in from now to `until`, if they are there as soon as there is room.
    #[cfg(feature = "lab")]
    pub(super) fn room(&self, now: Duration, until: Duration) -> u64 {
        let (now, until) = (now.as_secs_f64(), until.as_secs_f64());
        let (requests, length) = (self.rule.requests, self.rule.window_s);
        match self.rule.kind {
            PoolKind::Fixed => {
                let window = (now / length) as u64;
                let used = if window == self.window { self.used } else { 0 };
                requests.saturating_sub(used) + ((until / length) as u64 - window) * requests
            }
            PoolKind::Bucket => {
                let saved = until + length - self.full_at.max(now);
                (saved / length * requests as f64 + 1e-9) as u64
            }
        }
    }

    /// The hint this provider gives for a true wait.
    pub(super) fn hint(&self, wait: f64) -> Option<f64> {
        match self.rule.retry_after {
            RetryAfter::Honest => Some(wait),
            RetryAfter::Never => None,
            RetryAfter::Seconds(seconds) => Some(seconds as f64),
        }
    }
}

/// The state of an account's quota: a pool of its own, in which windows need not begin with the simulation.
#[derive(Clone, Debug)]
pub(super) struct QuotaState {
    pub(super) rule: Quota,
    pool: PoolState,
}

impl QuotaState {
    pub(super) fn new(rule: Quota) -> Self {
        let Quota { requests, window_s, kind, .. } = rule;
        let pool = PoolState::new(Pool { requests, window_s, kind, retry_after: RetryAfter::Never });
        Self { rule, pool }
    }

    /// Takes one request, or says after how many seconds there is room.
    pub(super) fn take(&mut self, elapsed: Duration) -> Result<(), f64> {
        self.pool.take(self.shifted(elapsed))
    }

    /// As [`PoolState::opens`].
    #[cfg(feature = "lab")]
    pub(super) fn opens(&self, elapsed: Duration) -> Option<f64> {
        self.pool.opens(self.shifted(elapsed), 0)
    }

    /// As [`PoolState::room`].
    #[cfg(feature = "lab")]
    pub(super) fn room(&self, now: Duration, until: Duration) -> u64 {
        self.pool.room(self.shifted(now), self.shifted(until))
    }

    fn shifted(&self, elapsed: Duration) -> Duration {
        elapsed + Duration::try_from_secs_f64(self.rule.phase_s).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Pool, PoolKind, PoolState, RetryAfter};

    fn pool(kind: PoolKind) -> PoolState {
        PoolState::new(Pool { requests: 2, window_s: 10.0, kind, retry_after: RetryAfter::Honest })
    }

    #[test]
    fn a_fixed_window_opens_at_its_boundary() {
        let mut pool = pool(PoolKind::Fixed);
        let at = Duration::from_secs;
        assert!(pool.take(at(8)).is_ok() && pool.take(at(9)).is_ok());
        assert_eq!(pool.take(at(9)), Err(1.0));
        assert!(pool.take(at(10)).is_ok());
    }

    #[test]
    fn the_room_until_then_is_what_it_lets_in_until_then() {
        for kind in [PoolKind::Fixed, PoolKind::Bucket] {
            for (taken, until) in [(0, 3), (2, 3), (1, 7), (2, 29), (2, 30), (0, 31)] {
                let mut pool =
                    PoolState::new(Pool { requests: 4, window_s: 10.0, kind, retry_after: RetryAfter::Never });
                (0..taken).for_each(|_| pool.take(Duration::from_secs(3)).unwrap());
                let room = pool.room(Duration::from_secs(3), Duration::from_secs(until));
                let millis = 3_000..=until * 1_000;
                let at = millis.map(Duration::from_millis);
                let let_in = at.map(|at| std::iter::from_fn(|| pool.take(at).ok()).count() as u64).sum::<u64>();
                assert_eq!(room, let_in, "{kind:?}, {taken} taken at 3 s, until {until} s");
            }
        }
    }

    #[test]
    fn a_bucket_gives_back_one_request_at_a_time() {
        let mut pool = pool(PoolKind::Bucket);
        let at = Duration::from_secs;
        assert!(pool.take(at(0)).is_ok() && pool.take(at(0)).is_ok());
        assert_eq!(pool.take(at(0)), Err(5.0));
        assert!(pool.take(at(5)).is_ok());
        assert!(pool.take(at(5)).is_err());
        assert!(pool.take(at(100)).is_ok() && pool.take(at(100)).is_ok());
        assert!(pool.take(at(100)).is_err(), "idle time saves at most one window");
    }
}
