use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use histogram::{AtomicHistogram, Histogram};
use tokio::time::Instant;

use super::penalty::Penalty;
use crate::outcome::{Cause, Fault, Usage};

/// What is measured on one endpoint. The monitor writes it, picks and snapshots read it.
///
/// Without history it takes well under 1 KiB; the two histograms, 7.3 KiB together, are made at the first success.
#[derive(Debug, Default)]
pub struct Figures {
    in_flight: AtomicU32,
    started: AtomicU64,
    succeeded: AtomicU64,
    cancelled: AtomicU64,
    faults: Counters,
    failed_time: AtomicU64,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    cost_nano_usd: AtomicU64,
    latency: OnceLock<Box<Latency>>,
    penalty: Penalty,
}

#[derive(Debug)]
struct Counters([AtomicU64; Cause::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Figures {
    /// An attempt starts.
    pub fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt is no longer in flight. Exactly one for each [`start`](Self::start).
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// An attempt ended well.
    pub fn succeed(&self, first_byte: Duration, total: Duration) {
        self.succeeded.fetch_add(1, Ordering::Relaxed);
        self.latency.get_or_init(Box::default).record(first_byte, total);
    }

    /// An attempt failed after `total`. What speaks against the key, and what may, adds a virtual request in flight.
    pub fn fail(&self, fault: &Fault, total: Duration, now: Instant) {
        self.faults.0[fault.cause.index()].fetch_add(1, Ordering::Relaxed);
        self.failed_time.fetch_add(micros(total), Ordering::Relaxed);
        if fault.is_of_key() || fault.is_suspect() {
            self.penalty.add(fault.rest.map(|rest| rest.duration), now);
        }
    }

    /// The caller left before an attempt ended.
    pub fn cancel(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer reported what it used.
    pub fn spend(&self, usage: &Usage) {
        self.prompt_tokens.fetch_add(usage.prompt_tokens, Ordering::Relaxed);
        self.completion_tokens.fetch_add(usage.completion_tokens, Ordering::Relaxed);
        // a cast from f64 saturates, so no answer can overflow it
        self.cost_nano_usd.fetch_add((usage.cost.max(0.0) * 1e9) as u64, Ordering::Relaxed);
    }

    /// Requests in flight now, bodies included.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests in flight, real and virtual: what the least-loaded pick compares.
    pub fn load(&self, now: Instant) -> f64 {
        f64::from(self.in_flight()) + self.penalty.left(now)
    }

    /// Whether an attempt ever ended well.
    pub fn has_history(&self) -> bool {
        self.succeeded.load(Ordering::Relaxed) > 0
    }

    /// Attempts started.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Attempts that ended well.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Attempts whose caller left.
    pub fn cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Attempts that failed for `cause`.
    pub fn failed_for(&self, cause: Cause) -> u64 {
        self.faults.0[cause.index()].load(Ordering::Relaxed)
    }

    /// Attempts that failed, whatever for.
    pub fn failed(&self) -> u64 {
        self.faults.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Mean time a failed attempt took.
    pub fn mean_failed_time(&self) -> Option<Duration> {
        let failed = self.failed();
        (failed > 0).then(|| Duration::from_micros(self.failed_time.load(Ordering::Relaxed) / failed))
    }

    /// Tokens and money used, summed.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            completion_tokens: self.completion_tokens.load(Ordering::Relaxed),
            cost: self.cost_nano_usd.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }

    /// Times of the successes; `None` before the first.
    pub fn latency(&self) -> Option<&Latency> {
        self.latency.get().map(AsRef::as_ref)
    }
}

/// Times of successes: to the first byte and to the end, in microseconds, in log-linear buckets 6 % wide, up to an hour.
#[derive(Debug)]
pub struct Latency {
    first_byte: AtomicHistogram,
    total: AtomicHistogram,
    first_byte_sum: AtomicU64,
    total_sum: AtomicU64,
}

/// 2^4 buckets to each power of two.
const GROUPING_POWER: u8 = 4;
/// Values up to 2^32 µs, 71 minutes; longer ones count as that.
const MAX_VALUE_POWER: u8 = 32;

impl Default for Latency {
    fn default() -> Self {
        let histogram = || AtomicHistogram::new(GROUPING_POWER, MAX_VALUE_POWER).expect("4 < 32 <= 64");
        Self {
            first_byte: histogram(),
            total: histogram(),
            first_byte_sum: AtomicU64::new(0),
            total_sum: AtomicU64::new(0),
        }
    }
}

impl Latency {
    fn record(&self, first_byte: Duration, total: Duration) {
        let record = |histogram: &AtomicHistogram, sum: &AtomicU64, span| {
            let value = micros(span).min((1 << MAX_VALUE_POWER) - 1);
            sum.fetch_add(value, Ordering::Relaxed);
            let _ = histogram.increment(value);
        };
        record(&self.first_byte, &self.first_byte_sum, first_byte);
        record(&self.total, &self.total_sum, total);
    }

    /// The times to the first byte, and their sum in microseconds.
    pub(crate) fn first_byte(&self) -> (Histogram, u64) {
        (self.first_byte.load(), self.first_byte_sum.load(Ordering::Relaxed))
    }

    /// The times to the end, and their sum in microseconds.
    pub(crate) fn total(&self) -> (Histogram, u64) {
        (self.total.load(), self.total_sum.load(Ordering::Relaxed))
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stay_small() {
        assert!(size_of::<Figures>() <= 1024, "without history: {}", size_of::<Figures>());
        let buckets = 2 * Histogram::new(GROUPING_POWER, MAX_VALUE_POWER).unwrap().as_slice().len() * size_of::<u64>();
        assert!(size_of::<Figures>() + size_of::<Latency>() + buckets <= 8192, "with history");
    }

    #[test]
    fn r118_extreme_times_and_costs_are_clamped() {
        let figures = Figures::default();
        figures.succeed(Duration::MAX, Duration::MAX);
        figures.spend(&Usage { prompt_tokens: 1, completion_tokens: 2, cost: f64::NAN });
        figures.spend(&Usage { cost: -1.0, ..Usage::default() });
        assert_eq!(figures.usage().cost, 0.0);
        assert!(figures.latency().is_some());
    }
}
