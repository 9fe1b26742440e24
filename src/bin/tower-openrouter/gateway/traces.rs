//! The latest traces, to be asked for by request id.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;
use tower_openrouter::explain::Trace;

/// How many traces are kept: some megabytes at most.
const KEPT: usize = 1000;
/// The longest id that is kept; ours have 37 bytes, and a client may send its own.
const LONGEST_ID: usize = 128;

/// Which requests are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
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
pub(super) struct Traces(Arc<Mutex<Latest>>);

/// By id, the latest last.
type Latest = VecDeque<(Box<str>, Trace)>;

impl Traces {
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the trace of the request with this id, and lets the oldest go.
    pub(super) fn keep(&self, id: &str, trace: Trace) {
        if id.len() > LONGEST_ID {
            return;
        }
        let oldest = {
            let mut traces = self.lock();
            let oldest = if traces.len() < KEPT { None } else { traces.pop_front() };
            traces.push_back((id.into(), trace));
            oldest
        };
        drop(oldest);
    }

    /// The trace of the latest request with this id.
    pub(super) fn find(&self, id: &str) -> Option<Trace> {
        self.lock().iter().rev().find(|(other, _)| **other == *id).map(|(_, trace)| trace.clone())
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
    }
}
