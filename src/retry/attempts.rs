use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower::BoxError;

use super::{
    GiveUp, RetryBudget,
    budget::Ticket,
    policy::{Decision, Keys, Limits, Progress, decide},
    stats::Counts,
};
use crate::{
    Rejected,
    explain::Next,
    outcome::{Classify, Fault, Outcome, Retry, Verdict},
    request::{Replay, RequestContext, copy},
};

/// What all services of a layer share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) budget: RetryBudget,
    pub(super) classify: Arc<dyn Classify>,
    pub(super) counts: Arc<Counts>,
}

/// The attempts of one request.
pub(super) struct Attempts {
    shared: Arc<Shared>,
    context: RequestContext,
    progress: Progress,
    pending: Option<Pending>,
}

/// An attempt decided on and not begun.
struct Pending {
    fault: Fault,
    /// The retry taken out of the budget; a failover needs none. It goes back if the caller leaves before the attempt.
    ticket: Option<Ticket>,
}

impl Attempts {
    pub(super) fn new(shared: Arc<Shared>, context: RequestContext) -> Self {
        Self { shared, context, progress: Progress::default(), pending: None }
    }

    /// Called right before each attempt, where a retry that was decided on becomes one that happened. Gives a copy of the
    /// request for the next; `None` when it can be sent only once.
    pub(super) fn begin<B: Replay>(&mut self, request: &Request<B>) -> Option<Request<B>> {
        let counts = &self.shared.counts;
        match self.pending.take() {
            Some(Pending { fault, ticket: None }) => counts.failover(fault.cause),
            Some(Pending { fault, ticket: Some(ticket) }) => {
                ticket.spend();
                self.context.ledger().retry();
                counts.retry(fault.cause, fault.retry == Retry::Unclear);
            }
            None => {}
        }
        let copy = copy(request);
        if copy.is_none() {
            counts.unreplayable();
        }
        copy
    }

    /// A copy, made fit to be sent.
    pub(super) fn again<B>(&self, mut copy: Request<B>) -> Request<B> {
        copy.extensions_mut().insert(self.context.clone());
        copy
    }

    /// Decides whether another attempt follows an answer, and after which wait.
    pub(super) fn after_answer<B: Replay, ResB>(
        &mut self,
        response: &Response<ResB>,
        spare: Option<&Request<B>>,
    ) -> Option<Wait> {
        match Verdict::of(response, &*self.shared.classify) {
            Verdict::Known(Outcome::Fault(fault)) => self.after(fault, spare?.body()),
            // the rest is known only when bytes have been passed on
            Verdict::Known(Outcome::Success) | Verdict::AtCommit(_) | Verdict::AtEnd => None,
        }
    }

    /// Decides the same after an error.
    pub(super) fn after_error<B: Replay>(&mut self, error: &BoxError, spare: Option<&Request<B>>) -> Option<Wait> {
        // our own refusal waited already, or knows that waiting is in vain
        if Rejected::find(&**error).is_some() {
            self.shared.counts.refused();
            return None;
        }
        let spare = spare?;
        self.after(*self.shared.classify.error(&**error).fault()?, spare.body())
    }

    fn after<B: Replay>(&mut self, fault: Fault, spare: &B) -> Option<Wait> {
        if !spare.is_replayable() {
            self.shared.counts.unreplayable();
            self.tell(Next::GiveUp { why: "unreplayable" });
            return None;
        }
        match self.next(fault) {
            Ok(wait) => {
                self.tell(match &wait {
                    Wait::Not => Next::Failover,
                    Wait::Until { span, .. } => Next::retry_after(*span),
                });
                tracing::debug!(cause = %fault.cause, scope = %fault.scope, wait = ?wait.span(), "trying again");
                Some(wait)
            }
            Err(why) => {
                self.tell(Next::GiveUp { why: why.as_str() });
                tracing::debug!(cause = %fault.cause, scope = %fault.scope, why = why.as_str(), "giving up");
                self.shared.counts.give_up(why);
                None
            }
        }
    }

    /// Tells the request's trace, if it is explained.
    fn tell(&self, next: Next) {
        if let Some(trace) = self.context.trace() {
            trace.next(next);
        }
    }

    /// Decides, and takes out of the budget, what follows `fault`.
    fn next(&mut self, fault: Fault) -> Result<Wait, GiveUp> {
        let now = Instant::now();
        let remaining = self.context.deadline().map(|at| at.saturating_duration_since(now));
        let keys = {
            let ledger = self.context.ledger();
            self.progress.hedges = ledger.hedges();
            Keys::of(&ledger, &fault)
        };
        let decision = decide(&self.shared.limits, &self.progress, &fault, keys, remaining, fastrand::f64());
        let (wait, ticket) = match decision {
            Decision::GiveUp(why) => return Err(why),
            Decision::Failover => (Wait::Not, None),
            Decision::After(wait) => {
                (Wait::until_after(wait), Some(self.shared.budget.take(now).ok_or(GiveUp::Budget)?))
            }
        };
        self.progress.note(&fault, decision);
        self.pending = Some(Pending { fault, ticket });
        Ok(wait)
    }
}

pin_project! {
    /// The wait before an attempt.
    #[project = WaitProj]
    #[derive(Debug)]
    pub(super) enum Wait {
        Not,
        Until { span: Duration, #[pin] sleep: Sleep },
    }
}

impl Wait {
    fn until_after(span: Duration) -> Self {
        Self::Until { span, sleep: sleep(span) }
    }

    fn span(&self) -> Duration {
        match self {
            Self::Not => Duration::ZERO,
            Self::Until { span, .. } => *span,
        }
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project() {
            WaitProj::Not => Poll::Ready(()),
            WaitProj::Until { sleep, .. } => sleep.poll(cx),
        }
    }
}
