use std::{error::Error, fmt, sync::Arc, time::Duration};

use http::{HeaderMap, Response};
use tokio::time::Instant;

use super::{
    shared::Breaker,
    state::{Sample, Ticket},
};
use crate::{
    body::{Ending, Guard},
    endpoint::{Blame, Endpoint, Route},
    outcome::{Cause, Classify, Fault, Outcome, OutcomeCell, Scope, Verdict},
    request::RequestContext,
};

/// What a layer's services share.
pub(super) struct Wiring {
    pub(super) breaker: Arc<Breaker>,
    pub(super) classify: Arc<dyn Classify>,
    pub(super) reject: bool,
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("breaker", &self.breaker).field("reject", &self.reject).finish_non_exhaustive()
    }
}

/// What a request that was let through carries: it reports the one verdict, and a dropped one reports that there is none.
pub struct Admission {
    wiring: Arc<Wiring>,
    ticket: Ticket,
    context: Option<RequestContext>,
    /// When it went; kept only where slowness counts.
    started: Option<Instant>,
    /// How long the first output took.
    first_output: Option<Duration>,
    awaits: Awaits,
}

enum Awaits {
    /// The head, or the end of a body whose head said nothing.
    Answer,
    /// What the leaf's cell will say.
    Commit(OutcomeCell),
    /// Nothing: it has reported.
    Nothing,
}

impl Admission {
    pub(super) fn new(wiring: Arc<Wiring>, ticket: Ticket) -> Self {
        Self { wiring, ticket, context: None, started: None, first_output: None, awaits: Awaits::Answer }
    }

    pub(super) fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    /// Starts the lease anew; false when the slot is gone.
    pub(super) fn renew(&self) -> bool {
        self.wiring.breaker.renew(self.ticket, Instant::now())
    }

    /// The request goes now.
    pub(super) fn start(&mut self, context: Option<&RequestContext>) {
        let breaker = &self.wiring.breaker;
        if breaker.endpoint().is_some() {
            self.context = context.cloned();
        }
        self.started = breaker.slow_after.map(|_| Instant::now());
    }

    /// Takes in the head; the guard goes on with the body while that may still tell more.
    pub(super) fn head<B>(mut self, response: &Response<B>) -> Option<Self> {
        match Verdict::of(response, &*self.wiring.classify) {
            Verdict::Known(outcome) => {
                self.settle(outcome);
                return None;
            }
            Verdict::AtCommit(cell) => self.awaits = Awaits::Commit(cell),
            Verdict::AtEnd => {}
        }
        Some(self)
    }

    pub(super) fn error(mut self, error: &(dyn Error + 'static)) {
        let outcome = self.wiring.classify.error(error);
        self.settle(outcome);
    }

    /// Reports the verdict; only the first counts.
    fn settle(&mut self, outcome: Outcome) {
        if matches!(self.awaits, Awaits::Nothing) {
            return;
        }
        let sample = self.sample(&outcome);
        self.awaits = Awaits::Nothing;
        let breaker = &self.wiring.breaker;
        let is_success = matches!(sample, Sample::Success { .. });
        let says_nothing = matches!(sample, Sample::Neutral | Sample::Rest(_)) && !self.ticket.is_probe();
        if !(says_nothing || is_success && breaker.ignores_success(self.ticket)) {
            breaker.report(self.ticket, sample, Instant::now());
        }
    }

    fn sample(&mut self, outcome: &Outcome) -> Sample {
        let endpoint = self.wiring.breaker.endpoint();
        match outcome {
            Outcome::Success => {
                if let Some(endpoint) = endpoint
                    && endpoint.suspects().watching()
                {
                    endpoint.suspects().success(endpoint, self.route(endpoint), Instant::now());
                }
                Sample::Success { slow: self.is_slow() }
            }
            Outcome::Fault(fault) => match (fault.scope, fault.rest) {
                (Scope::Key, None) => Sample::Failure(1),
                // these keep the endpoint from serving, so a probe that meets them has not passed
                (
                    Scope::Key | Scope::Workspace | Scope::Account | Scope::FreeTier | Scope::AccountModel,
                    Some(rest),
                ) => Sample::Rest(rest.hinted.then_some(rest.duration)),
                _ if fault.is_suspect() => match endpoint {
                    None => Sample::Failure(1),
                    Some(endpoint) => match endpoint.suspects().fault(endpoint, self.route(endpoint), Instant::now()) {
                        Blame::Endpoint(count) => Sample::Failure(count),
                        Blame::Pool | Blame::Nobody => Sample::Neutral,
                    },
                },
                _ => Sample::Neutral,
            },
        }
    }

    fn route(&self, endpoint: &Endpoint) -> Route {
        Route::of(endpoint, self.context.as_ref())
    }

    fn is_slow(&self) -> bool {
        let took = || self.first_output.or_else(|| Some(Instant::now().saturating_duration_since(self.started?)));
        self.wiring.breaker.slow_after.is_some_and(|limit| took().is_some_and(|took| took > limit))
    }

    /// Reports what the leaf's cell says, once it says something.
    fn look(&mut self) {
        if let Awaits::Commit(cell) = &self.awaits
            && let Some(outcome) = cell.at_commit()
        {
            self.settle(outcome);
        }
    }
}

impl Guard for Admission {
    fn data(&mut self, _: &[u8]) {
        match (&self.awaits, self.started) {
            (Awaits::Commit(_), _) => self.look(),
            (Awaits::Answer, Some(started)) if self.first_output.is_none() => {
                self.first_output = Some(Instant::now().saturating_duration_since(started));
            }
            _ => {}
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        match &self.awaits {
            Awaits::Commit(_) => self.look(),
            Awaits::Answer => {
                let outcome = self.wiring.classify.end(Some(trailers));
                self.settle(outcome);
            }
            Awaits::Nothing => {}
        }
    }

    fn finish(mut self, ending: Ending) {
        self.look();
        match (&self.awaits, ending) {
            (Awaits::Nothing, _) => {}
            (_, Ending::Failed) => self.settle(Fault::new(Cause::Truncated, Scope::Pool).into()),
            (Awaits::Answer, Ending::Complete | Ending::HeadOnly) => {
                let outcome = self.wiring.classify.end(None);
                self.settle(outcome);
            }
            // the rest is the drop's: no verdict
            _ => {}
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.ticket.is_probe() && !matches!(self.awaits, Awaits::Nothing) {
            self.wiring.breaker.report(self.ticket, Sample::Neutral, Instant::now());
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
