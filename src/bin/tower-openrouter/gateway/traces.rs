//! The latest traces, to be asked for by request id, and shown on the page.
//!
//! To explain a request costs a look at every key, so by default it is done for those that ask. The page would then show
//! nothing of most gateways; so while somebody looks at it, a few requests a second are explained besides.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_openrouter::explain::Trace;

/// How many traces are kept: some megabytes at most.
const KEPT: usize = 1000;
/// The longest id that is kept; ours have 37 bytes, and a client may send its own.
const LONGEST_ID: usize = 128;

/// Which requests are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Explained {
    /// None
    Off,
    /// Those that carry the header x-balancer-explain: 1
    #[default]
    Asked,
    /// Every one
    All,
}

/// The latest traces. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Traces(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The latest last.
    latest: Mutex<VecDeque<Kept>>,
    /// How many that did not ask are to be explained yet, in this second.
    wanted: AtomicU32,
}

/// The trace of one request.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) id: Box<str>,
    /// When the request came.
    pub(super) at: Instant,
    pub(super) trace: Trace,
}

impl Traces {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.0.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the trace of the request with this id, and lets the oldest go.
    pub(super) fn keep(&self, id: &str, trace: Trace) {
        if id.len() > LONGEST_ID {
            return;
        }
        let kept = Kept { id: id.into(), at: Instant::now(), trace };
        let oldest = {
            let mut traces = self.lock();
            let oldest = if traces.len() < KEPT { None } else { traces.pop_front() };
            traces.push_back(kept);
            oldest
        };
        drop(oldest);
    }

    /// The trace of the latest request with this id.
    pub(super) fn find(&self, id: &str) -> Option<Trace> {
        self.lock().iter().rev().find(|kept| *kept.id == *id).map(|kept| kept.trace.clone())
    }

    /// The latest so many, the latest first.
    pub(super) fn latest(&self, count: usize) -> Vec<Kept> {
        self.lock().iter().rev().take(count).cloned().collect()
    }

    /// From here on so many are explained that did not ask.
    pub(super) fn want(&self, count: u32) {
        self.0.wanted.store(count, Ordering::Relaxed);
    }

    /// Whether one that has not asked is to be explained, if it `may` be. One load while nobody looks.
    pub(super) fn wants_one(&self, may: impl FnOnce() -> bool) -> bool {
        let wanted = &self.0.wanted;
        wanted.load(Ordering::Relaxed) > 0
            && may()
            && wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use tower_openrouter::RequestContext;

    use super::*;

    #[test]
    fn the_latest_are_kept_and_no_more() {
        let traces = Traces::default();
        let trace = || RequestContext::new().explain().clone();
        for number in 0..KEPT + 1 {
            traces.keep(&number.to_string(), trace());
        }
        assert!(traces.find("0").is_none() && traces.find("1").is_some());
        traces.keep(&"x".repeat(LONGEST_ID + 1), trace());
        assert_eq!(traces.lock().len(), KEPT);
        assert!(traces.find("1").is_some(), "an id that is too long pushes nobody out");
        let latest: Vec<_> = traces.latest(2).into_iter().map(|kept| kept.id).collect();
        assert_eq!(latest, [KEPT.to_string().into(), (KEPT - 1).to_string().into()]);
    }

    #[test]
    fn only_while_somebody_looks_a_few_are_explained_that_did_not_ask() {
        let traces = Traces::default();
        assert!(!traces.wants_one(|| true));
        traces.want(2);
        let wanted = [false, true, true, true].map(|may| traces.wants_one(|| may));
        assert_eq!(wanted, [false, true, true, false]);
    }
}
