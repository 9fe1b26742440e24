//! A mean of recent times that leaps to each peak and comes down slowly, so that trouble is seen at once and forgiven in a
//! while (Finagle's peak EWMA, which tower and linkerd took over).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::clock;

/// In this time two thirds (1 - 1/e) of a peak are forgotten: linkerd's default.
const DECAY_MS: f64 = 10_000.0;

/// The mean and its time in one word, so that nobody reads half of it: seconds as the bits of an `f32`, and below them the
/// low 32 bits of the time in milliseconds. 0 when nothing is known.
#[derive(Debug, Default)]
pub(super) struct Peak(AtomicU64);

impl Peak {
    /// Takes in a time that was measured just now.
    pub(super) fn observe(&self, span: Duration, now: Instant) {
        let (now, span) = (millis(now), span.as_secs_f64());
        let next = |word: u64| {
            let left = remaining(word, now);
            let mean = if word == 0 { span } else { f64::max(span, mean(word) * left + span * (1.0 - left)) };
            // never 0, which means nothing
            Some(u64::from((mean as f32).max(f32::MIN_POSITIVE).to_bits()) << 32 | u64::from(now))
        };
        // it never fails, since there is always a next
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Knows nothing again.
    pub(super) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The mean, the lower the longer nothing was measured, so that a slow endpoint is tried again.
    pub(super) fn read(&self, now: Instant) -> Option<Duration> {
        let word = self.0.load(Ordering::Relaxed);
        (word != 0).then(|| Duration::from_secs_f64(mean(word) * remaining(word, millis(now))))
    }
}

fn millis(at: Instant) -> u32 {
    // the low bits suffice: only differences count
    (clock::nanos(at) / 1_000_000) as u32
}

fn mean(word: u64) -> f64 {
    f64::from(f32::from_bits((word >> 32) as u32))
}

/// What is left of the old mean. A time before it, as threads may see it, counts as its own.
fn remaining(word: u64, now: u32) -> f64 {
    let elapsed = (now.wrapping_sub(word as u32) as i32).max(0);
    if elapsed == 0 { 1.0 } else { libm::exp(-f64::from(elapsed) / DECAY_MS) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    fn seconds(number: f64) -> Duration {
        Duration::from_secs_f64(number)
    }

    #[test]
    fn it_leaps_to_a_peak_and_comes_down_slowly() {
        let (peak, start) = (Peak::default(), Instant::now());
        assert_eq!(peak.read(start), None);
        for (at, observed, expected) in [
            (0.0, Some(1.0), 1.0),
            (0.0, Some(0.1), 1.0),
            (0.0, Some(4.0), 4.0),
            (10.0, None, 4.0 / 1_f64.exp()),
            (10.0, Some(1.0), 3.0 / 1_f64.exp() + 1.0),
            (110.0, Some(0.2), 0.2001),
        ] {
            let now = start + seconds(at);
            if let Some(observed) = observed {
                peak.observe(seconds(observed), now);
            }
            let read = peak.read(now).unwrap().as_secs_f64();
            assert!((read - expected).abs() < 1e-3, "{read} at {at} s, not {expected}");
        }
    }

    #[test]
    fn r118_extreme_times_are_no_trouble() {
        let (peak, now) = (Peak::default(), Instant::now());
        peak.observe(Duration::ZERO, now);
        assert!(peak.read(now).is_some());
        peak.observe(Duration::from_secs(86_400 * 365), now);
        assert!(peak.read(now + Duration::from_secs(86_400 * 60)).is_some());
        assert!(peak.read(now - Duration::from_secs(5)).is_some());
    }

    proptest! {
        #[test]
        fn it_stays_between_the_least_and_the_most(spans in proptest::collection::vec((0.001..100.0_f64, 0..20_000_u64), 1..50)) {
            let (peak, mut now) = (Peak::default(), Instant::now());
            let most = spans.iter().map(|(span, _)| *span).fold(0.0, f64::max);
            for (span, later) in spans {
                now += Duration::from_millis(later);
                peak.observe(seconds(span), now);
                let read = peak.read(now).unwrap().as_secs_f64();
                prop_assert!(read <= most * 1.001 && read >= span * 0.999, "{read} after {span}, at most {most}");
            }
        }
    }
}
