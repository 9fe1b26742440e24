//! What happened over the last minutes, key by key, in buckets of a few seconds.
//!
//! Whoever opens the page wants to see what was before, so this is kept whether or not anybody looks: once in a bucket a few
//! counters of each key are read. A bucket in which a key did nothing is not stored, so keys that idle cost nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde::{Serialize, Serializer, ser::SerializeTuple};
use tower_openrouter::endpoint::{Endpoint, EndpointId, Figures};

/// Ticks, and so seconds, of a bucket.
pub(super) const BUCKET: u64 = 5;
/// How many buckets are kept: five minutes.
pub(super) const BUCKETS: u64 = 60;

/// The past of all keys.
#[derive(Debug, Default)]
pub(super) struct History {
    ticks: u64,
    keys: HashMap<EndpointId, Past>,
    /// All keys together, one for each bucket that is over.
    all: VecDeque<Total>,
    /// The most of them in the bucket that runs.
    in_flight: u64,
    waiting: u64,
}

#[derive(Debug, Default)]
struct Past {
    /// What the counters said when the bucket that runs began.
    since: Reading,
    /// Those that are over, the latest last.
    buckets: VecDeque<Bucket>,
    /// The bucket, the cause, and how many.
    faults: VecDeque<(u64, &'static str, u64)>,
}

#[derive(Debug, Default)]
struct Reading {
    succeeded: u64,
    first_byte_us: u64,
    failed: BTreeMap<&'static str, u64>,
}

impl Reading {
    fn of(figures: &Figures) -> Self {
        Self {
            succeeded: figures.succeeded(),
            first_byte_us: u64::try_from(figures.summed_first_byte().as_micros()).unwrap_or(u64::MAX),
            failed: figures.failed_by_name(),
        }
    }

    /// How many failed between this reading and a later one, by cause.
    fn faults(&self, later: &Self) -> impl Iterator<Item = (&'static str, u64)> {
        let before = |cause| self.failed.get(cause).copied().unwrap_or(0);
        let counts = later.failed.iter().map(move |(cause, count)| (*cause, count.saturating_sub(before(cause))));
        counts.filter(|(_, count)| *count > 0)
    }

    fn bucket(&self, later: &Self, number: u64) -> Bucket {
        Bucket {
            number,
            succeeded: later.succeeded.saturating_sub(self.succeeded),
            failed: self.faults(later).map(|(_, count)| count).sum(),
            first_byte_us: later.first_byte_us.saturating_sub(self.first_byte_us),
        }
    }
}

/// What one key did in one bucket. Serialised as `[number, succeeded, failed]`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Bucket {
    pub(super) number: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    first_byte_us: u64,
}

impl Serialize for Bucket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.number, self.succeeded, self.failed).serialize(serializer)
    }
}

/// What all keys did in one bucket. Serialised as `[number, succeeded, failed, first output in ms, in flight, waiting]`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Total {
    pub(super) bucket: Bucket,
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
}

impl Serialize for Total {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all = serializer.serialize_tuple(6)?;
        all.serialize_element(&self.bucket.number)?;
        all.serialize_element(&self.bucket.succeeded)?;
        all.serialize_element(&self.bucket.failed)?;
        all.serialize_element(&mean_ms([self.bucket].iter()))?;
        all.serialize_element(&self.in_flight)?;
        all.serialize_element(&self.waiting)?;
        all.end()
    }
}

/// Mean time to the first output over these buckets, in milliseconds.
pub(super) fn mean_ms<'a>(buckets: impl Iterator<Item = &'a Bucket>) -> Option<f64> {
    let (us, count) = buckets.fold((0, 0), |(us, count), bucket| (us + bucket.first_byte_us, count + bucket.succeeded));
    (count > 0).then(|| (us as f64 / count as f64 / 100.0).round() / 10.0)
}

/// What a key did of late.
#[derive(Debug)]
pub(super) struct Recent {
    /// Those in which it did something, the one that runs last.
    pub(super) buckets: Vec<Bucket>,
    /// Its faults in all of them, by cause.
    pub(super) faults: BTreeMap<&'static str, u64>,
}

impl History {
    /// The number of the bucket that runs.
    pub(super) fn bucket(&self) -> u64 {
        self.ticks / BUCKET
    }

    /// A second has passed, and so many wait for a key.
    pub(super) fn tick(&mut self, endpoints: &[Endpoint], waiting: usize) {
        let in_flight = endpoints.iter().map(|endpoint| u64::from(endpoint.figures().in_flight())).sum();
        (self.in_flight, self.waiting) = (self.in_flight.max(in_flight), self.waiting.max(waiting as u64));
        let number = self.bucket();
        self.ticks += 1;
        if self.bucket() > number {
            self.close(endpoints, number);
            (self.in_flight, self.waiting) = (in_flight, waiting as u64);
        }
    }

    fn close(&mut self, endpoints: &[Endpoint], number: u64) {
        let oldest = (number + 2).saturating_sub(BUCKETS);
        let mut total = Bucket { number, ..Bucket::default() };
        for endpoint in endpoints {
            let past = self.keys.entry(endpoint.id()).or_default();
            let now = Reading::of(endpoint.figures());
            let bucket = past.since.bucket(&now, number);
            total.add(&bucket);
            if bucket.succeeded + bucket.failed > 0 {
                past.faults.extend(past.since.faults(&now).map(|(cause, count)| (number, cause, count)));
                past.buckets.push_back(bucket);
            }
            past.buckets.retain(|bucket| bucket.number >= oldest);
            past.faults.retain(|(number, ..)| *number >= oldest);
            past.since = now;
        }
        if self.keys.len() > endpoints.len() {
            let ids: HashSet<_> = endpoints.iter().map(Endpoint::id).collect();
            self.keys.retain(|id, _| ids.contains(id));
        }
        self.all.push_back(Total { bucket: total, in_flight: self.in_flight, waiting: self.waiting });
        self.all.retain(|total| total.bucket.number >= oldest);
    }

    /// What a key did, with the bucket that runs.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Recent {
        let (unknown, now) = (Past::default(), Reading::of(endpoint.figures()));
        let past = self.keys.get(&endpoint.id()).unwrap_or(&unknown);
        let open = past.since.bucket(&now, self.bucket());
        let mut buckets: Vec<_> = past.buckets.iter().copied().collect();
        if open.succeeded + open.failed > 0 {
            buckets.push(open);
        }
        let mut faults = BTreeMap::new();
        let over = past.faults.iter().map(|(_, cause, count)| (*cause, *count));
        for (cause, count) in over.chain(past.since.faults(&now)) {
            *faults.entry(cause).or_default() += count;
        }
        Recent { buckets, faults }
    }

    /// What all keys did together, the bucket that runs last; `open` is their part of that.
    pub(super) fn all(&self, open: Bucket) -> Vec<Total> {
        let open = Bucket { number: self.bucket(), ..open };
        let open = Total { bucket: open, in_flight: self.in_flight, waiting: self.waiting };
        self.all.iter().copied().chain([open]).collect()
    }
}

impl Bucket {
    pub(super) fn add(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.first_byte_us += other.first_byte_us;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use tower_openrouter::{
        ApiKey, Pool,
        outcome::{Cause, Fault, Scope},
    };

    use super::*;

    fn works(endpoint: &Endpoint, millis: u64) {
        endpoint.figures().start();
        endpoint.figures().leave();
        endpoint.figures().succeed(Duration::from_millis(millis), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_keys_did_is_kept_for_five_minutes_in_buckets() {
        let pool = Pool::new(["a", "b"].map(|key| ApiKey::new(key).unwrap())).unwrap();
        let keys = pool.endpoints();
        let mut history = History::default();
        works(&keys[0], 100);
        (0..BUCKET).for_each(|_| history.tick(&keys, 3));
        works(&keys[0], 300);
        keys[0].figures().start();
        keys[0].figures().fail(&Fault::new(Cause::KeyLimit, Scope::Key), Duration::ZERO, Instant::now());
        let recent = history.of(&keys[0]);
        let told = |recent: &Recent| serde_json::to_string(&recent.buckets).unwrap();
        assert_eq!(told(&recent), "[[0,1,0],[1,1,1]]");
        assert_eq!(recent.faults, BTreeMap::from([("key_limit", 1)]));
        assert_eq!(mean_ms(recent.buckets.iter()), Some(200.0));
        assert!(history.of(&keys[1]).buckets.is_empty());
        let all = history.all(recent.buckets[1]);
        assert_eq!(serde_json::to_string(&all).unwrap(), "[[0,1,0,100.0,0,3],[1,1,1,300.0,0,3]]");

        (0..BUCKET * (BUCKETS - 1)).for_each(|_| history.tick(&keys, 0));
        assert_eq!(told(&history.of(&keys[0])), "[[1,1,1]]", "the first is too long ago");
        assert_eq!(history.all(Bucket::default()).len() as u64, BUCKETS);
        (0..BUCKET).for_each(|_| history.tick(&keys, 0));
        let recent = history.of(&keys[0]);
        assert!(recent.buckets.is_empty() && recent.faults.is_empty());
    }

    #[test]
    fn keys_that_are_gone_take_no_room() {
        let pool = Pool::new(["a", "b"].map(|key| ApiKey::new(key).unwrap())).unwrap();
        let mut history = History::default();
        (0..BUCKET).for_each(|_| history.tick(&pool.endpoints(), 0));
        assert_eq!(history.keys.len(), 2);
        pool.remove(pool.endpoints()[0].key().name());
        (0..BUCKET).for_each(|_| history.tick(&pool.endpoints(), 0));
        assert_eq!(history.keys.len(), 1);
    }
}
