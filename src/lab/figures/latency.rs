//! Many durations in a few numbers.

use std::time::Duration;

use serde::Serialize;

/// Mean and percentiles of durations, seconds; all `None` of none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Latency {
    /// The mean.
    pub mean: Option<f64>,
    /// The median, by nearest rank.
    pub p50: Option<f64>,
    /// The 95th percentile.
    pub p95: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
}

impl Latency {
    pub(super) fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<_> = durations.collect();
        sorted.sort_unstable();
        let count = u32::try_from(sorted.len()).unwrap_or(u32::MAX);
        let percentile = |percent| nearest_rank(&sorted, percent, 100).map(|value| value.as_secs_f64());
        Self {
            mean: (count > 0).then(|| sorted.iter().sum::<Duration>().as_secs_f64() / f64::from(count)),
            p50: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
        }
    }
}

/// The smallest of these, sorted, that at least `part` of `whole` of them do not exceed.
pub(in crate::lab) fn nearest_rank<T: Copy>(sorted: &[T], part: usize, whole: usize) -> Option<T> {
    let rank = (part * sorted.len()).div_ceil(whole).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        // the example of the method: 5 values, the 30th percentile is the second, the 40th too, the 50th the third
        let sorted = [15, 20, 35, 40, 50];
        for (percent, expected) in [(5, 15), (30, 20), (40, 20), (50, 35), (100, 50)] {
            assert_eq!(nearest_rank(&sorted, percent, 100), Some(expected), "{percent}");
        }
        assert_eq!(nearest_rank::<u8>(&[], 50, 100), None);
    }

    #[test]
    fn nobody_has_no_latency() {
        assert_eq!(Latency::of(std::iter::empty()), Latency::default());
        let one = Latency::of([Duration::from_millis(250)].into_iter());
        assert_eq!((one.mean, one.p50, one.p99), (Some(0.25), Some(0.25), Some(0.25)));
    }
}
