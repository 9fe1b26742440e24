use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use histogram::{Config, Histogram, SparseHistogram};
use tokio::time::Instant;

use super::{
    loads::Place,
    penalty::{self, Penalty},
};
use crate::{
    clock,
    outcome::{Cause, CauseCounts, Fault, Scope, Usage},
};

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
    latency: OnceLock<Box<Latency>>,
    // a bit for each line of the histograms that holds anything: of 58, most keys fill a few, and only these are read
    filled: AtomicU64,
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
            let latency = self.latency.get_or_init(Box::default);
            let lines = latest.fold(0, |lines, buckets| lines | latency.count(buckets));
            // almost always they are known
            if self.filled.load(Ordering::Relaxed) & lines != lines {
                self.filled.fetch_or(lines, Ordering::Relaxed);
            }
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
        if self.succeeded() == 0 {
            return None;
        }
        let [mut first_byte, mut total] = [Filled::new(), Filled::new()];
        // in this order, so that none is counted twice; one that is on its way from here to there is missed this time
        if let Some(latency) = self.latency.get() {
            let mut lines = self.filled.load(Ordering::Relaxed);
            while lines != 0 {
                let start = lines.trailing_zeros() as usize * LINE;
                for (bucket, pair) in (start as u32..).zip(&latency.0[start..start + LINE]) {
                    first_byte.push(bucket, pair[0].load(Ordering::Relaxed));
                    total.push(bucket, pair[1].load(Ordering::Relaxed));
                }
                lines &= lines - 1;
            }
        }
        let tally = self.place.tally();
        for buckets in tally.latest.read() {
            first_byte.add(buckets[0] as u32);
            total.add(buckets[1] as u32);
        }
        let sums = [0, 1].map(|which| tally.micros[which].load(Ordering::Relaxed));
        let [first_byte, total] = [first_byte, total].map(Filled::histogram);
        Some([Times { sum: sums[0], histogram: first_byte }, Times { sum: sums[1], histogram: total }])
    }
}

/// The buckets that hold anything, from low to high: a tenth of all, or less.
struct Filled {
    buckets: Vec<u32>,
    counts: Vec<u64>,
}

impl Filled {
    fn new() -> Self {
        let room = BUCKETS / 16;
        Self { buckets: Vec::with_capacity(room), counts: Vec::with_capacity(room) }
    }

    /// Appends a higher bucket.
    fn push(&mut self, bucket: u32, count: u32) {
        if count > 0 {
            self.buckets.push(bucket);
            self.counts.push(count.into());
        }
    }

    /// Counts one more.
    fn add(&mut self, bucket: u32) {
        match self.buckets.binary_search(&bucket) {
            Ok(at) => self.counts[at] += 1,
            Err(at) => {
                self.buckets.insert(at, bucket);
                self.counts.insert(at, 1);
            }
        }
    }

    fn histogram(self) -> SparseHistogram {
        SparseHistogram::from_parts(config(), self.buckets, self.counts).expect("these are its buckets, in order")
    }
}

/// Times of successes: to the first byte and to the end, in microseconds, in log-linear buckets 6 % wide, up to an hour.
///
/// The two lie side by side, bucket by bucket, in one allocation: an answer in one piece falls into both buckets of a pair,
/// and with thousands of keys each place that is touched is one that no cache holds.
#[derive(Debug)]
#[repr(align(64))]
struct Latency([[AtomicU32; 2]; BUCKETS]);

/// The buckets of a line of the cache, which is what a reader has to fetch.
const LINE: usize = 64 / size_of::<[AtomicU32; 2]>();
const _: () = assert!(BUCKETS.is_multiple_of(LINE) && BUCKETS / LINE <= u64::BITS as usize);

/// 2^4 buckets to each power of two.
const GROUPING_POWER: u8 = 4;
/// Values up to 2^32 µs, 71 minutes; longer ones count as that.
const MAX_VALUE_POWER: u8 = 32;
/// The same in microseconds.
const LONGEST: u64 = (1 << MAX_VALUE_POWER) - 1;
/// As many as `histogram` has for these powers, whose order of buckets this is.
pub(super) const BUCKETS: usize = ((MAX_VALUE_POWER - GROUPING_POWER + 1) as usize) << GROUPING_POWER;

/// The bucket of a value: its own where there is one for each, else by its highest bit and the four bits below that.
fn bucket(value: u64) -> usize {
    let value = value.min(LONGEST);
    let coarse = value.max(1).ilog2().saturating_sub(u32::from(GROUPING_POWER));
    ((coarse as usize) << GROUPING_POWER) + (value >> coarse) as usize
}

impl Default for Latency {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Default::default()))
    }
}

impl Latency {
    /// Counts a success by its buckets, and says by a bit for each which lines they are in.
    fn count(&self, buckets: [usize; 2]) -> u64 {
        for (which, bucket) in buckets.into_iter().enumerate() {
            self.0[bucket][which].fetch_add(1, Ordering::Relaxed);
        }
        buckets.into_iter().fold(0, |lines, bucket| lines | 1 << (bucket / LINE))
    }
}

/// A copy of many times, in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    pub(crate) sum: u64,
    pub(crate) histogram: SparseHistogram,
}

/// The times of many endpoints.
#[derive(Debug)]
pub(crate) struct Summed {
    pub(crate) sum: u64,
    pub(crate) histogram: Histogram,
}

impl Summed {
    /// Adds those of an endpoint.
    pub(crate) fn add(&mut self, times: &Times) {
        self.sum = self.sum.saturating_add(times.sum);
        let counts = self.histogram.as_mut_slice();
        for (bucket, count) in times.histogram.index().iter().zip(times.histogram.count()) {
            // no count comes near overflow
            counts[*bucket as usize] += count;
        }
    }
}

impl Default for Summed {
    fn default() -> Self {
        Self { sum: 0, histogram: Histogram::with_config(&config()) }
    }
}

fn config() -> Config {
    Config::new(GROUPING_POWER, MAX_VALUE_POWER).expect("these powers are possible")
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{loads::Load, tally::Tally},
        *,
    };

    #[test]
    fn figures_stay_small() {
        let figures = size_of::<Figures>() + size_of::<Load>() + size_of::<Tally>();
        assert!(figures <= 160, "without history: {figures}");
        assert!(figures + size_of::<Latency>() <= 5120, "with history: {}", size_of::<Latency>());
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
