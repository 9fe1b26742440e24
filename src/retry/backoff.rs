use std::time::Duration;

use super::RetryError;
use crate::clock::FOREVER;

/// How long to wait before a retry: exponential, capped, jittered over its full range.
///
/// The nth retry waits a random time between 0.8 × base and base × 2ⁿ, at most the cap; default base 500 ms, cap 30 s (what
/// OpenAI's clients start with, and a provider's pool of OpenRouter needs at most). The range is wide so that requests that
/// failed together do not come back together, and starts above zero so that none hurries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

/// A hint is stretched by up to this share, so that all who got it do not return in one instant.
const SPREAD: f64 = 0.1;
/// At most this much is added to a hint.
const MOST_SPREAD: Duration = Duration::from_secs(5);

impl Backoff {
    /// A back-off from `base` to `cap`.
    ///
    /// # Errors
    /// When `base` is zero or above `cap`.
    pub fn new(base: Duration, cap: Duration) -> Result<Self, RetryError> {
        if base.is_zero() || base > cap {
            return Err(RetryError::Backoff { base, cap });
        }
        Ok(Self { base: base.min(FOREVER), cap: cap.min(FOREVER) })
    }

    /// The wait before retry number `retry` (the first is 1), given what the server asked for and a random number of
    /// `0.0..1.0`. It is never shorter than the hint.
    pub fn delay(&self, retry: u32, hint: Option<Duration>, random: f64) -> Duration {
        let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.0 };
        let base = self.base.as_secs_f64();
        let least = base * 0.8;
        // 2^1024 is infinite, and an infinite ceiling is the cap
        let ceiling = (base * 2f64.powi(retry.min(1100) as i32)).min(self.cap.as_secs_f64());
        let own = Duration::from_secs_f64(least + (ceiling - least) * random);
        let hinted = hint.map_or(Duration::ZERO, |hint| {
            let hint = hint.min(FOREVER);
            let spread = hint.mul_f64(SPREAD).max(self.base.mul_f64(2.0 * SPREAD)).min(MOST_SPREAD);
            hint + spread.mul_f64(random)
        });
        own.max(hinted)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_range_doubles_up_to_the_cap() {
        let backoff = Backoff::default();
        for (retry, random, millis) in
            [(1, 0.0, 400), (1, 1.0, 1000), (2, 0.0, 400), (2, 1.0, 2000), (2, 0.5, 1200), (7, 1.0, 30_000)]
        {
            assert_eq!(backoff.delay(retry, None, random), Duration::from_millis(millis), "{retry} {random}");
        }
    }

    #[test]
    fn a_zero_or_inverted_range_is_refused() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(2));
        assert!(Backoff::new(Duration::ZERO, long).is_err());
        assert!(Backoff::new(long, short).is_err());
        assert!(Backoff::new(short, short).is_ok());
        assert!(Backoff::new(short, Duration::MAX).is_ok());
    }

    #[test]
    fn experiment_05_jitter_is_not_cut_to_whole_seconds() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(600)).unwrap();
        let seen: HashSet<_> = (0..100).map(|i| backoff.delay(1, None, f64::from(i) / 100.0)).collect();
        assert_eq!(seen.len(), 100);
    }

    proptest! {
        #[test]
        fn r059_waits_stay_in_their_range_whatever_the_attempt(
            base in 1u64..10_000, more in 0u64..100_000, retry in prop_oneof![0u32..10, Just(1_000_000), any::<u32>()],
            random in prop_oneof![0.0..1.0, any::<f64>()],
        ) {
            let (base, cap) = (Duration::from_millis(base), Duration::from_millis(base + more));
            let wait = Backoff::new(base, cap).unwrap().delay(retry, None, random);
            prop_assert!(wait >= base.mul_f64(0.799) && wait <= cap.mul_f64(1.001), "{wait:?}");
        }

        #[test]
        fn r053_a_hint_is_a_floor_with_a_little_jitter_above(
            hint in 0..u64::MAX / 100, random in 0.0..1.0, retry in 1u32..5,
        ) {
            let (hint, backoff) = (Duration::from_nanos(hint), Backoff::default());
            let wait = backoff.delay(retry, Some(hint), random);
            prop_assert!(wait >= hint && wait >= Duration::from_millis(400), "{wait:?}");
            prop_assert!(wait <= hint + MOST_SPREAD || wait <= Duration::from_secs(30), "{wait:?}");
        }
    }

    #[test]
    fn r118_an_endless_hint_is_clamped() {
        assert!(Backoff::default().delay(u32::MAX, Some(Duration::MAX), 1.0) >= FOREVER);
    }
}
