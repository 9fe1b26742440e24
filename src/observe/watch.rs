use std::{any::Any, fmt};

use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tower::BoxError;
use tracing::{Span, field::Empty};

use super::layer::ObserveLayer;
#[cfg(feature = "metrics")]
use super::series::Told;
use crate::{
    body::{Ending, Guard},
    error::{Rejected, Why},
    outcome::{Cause, Fault, Judge, Outcome, Said, Scope},
    request::{Deadline, Operation, RequestContext},
    spans::{self, TARGET, Upshot, Wanted},
};

/// One request being observed: the guard in its future, then in its body.
pub struct Watch {
    started: Instant,
    deadline: Deadline,
    operation: Operation,
    /// Gone with the head: it would keep the request's body for as long as the answer flows.
    context: Option<RequestContext>,
    said: Said,
    refused: Option<Why>,
    first_output: Option<Instant>,
    classify: Judge,
    span: Wanted,
    #[cfg(feature = "metrics")]
    told: Told,
}

impl Watch {
    /// For a request that has come; `None` where nobody is to be told.
    pub(super) fn start<B>(layer: &ObserveLayer, request: &mut Request<B>, now: Instant) -> Option<Self> {
        let operation = Operation::of_path(request.uri().path());
        let span = spans::wanted(tracing::debug_span!(
            target: TARGET,
            "request",
            "otel.name" = operation.as_str(),
            "otel.kind" = "internal",
            "otel.status_code" = Empty,
            "gen_ai.operation.name" = operation.as_str(),
            "gen_ai.request.model" = Empty,
            "http.request.method" = request.method().as_str(),
            // the path alone: people put credentials into queries
            "url.path" = request.uri().path(),
            "http.response.status_code" = Empty,
            "error.type" = Empty,
            request_id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()),
            attempts = Empty,
            key = Empty,
            outcome = Empty,
            time_to_first_output_ms = Empty,
        ));
        if cfg!(not(feature = "metrics")) && span.is_none() {
            return None;
        }
        let context = RequestContext::of_arrived(request, Some(now));
        Some(Self {
            started: now,
            deadline: Deadline::default(),
            operation,
            context: Some(context),
            said: Said::Nothing,
            refused: None,
            first_output: None,
            classify: layer.classify.clone(),
            span,
            #[cfg(feature = "metrics")]
            told: layer.figures.start(),
        })
    }

    pub(super) fn span(&self) -> Option<&Span> {
        self.span.as_deref()
    }

    pub(super) fn answered<B>(mut self, response: &Response<B>) -> Self {
        self.refused = response.extensions().get().map(Rejected::why);
        self.said = Said::of(response, &*self.classify);
        if let Some(span) = &self.span {
            span.record("http.response.status_code", response.status().as_u16());
        }
        self.decided();
        self
    }

    pub(super) fn failed<E: 'static>(mut self, error: &E) {
        let error = (error as &dyn Any).downcast_ref::<BoxError>();
        let upshot = match error.map(|error| (error, Rejected::find(&**error))) {
            Some((_, Some(refusal))) => Upshot::Refused(refusal.why()),
            Some((error, None)) => Upshot::of(Some(self.classify.error(&**error))),
            // an error type of one's own says nothing here
            None => Upshot::Failed(Fault::new(Cause::Reset, Scope::Egress)),
        };
        self.decided();
        self.book(upshot);
    }

    /// What was asked, and who answers, is known from here on.
    fn decided(&mut self) {
        let Some(context) = self.context.take() else { return };
        self.deadline = context.deadline_of();
        let model = context.asks().model.as_deref();
        #[cfg(feature = "metrics")]
        self.told.asked(self.operation, model);
        if let Some(span) = &self.span {
            if let Some(model) = model {
                span.record("gen_ai.request.model", model);
            }
            let ledger = context.ledger();
            span.record("attempts", ledger.attempts().len());
            if let Some(attempt) = ledger.latest() {
                span.record("key", attempt.endpoint.key().name());
            }
        }
    }

    /// Tells how it came out, once.
    fn book(self, upshot: Upshot) {
        let first_output = self.first_output.map(|first| first - self.started);
        if let Some(span) = &self.span {
            upshot.record(span);
            if let Some(first_output) = first_output {
                span.record("time_to_first_output_ms", first_output.as_secs_f64() * 1e3);
            }
        }
        #[cfg(feature = "metrics")]
        {
            let usage = self.said.cell().and_then(crate::outcome::OutcomeCell::usage);
            self.told.over(self.operation, &upshot, self.started.elapsed(), first_output, usage);
        }
    }
}

impl Guard for Watch {
    fn data(&mut self, chunk: &[u8]) {
        if self.first_output.is_none() && !chunk.is_empty() && self.said.is_output() {
            self.first_output = Some(Instant::now());
        }
    }

    fn trailers(&mut self, found: &HeaderMap) {
        self.said.trailers(found, &*self.classify);
    }

    fn finish(mut self, ending: Ending) {
        self.decided();
        let upshot = match self.refused {
            Some(why) => Upshot::Refused(why),
            None => {
                let outcome = self.said.outcome(ending, &*self.classify);
                let late = || self.deadline.is_over(Instant::now()).then(|| Fault::new(Cause::Timeout, Scope::Pool));
                Upshot::of(outcome.or_else(|| late().map(Outcome::Fault)))
            }
        };
        self.book(upshot);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("operation", &self.operation).field("said", &self.said).finish_non_exhaustive()
    }
}
