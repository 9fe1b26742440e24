use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_ENCODING};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::{CommitGateBody, CommitGateLayer};
use crate::{
    body::{ReadAhead, Seen},
    clock,
    explain::Found,
    outcome::{Cause, Fault, Outcome, OutcomeCell, Retry, Scope, Verdict},
    request::{AttemptId, RequestContext},
};

/// What is kept of a request until its answer has begun.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) layer: CommitGateLayer,
    pub(super) context: Option<RequestContext>,
    pub(super) head: bool,
}

pin_project! {
    /// The response future of [`CommitGate`](super::CommitGate).
    pub struct CommitGateFuture<F, B: Body> {
        #[pin]
        state: State<F, B>,
        asked: Asked,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B: Body> {
        Calling { #[pin] future: F },
        // empty once it is passed on
        Holding { held: Option<Held<B>> },
    }
}

/// An answer whose head is held.
struct Held<B: Body> {
    response: Response<ReadAhead<B>>,
    /// Who knows what the body says.
    judge: Judge,
    bytes: usize,
    /// Since when it waits; one that need not does not look at the clock.
    since: Option<Instant>,
    // boxed, since only who has to wait has one
    timer: Option<Pin<Box<Sleep>>>,
}

enum Judge {
    /// The leaf, in here.
    Cell(OutcomeCell),
    /// Nobody: the first byte is output, and this is what an end before it means.
    End(Option<Outcome>),
}

impl<F, B: Body> CommitGateFuture<F, B> {
    pub(super) fn new(future: F, asked: Asked) -> Self {
        Self { state: State::Calling { future }, asked }
    }
}

impl<F, B, E> Future for CommitGateFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes> + Unpin,
{
    type Output = Result<Response<CommitGateBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let StateProj::Calling { future } = this.state.as_mut().project() {
            let response = ready!(future.poll(cx))?;
            let judge = this.asked.judge(&response);
            let response = response.map(ReadAhead::new);
            let Some(judge) = judge else { return Poll::Ready(Ok(response)) };
            let held = Held { response, judge, bytes: 0, since: None, timer: None };
            this.state.set(State::Holding { held: Some(held) });
        }
        let StateProj::Holding { held } = this.state.project() else { unreachable!("set above") };
        let found = ready!(held.as_mut().expect("polled after it was ready").poll(this.asked, cx));
        let Held { response, since, .. } = held.take().expect("it was there above");
        if let Some(trace) = this.asked.context.as_ref().and_then(RequestContext::trace) {
            trace.gate(found, since.map_or(Duration::ZERO, |since| since.elapsed()));
        }
        Poll::Ready(Ok(response))
    }
}

impl Asked {
    /// Who knows what the body says; `None` when there is nothing to hold the head for.
    fn judge<B: Body>(&self, response: &Response<B>) -> Option<Judge> {
        let bounds = &self.layer.bounds;
        let plain = response.headers().get(CONTENT_ENCODING).is_none_or(|value| value == "identity");
        let off = bounds.time.is_zero() || bounds.bytes == 0;
        if response.status() != StatusCode::OK || self.head || !plain || off || response.body().is_end_stream() {
            return None;
        }
        match Verdict::of(response, &*self.layer.classify) {
            Verdict::AtCommit(cell) => Some(Judge::Cell(cell)),
            Verdict::AtEnd => Some(Judge::End(None)),
            Verdict::Known(Outcome::Success) if response.extensions().get::<OutcomeCell>().is_none() => {
                Some(Judge::End(Some(Outcome::Success)))
            }
            Verdict::Known(_) => None,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Held<B> {
    fn poll(&mut self, asked: &Asked, cx: &mut Context<'_>) -> Poll<Found> {
        let bounds = &asked.layer.bounds;
        while let Poll::Ready(seen) = self.response.body_mut().poll_ahead(cx) {
            if let Some(outcome) = self.outcome(seen, asked) {
                return Poll::Ready(if outcome.is_success() { Found::Output } else { Found::Failure });
            }
            match seen {
                Seen::Data(bytes) => self.bytes = self.bytes.saturating_add(bytes),
                Seen::Trailers => {}
                // the leaf says something at every end; if it ever did not, nothing more would come
                Seen::Failed | Seen::End => return Poll::Ready(Found::Failure),
            }
            if self.bytes >= bounds.bytes {
                return Poll::Ready(Found::Bytes);
            }
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if asked.context.as_ref().is_some_and(RequestContext::is_kept_alive) {
            return Poll::Pending;
        }
        let until = clock::after(since, bounds.time);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        timer.as_mut().poll(cx).map(|()| Found::Time)
    }

    /// What the attempt has come to, once that is known.
    fn outcome(&mut self, seen: Seen, asked: &Asked) -> Option<Outcome> {
        let at_end = match &self.judge {
            Judge::Cell(cell) => return cell.at_commit(),
            Judge::End(known) => *known,
        };
        let outcome = match seen {
            Seen::Data(_) => return Some(Outcome::Success),
            Seen::Failed => Fault::new(Cause::Truncated, Scope::Pool).retry(Retry::Unclear).into(),
            Seen::Trailers | Seen::End => {
                at_end.unwrap_or_else(|| asked.layer.classify.end(self.response.body().trailers()))
            }
        };
        if !outcome.is_success() {
            // for those above, who read the head only
            let cell = OutcomeCell::new();
            cell.end(outcome);
            self.response.extensions_mut().insert(cell);
            if let (Some(context), Some(id)) = (&asked.context, self.response.extensions().get::<AttemptId>()) {
                context.ledger().correct(*id, outcome);
            }
        }
        Some(outcome)
    }
}

impl<F, B: Body> fmt::Debug for CommitGateFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitGateFuture").finish_non_exhaustive()
    }
}
