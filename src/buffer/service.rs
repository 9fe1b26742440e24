//! Collects the body, then calls.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, header::CONTENT_LENGTH};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use super::{
    Limits, ReplayBody,
    body::{broken, too_large, whole},
    collect::Pieces,
};
use crate::{
    error::{Rejected, Why},
    request::RequestContext,
};

/// The service of a [`BufferLayer`](super::BufferLayer).
#[derive(Debug, Clone)]
pub struct Buffer<S> {
    inner: S,
    limits: Limits,
}

impl<S> Buffer<S> {
    pub(super) fn new(inner: S, limits: Limits) -> Self {
        Self { inner, limits }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B> Service<Request<B>> for Buffer<S>
where
    S: Service<Request<ReplayBody>> + Clone,
    S::Error: Into<BoxError>,
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BufferFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let declared = declared(&request);
        let mut ready_one = || {
            let fresh = self.inner.clone();
            mem::replace(&mut self.inner, fresh)
        };
        let state = if declared > self.limits.body_limit {
            // what the inner service reserved to become ready must not idle in here
            drop(ready_one());
            State::Refused { refusal: Some(too_large()) }
        } else if request.body().is_end_stream() {
            RequestContext::of(&mut request).set_body(Bytes::new());
            State::Running { future: self.inner.call(request.map(|_| ReplayBody::empty())) }
        } else if self.limits.tee {
            let request = request.map(|body| ReplayBody::tee(body, &self.limits));
            State::Running { future: self.inner.call(request) }
        } else if declared > self.limits.replay_cap {
            let request = request.map(|body| ReplayBody::once(Default::default(), body, self.limits.body_limit));
            State::Running { future: self.inner.call(request) }
        } else {
            let cap = self.limits.replay_cap;
            let ceiling = request.body().size_hint().upper().unwrap_or(cap).min(cap);
            State::Collecting {
                collecting: Some(Collecting {
                    inner: ready_one(),
                    request,
                    pieces: Pieces::new(&self.limits.budget, ceiling),
                    body_limit: self.limits.body_limit,
                    replay_cap: cap,
                }),
            }
        };
        BufferFuture { state }
    }
}

/// The least bytes the body says to have.
fn declared<B: Body>(request: &Request<B>) -> u64 {
    let header = request.headers().get(CONTENT_LENGTH);
    let header = header.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    request.body().size_hint().lower().max(header)
}

pin_project! {
    /// The response future of [`Buffer`].
    pub struct BufferFuture<S: Service<Request<ReplayBody>>, B> {
        #[pin]
        state: State<S::Future, S, B>,
    }
}

impl<S: Service<Request<ReplayBody>>, B> fmt::Debug for BufferFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferFuture").finish_non_exhaustive()
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S, B> {
        Collecting { collecting: Option<Collecting<S, B>> },
        Running {
            #[pin]
            future: F,
        },
        Refused { refusal: Option<Rejected> },
    }
}

struct Collecting<S, B> {
    inner: S,
    request: Request<B>,
    pieces: Pieces,
    body_limit: u64,
    replay_cap: u64,
}

/// What collecting came to.
enum Collected {
    Whole(Option<HeaderMap>),
    /// Too large to keep; this piece is the first that was not.
    Large(Bytes),
    Refused(Rejected),
}

impl<S, B> Collecting<S, B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Collected> {
        loop {
            let frame = match ready!(Pin::new(self.request.body_mut()).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Collected::Refused(broken(&*error.into()))),
                None => return Poll::Ready(Collected::Whole(None)),
            };
            let data = match frame.into_data() {
                Ok(data) => whole(data),
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return Poll::Ready(Collected::Whole(Some(trailers))),
                    Err(_) => continue,
                },
            };
            let size = self.pieces.len().saturating_add(data.len() as u64);
            if size > self.body_limit {
                return Poll::Ready(Collected::Refused(too_large()));
            }
            if size > self.replay_cap {
                return Poll::Ready(Collected::Large(data));
            }
            if !self.pieces.push(data) {
                let refusal = Rejected::new(Why::Overloaded, "the memory for request bodies is used up");
                return Poll::Ready(Collected::Refused(refusal));
            }
            if self.request.body().is_end_stream() {
                return Poll::Ready(Collected::Whole(None));
            }
        }
    }
}

impl<S, B> Future for BufferFuture<S, B>
where
    S: Service<Request<ReplayBody>>,
    S::Error: Into<BoxError>,
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Running { future } => return future.poll(cx).map_err(Into::into),
                StateProj::Refused { refusal } => {
                    let refusal = refusal.take().expect("polled after it was ready");
                    return Poll::Ready(Err(refusal.into()));
                }
                StateProj::Collecting { collecting } => {
                    let running = collecting.as_mut().expect("only taken to be replaced at once");
                    let collected = ready!(running.poll(cx));
                    let Collecting { mut inner, mut request, pieces, body_limit, .. } =
                        collecting.take().expect("it just ran");
                    match collected {
                        Collected::Whole(trailers) => {
                            let data = pieces.join();
                            RequestContext::of(&mut request).set_body(data.clone());
                            let request = request.map(|_| ReplayBody::full(data, trailers));
                            State::Running { future: inner.call(request) }
                        }
                        Collected::Large(piece) => {
                            let left = body_limit.saturating_sub(pieces.len() + piece.len() as u64);
                            let read = [pieces.join(), piece];
                            let request = request.map(|rest| ReplayBody::once(read, rest, left));
                            State::Running { future: inner.call(request) }
                        }
                        Collected::Refused(refusal) => State::Refused { refusal: Some(refusal) },
                    }
                }
            };
            state.set(next);
        }
    }
}
