//! What spans have in common, and how an exchange came out as spans and metrics name it.
//!
//! Spans are at level `DEBUG`, so that a log at `INFO` pays nothing for them; who exports them enables their target. Where
//! nobody is interested, a span costs one atomic load.

use tracing::{Span, field::Empty};

use crate::{
    error::Why,
    outcome::{Fault, Outcome},
    request::{Operation, RequestContext},
};

/// The target of the spans, and of nothing else.
pub(crate) const TARGET: &str = "tower_openrouter::spans";

/// A span somebody is interested in; small, since every attempt has room for one.
pub(crate) type Wanted = Option<Box<Span>>;

/// The span, if anybody is interested in it.
pub(crate) fn wanted(span: Span) -> Wanted {
    (!span.is_disabled()).then(|| Box::new(span))
}

/// The span of one attempt on the key of the label that `key` gives, who is asked only if anybody is interested: with
/// thousands of keys no cache holds a label.
pub(crate) fn attempt<'a>(key: impl Fn() -> &'a str, path: &str, context: Option<&RequestContext>) -> Wanted {
    let span = wanted(tracing::debug_span!(
        target: TARGET,
        "attempt",
        "otel.name" = Empty,
        "otel.kind" = "client",
        "otel.status_code" = Empty,
        "gen_ai.operation.name" = Empty,
        "gen_ai.provider.name" = Empty,
        "gen_ai.request.model" = Empty,
        "gen_ai.response.model" = Empty,
        "gen_ai.usage.input_tokens" = Empty,
        "gen_ai.usage.output_tokens" = Empty,
        "server.address" = Empty,
        "server.port" = Empty,
        "http.response.status_code" = Empty,
        "error.type" = Empty,
        key = key(),
        outcome = Empty,
        scope = Empty,
        rest_ms = Empty,
        cost_usd = Empty,
    ))?;
    // before it is entered: exporters take the name from there
    let operation = Operation::of_path(path).as_str();
    span.record("gen_ai.operation.name", operation);
    match context.and_then(|context| context.asks().model.as_deref()) {
        Some(model) => {
            span.record("gen_ai.request.model", model);
            span.record("otel.name", tracing::field::display(format_args!("{operation} {model}")));
        }
        None => {
            span.record("otel.name", operation);
        }
    }
    Some(span)
}

/// How an exchange came out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Upshot {
    Success,
    Failed(Fault),
    /// By a layer of our own.
    Refused(Why),
    /// Its caller did not wait for the end.
    Left,
}

impl Upshot {
    pub(crate) fn of(outcome: Option<Outcome>) -> Self {
        match outcome {
            Some(Outcome::Success) => Self::Success,
            Some(Outcome::Fault(fault)) => Self::Failed(fault),
            None => Self::Left,
        }
    }

    /// One of four words.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed(_) => "failed",
            Self::Refused(_) => "refused",
            Self::Left => "left",
        }
    }

    /// What went wrong: the cause of the fault, the reason of the refusal, or `client_gone`.
    pub(crate) fn error_type(&self) -> Option<&'static str> {
        match self {
            Self::Success => None,
            Self::Failed(fault) => Some(fault.cause.as_str()),
            Self::Refused(why) => Some(why.as_str()),
            Self::Left => Some("client_gone"),
        }
    }

    /// Says so on a span.
    pub(crate) fn record(&self, span: &Span) {
        span.record("outcome", self.outcome());
        if let Some(error) = self.error_type() {
            span.record("error.type", error);
        }
        // who leaves makes no error
        if let Self::Failed(_) | Self::Refused(_) = self {
            span.record("otel.status_code", "ERROR");
        }
    }
}
