//! All that paces one key, account or pool.

use std::time::Duration;

use tokio::time::Instant;

use super::{Gcra, PacePolicy, day::Day, learn::Learner};
use crate::clock::WallClock;

/// What a refusal says of the quota.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Refusal {
    pub(crate) reset: Option<Duration>,
    pub(crate) limit: Option<u32>,
}

/// The limits of a policy as they are used up, and what is learned of others.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    requests: Option<Gcra>,
    tokens: Option<Gcra>,
    day: Option<Day>,
    learner: Option<Learner>,
}

impl Pace {
    /// The limits that were given.
    pub(crate) fn given(policy: &PacePolicy, clock: WallClock, now: Instant) -> Self {
        Self {
            requests: policy.requests.map(|rate| Gcra::new(rate, now)),
            tokens: policy.tokens.map(|rate| Gcra::new(rate, now)),
            day: policy.per_day.map(|limit| Day::new(limit, clock, now)),
            learner: None,
        }
    }

    /// Nothing but what is learned.
    pub(crate) fn learned(now: Instant) -> Self {
        Self { requests: None, tokens: None, day: None, learner: Some(Learner::new(now)) }
    }

    /// From when on a request of so many tokens may be sent.
    pub(crate) fn next(&self, tokens: u64, now: Instant) -> Instant {
        let of = |gcra: &Option<Gcra>, amount| gcra.as_ref().map_or(now, |gcra| gcra.next(amount));
        let day = self.day.as_ref().map_or(now, |day| day.next(now));
        let learned = self.learner.as_ref().map_or(now, |learner| learner.next(now));
        of(&self.requests, 1).max(of(&self.tokens, tokens)).max(day).max(learned)
    }

    /// Counts a request that is sent now.
    pub(crate) fn take(&mut self, tokens: u64, now: Instant) {
        if let Some(gcra) = &mut self.requests {
            gcra.take(1, now);
        }
        if let Some(gcra) = &mut self.tokens {
            gcra.take(tokens, now);
        }
        if let Some(day) = &mut self.day {
            day.take(now);
        }
        if let Some(learner) = &mut self.learner {
            learner.take(now);
        }
    }

    /// Takes back a request that was not sent.
    pub(crate) fn give_back(&mut self, tokens: u64) {
        if let Some(gcra) = &mut self.requests {
            gcra.give_back(1);
        }
        if let Some(gcra) = &mut self.tokens {
            gcra.give_back(tokens);
        }
        if let Some(day) = &mut self.day {
            day.give_back();
        }
        if let Some(learner) = &mut self.learner {
            learner.give_back();
        }
    }

    /// Puts what was used in place of what was expected.
    pub(crate) fn reconcile(&mut self, expected: u64, used: u64, now: Instant) {
        let Some(gcra) = &mut self.tokens else { return };
        match used.checked_sub(expected) {
            Some(more) => gcra.take(more, now),
            None => gcra.give_back(expected - used),
        }
    }

    /// A request sent at `since` was served.
    pub(crate) fn serve(&mut self, since: Instant) {
        if let Some(learner) = &mut self.learner {
            learner.serve(since);
        }
    }

    /// A request sent at `since` was refused. Says whether that was learned from.
    pub(crate) fn refuse(&mut self, since: Instant, now: Instant, refusal: Refusal) -> bool {
        let Some(learner) = &mut self.learner else { return false };
        learner.refuse(since, now, refusal.reset, refusal.limit);
        true
    }

    /// Requests per second, once something was refused.
    pub(crate) fn learned_rate(&self) -> Option<f64> {
        self.learner.as_ref().and_then(Learner::rate)
    }

    /// Other limits from now on; what is owed stays owed, what was learned stays known.
    pub(crate) fn set(&mut self, policy: &PacePolicy, clock: WallClock, now: Instant) {
        let set = |held: &mut Option<Gcra>, rate| match (held.as_mut(), rate) {
            (Some(gcra), Some(rate)) => gcra.set(rate, now),
            (_, rate) => *held = rate.map(|rate| Gcra::new(rate, now)),
        };
        set(&mut self.requests, policy.requests);
        set(&mut self.tokens, policy.tokens);
        match (&mut self.day, policy.per_day) {
            (Some(day), Some(limit)) => day.set(limit),
            (day, limit) => *day = limit.map(|limit| Day::new(limit, clock, now)),
        }
    }
}
