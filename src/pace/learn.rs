//! A quota that nobody has told us, learned from what is refused.
//!
//! What hides behind a 429 is unknown: a window of unknown length and phase, or a bucket that fills by and by. Both admit
//! requests spread evenly at their mean rate, to the last one, and need no more than that one number to be known. So this
//! learns a rate, and sends evenly at it; nothing is held back before the first refusal.
//!
//! - The *measure* is how many were served from one refusal to the next, over the time between: with the quota at its end
//!   both times that is its rate, whatever its kind. Time in which nobody wanted a slot does not count. At the first refusal
//!   there is no such time, and the quiet hours before it say nothing of the quota: it is what was sent just before, if that is
//!   more. Too much is found out at the next refusal, too little only by and by.
//! - Around the measure the rate moves as AIMD does: a little up with every request that used its slot in time, down at a
//!   refusal. The steps start large, shrink with each refusal to less than a hundredth, and the longer none comes the faster
//!   the rate grows, so a quota that was raised, or guessed too low, is found.
//! - After a refusal nothing is sent before the reset that it names; without one, for the time of one slot, doubled while
//!   nothing is served.
//! - Where refusals name the limit, and its whole time went by unused, so many may be sent at once; then the pace is kept
//!   again. So a pause is worth what it is upstream.
//!
//! Spent evenly at 1 % too much, a quota answers 1 request in 100 with a 429, and loses nothing; at 1 % too little, 1 in 100
//! is not used. That is the price of not knowing, and the steps are chosen to stay near it.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock;

/// What a refusal takes off the rate, in steps.
const DECREASE: f64 = 1.3;
/// What a request adds to it that used its slot in time, in steps.
const INCREASE: f64 = 1.0 / 110.0;
/// After so many requests without a refusal a request adds twice as much, after twice as many three times, and so on.
const QUIET: f64 = 100.0;
/// A step as a share of the rate: at first, at last, and what a refusal leaves of it.
const STEP: (f64, f64) = (0.2, 1.0 / 150.0);
const SHRINK: f64 = 0.75;
/// How far the rate may be from the measure after a refusal, if that is more than a step.
const TRUST: f64 = 0.03;
/// Fewer requests from one refusal to the next measure nothing.
const ENOUGH: f64 = 5.0;
/// The measure forgets by a factor of e over so many requests.
const MEMORY: f64 = 150.0;
/// Before the first refusal what was sent counts less by a factor of e after so many seconds.
const RECENT: f64 = 10.0;
/// A slot not used in time can be used so much later, or one slot later, so that timers need not be exact.
const GRACE: f64 = 0.25;
/// Requests per second within which a rate is believed.
const RATES: (f64, f64) = (1.0 / 3600.0, 1e6);
/// The longest pause without a hint, seconds.
const LONGEST_GUESS: f64 = 30.0;
/// A quota that refused nothing for so long is forgotten, if its slots were left unused.
const FORGET: Duration = Duration::from_secs(10 * 60);

/// The rate of one quota, as far as it is known. Pure: the time is an argument.
#[derive(Debug, Clone)]
pub(crate) struct Learner {
    /// Requests per second; `None` before the first refusal.
    rate: Option<f64>,
    /// When the next slot begins.
    due: Instant,
    /// When a refusal's pause ends.
    closed: Instant,
    /// When the last refusal that counted arrived; what was sent before says nothing new.
    heeded: Instant,
    /// Refusals in a row, none served between.
    in_a_row: u32,
    /// Whether a request sent after the last refusal was served.
    served: bool,
    /// Since when requests are counted: the refused one that ended the count before was sent then.
    since: Instant,
    taken: f64,
    /// Requests before the first refusal, the older the less, and when the latest was.
    recent: (f64, Instant),
    /// Seconds since then in which a slot was free and nobody came.
    idle: f64,
    /// Requests and seconds from refusal to refusal, the older the less.
    measured: (f64, f64),
    /// Requests in time since the last refusal.
    quiet: f64,
    step: f64,
    /// The limit that a refusal named.
    limit: Option<u32>,
    /// How many may be sent at once, after a pause.
    burst: u32,
}

impl Learner {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            rate: None,
            due: now,
            closed: now,
            heeded: now,
            in_a_row: 0,
            served: false,
            since: now,
            taken: 0.0,
            recent: (0.0, now),
            idle: 0.0,
            measured: (0.0, 0.0),
            quiet: 0.0,
            step: STEP.0,
            limit: None,
            burst: 0,
        }
    }

    /// Requests per second, once something was refused.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// From when on the next request may be sent.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        match self.rate {
            None => self.closed,
            Some(rate) if self.burst > 0 || self.is_rested(rate, now) => self.closed,
            Some(_) => self.closed.max(self.due),
        }
    }

    /// Counts a request that is sent now.
    pub(crate) fn take(&mut self, now: Instant) {
        if self.taken == 0.0 && self.rate.is_none() {
            self.since = now;
        }
        self.taken += 1.0;
        let Some(rate) = self.rate else {
            let (requests, latest) = self.recent;
            self.recent = (requests * libm::exp(-seconds(latest, now) / RECENT) + 1.0, now);
            return;
        };
        if now.saturating_duration_since(self.due.max(self.heeded)) > FORGET {
            *self = Self { taken: 1.0, ..Self::new(now) };
            return;
        }
        if self.is_rested(rate, now) {
            self.burst = self.limit.unwrap_or_default();
        }
        let slot = 1.0 / rate;
        let (late, grace) = (seconds(self.due.max(self.closed), now), GRACE.max(slot));
        let from = if late < grace { self.due.max(self.closed) } else { now - span(grace) };
        if late < grace && self.burst == 0 {
            self.quiet += 1.0;
            let more = self.step * INCREASE * (1.0 + self.quiet / QUIET);
            self.rate = Some(within(rate * (1.0 + more)));
        }
        self.idle += (late - grace).max(0.0);
        self.burst = self.burst.saturating_sub(1);
        self.due = clock::after(from, span(slot));
    }

    /// Takes back a request that was not sent after all, or whose fate says nothing of the quota.
    pub(crate) fn give_back(&mut self) {
        self.taken = (self.taken - 1.0).max(0.0);
    }

    /// A request sent at `since` was served.
    pub(crate) fn serve(&mut self, since: Instant) {
        self.served |= since > self.heeded;
    }

    /// A request sent at `since` was refused, just now: until `reset`, if the answer names a time, by the `limit` it names.
    pub(crate) fn refuse(&mut self, since: Instant, now: Instant, reset: Option<Duration>, limit: Option<u32>) {
        self.give_back();
        self.limit = limit.filter(|limit| *limit > 0).or(self.limit);
        if since <= self.heeded && self.rate.is_some() {
            // it was under way when another was refused, so only the time it names is news
            self.closed = self.closed.max(clock::after(now, reset.unwrap_or_default()));
            return;
        }
        self.in_a_row = if self.served || self.taken >= ENOUGH { 1 } else { self.in_a_row.saturating_add(1) };
        (self.heeded, self.served, self.quiet, self.burst) = (now, false, 0.0, 0);
        let rate = match self.rate {
            Some(rate) if self.taken < ENOUGH => rate,
            known => {
                // what a burst has taken ahead of its time counts with that time
                let ahead = if known.is_some() { seconds(since, self.due) } else { 0.0 };
                let time = (seconds(self.since, since) - self.idle + ahead).max(1e-3);
                let rate = match known {
                    None => (self.taken.max(1.0) / time).max(self.lately(time)),
                    Some(rate) => self.adjust(rate, time),
                };
                (self.since, self.taken, self.idle) = (since, 0.0, 0.0);
                rate
            }
        };
        let rate = within(rate);
        self.rate = Some(rate);
        let guess = (f64::from(1_u32 << self.in_a_row.saturating_sub(1).min(16)) / rate).min(LONGEST_GUESS);
        self.closed = clock::after(now, reset.unwrap_or_else(|| span(guess)));
        self.due = self.closed;
    }

    /// The rate just before the first refusal, `time` seconds after the first request.
    fn lately(&self, time: f64) -> f64 {
        (self.recent.0 - 1.0).max(0.0) / (RECENT * (1.0 - libm::exp(-time / RECENT)))
    }

    /// The rate after a refusal that came `time` seconds after the one before.
    fn adjust(&mut self, rate: f64, time: f64) -> f64 {
        let keep = libm::exp(-self.taken / MEMORY);
        let (requests, span) = self.measured;
        self.measured = (requests * keep + self.taken, span * keep + time);
        let measure = self.measured.0 / self.measured.1;
        self.step = (self.step * SHRINK).max(STEP.1);
        let trust = self.step.max(TRUST);
        (rate * (1.0 - self.step * DECREASE)).clamp(measure * (1.0 - trust), measure * (1.0 + trust))
    }

    /// Whether the whole time of a limit that was named went by unused.
    fn is_rested(&self, rate: f64, now: Instant) -> bool {
        self.limit.is_some_and(|limit| seconds(self.due.max(self.closed), now) >= f64::from(limit) / rate)
    }
}

fn within(rate: f64) -> f64 {
    rate.clamp(RATES.0, RATES.1)
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(clock::FOREVER)
}

#[cfg(test)]
mod tests;
