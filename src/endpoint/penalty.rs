//! Virtual requests in flight, by which a fast failure does not look like a fast endpoint.
//!
//! An endpoint that refuses in milliseconds has nothing in flight, so the least-loaded pick would send it everything. Each
//! failure therefore counts as one more request in flight, melting away linearly (linkerd's load biaser does the like with
//! round-trip times). The sum of several is kept as one amount that melts until the last of them would have ended.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::clock;

/// Shortest penalty.
const LEAST: Duration = Duration::from_secs(5);
/// Longest penalty: a hint above it counts as this.
const MOST: Duration = Duration::from_secs(300);

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Penalty {
    /// When nothing is left, in nanoseconds; read first, so that an endpoint in good standing costs one load.
    until: AtomicU64,
    // boxed, since few have one and it stands among what every attempt touches
    melting: Mutex<Option<Box<Melting>>>,
}

#[derive(Debug, Clone, Copy)]
struct Melting {
    amount: f64,
    since: Instant,
    until: Instant,
}

impl Melting {
    fn left(&self, now: Instant) -> f64 {
        let span = self.until.saturating_duration_since(self.since).as_secs_f64();
        let rest = self.until.saturating_duration_since(now).as_secs_f64();
        if span > 0.0 { self.amount * (rest / span).min(1.0) } else { 0.0 }
    }
}

/// How long a failure that asked for `hint` counts.
pub(super) fn span(hint: Option<Duration>) -> Duration {
    hint.unwrap_or(LEAST).clamp(LEAST, MOST)
}

impl Penalty {
    /// Adds one virtual request for a failure that asked for `hint`.
    pub(super) fn add(&self, hint: Option<Duration>, now: Instant) {
        let until = clock::after(now, span(hint));
        let mut melting = self.melting.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, until) = melting.as_ref().map_or((0.0, until), |old| (old.left(now), old.until.max(until)));
        *melting = Some(Box::new(Melting { amount: left + 1.0, since: now, until }));
        self.until.store(clock::nanos(until), Ordering::Release);
    }

    /// Takes all of it back.
    pub(super) fn clear(&self) {
        *self.melting.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.until.store(0, Ordering::Release);
    }

    /// How many virtual requests are left.
    pub(super) fn left(&self, now: Instant) -> f64 {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 || until <= clock::nanos(now) {
            return 0.0;
        }
        self.melting.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0.0, |melting| melting.left(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_penalty_melts_linearly_and_is_gone() {
        let (penalty, now) = (Penalty::default(), Instant::now());
        assert_eq!(penalty.left(now), 0.0);
        penalty.add(None, now);
        for (seconds, left) in [(0.0, 1.0), (2.5, 0.5), (5.0, 0.0), (100.0, 0.0)] {
            let at = now + Duration::from_secs_f64(seconds);
            assert!((penalty.left(at) - left).abs() < 1e-9, "after {seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_add_up_and_hints_are_capped() {
        let (penalty, now) = (Penalty::default(), Instant::now());
        penalty.add(None, now);
        penalty.add(Some(Duration::MAX), now);
        assert_eq!(penalty.left(now), 2.0);
        assert!((penalty.left(now + Duration::from_secs(150)) - 1.0).abs() < 1e-9);
        assert_eq!(penalty.left(now + Duration::from_secs(300)), 0.0);
        penalty.clear();
        assert_eq!(penalty.left(now), 0.0);
    }
}
