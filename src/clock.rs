//! Time, as the crate reads it.
//!
//! Everything that waits, rests or expires runs on the runtime's monotonic clock ([`tokio::time::Instant`]), so a paused
//! test drives it and a stepping wall clock changes nothing. The wall clock is read in one place only: to turn an HTTP date
//! or an epoch reset into a duration, once, when the answer arrives.
//!
//! A run of the lab must not depend on when, where or beside what it runs. So its thread has an origin and a wall clock of
//! its own ([`begin_run`]); without the feature neither costs anything.

#[cfg(feature = "lab")]
use std::cell::Cell;
use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

mod alarm;

pub(crate) use alarm::Alarm;

/// Longest span the crate reckons with, 10 years: far beyond any rest, and far from the overflow of any platform's instant.
pub(crate) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Room below the origin, so that instants a little before it still differ.
const BEFORE: Duration = Duration::from_secs(86_400);

/// `now + span`, clamped instead of panicking.
pub(crate) fn after(now: Instant, span: Duration) -> Instant {
    now + span.min(FOREVER)
}

/// Instants as nanoseconds from a day before the process first asked, so that they fit an atomic.
///
/// A paused clock may be older than the first asking by a test's own doing; instants of more than a day before count as zero.
pub(crate) fn nanos(at: Instant) -> u64 {
    let (at, origin) = (at.into_std(), origin());
    let since = match at.checked_duration_since(origin) {
        Some(later) => BEFORE + later,
        None => BEFORE.saturating_sub(origin - at),
    };
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The instant of which [`nanos`] makes this number.
pub(crate) fn instant(nanos: u64) -> Instant {
    let (since, origin) = (Duration::from_nanos(nanos), Instant::from_std(origin()));
    match since.checked_sub(BEFORE) {
        Some(later) => after(origin, later),
        None => origin.checked_sub(BEFORE - since).unwrap_or(origin),
    }
}

/// A fixed point to count from, never a reading of the present, so it need not follow a paused clock.
static ORIGIN: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

#[cfg(not(feature = "lab"))]
fn origin() -> std::time::Instant {
    *ORIGIN
}

#[cfg(feature = "lab")]
fn origin() -> std::time::Instant {
    RUN.get().map_or_else(|| *ORIGIN, |run| run.began.into_std())
}

/// Reads the wall clock; injected where a test or a simulator keeps its own.
pub type WallClock = fn() -> SystemTime;

/// The wall clock where none is injected.
pub(crate) fn wall() -> SystemTime {
    #[cfg(feature = "lab")]
    if let Some(run) = RUN.get() {
        return run.wall + run.began.elapsed();
    }
    SystemTime::now()
}

/// A run of the lab, as its thread knows it.
#[cfg(feature = "lab")]
#[derive(Clone, Copy)]
struct Run {
    began: Instant,
    wall: SystemTime,
}

#[cfg(feature = "lab")]
thread_local!(static RUN: Cell<Option<Run>> = const { Cell::new(None) });

/// Begins a run on this thread: from here on instants are counted from `now` and the wall clock shows `wall`, moved by the
/// runtime's clock, whatever the process did before and other threads do meanwhile. Call it within the run's runtime, before
/// anything of the run is made.
#[cfg(feature = "lab")]
pub(crate) fn begin_run(now: Instant, wall: SystemTime) {
    RUN.set(Some(Run { began: now, wall }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_survive_the_way_there_and_back_and_keep_their_order() {
        let now = Instant::from_std(*ORIGIN);
        let second = Duration::from_secs(1);
        let Some(before) = now.checked_sub(second) else { return };
        for at in [before, now, now + second, now + FOREVER] {
            assert_eq!(instant(nanos(at)), at);
        }
        assert!(nanos(before) < nanos(now) && nanos(now) < nanos(now + second));
        assert_eq!(nanos(now) - nanos(before), nanos(now + second) - nanos(now));
    }

    #[cfg(feature = "lab")]
    #[tokio::test(start_paused = true)]
    async fn r126_a_run_counts_from_its_own_beginning_on_its_own_thread_only() {
        let start = Instant::now();
        let elsewhere = nanos(start);
        tokio::time::advance(Duration::from_secs(7)).await;
        begin_run(Instant::now(), SystemTime::UNIX_EPOCH);
        assert_eq!(nanos(Instant::now()), BEFORE.as_nanos() as u64);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(nanos(Instant::now()), (BEFORE + Duration::from_secs(5)).as_nanos() as u64);
        assert_eq!(wall(), SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        let other = std::thread::spawn(move || (nanos(start), wall()));
        let (other, wall) = other.join().unwrap();
        assert!(other == elsewhere && wall > SystemTime::UNIX_EPOCH + FOREVER, "another thread keeps the process's");
    }
}
