use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

/// Why a request that was late was not sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Skip {
    /// Its body cannot be sent again.
    Unreplayable,
    /// It was tried again, or hedged, before.
    Tried,
    /// It costs too much, or nobody knows what it costs.
    Cost,
    /// The share is used up.
    Share,
    /// The retry budget is used up.
    Budget,
    /// No key of another account could serve it at once.
    Nobody,
}

impl Skip {
    /// Every reason.
    pub const ALL: [Self; 6] = [Self::Unreplayable, Self::Tried, Self::Cost, Self::Share, Self::Budget, Self::Nobody];

    /// The reason's name in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreplayable => "unreplayable",
            Self::Tried => "tried",
            Self::Cost => "cost",
            Self::Share => "share",
            Self::Budget => "budget",
            Self::Nobody => "nobody",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: AtomicU64,
    hedges: AtomicU64,
    won: AtomicU64,
    failed: AtomicU64,
    skipped: [AtomicU64; Skip::ALL.len()],
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counts {
    pub(super) fn request(&self) {
        add(&self.requests);
    }

    pub(super) fn hedge(&self) {
        add(&self.hedges);
    }

    pub(super) fn won(&self) {
        add(&self.won);
    }

    pub(super) fn failed(&self) {
        add(&self.failed);
    }

    pub(super) fn skip(&self, why: Skip) {
        add(&self.skipped[why as usize]);
    }

    /// One that was counted found nobody, so nothing was sent.
    pub(super) fn nobody(&self) {
        self.hedges.fetch_sub(1, Ordering::Relaxed);
        self.skip(Skip::Nobody);
    }
}

/// Watches a [`HedgeLayer`](super::HedgeLayer) and all that it made.
#[derive(Debug, Clone)]
pub struct HedgeHandle(pub(super) Arc<Counts>);

impl HedgeHandle {
    /// What has happened so far.
    pub fn stats(&self) -> HedgeStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let skipped = Skip::ALL.iter().map(|why| (why.as_str(), read(&self.0.skipped[*why as usize])));
        HedgeStats {
            requests: read(&self.0.requests),
            hedges: read(&self.0.hedges),
            won: read(&self.0.won),
            failed: read(&self.0.failed),
            skipped: skipped.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// What a [`HedgeLayer`](super::HedgeLayer) has done; what never happened is left out of the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HedgeStats {
    /// Requests that came in, those that are tried again each time.
    pub requests: u64,
    /// Second attempts that went out.
    pub hedges: u64,
    /// Those of them whose answer was the one given.
    pub won: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Requests that were late and were not sent twice, by [reason](Skip).
    pub skipped: BTreeMap<&'static str, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_index() {
        for (index, why) in Skip::ALL.iter().enumerate() {
            assert_eq!(*why as usize, index, "{}", why.as_str());
        }
    }
}
