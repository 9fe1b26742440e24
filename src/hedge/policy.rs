//! When a second attempt is worth its price: pure, with times as arguments.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{HedgeError, Skip};

/// Times below which a percentile says nothing.
const FEWEST: u32 = 20;
/// How long times count: as long again, and up to twice as long.
const PERIOD: Duration = Duration::from_secs(300);
/// The most kinds of requests that are told apart. Models are named by requests, which may name anything.
const MOST_KINDS: usize = 256;
/// Hedges that may be saved up in quiet times.
const SAVED: f64 = 10.0;
/// Below this nothing is late; a timer would be as long.
const SOONEST: Duration = Duration::from_millis(10);

/// What is configured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) percentile: f64,
    pub(super) share: f64,
    /// In US dollars; `None`: any.
    pub(super) max_cost: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { percentile: 0.95, share: 0.05, max_cost: None }
    }
}

impl Limits {
    pub(super) fn percentile(mut self, percentile: f64) -> Result<Self, HedgeError> {
        if !(0.5..1.0).contains(&percentile) {
            return Err(HedgeError::Percentile(percentile));
        }
        self.percentile = percentile;
        Ok(self)
    }

    pub(super) fn share(mut self, share: f64) -> Result<Self, HedgeError> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(HedgeError::Share(share));
        }
        self.share = share;
        Ok(self)
    }

    pub(super) fn max_cost(mut self, usd: f64) -> Result<Self, HedgeError> {
        if !(usd >= 0.0 && usd.is_finite()) {
            return Err(HedgeError::Cost(usd));
        }
        self.max_cost = Some(usd);
        Ok(self)
    }
}

/// What all requests together have shown: how long first outputs take, kind by kind, and how many hedges are left.
#[derive(Debug)]
pub(super) struct Seen {
    kinds: HashMap<u64, Kind>,
    /// Hedges that may be sent, of which each request brings a share.
    left: f64,
}

/// The times of one kind of request.
#[derive(Debug)]
struct Kind {
    since: Instant,
    now: Times,
    before: Times,
}

impl Default for Seen {
    fn default() -> Self {
        // the first slow request of all may be hedged
        Self { kinds: HashMap::new(), left: 1.0 }
    }
}

impl Seen {
    /// A request came. When it should be hedged if it has said nothing by then; `None` while too little is known of its kind.
    pub(super) fn request(&mut self, limits: &Limits, kind: u64, now: Instant) -> Option<Duration> {
        self.left = (self.left + limits.share).min(SAVED);
        let kind = self.kinds.get_mut(&kind)?;
        kind.turn(now);
        kind.percentile(limits.percentile).map(|span| span.max(SOONEST))
    }

    /// The first output of a request came after `span`, or had not come by then when the hedge's did.
    pub(super) fn first_output(&mut self, kind: u64, span: Duration, now: Instant) {
        if !self.kinds.contains_key(&kind) && self.kinds.len() >= MOST_KINDS {
            self.kinds.retain(|_, kind| now.saturating_duration_since(kind.since) < 2 * PERIOD);
            if self.kinds.len() >= MOST_KINDS {
                return;
            }
        }
        let new = || Kind { since: now, now: Times::default(), before: Times::default() };
        let kind = self.kinds.entry(kind).or_insert_with(new);
        kind.turn(now);
        kind.now.add(span);
    }

    /// Takes a hedge out of the share.
    pub(super) fn take(&mut self) -> Result<(), Skip> {
        if self.left < 1.0 {
            return Err(Skip::Share);
        }
        self.left -= 1.0;
        Ok(())
    }

    /// Gives one back that was not sent.
    pub(super) fn give_back(&mut self) {
        self.left = (self.left + 1.0).min(SAVED);
    }
}

impl Kind {
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age >= PERIOD {
            let last = std::mem::take(&mut self.now);
            self.before = if age >= 2 * PERIOD { Times::default() } else { last };
            self.since = now;
        }
    }

    fn percentile(&self, percentile: f64) -> Option<Duration> {
        let count = self.now.count + self.before.count;
        if count < FEWEST {
            return None;
        }
        let mut beyond = f64::from(count) * (1.0 - percentile);
        for bucket in (0..BUCKETS).rev() {
            beyond -= f64::from(self.now.buckets[bucket]) + f64::from(self.before.buckets[bucket]);
            if beyond < 0.0 {
                return Some(longest_in(bucket));
            }
        }
        None
    }
}

/// Buckets an eighth of a power of two wide, from 1 ms to 18 hours.
const BUCKETS: usize = 26 * 8;

#[derive(Debug)]
struct Times {
    count: u32,
    buckets: Box<[u32; BUCKETS]>,
}

impl Default for Times {
    fn default() -> Self {
        Self { count: 0, buckets: Box::new([0; BUCKETS]) }
    }
}

impl Times {
    fn add(&mut self, span: Duration) {
        let eighths = libm::log2((span.as_secs_f64() * 1e3).max(1.0)) * 8.0;
        // a cast from f64 saturates
        let bucket = (eighths as usize).min(BUCKETS - 1);
        self.buckets[bucket] = self.buckets[bucket].saturating_add(1);
        self.count = self.count.saturating_add(1);
    }
}

/// The longest time that falls into a bucket.
fn longest_in(bucket: usize) -> Duration {
    Duration::from_secs_f64(libm::exp2((bucket + 1) as f64 / 8.0) / 1e3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn told(spans: impl IntoIterator<Item = Duration>, now: Instant) -> Seen {
        let mut seen = Seen::default();
        spans.into_iter().for_each(|span| seen.first_output(1, span, now));
        seen
    }

    #[test]
    fn a_request_is_late_beyond_the_percentile_of_its_kind() {
        let (limits, now) = (Limits::default(), Instant::now());
        let hundred = (1..=100).map(|at| if at > 95 { 9_000 * MILLI } else { 100 * MILLI });
        let late = told(hundred, now).request(&limits, 1, now).unwrap();
        assert!((100 * MILLI..=110 * MILLI).contains(&late), "{late:?}");
        let hundred = (1..=100).map(|at| if at > 94 { 9_000 * MILLI } else { 100 * MILLI });
        let late = told(hundred, now).request(&limits, 1, now).unwrap();
        assert!((9_000 * MILLI..=10_000 * MILLI).contains(&late), "{late:?}");
    }

    #[test]
    fn of_what_little_is_known_nothing_is_late() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut seen = told(std::iter::repeat_n(MILLI, FEWEST as usize - 1), now);
        assert_eq!(seen.request(&limits, 1, now), None);
        seen.first_output(1, MILLI, now);
        assert_eq!(seen.request(&limits, 1, now), Some(SOONEST));
        assert_eq!(seen.request(&limits, 2, now), None, "of another kind");
        assert!(seen.request(&limits, 1, now + PERIOD).is_some());
        assert_eq!(seen.request(&limits, 1, now + 3 * PERIOD), None, "long ago");
    }

    #[test]
    fn hedges_are_a_share_of_the_requests_and_a_few_can_be_saved_up() {
        let (limits, now) = (Limits::default().share(0.1).unwrap(), Instant::now());
        let mut seen = Seen::default();
        let mut sent = 0;
        for _ in 0..1_000 {
            seen.request(&limits, 1, now);
            sent += usize::from(seen.take().is_ok());
        }
        assert!((100..=101).contains(&sent), "{sent}");
        (0..1_000).for_each(|_| _ = seen.request(&limits, 1, now));
        assert_eq!((0..1_000).filter(|_| seen.take().is_ok()).count(), SAVED as usize);
        seen.give_back();
        assert!(seen.take().is_ok() && seen.take().is_err());
    }

    #[test]
    fn r132_kinds_made_up_by_requests_take_bounded_room() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        (0..10_000).for_each(|kind| seen.first_output(kind, MILLI, now));
        assert_eq!(seen.kinds.len(), MOST_KINDS);
        seen.first_output(20_000, MILLI, now + 2 * PERIOD);
        assert_eq!(seen.kinds.len(), 1);
    }

    proptest! {
        #[test]
        fn r118_no_time_is_too_long_or_too_short(nanos in prop::collection::vec(any::<u64>(), 20..100), shift in 0..64u32) {
            let now = Instant::now();
            let spans = nanos.iter().map(|nanos| Duration::from_nanos(nanos >> shift)).chain([Duration::MAX, Duration::ZERO]);
            let late = told(spans, now).request(&Limits::default(), 1, now).unwrap();
            prop_assert!(late >= SOONEST && late < Duration::from_secs(100_000));
        }
    }
}
