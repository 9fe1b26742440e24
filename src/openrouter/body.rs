//! The body of an answer, which ends as the answer did.
//!
//! A stream may stop half-way and still look whole from below: the connection was closed in good order, only the end marker
//! never came. Passed on like that, most clients take half an answer for the whole. So the scanner's word counts: what it
//! found to be cut ends with an error, whichever way the bytes ended.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::scan::Scan;
use crate::{
    body::{Guarded, ReadAhead},
    error::{self, AlreadyTold, UpstreamError, UpstreamErrorKind},
    outcome::{Cause, Outcome, OutcomeCell},
};

pin_project! {
    /// The body of an answer: the transport's, byte for byte, watched for its outcome as it flows.
    ///
    /// An event stream without its end marker, and a document of unsaid length that breaks off, end with an
    /// [`UpstreamErrorKind::Truncated`] in place of a clean end. An event stream whose end marker has come ends cleanly,
    /// whatever becomes of the connection after it.
    pub struct OpenRouterBody<B: Body> {
        #[pin]
        body: Guarded<ReadAhead<B>, Scan>,
        end: End,
    }
}

/// How the end is to be taken.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// As it comes.
    Any,
    /// An event stream's: by its end marker.
    Marked(OutcomeCell),
    /// A document's, of which something has come or not: whole or not.
    Document(OutcomeCell, bool),
}

impl End {
    /// Whether the body, over by its bytes, broke off.
    fn is_cut(&self) -> bool {
        let (Self::Marked(cell) | Self::Document(cell, true)) = self else { return false };
        matches!(cell.at_end(), Some(Outcome::Fault(fault)) if fault.cause == Cause::Truncated)
    }

    /// Whether an event stream has said already that it failed.
    fn is_told(&self) -> bool {
        let Self::Marked(cell) = self else { return false };
        matches!(cell.at_end(), Some(Outcome::Fault(fault)) if fault.cause != Cause::Truncated)
    }

    /// Whether an event stream has ended already, by what it says.
    fn is_whole(&self) -> bool {
        matches!(self, Self::Marked(cell) if cell.at_end() == Some(Outcome::Success))
    }
}

impl<B: Body<Data = Bytes>> OpenRouterBody<B> {
    pub(super) fn new(body: ReadAhead<B>, scan: Option<Scan>) -> Self {
        let end = scan.as_ref().map_or(End::Any, Scan::end);
        Self { body: Guarded::new(body, scan), end }
    }
}

impl<B> Body for OpenRouterBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let error = match ready!(this.body.poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let End::Document(_, begun) = this.end {
                    *begun = true;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Some(Err(_)) if this.end.is_whole() => None,
            Some(Err(error)) if this.end.is_told() => Some(broken(AlreadyTold(error.into()).into())),
            Some(Err(error)) => Some(broken(error.into())),
            None => this.end.is_cut().then(|| UpstreamError::new(UpstreamErrorKind::Truncated, None).into()),
        };
        *this.end = End::Any;
        Poll::Ready(error.map(Err))
    }

    fn is_end_stream(&self) -> bool {
        // a document's length, once reached, is its end
        self.body.is_end_stream() && !(matches!(self.end, End::Marked(_)) && self.end.is_cut())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What broke, where the transport has not said it in our words.
fn broken(error: BoxError) -> BoxError {
    if error::is_known(&*error) { error } else { UpstreamError::new(UpstreamErrorKind::Truncated, error).into() }
}

impl<B: Body<Data = Bytes>> fmt::Debug for OpenRouterBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRouterBody").field("body", &self.body).field("end", &self.end).finish()
    }
}
