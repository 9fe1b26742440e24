//! A response body whose failure is told: the last event of a stream that broke.
//!
//! Once a stream has begun there is no status left to say that it failed, and most clients take a stream that just ends for a
//! complete one. So what broke is said in one more event, in the shape of the path, and then the body fails, so that the
//! connection ends uncleanly too, for those who do not read events.
//!
//! Parsers put an event together from lines until an empty one comes. Would half an event have gone out before ours, the two
//! would be read as one, or the half as JSON that is none, and the client would report that in place of the error. Nothing
//! undoes half an event, so none goes out: what follows the last empty line waits for its own. No client loses time, since
//! none could have used it, and nearly every frame ends with an empty line, so that it costs one look.
//!
//! A server writes out what it was given only once the body has nothing more for the moment, and drops it when the body
//! fails. So there is a pause between the event and the failure.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use memchr::memrchr2_iter;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::BoxError;

use crate::{
    answer::{ErrorAnswer, Shape},
    error::{self, AlreadyTold, UpstreamError, UpstreamErrorKind},
};

/// The most of an unfinished event that is held back, in bytes. A longer one goes out as it comes.
const HELD: usize = 64 * 1024;

/// How long the last event has to be written out. Loopback needs none; HTTP/2 writes on another task.
const PAUSE: Duration = Duration::from_millis(50);

pin_project! {
    /// A response's body. If it is an event stream that fails, the failure is its last event; any other passes untouched.
    pub struct ToldBody<B> {
        // gone when it has failed
        #[pin]
        body: Option<B>,
        state: State,
    }
}

enum State {
    /// Nothing is to be told.
    Untouched,
    Flowing(Events),
    /// The last event is out.
    Pausing {
        pause: Pin<Box<Sleep>>,
        error: Option<BoxError>,
    },
}

/// An event stream on its way.
struct Events {
    shape: Shape,
    /// Of the event that is not complete.
    held: BytesMut,
    /// Of an event too long to be held back, some has gone out.
    is_loose: bool,
    /// To go out after what was held.
    next: Option<Box<Frame<Bytes>>>,
}

impl<B> ToldBody<B> {
    pub(super) fn untouched(body: B) -> Self {
        Self { body: Some(body), state: State::Untouched }
    }

    /// The body of an event stream, whose failure is told in this shape.
    pub(super) fn events(body: B, shape: Shape) -> Self {
        let events = Events { shape, held: BytesMut::new(), is_loose: false, next: None };
        Self { body: Some(body), state: State::Flowing(events) }
    }
}

impl Events {
    /// Takes what came; gives what may go out, which is all up to the last empty line.
    fn pass(&mut self, mut data: Bytes) -> Option<Bytes> {
        if self.held.is_empty() {
            let Some(end) = end_of_events(&data, 0, !self.is_loose) else {
                self.is_loose |= data.len() > HELD;
                if self.is_loose {
                    return Some(data);
                }
                self.held.extend_from_slice(&data);
                return None;
            };
            self.is_loose = false;
            if end < data.len() {
                self.held.extend_from_slice(&data.split_off(end));
            }
            return Some(data);
        }
        let before = self.held.len();
        self.held.extend_from_slice(&data);
        match end_of_events(&self.held, before, true) {
            Some(end) => Some(self.held.split_to(end).freeze()),
            None => {
                self.is_loose = self.held.len() > HELD;
                self.is_loose.then(|| self.held.split().freeze())
            }
        }
    }

    fn last_event(&self, error: &BoxError) -> Bytes {
        let answer = match error::is_known(&**error) {
            true => ErrorAnswer::to(&**error),
            false => ErrorAnswer::to(&UpstreamError::new(UpstreamErrorKind::Truncated, None)),
        };
        tracing::debug!(
            status = answer.status().as_u16(),
            reason = answer.reason_name(),
            "told in a stream that broke"
        );
        let event = answer.event(self.shape);
        if !self.is_loose {
            return event;
        }
        // what has gone out of an event cannot be taken back, but it can be ended
        [b"\n\n", &event[..]].concat().into()
    }
}

/// Where the last empty line of `data` ends, if that is after `from`. `fresh`: a line begins with `data`.
fn end_of_events(data: &[u8], from: usize, fresh: bool) -> Option<usize> {
    if data.ends_with(b"\n\n") {
        return Some(data.len());
    }
    memrchr2_iter(b'\n', b'\r', &data[from..]).map(|at| from + at).find_map(|at| {
        let line_end = if data[..=at].ends_with(b"\r\n") { at - 1 } else { at };
        let is_empty = line_end.checked_sub(1).map_or(fresh, |before| matches!(data[before], b'\n' | b'\r'));
        is_empty.then_some(at + 1)
    })
}

impl<B> Body for ToldBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        loop {
            let events = match this.state {
                State::Untouched => {
                    let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
                    return body.poll_frame(cx).map_err(Into::into);
                }
                State::Flowing(events) => events,
                State::Pausing { pause, error } => {
                    if error.is_some() {
                        ready!(pause.as_mut().poll(cx));
                    }
                    return Poll::Ready(error.take().map(Err));
                }
            };
            if let Some(next) = events.next.take() {
                return Poll::Ready(Some(Ok(*next)));
            }
            let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
            let frame = match ready!(body.poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let error = error.into();
                    this.body.set(None);
                    if error::find::<AlreadyTold>(&*error).is_some() {
                        *this.state = State::Untouched;
                        return Poll::Ready(Some(Err(error)));
                    }
                    let event = events.last_event(&error);
                    let pause = Box::pin(tokio::time::sleep(PAUSE));
                    *this.state = State::Pausing { pause, error: Some(error) };
                    return Poll::Ready(Some(Ok(Frame::data(event))));
                }
                None => {
                    this.body.set(None);
                    let held = events.held.split().freeze();
                    return Poll::Ready((!held.is_empty()).then(|| Ok(Frame::data(held))));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    if let Some(data) = events.pass(data) {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Err(trailers) if events.held.is_empty() => return Poll::Ready(Some(Ok(trailers))),
                Err(trailers) => {
                    events.next = Some(Box::new(trailers));
                    return Poll::Ready(Some(Ok(Frame::data(events.held.split().freeze()))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_over = || self.body.as_ref().is_none_or(Body::is_end_stream);
        match &self.state {
            State::Untouched => is_over(),
            State::Flowing(events) => events.held.is_empty() && events.next.is_none() && is_over(),
            State::Pausing { error, .. } => error.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Untouched => self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint),
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            // an event more may come
            _ => SizeHint::default(),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for ToldBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Untouched => "untouched",
            State::Flowing(_) => "flowing",
            State::Pausing { .. } => "pausing",
        };
        f.debug_struct("ToldBody").field("body", &self.body).field("state", &state).finish()
    }
}
