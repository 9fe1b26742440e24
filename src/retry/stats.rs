use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

use super::GiveUp;
use crate::outcome::{Cause, CauseCounts};

#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: AtomicU64,
    refused: AtomicU64,
    unreplayable: AtomicU64,
    unclear: AtomicU64,
    retries: CauseCounts,
    failovers: CauseCounts,
    give_ups: [AtomicU64; GiveUp::ALL.len()],
}

impl Counts {
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unreplayable(&self) {
        self.unreplayable.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retry(&self, cause: Cause, unclear: bool) {
        self.retries.add(cause);
        self.unclear.fetch_add(u64::from(unclear), Ordering::Relaxed);
    }

    pub(super) fn failover(&self, cause: Cause) {
        self.failovers.add(cause);
    }

    pub(super) fn give_up(&self, why: GiveUp) {
        self.give_ups[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> RetryStats {
        let given_up = |why: GiveUp| self.give_ups[why as usize].load(Ordering::Relaxed);
        let (retries, failovers) = (self.retries.by_name(), self.failovers.by_name());
        let (requests, refused) = (self.requests.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        let started = requests + retries.values().sum::<u64>() + failovers.values().sum::<u64>();
        RetryStats {
            requests,
            attempts: started.saturating_sub(refused),
            refused,
            retries,
            failovers,
            unclear: self.unclear.load(Ordering::Relaxed),
            budget_refusals: given_up(GiveUp::Budget),
            give_ups: GiveUp::ALL
                .iter()
                .map(|why| (why.as_str(), given_up(*why)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            unreplayable: self.unreplayable.load(Ordering::Relaxed),
        }
    }
}

/// Watches a [`RetryLayer`](super::RetryLayer) and all that it made.
#[derive(Debug, Clone)]
pub struct RetryHandle(pub(super) Arc<Counts>);

impl RetryHandle {
    /// What has happened so far.
    pub fn stats(&self) -> RetryStats {
        self.0.read()
    }
}

/// What a [`RetryLayer`](super::RetryLayer) has done; what never happened is left out of the maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetryStats {
    /// Requests that came in.
    pub requests: u64,
    /// Attempts that went out: requests, retries and failovers together, less those refused.
    pub attempts: u64,
    /// Attempts a layer of ours refused, such as for want of a key: nothing was sent, and the request ended with it.
    pub refused: u64,
    /// Attempts after a wait, by the cause they followed.
    pub retries: BTreeMap<&'static str, u64>,
    /// Attempts on another key at once, by the cause they followed.
    pub failovers: BTreeMap<&'static str, u64>,
    /// Those of the retries that repeated what may have run.
    pub unclear: u64,
    /// Retries the budget refused.
    pub budget_refusals: u64,
    /// Failed answers passed on, by [reason](GiveUp).
    pub give_ups: BTreeMap<&'static str, u64>,
    /// Requests that could be sent only once, because their body cannot be replayed.
    pub unreplayable: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_index() {
        for (index, why) in GiveUp::ALL.iter().enumerate() {
            assert_eq!(*why as usize, index, "{}", why.as_str());
        }
    }
}
