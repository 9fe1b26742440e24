use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::latency::{LONGEST, Latency, bucket};
pub(crate) use self::latency::{Summed, Times};
use super::{
    loads::Place,
    penalty::{self, Penalty},
};
use crate::{
    clock,
    outcome::{Cause, CauseCounts, Fault, Scope, Usage},
};

pub(super) mod latency;

/// What is measured on one endpoint. The monitor writes it, picks and snapshots read it.
///
/// Every attempt that [starts](Self::start) [leaves](Self::leave) once, and ends in one of four ways: it
/// [succeeds](Self::succeed), [fails](Self::fail), is [refused](Self::refuse) by a layer of our own, or its caller
/// [leaves](Self::cancel). Each way has its own times, so that none falsifies another.
///
/// Without history it takes 160 bytes, 80 of them beside those of the other keys; the two histograms, 3.6 KiB together,
/// are made at the fourth success, and what is counted of failures at the first that does not end well.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Figures {
    place: Place,
    latency: Latency,
    penalty: Penalty,
    troubles: OnceLock<Box<Troubles>>,
}

/// What is measured of attempts that did not end well.
#[derive(Debug, Default)]
struct Troubles {
    cancelled: Series,
    refused: Series,
    faults: CauseCounts,
    failed_micros: AtomicU64,
}

/// How many there were, and how long they took together.
#[derive(Debug, Default)]
struct Series {
    count: AtomicU64,
    micros: AtomicU64,
}

impl Series {
    fn add(&self, span: Duration) {
        self.micros.fetch_add(micros(span), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn mean(&self) -> Option<Duration> {
        mean(self.micros.load(Ordering::Relaxed), self.count())
    }
}

fn mean(micros: u64, count: u64) -> Option<Duration> {
    micros.checked_div(count).map(Duration::from_micros)
}

impl Figures {
    pub(super) fn at(place: Place) -> Self {
        Self { place, ..Self::default() }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// An attempt starts.
    pub fn start(&self) {
        self.place.tally().started.fetch_add(1, Ordering::Relaxed);
        self.place.load().in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt is no longer in flight. Exactly one for each [`start`](Self::start).
    pub fn leave(&self) {
        self.place.load().in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The first byte of real output came, `span` after the start of its attempt.
    pub fn first_byte(&self, span: Duration, now: Instant) {
        self.place.load().recent_first_byte.observe(span, now);
    }

    /// An attempt ended well.
    pub fn succeed(&self, first_byte: Duration, total: Duration) {
        let (tally, spans) = (self.place.tally(), [first_byte, total].map(|span| micros(span).min(LONGEST)));
        for (sum, span) in tally.micros.iter().zip(spans) {
            sum.fetch_add(span, Ordering::Relaxed);
        }
        tally.succeeded.fetch_add(1, Ordering::Release);
        if let Some(latest) = tally.latest.keep(spans.map(bucket)) {
            self.latency.count(latest);
        }
    }

    /// An attempt failed after `total`. What speaks against the key, its workspace or account, and what may, adds a virtual
    /// request in flight, and counts as a first byte that took as long.
    pub fn fail(&self, fault: &Fault, total: Duration, now: Instant) {
        let troubles = self.troubles();
        troubles.failed_micros.fetch_add(micros(total), Ordering::Relaxed);
        troubles.faults.add(fault.cause);
        if fault.is_suspect() || matches!(fault.scope, Scope::Key | Scope::Workspace | Scope::Account) {
            self.punish(fault.rest.map(|rest| rest.duration), total, now);
        }
    }

    /// A layer of our own refused an attempt, and asks to come back after `hint`. It is no fault, but a fast one must not
    /// look like a fast endpoint either, so it adds a virtual request in flight, and counts as a slow first byte.
    pub fn refuse(&self, hint: Option<Duration>, total: Duration, now: Instant) {
        self.troubles().refused.add(total);
        self.punish(hint, total, now);
    }

    fn punish(&self, hint: Option<Duration>, total: Duration, now: Instant) {
        self.penalty.add(hint, now);
        let load = self.place.load();
        // after the penalty, which is looked for only where this says so
        load.punish(clock::after(now, penalty::span(hint)));
        load.recent_first_byte.observe(penalty::span(hint).max(total), now);
    }

    /// Takes penalties back, and what is known of the first byte of late.
    pub(super) fn forgive(&self) {
        self.penalty.clear();
        self.place.load().forgive();
    }

    /// The caller left after `total`, before an attempt ended.
    pub fn cancel(&self, total: Duration) {
        self.troubles().cancelled.add(total);
    }

    /// An answer reported what it used.
    pub fn spend(&self, usage: &Usage) {
        let tally = self.place.tally();
        tally.prompt_tokens.fetch_add(usage.prompt_tokens, Ordering::Relaxed);
        tally.completion_tokens.fetch_add(usage.completion_tokens, Ordering::Relaxed);
        // a cast from f64 saturates, so no answer can overflow it
        tally.cost_nano_usd.fetch_add((usage.cost.max(0.0) * 1e9) as u64, Ordering::Relaxed);
    }

    /// Has the memory fetched that an attempt writes to: with thousands of keys no cache holds it, and a write that counts
    /// waits for its line before anything else can be asked for.
    pub(crate) fn fetch(&self) {
        black_box(self.place.tally().started.load(Ordering::Relaxed));
    }

    /// Requests in flight now, bodies included.
    pub fn in_flight(&self) -> u32 {
        self.place.load().in_flight()
    }

    /// Requests in flight, real and virtual: what the least-loaded pick compares.
    pub fn load(&self, now: Instant) -> f64 {
        let penalty = if self.place.load().is_punished(now) { self.penalty.left(now) } else { 0.0 };
        f64::from(self.in_flight()) + penalty
    }

    /// The time to the first byte of late: it leaps to each peak, and comes down by two thirds in 10 s. `None` while nothing
    /// is known.
    pub fn recent_first_byte(&self, now: Instant) -> Option<Duration> {
        self.place.load().recent_first_byte.read(now)
    }

    /// Whether an attempt ever ended well.
    pub fn has_history(&self) -> bool {
        self.succeeded() > 0
    }

    /// Attempts started.
    pub fn started(&self) -> u64 {
        self.place.tally().started.load(Ordering::Relaxed)
    }

    /// Attempts that ended well.
    pub fn succeeded(&self) -> u64 {
        self.place.tally().succeeded.load(Ordering::Acquire)
    }

    fn troubles(&self) -> &Troubles {
        self.troubles.get_or_init(Box::default)
    }

    /// Attempts whose caller left.
    pub fn cancelled(&self) -> u64 {
        self.troubles.get().map_or(0, |troubles| troubles.cancelled.count())
    }

    /// Attempts that a layer of our own refused.
    pub fn refused(&self) -> u64 {
        self.troubles.get().map_or(0, |troubles| troubles.refused.count())
    }

    /// Attempts that failed for `cause`.
    pub fn failed_for(&self, cause: Cause) -> u64 {
        self.troubles.get().map_or(0, |troubles| troubles.faults.get(cause))
    }

    /// Attempts that failed, whatever for.
    pub fn failed(&self) -> u64 {
        self.troubles.get().map_or(0, |troubles| troubles.faults.total())
    }

    /// Attempts that failed, by the name of their cause; what never happened is left out.
    pub fn failed_by_name(&self) -> BTreeMap<&'static str, u64> {
        self.troubles.get().map_or_else(BTreeMap::new, |troubles| troubles.faults.by_name())
    }

    /// From start to the first byte of real output, all successes added up: the difference between two readings, by that of
    /// [`succeeded`](Self::succeeded), is the mean in between.
    pub fn summed_first_byte(&self) -> Duration {
        Duration::from_micros(self.place.tally().micros[0].load(Ordering::Relaxed))
    }

    /// Mean time a failed attempt took.
    pub fn mean_failed_time(&self) -> Option<Duration> {
        let troubles = self.troubles.get()?;
        mean(troubles.failed_micros.load(Ordering::Relaxed), troubles.faults.total())
    }

    /// Mean time a refused attempt took.
    pub fn mean_refused_time(&self) -> Option<Duration> {
        self.troubles.get()?.refused.mean()
    }

    /// Mean time after which callers left.
    pub fn mean_cancelled_time(&self) -> Option<Duration> {
        self.troubles.get()?.cancelled.mean()
    }

    /// Tokens and money used, summed.
    pub fn usage(&self) -> Usage {
        let tally = self.place.tally();
        Usage {
            prompt_tokens: tally.prompt_tokens.load(Ordering::Relaxed),
            completion_tokens: tally.completion_tokens.load(Ordering::Relaxed),
            cost: tally.cost_nano_usd.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }

    /// Times of the successes, to the first byte and to the end; `None` before the first.
    pub(crate) fn times(&self) -> Option<[Times; 2]> {
        (self.succeeded() > 0).then(|| self.latency.read(self.place.tally()))
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use histogram::{Histogram, SparseHistogram};
    use proptest::prelude::*;

    use super::{
        super::{loads::Load, tally::Tally},
        latency::{GROUPING_POWER, MAX_VALUE_POWER},
        *,
    };

    #[test]
    fn figures_stay_small() {
        let figures = size_of::<Figures>() + size_of::<Load>() + size_of::<Tally>();
        assert!(figures <= 160, "without history: {figures}");
        let buckets = 8 * latency::BUCKETS;
        assert!(figures + buckets <= 5120, "with history: {buckets} more");
    }

    #[test]
    fn r118_extreme_times_and_costs_are_clamped() {
        let figures = Figures::default();
        figures.succeed(Duration::MAX, Duration::MAX);
        figures.spend(&Usage { prompt_tokens: 1, completion_tokens: 2, cost: f64::NAN });
        figures.spend(&Usage { cost: -1.0, ..Usage::default() });
        assert_eq!(figures.usage().cost, 0.0);
        assert!(figures.times().is_some());
    }

    proptest! {
        #[test]
        fn each_time_falls_into_the_bucket_that_reads_it(bits in 0..=32u32, value: u64) {
            let value = (value & ((1 << bits) - 1)).min((1 << MAX_VALUE_POWER) - 1);
            let (mut theirs, ours) = (Histogram::new(GROUPING_POWER, MAX_VALUE_POWER).unwrap(), Figures::default());
            // past the successes that wait for their place
            for times in 1..=6 {
                theirs.increment(value).unwrap();
                ours.succeed(Duration::ZERO, Duration::from_micros(value));
                let [first_byte, total] = ours.times().unwrap();
                prop_assert_eq!(total.histogram, SparseHistogram::from(&theirs));
                prop_assert_eq!((total.sum, first_byte.sum), (times * value, 0));
            }
        }
    }
}
