//! The shared trace of a request, into which stages write.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{
    TARGET, compact, millis,
    record::{Attempt, By, Compared, Explanation, Finish, Found, Gate, Look, Next},
    written::name_of_ending,
};
use crate::{
    body::Ending,
    error::{Rejected, Why},
    outcome::{Outcome, Usage},
};

/// The most attempts that are kept: more than default settings let one request make.
const MOST_ATTEMPTS: usize = 32;

/// The trace of one request, while it is written. Cheap to clone; all clones are the same trace.
///
/// [`RequestContext::explain`](crate::RequestContext::explain) starts one, and [`ExplainLayer`](super::ExplainLayer) puts it
/// into the response's extensions. It can be read at any time; the end of the body, and with it tokens and cost, comes in
/// when the body is over.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    told: Explanation,
    /// The attempt that has no key yet, by number.
    open: Option<usize>,
    /// The attempt that something was heard of last, by number.
    speaks: Option<usize>,
    /// Whether the next attempt is sent beside one that runs.
    hedging: bool,
    /// What the pick has compared since the last look.
    compared: Vec<Compared>,
}

impl State {
    fn attempt(&mut self, number: usize) -> Option<&mut Attempt> {
        self.told.attempts.get_mut(number)
    }

    /// The number of the attempt that has no key yet; one is begun if there is none.
    fn opened(&mut self, begin: impl FnOnce() -> Attempt) -> usize {
        if let Some(number) = self.open {
            return number;
        }
        let number = self.told.attempts.len() + self.told.left_out;
        if number < MOST_ATTEMPTS {
            self.told.attempts.push(Attempt { hedge: std::mem::take(&mut self.hedging), ..begin() });
        } else {
            self.told.left_out += 1;
        }
        (self.open, self.speaks) = (Some(number), Some(number));
        number
    }
}

impl Trace {
    pub(crate) fn starting(now: Instant) -> Self {
        Self(Arc::new(Shared { started: now, state: Mutex::default() }))
    }

    /// What is known so far.
    pub fn explanation(&self) -> Explanation {
        self.state().told.clone()
    }

    /// What is known so far, in the [compact form](super#the-compact-form). Empty while there was no attempt.
    pub fn header(&self) -> HeaderValue {
        compact::header(&self.state().told)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds from the start.
    fn at(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.0.started))
    }

    /// Notes what a pick compares.
    pub(crate) fn compare(&self, figure: &'static str, label: &str, value: f64) {
        Look::compare(&mut self.state().compared, figure, label, value);
    }

    /// Notes what selection saw, and how it found a key, if it did.
    pub(crate) fn look(&self, mut look: Look, model: Option<&str>, found: Option<By>, now: Instant) {
        let at_ms = self.at(now);
        let mut state = self.state();
        look.at_ms = at_ms;
        look.compared = std::mem::take(&mut state.compared);
        let number = state.opened(|| Attempt { at_ms, model: model.map(Into::into), ..Attempt::default() });
        if let Some(attempt) = state.attempt(number) {
            attempt.by = found;
            attempt.looked += 1;
            attempt.looks.truncate(1);
            attempt.looks.push(look);
        }
    }

    /// Notes that an attempt goes to a key.
    pub(crate) fn send(&self, label: &str, now: Instant) -> Entry {
        let at_ms = self.at(now);
        let mut state = self.state();
        let number = state.opened(|| Attempt { at_ms, ..Attempt::default() });
        state.open = None;
        let mut event = None;
        if let Some(attempt) = state.attempt(number) {
            let by = *attempt.by.get_or_insert(By::Line);
            attempt.key = Some(label.into());
            // who found a key at the first look only took the time to look
            let waited = by == By::Line || attempt.looked > 1;
            attempt.waited_ms = if waited { at_ms.saturating_sub(attempt.at_ms) } else { 0 };
            if tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
                let last = attempt.looks.last();
                let keys = last.map(|look| (look.candidates.count, look.keys)).unwrap_or_default();
                event = Some((by, attempt.waited_ms, keys, last.map(out_of).unwrap_or_default()));
            }
        }
        drop(state);
        if let Some((by, waited_ms, (candidates, keys), out)) = event {
            let (attempt, by) = (number + 1, by.as_str());
            tracing::debug!(target: TARGET, attempt, key = label, by, waited_ms, candidates, keys, out, "sent");
        }
        Entry { trace: self.clone(), number, sent: now, over: false }
    }

    /// Notes that no key could be had.
    pub(crate) fn reject(&self, why: Option<Why>) {
        let at_ms = self.at(Instant::now());
        let mut state = self.state();
        let Some(number) = state.open.take() else { return };
        state.speaks = Some(number);
        let mut out = String::new();
        if let Some(attempt) = state.attempt(number) {
            attempt.rejected = why;
            attempt.waited_ms = if attempt.looked > 1 { at_ms.saturating_sub(attempt.at_ms) } else { 0 };
            out = attempt.looks.last().map(out_of).unwrap_or_default();
        }
        drop(state);
        let why = why.map_or("failed", |why| why.as_str());
        tracing::debug!(target: TARGET, attempt = number + 1, why, out, "no key");
    }

    /// Notes what a gate found behind the head of the latest attempt's answer, and how long it held that.
    pub(crate) fn gate(&self, found: Found, held: Duration) {
        let gate = Gate { found, held_ms: millis(held) };
        let attempt = self.latest(|attempt| attempt.gate = Some(gate));
        tracing::debug!(target: TARGET, attempt, found = found.as_str(), held_ms = gate.held_ms, "gate");
    }

    /// Notes what is done about the latest attempt's failure.
    pub(crate) fn next(&self, next: Next) {
        let attempt = self.latest(|attempt| attempt.next = Some(next));
        tracing::debug!(target: TARGET, attempt, next = %compact::Then(&next), "decided");
    }

    /// Writes into the attempt that something was heard of last, and gives its number.
    fn latest(&self, note: impl FnOnce(&mut Attempt)) -> usize {
        let mut state = self.state();
        let number = state.speaks.unwrap_or_default();
        if let Some(attempt) = state.attempt(number) {
            note(attempt);
        }
        number + 1
    }

    /// Notes that the next attempt is sent beside one that runs.
    pub(crate) fn hedge(&self) {
        self.state().hedging = true;
    }

    pub(super) fn answered(&self, status: u16, refusal: Option<&Rejected>) {
        let at_ms = self.at(Instant::now());
        self.finish(match refusal {
            None => Finish::Answered { at_ms, status },
            Some(refusal) => rejected(refusal, Some(status), at_ms),
        });
    }

    pub(super) fn failed(&self, error: Option<&(dyn Error + Send + Sync + 'static)>) {
        let at_ms = self.at(Instant::now());
        self.finish(match error.and_then(|error| Rejected::find(error)) {
            Some(refusal) => rejected(refusal, None, at_ms),
            None => Finish::Failed { at_ms },
        });
    }

    pub(super) fn left(&self) {
        self.finish(Finish::Left { at_ms: self.at(Instant::now()) });
    }

    fn finish(&self, finish: Finish) {
        let attempts = {
            let mut state = self.state();
            state.told.result = Some(finish.clone());
            state.told.attempts.len() + state.told.left_out
        };
        match finish {
            Finish::Answered { at_ms, status } => {
                tracing::debug!(target: TARGET, attempts, status, at_ms, "answered");
            }
            Finish::Rejected { at_ms, why, detail, .. } => {
                tracing::debug!(target: TARGET, attempts, why = why.as_str(), %detail, at_ms, "rejected");
            }
            Finish::Failed { at_ms } => tracing::debug!(target: TARGET, attempts, at_ms, "failed"),
            Finish::Left { at_ms } => tracing::debug!(target: TARGET, attempts, at_ms, "the caller left"),
        }
    }
}

fn out_of(look: &Look) -> String {
    compact::Out(look).to_string()
}

fn rejected(refusal: &Rejected, status: Option<u16>, at_ms: u64) -> Finish {
    Finish::Rejected {
        at_ms,
        status,
        why: refusal.why(),
        detail: refusal.detail().into(),
        retry_after_ms: refusal.after().map(millis),
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.state().told).finish()
    }
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // not under the lock: the writer may be slow
        self.explanation().serialize(serializer)
    }
}

/// Writes what becomes of one attempt. One that is dropped was left by its caller.
#[derive(Debug)]
pub(crate) struct Entry {
    trace: Trace,
    number: usize,
    sent: Instant,
    over: bool,
}

impl Entry {
    /// The head of the answer is there.
    pub(crate) fn head(&self, status: u16) {
        self.speaks();
        self.write(|attempt, ms| (attempt.status, attempt.head_ms) = (Some(status), Some(ms)));
    }

    /// Something came of it: what is decided next is about this attempt.
    pub(crate) fn speaks(&self) {
        self.trace.state().speaks = Some(self.number);
    }

    /// The head, or an error in its place, told the outcome; nobody watches the body.
    pub(crate) fn judge(mut self, outcome: Outcome, provider: Option<&str>) {
        self.over = true;
        self.speaks();
        self.write(|attempt, ms| {
            attempt.head_ms.get_or_insert(ms);
            (attempt.outcome, attempt.took_ms) = (Some(outcome), Some(ms));
            attempt.provider = provider.map(Into::into);
        });
        self.tell();
    }

    /// The exchange is over.
    pub(crate) fn end(mut self, ending: Ending, outcome: Option<Outcome>, usage: Option<Usage>) {
        self.close(ending, outcome, usage);
    }

    fn close(&mut self, ending: Ending, outcome: Option<Outcome>, usage: Option<Usage>) {
        self.over = true;
        self.write(|attempt, ms| {
            (attempt.ending, attempt.took_ms) = (Some(ending), Some(ms));
            (attempt.outcome, attempt.usage) = (outcome, usage);
        });
        self.tell();
    }

    fn write(&self, note: impl FnOnce(&mut Attempt, u64)) {
        let took = millis(Instant::now().saturating_duration_since(self.sent));
        if let Some(attempt) = self.trace.state().attempt(self.number) {
            note(attempt, took);
        }
    }

    fn tell(&self) {
        if !tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
            return;
        }
        let Some(attempt) = self.trace.state().attempt(self.number).cloned() else { return };
        let outcome = match &attempt.outcome {
            None => "unknown",
            Some(Outcome::Success) => "success",
            Some(Outcome::Fault(fault)) => fault.cause.as_str(),
        };
        tracing::debug!(
            target: TARGET,
            attempt = self.number + 1,
            key = attempt.key,
            status = attempt.status,
            outcome,
            ending = attempt.ending.map(name_of_ending),
            took_ms = attempt.took_ms,
            cost_usd = attempt.usage.map(|usage| usage.cost),
            "over"
        );
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.over {
            self.close(Ending::FutureDropped, None, None);
        }
    }
}
