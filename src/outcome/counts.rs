use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use super::Cause;

/// A counter for each cause.
#[derive(Debug)]
pub(crate) struct CauseCounts([AtomicU64; Cause::ALL.len()]);

impl Default for CauseCounts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl CauseCounts {
    /// Counts one.
    pub(crate) fn add(&self, cause: Cause) {
        // released, so that whoever reads this end also sees the start before it
        self.0[cause.index()].fetch_add(1, Ordering::Release);
    }

    pub(crate) fn get(&self, cause: Cause) -> u64 {
        self.0[cause.index()].load(Ordering::Acquire)
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// Those that happened, by name.
    pub(crate) fn by_name(&self) -> BTreeMap<&'static str, u64> {
        Cause::ALL.iter().map(|cause| (cause.as_str(), self.get(*cause))).filter(|(_, count)| *count > 0).collect()
    }
}
