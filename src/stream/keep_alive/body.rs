use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{
    Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::BoxError;

use super::{Later, future::Watched};
use crate::{
    answer::{ErrorAnswer, Shape},
    clock,
};

/// What OpenRouter itself sends while a request waits.
const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";
/// The most that is read of an error's body.
const ERROR_BODY: usize = 64 * 1024;

pin_project! {
    /// The body of an answer that passed a [`KeepAlive`](super::KeepAlive): the inner service's, perhaps with comments before
    /// it, or with an event in its place.
    pub struct KeepAliveBody<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Flowing { #[pin] body: B },
        Waiting { watched: Box<Watched<F>>, later: Later },
        // an answer that is none is being read, to be told as an event
        Failed { status: StatusCode, body: Pin<Box<B>>, read: Vec<u8>, shape: Shape },
        Over,
    }
}

impl<F, B> KeepAliveBody<F, B> {
    pub(super) fn flowing(body: B) -> Self {
        Self { state: State::Flowing { body } }
    }

    /// Goes on with what runs; the timer has run out.
    pub(super) fn waiting(watched: Watched<F>, later: Later) -> Self {
        Self { state: State::Waiting { watched: Box::new(watched), later } }
    }
}

impl<F, B, E> Body for KeepAliveBody<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Flowing { body } => return body.poll_frame(cx),
                StateProj::Over => return Poll::Ready(None),
                StateProj::Waiting { watched, later } => {
                    match watched.future.as_mut().poll(cx).map_ok(|it| later.fill(it)) {
                        Poll::Pending => {
                            let Some(timer) = &mut watched.timer else { return Poll::Pending };
                            ready!(timer.as_mut().poll(cx));
                            timer.as_mut().reset(clock::after(Instant::now(), watched.asked.times.interval));
                            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT.as_bytes())))));
                        }
                        Poll::Ready(Ok(response)) if is_stream(&response) => {
                            State::Flowing { body: response.into_body() }
                        }
                        Poll::Ready(Ok(response)) => {
                            let (status, shape) = (response.status(), watched.asked.shape);
                            State::Failed { status, body: Box::pin(response.into_body()), read: Vec::new(), shape }
                        }
                        Poll::Ready(Err(error)) => {
                            let event = ErrorAnswer::to(&*error.into()).event(watched.asked.shape);
                            state.set(State::Over);
                            return Poll::Ready(Some(Ok(Frame::data(event))));
                        }
                    }
                }
                StateProj::Failed { status, body, read, shape } => {
                    while read.len() < ERROR_BODY {
                        match ready!(body.as_mut().poll_frame(cx)) {
                            Some(Ok(frame)) => {
                                if let Ok(data) = frame.into_data() {
                                    let room = ERROR_BODY - read.len();
                                    read.extend_from_slice(&data.chunk()[..data.len().min(room)]);
                                }
                            }
                            // what came of it says as much as can be known
                            None | Some(Err(_)) => break,
                        }
                    }
                    let event = told(*status, read).event(*shape);
                    state.set(State::Over);
                    return Poll::Ready(Some(Ok(Frame::data(event))));
                }
            };
            state.set(next);
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Flowing { body } => body.is_end_stream(),
            State::Over => true,
            State::Waiting { .. } | State::Failed { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Flowing { body } => body.size_hint(),
            State::Over => SizeHint::with_exact(0),
            State::Waiting { .. } | State::Failed { .. } => SizeHint::default(),
        }
    }
}

/// Whether the body can follow a head that promised an event stream.
fn is_stream<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let wanted = b"text/event-stream";
    response.status() == StatusCode::OK
        && headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity")
        && kind.get(..wanted.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(wanted))
}

/// An answer that is no stream, as an error.
fn told(status: StatusCode, body: &[u8]) -> ErrorAnswer {
    if status.is_client_error() || status.is_server_error() {
        return ErrorAnswer::relayed(status, body);
    }
    ErrorAnswer::new(StatusCode::BAD_GATEWAY, "the upstream answered with something other than an event stream")
}

impl<F, B> fmt::Debug for KeepAliveBody<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Flowing { .. } => "flowing",
            State::Waiting { .. } => "waiting",
            State::Failed { .. } => "failed",
            State::Over => "over",
        };
        f.debug_struct("KeepAliveBody").field("state", &state).finish_non_exhaustive()
    }
}
