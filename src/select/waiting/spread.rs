//! Who comes when the same rest ends for many.
//!
//! Two hundred that were all told `Retry-After: 10` must not come at once, nor must ten processes that share a key. So the
//! first comes a little after the rest has ended, by chance, and the others one after another within about a second. A
//! filter's instant is another thing: one slot is free then, for one, and it is used at once.

use std::time::Duration;

use tokio::time::Instant;

/// How much later than the end of a rest the first comes at most: this share of the wait, within these bounds.
const JITTER: f64 = 0.1;
const LEAST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(1);
/// How long it takes, about, until all have come.
pub(super) const SPREAD: Duration = Duration::from_secs(1);
/// Few come no further apart than this.
const FURTHEST: Duration = Duration::from_millis(100);
/// What a late timer may catch up on.
const CATCH_UP: Duration = Duration::from_millis(20);

/// When the first comes back after a rest that ends at `at`; `luck` is from 0 to 1.
pub(super) fn first(at: Instant, now: Instant, luck: f64) -> Instant {
    at + at.saturating_duration_since(now).mul_f64(JITTER).clamp(LEAST, MOST).mul_f64(luck)
}

/// Lets those who come back after a rest through one by one.
#[derive(Debug)]
pub(super) struct Gate {
    /// When the next may go.
    pub(super) opens: Instant,
    spacing: Duration,
}

impl Gate {
    /// For so many, from `now` on.
    pub(super) fn new(now: Instant, waiting: usize) -> Self {
        Self { opens: now, spacing: (SPREAD / u32::try_from(waiting.max(1)).unwrap_or(u32::MAX)).min(FURTHEST) }
    }

    /// One goes; `luck` is from 0 to 1.
    pub(super) fn pass(&mut self, now: Instant, luck: f64) {
        let late = now.checked_sub(CATCH_UP).unwrap_or(now);
        self.opens = self.opens.max(late) + self.spacing.mul_f64(0.5 + luck);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    proptest! {
        #[test]
        fn nobody_is_early_nor_a_tenth_of_the_wait_late(wait in 0..100_000_u64, luck in 0.0..1.0_f64) {
            let now = Instant::now();
            let at = now + Duration::from_millis(wait);
            let first = first(at, now, luck);
            let tenth = Duration::from_micros((wait * 100).clamp(100_000, 1_000_000));
            prop_assert!(first >= at && first <= at + tenth + Duration::from_nanos(1), "{:?}", first - at);
        }

        #[test]
        fn all_come_within_about_a_second_and_few_of_them_at_once(waiting in 100..20_000_usize, seed: u64) {
            let (start, mut rng) = (Instant::now(), fastrand::Rng::with_seed(seed));
            let mut gate = Gate::new(start, waiting);
            let mut buckets = [0; 20];
            for _ in 0..waiting {
                let at = gate.opens;
                buckets[(at - start).as_millis() as usize / 100] += 1;
                gate.pass(at, rng.f64());
            }
            let most = *buckets.iter().max().unwrap();
            prop_assert!(most * 5 <= waiting, "{most} of {waiting}");
        }
    }
}
