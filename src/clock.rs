//! Time, as the crate reads it.
//!
//! Everything that waits, rests or expires runs on the runtime's monotonic clock ([`tokio::time::Instant`]), so a paused
//! test drives it and a stepping wall clock changes nothing. The wall clock is read in one place only: to turn an HTTP date
//! or an epoch reset into a duration, once, when the answer arrives.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// Longest span the crate reckons with, 10 years: far beyond any rest, and far from the overflow of any platform's instant.
pub(crate) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// `now + span`, clamped instead of panicking.
pub(crate) fn after(now: Instant, span: Duration) -> Instant {
    now + span.min(FOREVER)
}

/// Instants as nanoseconds since the process first asked, so that they fit an atomic.
///
/// A paused clock may be older than the first asking by a test's own doing; such instants count as zero.
pub(crate) fn nanos(at: Instant) -> u64 {
    u64::try_from(at.into_std().saturating_duration_since(*ORIGIN).as_nanos()).unwrap_or(u64::MAX)
}

/// The instant of which [`nanos`] makes this number.
pub(crate) fn instant(nanos: u64) -> Instant {
    after((*ORIGIN).into(), Duration::from_nanos(nanos))
}

/// A fixed point to count from, never a reading of the present, so it need not follow a paused clock.
static ORIGIN: LazyLock<std::time::Instant> = LazyLock::new(|| {
    // one day of room below, so that instants a little before the first asking still differ
    let now = std::time::Instant::now();
    now.checked_sub(Duration::from_secs(86_400)).unwrap_or(now)
});

/// Reads the wall clock; injected where a test or a simulator keeps its own.
pub type WallClock = fn() -> SystemTime;

/// A run of the lab begins on this thread.
#[cfg(feature = "lab")]
pub(crate) fn begin_run(_now: Instant) {}
