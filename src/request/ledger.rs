//! The attempts of one request.

use smallvec::SmallVec;

use super::RequestContext;
use crate::{endpoint::Endpoint, outcome::Outcome};

/// The attempts of one request, in order. Selection writes it, retry and whoever explains reads it.
///
/// Two may run at once, where a [`HedgeLayer`](crate::HedgeLayer) sends a second. What comes later names its attempt by the
/// [`AttemptId`] that its start gave.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    attempts: SmallVec<[Attempt; 1]>,
    /// How many of them were for another model.
    past: usize,
    /// Which one ended last.
    ended: Option<AttemptId>,
    elsewhere: bool,
    waits: bool,
    retried: bool,
    hedges: u32,
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Where it went.
    pub endpoint: Endpoint,
    /// What became of it, once known.
    pub outcome: Option<Outcome>,
    /// The provider that failed, where the answer names it.
    pub provider: Option<Box<str>>,
    /// Whether it runs, with an outcome that nobody knows yet.
    pub running: bool,
}

/// Which attempt of its request one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(usize);

impl Ledger {
    /// Notes that an attempt starts on `endpoint`.
    pub fn start(&mut self, endpoint: &Endpoint) -> AttemptId {
        self.attempts.push(Attempt { endpoint: endpoint.clone(), outcome: None, provider: None, running: true });
        (self.elsewhere, self.waits) = (false, false);
        AttemptId(self.attempts.len() - 1)
    }

    /// Notes what became of an attempt, and whether the next could go outside the failed scope now: to another key, or after a
    /// fault of the provider pool to another provider or model.
    pub fn end(&mut self, id: AttemptId, outcome: Outcome, elsewhere: bool) {
        if let Some(attempt) = self.attempts.get_mut(id.0) {
            (attempt.outcome, attempt.running) = (Some(outcome), false);
            self.ended = Some(id);
        }
        self.elsewhere = elsewhere;
    }

    /// Notes what became of an attempt that may have been judged already; who did so knew more.
    pub(crate) fn correct(&mut self, id: AttemptId, outcome: Outcome) {
        if self.attempts.get(id.0).is_some_and(|attempt| attempt.outcome != Some(outcome)) {
            self.end(id, outcome, false);
        }
    }

    /// Notes that nobody waits for an attempt any more.
    pub fn leave(&mut self, id: AttemptId) {
        if let Some(attempt) = self.attempts.get_mut(id.0) {
            attempt.running = false;
        }
    }

    /// Notes which provider failed in an attempt.
    pub fn blame(&mut self, id: AttemptId, provider: &str) {
        if let Some(attempt) = self.attempts.get_mut(id.0) {
            attempt.provider = Some(provider.into());
        }
    }

    /// Notes that the attempt after the one that ended last will ask for another provider or model.
    pub(crate) fn detour(&mut self) {
        self.elsewhere = true;
    }

    /// Notes that the request asks for another model from here on: what earlier attempts have ruled out need not hold for it.
    pub fn turn(&mut self) {
        self.past = self.attempts.len();
    }

    /// Notes that it stands in line for a key, until its next start.
    pub(crate) fn wait(&mut self) {
        self.waits = true;
    }

    /// Whether it stands in line for a key.
    pub(crate) fn waits(&self) -> bool {
        self.waits
    }

    /// Notes that it was tried again, other than on another key at once.
    pub(crate) fn retry(&mut self) {
        self.retried = true;
    }

    /// Notes that a second attempt is sent beside one that runs, unless the request was tried again or hedged before.
    pub(crate) fn hedge(&mut self) -> bool {
        let may = !self.retried && self.hedges == 0;
        self.hedges += u32::from(may);
        may
    }

    /// Notes that it was not sent after all.
    pub(crate) fn unhedge(&mut self) {
        self.hedges = self.hedges.saturating_sub(1);
    }

    /// How many attempts were sent beside others.
    pub(crate) fn hedges(&self) -> u32 {
        self.hedges
    }

    /// Whether an attempt for the model that is asked for now runs.
    pub(crate) fn runs(&self) -> bool {
        self.current().iter().any(|attempt| attempt.running)
    }

    /// The attempts so far, in the order in which they began.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Those for the model that is asked for now.
    pub fn current(&self) -> &[Attempt] {
        &self.attempts[self.past.min(self.attempts.len())..]
    }

    /// The one whose answer counts: the last that runs, else the one that ended last.
    pub fn latest(&self) -> Option<&Attempt> {
        let running = self.attempts.iter().rfind(|attempt| attempt.running);
        running.or_else(|| self.attempts.get(self.ended?.0)).or(self.attempts.last())
    }

    /// Of those for the model that is asked for now, the one that ended last, and the others.
    pub(crate) fn ended(&self) -> Option<(&Attempt, impl Iterator<Item = &Attempt>)> {
        let last = self.current().len().checked_sub(1)?;
        let last = self.ended.and_then(|id| id.0.checked_sub(self.past)).unwrap_or(last).min(last);
        let others = self.current().iter().enumerate().filter(move |(index, _)| *index != last);
        Some((&self.current()[last], others.map(|(_, attempt)| attempt)))
    }

    /// Whether, at the end of the attempt that ended last, the next could have gone outside the failed scope.
    pub fn elsewhere(&self) -> bool {
        self.elsewhere
    }
}

/// An attempt in the ledger of its request; dropped before it has ended, it says that nobody waits for it.
pub(crate) struct Attempting {
    context: RequestContext,
    id: AttemptId,
    ended: bool,
}

impl Attempting {
    pub(crate) fn start(context: RequestContext, endpoint: &Endpoint) -> Self {
        let id = context.ledger().start(endpoint);
        Self { context, id, ended: false }
    }

    pub(crate) fn id(&self) -> AttemptId {
        self.id
    }

    pub(crate) fn context(&self) -> &RequestContext {
        &self.context
    }

    /// See [`Ledger::end`].
    pub(crate) fn end(&mut self, outcome: Outcome, elsewhere: bool) {
        self.ended = true;
        self.context.ledger().end(self.id, outcome, elsewhere);
    }

    /// See [`Ledger::blame`].
    pub(crate) fn blame(&self, provider: &str) {
        self.context.ledger().blame(self.id, provider);
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        if !self.ended {
            self.context.ledger().leave(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Cause, Fault, Retry, Scope};

    #[test]
    fn of_two_attempts_at_once_each_has_its_own_end() {
        let endpoint = |secret: &str| Endpoint::new(crate::ApiKey::new(secret).unwrap());
        let (one, two) = (endpoint("a"), endpoint("b"));
        let fault = Outcome::from(Fault::new(Cause::NoCredit, Scope::Account).retry(Retry::Elsewhere));
        let mut ledger = Ledger::default();
        let (first, second) = (ledger.start(&one), ledger.start(&two));
        ledger.blame(first, "deepinfra");
        ledger.end(first, fault, true);
        let told = |ledger: &Ledger| ledger.attempts().iter().map(|at| (at.outcome, at.running)).collect::<Vec<_>>();
        assert_eq!(told(&ledger), [(Some(fault), false), (None, true)]);
        assert_eq!(ledger.attempts()[0].provider.as_deref(), Some("deepinfra"));
        assert_eq!(ledger.ended().unwrap().0.endpoint, one, "retry asks about the one that failed");
        assert_eq!(ledger.latest().unwrap().endpoint, two, "the answer is that of the one that runs");
        ledger.leave(second);
        assert!(!ledger.runs());
        assert_eq!(ledger.latest().unwrap().endpoint, one);
        ledger.turn();
        assert!(ledger.ended().is_none(), "of another model");
    }

    #[test]
    fn r051_a_request_is_hedged_once_and_not_after_it_was_tried_again() {
        let mut ledger = Ledger::default();
        assert!(ledger.hedge() && !ledger.hedge());
        ledger.unhedge();
        ledger.retry();
        assert!(!ledger.hedge());
        assert_eq!(ledger.hedges(), 0);
    }
}
