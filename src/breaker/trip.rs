//! What opens a breaker: pure counting over samples, with the time as an argument.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::PolicyError;

/// When a closed breaker opens.
#[derive(Clone)]
pub struct TripPolicy(Kind);

#[derive(Clone)]
enum Kind {
    Consecutive(u32),
    Failures { count: u32, within: Duration },
    Share { share: f64, within: Duration, least: u32 },
    Custom(Arc<dyn Fn() -> Box<dyn Trip> + Send + Sync>),
}

/// A way of one's own to count; see [`TripPolicy::custom`].
///
/// It runs under the breaker's lock: it must not block, and must not panic.
///
/// ```
/// use tokio::time::Instant;
/// use tower_openrouter::breaker::{BreakerPolicy, CircuitBreakerLayer, Trip, TripPolicy};
///
/// /// Opens when failures outnumber successes by five.
/// #[derive(Default)]
/// struct Lead(u32);
///
/// impl Trip for Lead {
///     fn success(&mut self, _now: Instant) {
///         self.0 = self.0.saturating_sub(1);
///     }
///
///     fn failure(&mut self, _now: Instant) -> bool {
///         self.0 += 1;
///         self.0 >= 5
///     }
///
///     fn clear(&mut self) {
///         self.0 = 0;
///     }
/// }
///
/// let breaker = CircuitBreakerLayer::new(BreakerPolicy::new(TripPolicy::custom(Lead::default)));
/// # let _ = breaker;
/// ```
pub trait Trip: Send + 'static {
    /// An attempt went well.
    fn success(&mut self, now: Instant);

    /// An attempt failed, and the endpoint is to blame. Says whether to open.
    fn failure(&mut self, now: Instant) -> bool;

    /// The breaker closed: whatever was counted is over.
    fn clear(&mut self);
}

impl TripPolicy {
    /// Opens at the `count`th failure in a row.
    ///
    /// # Errors
    /// When `count` is 0.
    pub fn consecutive(count: u32) -> Result<Self, PolicyError> {
        at_least_one("count", count)?;
        Ok(Self(Kind::Consecutive(count)))
    }

    /// Opens at the `count`th failure within any span of `within`, whatever goes well between. Each failure leaves the
    /// window at its own time. Default: 3 in 60 s.
    ///
    /// # Errors
    /// When `count` or `within` is 0.
    pub fn failures(count: u32, within: Duration) -> Result<Self, PolicyError> {
        at_least_one("count", count)?;
        some_time("within", within)?;
        Ok(Self(Kind::Failures { count, within }))
    }

    /// Opens at a failure when, of at least `least` samples within the window, at least this share failed. The window moves
    /// on in steps of a tenth of `within`.
    ///
    /// # Errors
    /// When `share` is not above 0 and at most 1, or `within` or `least` is 0.
    pub fn share(share: f64, within: Duration, least: u32) -> Result<Self, PolicyError> {
        valid_share(share)?;
        some_time("within", within)?;
        at_least_one("least", least)?;
        Ok(Self(Kind::Share { share, within, least }))
    }

    /// Opens when a counter of one's own says so; `make` is called once for each breaker.
    pub fn custom<T: Trip>(make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Kind::Custom(Arc::new(move || Box::new(make()))))
    }

    pub(super) fn counter(&self) -> Counter {
        match &self.0 {
            Kind::Consecutive(count) => Counter::Consecutive { count: *count, run: 0 },
            Kind::Failures { count, within } => {
                Counter::Failures { count: *count, within: *within, times: VecDeque::new() }
            }
            Kind::Share { share, within, least } => Counter::Share(ShareWindow::new(*share, *within, *least)),
            Kind::Custom(make) => Counter::Custom(make()),
        }
    }
}

impl Default for TripPolicy {
    /// 3 failures in 60 s: keys die rarely and all at once, so few are enough, and a minute is what quotas count in.
    fn default() -> Self {
        Self(Kind::Failures { count: 3, within: Duration::from_secs(60) })
    }
}

impl fmt::Debug for TripPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Consecutive(count) => f.debug_tuple("Consecutive").field(count).finish(),
            Kind::Failures { count, within } => f.debug_tuple("Failures").field(count).field(within).finish(),
            Kind::Share { share, within, least } => {
                f.debug_tuple("Share").field(share).field(within).field(least).finish()
            }
            Kind::Custom(_) => f.write_str("Custom"),
        }
    }
}

pub(super) fn at_least_one(field: &'static str, count: u32) -> Result<(), PolicyError> {
    if count == 0 { Err(PolicyError::ZeroCount(field)) } else { Ok(()) }
}

pub(super) fn some_time(field: &'static str, span: Duration) -> Result<(), PolicyError> {
    if span.is_zero() { Err(PolicyError::ZeroTime(field)) } else { Ok(()) }
}

pub(super) fn valid_share(share: f64) -> Result<(), PolicyError> {
    if share > 0.0 && share <= 1.0 { Ok(()) } else { Err(PolicyError::BadShare(share)) }
}

/// The state behind a [`TripPolicy`].
pub(super) enum Counter {
    Consecutive { count: u32, run: u32 },
    Failures { count: u32, within: Duration, times: VecDeque<Instant> },
    Share(ShareWindow),
    Custom(Box<dyn Trip>),
}

impl Counter {
    pub(super) fn success(&mut self, now: Instant) {
        match self {
            Self::Consecutive { run, .. } => *run = 0,
            Self::Failures { .. } => {}
            Self::Share(window) => {
                window.record(false, now);
            }
            Self::Custom(trip) => trip.success(now),
        }
    }

    /// Counts a failure and says whether to open.
    pub(super) fn failure(&mut self, now: Instant) -> bool {
        match self {
            Self::Consecutive { count, run } => {
                *run = run.saturating_add(1);
                run >= count
            }
            Self::Failures { count, within, times } => {
                while times.front().is_some_and(|first| now.saturating_duration_since(*first) >= *within) {
                    times.pop_front();
                }
                times.push_back(now);
                times.len() >= *count as usize
            }
            Self::Share(window) => window.record(true, now),
            Self::Custom(trip) => trip.failure(now),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Consecutive { run, .. } => *run = 0,
            Self::Failures { times, .. } => times.clear(),
            Self::Share(window) => window.clear(),
            Self::Custom(trip) => trip.clear(),
        }
    }

    /// Whether a success would change nothing, so that it need not be reported.
    pub(super) fn ignores_success(&self) -> bool {
        match self {
            Self::Consecutive { run, .. } => *run == 0,
            Self::Failures { .. } => true,
            Self::Share(_) | Self::Custom(_) => false,
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consecutive { run, .. } => f.debug_tuple("Consecutive").field(run).finish(),
            Self::Failures { times, .. } => f.debug_tuple("Failures").field(&times.len()).finish(),
            Self::Share(window) => window.fmt(f),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

const BUCKETS: usize = 10;

/// The share of bad samples in a window of ten buckets. A bucket is a tenth of the window by the clock, whatever happens in
/// it, so a burst and a trickle weigh the same, and an idle gap empties what it has outlived.
#[derive(Debug)]
pub(super) struct ShareWindow {
    share: f64,
    least: u64,
    width: u128,
    start: Option<Instant>,
    /// Number of the newest bucket since `start`.
    newest: u64,
    buckets: [Tally; BUCKETS],
    total: Tally,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    all: u64,
    bad: u64,
}

impl ShareWindow {
    pub(super) fn new(share: f64, within: Duration, least: u32) -> Self {
        Self {
            share,
            least: u64::from(least),
            width: (within.as_nanos() / BUCKETS as u128).max(1),
            start: None,
            newest: 0,
            buckets: Default::default(),
            total: Tally::default(),
        }
    }

    /// Counts a sample; for a bad one, says whether the share is reached.
    pub(super) fn record(&mut self, bad: bool, now: Instant) -> bool {
        let start = *self.start.get_or_insert(now);
        let index = now.saturating_duration_since(start).as_nanos() / self.width;
        self.advance(u64::try_from(index).unwrap_or(u64::MAX));
        for tally in [&mut self.buckets[self.newest as usize % BUCKETS], &mut self.total] {
            tally.all = tally.all.saturating_add(1);
            tally.bad = tally.bad.saturating_add(u64::from(bad));
        }
        // dividing compares as written: 7 of 100 is 0.07, while 0.07 × 100 is more than 7
        bad && self.total.all >= self.least && self.total.bad as f64 / self.total.all as f64 >= self.share
    }

    fn advance(&mut self, index: u64) {
        let steps = index.saturating_sub(self.newest);
        for step in 0..steps.min(BUCKETS as u64) {
            let stale = std::mem::take(&mut self.buckets[(index - step) as usize % BUCKETS]);
            self.total.all = self.total.all.saturating_sub(stale.all);
            self.total.bad = self.total.bad.saturating_sub(stale.bad);
        }
        self.newest = self.newest.max(index);
    }

    pub(super) fn clear(&mut self) {
        self.start = None;
        self.newest = 0;
        self.buckets = Default::default();
        self.total = Tally::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn r117_numbers_out_of_range_are_refused() {
        let minute = Duration::from_secs(60);
        assert_eq!(TripPolicy::consecutive(0).unwrap_err(), PolicyError::ZeroCount("count"));
        assert_eq!(TripPolicy::failures(0, minute).unwrap_err(), PolicyError::ZeroCount("count"));
        assert_eq!(TripPolicy::failures(3, Duration::ZERO).unwrap_err(), PolicyError::ZeroTime("within"));
        assert_eq!(TripPolicy::share(0.5, minute, 0).unwrap_err(), PolicyError::ZeroCount("least"));
        for share in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(TripPolicy::share(share, minute, 1), Err(PolicyError::BadShare(_))), "{share}");
        }
    }

    /// Experiment 10 of the field notes: another rolling counter fell from 1,000 to 100 when its ring went round.
    #[test]
    fn experiment_10_a_steady_count_stays_steady_when_the_ring_goes_round() {
        let least = |count| TripPolicy::share(1.0, Duration::from_secs(1), count).unwrap().counter();
        let (mut low, mut high, start) = (least(901), least(1001), Instant::now());
        for step in 0..40u32 {
            for event in 0..100 {
                let now = start + Duration::from_millis(100) * step;
                let (above_low, above_high) = (low.failure(now), high.failure(now));
                assert_eq!(above_low, step >= 9, "step {step}, event {event}");
                assert!(!above_high, "step {step}: more than a window holds");
            }
        }
    }

    /// Experiment 7 of the field notes: another breaker's window of 10 needed 1,000 failures after 1,000 successes.
    #[test]
    fn experiment_07_the_window_slides_whatever_came_before() {
        let mut counter = TripPolicy::share(0.5, Duration::from_secs(10), 10).unwrap().counter();
        let start = Instant::now();
        for n in 0..1000 {
            counter.success(start + Duration::from_millis(n));
        }
        let later = start + Duration::from_secs(12);
        let needed = (1..).find(|n| counter.failure(later + Duration::from_millis(*n))).unwrap();
        assert_eq!(needed, 10, "the successes have left the window; the minimum volume decides");
    }

    #[test]
    fn failures_leave_the_window_one_by_one() {
        let mut counter = TripPolicy::failures(3, Duration::from_secs(60)).unwrap().counter();
        let start = Instant::now();
        let trips = |counter: &mut Counter, seconds| counter.failure(start + Duration::from_secs(seconds));
        assert!(!trips(&mut counter, 0));
        assert!(!trips(&mut counter, 50));
        assert!(!trips(&mut counter, 60), "the first is a minute old");
        assert!(trips(&mut counter, 109));
    }

    #[test]
    fn a_share_means_what_it_says() {
        for percent in 1..=100_u32 {
            let share = f64::from(percent) / 100.0;
            let mut window = ShareWindow::new(share, Duration::from_secs(60), 100);
            let now = Instant::now();
            for _ in percent..100 {
                window.record(false, now);
            }
            let tripped: Vec<_> = (0..percent).map(|_| window.record(true, now)).collect();
            assert!(tripped.last().unwrap() & tripped[..tripped.len() - 1].iter().all(|trip| !trip), "{percent} %");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn r026_the_window_decides_as_the_obvious_model(
            share in 0.01_f64..=1.0,
            within in 10_u64..100,
            least in 1_u32..20,
            samples in prop::collection::vec((0_u64..40, any::<bool>()), 1..60),
        ) {
            let mut window = ShareWindow::new(share, Duration::from_secs(within), least);
            let start = Instant::now();
            let (mut at, mut seen) = (0, Vec::<(u64, bool)>::new());
            for (gap, bad) in samples {
                // the first sample starts the clock
                at += if seen.is_empty() { 0 } else { gap };
                let bucket = at * 10 / within;
                seen.push((bucket, bad));
                let recent: Vec<_> = seen.iter().filter(|(then, _)| then + 10 > bucket).collect();
                let failed = recent.iter().filter(|(_, bad)| *bad).count();
                let expected =
                    bad && recent.len() >= least as usize && failed as f64 / recent.len() as f64 >= share;
                prop_assert_eq!(window.record(bad, start + Duration::from_secs(at)), expected);
            }
        }

        #[test]
        fn r037_extremes_neither_overflow_nor_panic(
            gaps in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u32>(), Just(u32::MAX)], 1..40),
            within in prop_oneof![Just(Duration::from_nanos(1)), Just(Duration::MAX)],
            count in prop_oneof![Just(1), Just(u32::MAX)],
        ) {
            let mut now = Instant::now();
            let mut counters = [
                TripPolicy::consecutive(count).unwrap().counter(),
                TripPolicy::failures(count, within).unwrap().counter(),
                TripPolicy::share(f64::MIN_POSITIVE, within, count).unwrap().counter(),
            ];
            for gap in gaps {
                now += Duration::from_secs(u64::from(gap));
                for counter in &mut counters {
                    counter.success(now);
                    counter.failure(now);
                    // and a clock that is behind
                    counter.failure(now - Duration::from_nanos(1));
                }
            }
        }
    }
}
