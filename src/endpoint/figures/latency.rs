//! How long successes took, in histograms that cost a reader no more than what they hold.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use histogram::{Config, Histogram, SparseHistogram};

use super::super::tally::Tally;

/// Times of successes: to the first byte and to the end, in microseconds, in log-linear buckets 6 % wide, up to an hour.
///
/// The two lie side by side, bucket by bucket, in one allocation: an answer in one piece falls into both buckets of a pair,
/// and with thousands of keys each place that is touched is one that no cache holds.
#[derive(Debug, Default)]
pub(super) struct Latency {
    buckets: OnceLock<Box<Buckets>>,
    // a bit for each line of the buckets that holds anything: of 58, most keys fill a few, and only these are read
    filled: AtomicU64,
}

#[derive(Debug)]
#[repr(align(64))]
struct Buckets([[AtomicU32; 2]; BUCKETS]);

/// The buckets of a line of the cache, which is what a reader has to fetch.
const LINE: usize = 64 / size_of::<[AtomicU32; 2]>();
const _: () = assert!(BUCKETS.is_multiple_of(LINE) && BUCKETS / LINE <= u64::BITS as usize);

/// 2^4 buckets to each power of two.
pub(super) const GROUPING_POWER: u8 = 4;
/// Values up to 2^32 µs, 71 minutes; longer ones count as that.
pub(super) const MAX_VALUE_POWER: u8 = 32;
/// The same in microseconds.
pub(super) const LONGEST: u64 = (1 << MAX_VALUE_POWER) - 1;
/// As many as `histogram` has for these powers, whose order of buckets this is.
pub(in crate::endpoint) const BUCKETS: usize = ((MAX_VALUE_POWER - GROUPING_POWER + 1) as usize) << GROUPING_POWER;

/// The bucket of a value: its own where there is one for each, else by its highest bit and the four bits below that.
pub(super) fn bucket(value: u64) -> usize {
    let value = value.min(LONGEST);
    let coarse = value.max(1).ilog2().saturating_sub(u32::from(GROUPING_POWER));
    ((coarse as usize) << GROUPING_POWER) + (value >> coarse) as usize
}

impl Default for Buckets {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Default::default()))
    }
}

impl Latency {
    /// Counts successes by their buckets.
    pub(super) fn count(&self, successes: impl Iterator<Item = [usize; 2]>) {
        let (Buckets(counts), mut lines) = (&**self.buckets.get_or_init(Box::default), 0_u64);
        for [first_byte, total] in successes {
            counts[first_byte][0].fetch_add(1, Ordering::Relaxed);
            counts[total][1].fetch_add(1, Ordering::Relaxed);
            lines |= 1 << (first_byte / LINE) | 1 << (total / LINE);
        }
        // almost always they are known
        if self.filled.load(Ordering::Relaxed) & lines != lines {
            self.filled.fetch_or(lines, Ordering::Relaxed);
        }
    }

    /// What was counted, and what `tally` keeps of the latest, of which one that is on its way from there to here is missed
    /// this time, and none counted twice.
    pub(super) fn read(&self, tally: &Tally) -> [Times; 2] {
        let [mut first_byte, mut total] = [Filled::new(), Filled::new()];
        if let Some(buckets) = self.buckets.get() {
            let mut lines = self.filled.load(Ordering::Relaxed);
            while lines != 0 {
                let start = lines.trailing_zeros() as usize * LINE;
                for (bucket, pair) in (start as u32..).zip(&buckets.0[start..start + LINE]) {
                    first_byte.push(bucket, pair[0].load(Ordering::Relaxed));
                    total.push(bucket, pair[1].load(Ordering::Relaxed));
                }
                lines &= lines - 1;
            }
        }
        for buckets in tally.latest.read() {
            first_byte.add(buckets[0] as u32);
            total.add(buckets[1] as u32);
        }
        let [sum_of_first_byte, sum_of_total] = tally.micros.each_ref().map(|sum| sum.load(Ordering::Relaxed));
        [first_byte.times(sum_of_first_byte), total.times(sum_of_total)]
    }
}

/// A copy of many times, in microseconds.
#[derive(Debug)]
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

    fn times(self, sum: u64) -> Times {
        let histogram = SparseHistogram::from_parts(config(), self.buckets, self.counts);
        Times { sum, histogram: histogram.expect("these are its buckets, in order") }
    }
}
