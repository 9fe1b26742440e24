//! The crate's errors: a refusal of our own, and a failure on the way to the upstream.
//!
//! Layers pass errors as [`tower::BoxError`], as tower's own do, so that they fit around any service. What was refused, and
//! why, is found again in whatever other layers wrapped around it: [`Rejected::find`].

use std::{error::Error, fmt, time::Duration};

use tower::BoxError;

use crate::outcome::{Cause, Fault, Retry, Scope};

/// A request that this crate refused; nothing of it was sent by the layer that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    why: Why,
    retry_after: Option<Duration>,
    detail: Box<str>,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// No key can serve it in time: all rest, are out, or are busy.
    NoKey,
    /// No route serves the request's model.
    NoRoute,
    /// Too many requests wait already.
    QueueFull,
    /// The concurrency limit is reached.
    LimitReached,
    /// The circuit breaker is open.
    BreakerOpen,
    /// The request's deadline has passed.
    Deadline,
    /// The request's body is larger than allowed.
    BodyTooLarge,
    /// The request's body broke off.
    BodyBroken,
    /// The request's body came too slowly.
    BodyTooSlow,
    /// Memory for request bodies is used up.
    Overloaded,
    /// The process is about to stop.
    Draining,
}

impl Why {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::NoKey,
        Self::NoRoute,
        Self::QueueFull,
        Self::LimitReached,
        Self::BreakerOpen,
        Self::Deadline,
        Self::BodyTooLarge,
        Self::BodyBroken,
        Self::BodyTooSlow,
        Self::Overloaded,
        Self::Draining,
    ];

    /// The reason's name in metrics, logs and error bodies.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoKey => "no_key",
            Self::NoRoute => "no_route",
            Self::QueueFull => "queue_full",
            Self::LimitReached => "limit_reached",
            Self::BreakerOpen => "breaker_open",
            Self::Deadline => "deadline",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyBroken => "body_broken",
            Self::BodyTooSlow => "body_too_slow",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
        }
    }
}

impl Rejected {
    /// A refusal; `detail` says in one sentence what was wrong, where, and what to do. It must name keys by label only.
    pub fn new(why: Why, detail: impl Into<Box<str>>) -> Self {
        Self { why, retry_after: None, detail: detail.into() }
    }

    /// The same, naming when it makes sense to come back.
    #[must_use]
    pub fn retry_after(mut self, span: impl Into<Option<Duration>>) -> Self {
        self.retry_after = span.into();
        self
    }

    /// Why it was refused.
    pub fn why(&self) -> Why {
        self.why
    }

    /// What was wrong, in a sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// How long from the refusal until it makes sense to come back, where that is known.
    pub fn after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Finds a refusal in an error or in what caused it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find(error)
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match self.retry_after {
            Some(span) => write!(f, " (try again in {} s)", whole_seconds(span)),
            None => Ok(()),
        }
    }
}

impl Error for Rejected {}

/// Seconds for a `Retry-After`: rounded up, so that nobody comes back too early, and never 0.
pub(crate) fn whole_seconds(span: Duration) -> u64 {
    span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0)).max(1)
}

/// A failure in place of an answer from the upstream, or of the rest of one.
#[derive(Debug)]
pub struct UpstreamError {
    kind: UpstreamErrorKind,
    source: Option<BoxError>,
}

/// How far a failed exchange had come, which decides whether it may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UpstreamErrorKind {
    /// No connection: nothing was sent.
    Connect,
    /// The connection broke after the request, or some of it, was sent.
    Reset,
    /// No response head came within the time limit.
    HeadersTimeout,
    /// Nothing of an answer came within the time limit.
    FirstOutputTimeout,
    /// The answer had begun, and fell silent for longer than the time limit.
    GapTimeout,
    /// The exchange was not over within the time limit.
    TotalTimeout,
    /// The answer broke off: its connection failed, or it ended without its end marker.
    Truncated,
}

impl UpstreamError {
    /// A failure of `kind`.
    pub fn new(kind: UpstreamErrorKind, source: impl Into<Option<BoxError>>) -> Self {
        Self { kind, source: source.into() }
    }

    /// How far the exchange had come.
    pub fn kind(&self) -> UpstreamErrorKind {
        self.kind
    }

    /// Finds such a failure in an error or in what caused it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find(error)
    }

    /// What it says about whom (rows 4, 28 and 29 of the classification table).
    pub fn fault(&self) -> Fault {
        match self.kind {
            UpstreamErrorKind::Connect => Fault::new(Cause::Connect, Scope::Egress).retry(Retry::Backoff),
            UpstreamErrorKind::Reset => Fault::new(Cause::Reset, Scope::Egress).retry(Retry::Unclear),
            UpstreamErrorKind::HeadersTimeout => Fault::new(Cause::HeadersTimeout, Scope::Pool).retry(Retry::Unclear),
            UpstreamErrorKind::FirstOutputTimeout => {
                Fault::new(Cause::FirstOutputTimeout, Scope::Pool).retry(Retry::Unclear)
            }
            UpstreamErrorKind::GapTimeout => Fault::new(Cause::GapTimeout, Scope::Pool),
            UpstreamErrorKind::TotalTimeout => Fault::new(Cause::Timeout, Scope::Pool).retry(Retry::Unclear),
            UpstreamErrorKind::Truncated => Fault::new(Cause::Truncated, Scope::Pool).retry(Retry::Unclear),
        }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            UpstreamErrorKind::Connect => "no connection to the upstream could be made",
            UpstreamErrorKind::Reset => "the connection to the upstream broke before it answered",
            UpstreamErrorKind::HeadersTimeout => "the upstream sent no response head in time",
            UpstreamErrorKind::FirstOutputTimeout => "the upstream sent nothing of an answer in time",
            UpstreamErrorKind::GapTimeout => "the upstream fell silent in the middle of its answer",
            UpstreamErrorKind::TotalTimeout => "the upstream's answer was not over in time",
            UpstreamErrorKind::Truncated => "the upstream's answer broke off before its end",
        })
    }
}

impl Error for UpstreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// What broke off an event stream in which the upstream itself has said already that it failed.
#[derive(Debug, thiserror::Error)]
#[error("the stream broke off after its error event")]
pub(crate) struct AlreadyTold(#[source] pub(crate) BoxError);

/// Whether an error, or what caused it, is one of ours, so that it may be quoted.
pub(crate) fn is_known(error: &(dyn Error + 'static)) -> bool {
    Rejected::find(error).is_some() || UpstreamError::find(error).is_some()
}

/// Finds an error of type `T` in an error or in what caused it.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] BoxError);

    #[test]
    fn a_refusal_is_found_however_deep_it_lies() {
        let inner = Rejected::new(Why::NoKey, "no key can serve").retry_after(Duration::from_millis(1500));
        let error = Outer(Box::new(Outer(Box::new(inner.clone()))));
        assert_eq!(Rejected::find(&error), Some(&inner));
        assert_eq!(inner.to_string(), "no key can serve (try again in 2 s)");
        assert_eq!(Rejected::find(&Outer("else".into())), None);
    }
}
