//! How one endpoint fared on one route in the last minute.

use std::{
    ops::AddAssign,
    sync::{Arc, Weak},
};

use tokio::time::Instant;

use super::super::{Endpoint, EndpointId, Inner};

/// Six buckets of ten seconds: the minute in which the default breaker counts.
const BUCKETS: usize = 6;
const BUCKET: u64 = 10_000_000_000;
pub(super) const WINDOW: u64 = BUCKETS as u64 * BUCKET;

/// How one endpoint fared on one route.
#[derive(Debug)]
pub(super) struct Luck {
    pub(super) id: EndpointId,
    endpoint: Weak<Inner>,
    tally: [Counts; BUCKETS],
    pub(super) newest: u64,
    /// Whether its last word was a fault.
    pub(super) failed_last: bool,
    /// Faults laid to nobody because the peers had said too little.
    pub(super) held: u32,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) faults: u32,
    pub(super) successes: u32,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.faults = self.faults.saturating_add(other.faults);
        self.successes = self.successes.saturating_add(other.successes);
    }
}

impl Counts {
    pub(super) fn any(self) -> bool {
        self.faults > 0 || self.successes > 0
    }

    fn total(self) -> f64 {
        f64::from(self.faults) + f64::from(self.successes)
    }

    pub(super) fn fault_share(self) -> f64 {
        f64::from(self.faults) / self.total().max(1.0)
    }

    /// Whether these are more faults than whoever fares as `peers` do has by chance: beyond three standard deviations of a rate
    /// that is judged from half a fault and half a success more than were seen (Jeffreys' rule), for a few say little.
    pub(super) fn differ_from(self, peers: Self) -> bool {
        let expected = (f64::from(peers.faults) + 0.5) / (peers.total() + 1.0) * self.total();
        f64::from(self.faults) > expected + 3.0 * expected.sqrt()
    }
}

impl Luck {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        let tally = [Counts::default(); BUCKETS];
        let weak = Arc::downgrade(&endpoint.0);
        Self { id: endpoint.id(), endpoint: weak, tally, newest: 0, failed_last: false, held: 0 }
    }

    /// The counts of the present bucket.
    pub(super) fn bucket(&mut self, now: u64) -> &mut Counts {
        let index = (now / BUCKET).max(self.newest);
        for stale in (self.newest + 1..=index).rev().take(BUCKETS) {
            self.tally[stale as usize % BUCKETS] = Counts::default();
        }
        self.newest = index;
        &mut self.tally[index as usize % BUCKETS]
    }

    /// What the window holds.
    pub(super) fn counts(&self, now: u64) -> Counts {
        let index = (now / BUCKET).max(self.newest);
        let kept = BUCKETS.saturating_sub((index - self.newest) as usize);
        let newest_first = (0..kept).map(|back| &self.tally[(self.newest as usize + BUCKETS - back) % BUCKETS]);
        let mut sum = Counts::default();
        newest_first.for_each(|counts| sum += *counts);
        sum
    }

    /// Whether it could take over.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.endpoint.upgrade().map(Endpoint).is_some_and(|peer| peer.is_in_service() && peer.shut_until(now).is_none())
    }
}
