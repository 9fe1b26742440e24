use std::sync::Arc;

use tokio::time::Instant;

use super::{BreakerSnapshot, shared::Breaker};

/// Watches a breaker and switches it by hand. What is switched holds at once; the latest call holds.
#[derive(Debug, Clone)]
pub struct BreakerHandle {
    breaker: Arc<Breaker>,
}

impl BreakerHandle {
    pub(super) fn new(breaker: Arc<Breaker>) -> Self {
        Self { breaker }
    }

    /// Where the breaker stands now.
    pub fn snapshot(&self) -> BreakerSnapshot {
        self.breaker.snapshot(Instant::now())
    }

    /// Lets nothing through until [`reset`](Self::reset). Requests under way are finished, and an instance that was ready
    /// before keeps its promise of one call.
    pub fn isolate(&self) {
        self.breaker.step(Instant::now(), |core| ((), Some(core.isolate())));
    }

    /// Closes the breaker and forgets what was counted.
    pub fn reset(&self) {
        self.breaker.step(Instant::now(), |core| ((), Some(core.reset())));
    }

    /// Switches the breaker off: everything is let through and nothing counts.
    pub fn disable(&self) {
        self.breaker.step(Instant::now(), |core| ((), Some(core.disable())));
    }

    /// Switches it on again after [`disable`](Self::disable), closed; otherwise does nothing.
    pub fn enable(&self) {
        self.breaker.step(Instant::now(), |core| ((), core.enable()));
    }
}
