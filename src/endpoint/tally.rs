//! What every success of an endpoint writes: one line of the cache.
//!
//! With ten thousand keys no cache holds what is counted of one of them, so each line that an attempt writes to is fetched
//! from far away. All counters of a success therefore lie in one, and its times wait there until there are four of them:
//! the histograms, which lie elsewhere and everywhere, are needed for every fourth success only.

use std::sync::atomic::{AtomicU64, Ordering};

use super::figures::latency::BUCKETS;

/// One endpoint's.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Tally {
    pub(super) started: AtomicU64,
    pub(super) succeeded: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) completion_tokens: AtomicU64,
    pub(super) cost_nano_usd: AtomicU64,
    /// Of the successes, to the first byte and to the end.
    pub(super) micros: [AtomicU64; 2],
    pub(super) latest: Latest,
}

impl Tally {
    /// Counts from nothing again, for another endpoint.
    pub(super) fn clear(&self) {
        let Self { started, succeeded, prompt_tokens, completion_tokens, cost_nano_usd, micros, latest } = self;
        let [first_byte, total] = micros;
        for counter in
            [started, succeeded, prompt_tokens, completion_tokens, cost_nano_usd, first_byte, total, &latest.0]
        {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// How many successes wait.
const WAITING: u32 = 3;
/// Of the word for each: two numbers of buckets, from 1 on, since 0 is none.
const BITS: u32 = 20;
const _: () = assert!(BUCKETS * BUCKETS < 1 << BITS && BITS * WAITING <= u64::BITS);

/// The latest successes, each by the buckets of its two times, in one word, so that none is counted twice or lost.
#[derive(Debug, Default)]
pub(super) struct Latest(AtomicU64);

impl Latest {
    /// Keeps a success; when there is no room left gives it back, and those kept, which are kept no longer.
    pub(super) fn keep(&self, buckets: [usize; 2]) -> Option<impl Iterator<Item = [usize; 2]>> {
        let [first_byte, total] = buckets;
        let sample = (first_byte * BUCKETS + total + 1) as u64;
        let is_full = |kept: u64| kept >> (BITS * (WAITING - 1)) != 0;
        let next = |kept| Some(if is_full(kept) { 0 } else { kept << BITS | sample });
        // it never fails, since there is always a next
        let kept = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        is_full(kept).then(|| samples(kept).chain([buckets]))
    }

    /// Those kept.
    pub(super) fn read(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        samples(self.0.load(Ordering::Relaxed))
    }
}

fn samples(kept: u64) -> impl Iterator<Item = [usize; 2]> {
    let samples = (0..WAITING).map(move |at| (kept >> (at * BITS)) as usize & ((1 << BITS) - 1));
    samples.filter_map(|sample| sample.checked_sub(1)).map(|buckets| [buckets / BUCKETS, buckets % BUCKETS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_success_is_given_back_once() {
        let (latest, all) = (Latest::default(), [[0, 0], [BUCKETS - 1, 0], [7, BUCKETS - 1], [3, 4], [5, 6]]);
        let mut counted = Vec::new();
        for (at, buckets) in all.into_iter().enumerate() {
            counted.extend(latest.keep(buckets).into_iter().flatten());
            assert_eq!(counted.len() + latest.read().count(), at + 1);
        }
        counted.extend(latest.read());
        counted.sort_unstable();
        let mut all = all;
        all.sort_unstable();
        assert_eq!(counted, all);
    }

    #[test]
    fn it_is_one_line_of_the_cache() {
        assert_eq!((size_of::<Tally>(), align_of::<Tally>()), (64, 64));
    }
}
