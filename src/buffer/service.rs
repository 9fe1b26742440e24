//! Collects the body, then calls.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
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

impl<S: Clone> Buffer<S> {
    /// Takes the inner instance that is ready, leaving one that holds nothing.
    fn ready_one(&mut self) -> S {
        let fresh = self.inner.clone();
        mem::replace(&mut self.inner, fresh)
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
        if declared > self.limits.body_limit {
            // what the inner service reserved to become ready must not idle in here
            drop(self.ready_one());
            return BufferFuture { state: State::Refused { refusal: Some(too_large()) } };
        }
        let request = if request.body().is_end_stream() {
            RequestContext::of(&mut request).set_body(Bytes::new());
            request.map(|_| ReplayBody::empty())
        } else if self.limits.tee {
            request.map(|body| ReplayBody::tee(body, &self.limits))
        } else if declared > self.limits.replay_cap {
            request.map(|body| ReplayBody::once(Default::default(), body, self.limits.body_limit))
        } else {
            let mut collecting = Collecting::new(&self.limits, request.body());
            // a body that lies ready needs neither a waker nor a place to wait in
            match collecting.poll(request.body_mut(), &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(collected) => match collecting.into_request(request, collected) {
                    Ok(request) => request,
                    Err(refusal) => {
                        drop(self.ready_one());
                        return BufferFuture { state: State::Refused { refusal: Some(refusal) } };
                    }
                },
                Poll::Pending => {
                    let waiting = Box::new(Waiting { inner: self.ready_one(), request, collecting });
                    return BufferFuture { state: State::Collecting { waiting: Some(waiting) } };
                }
            }
        };
        BufferFuture { state: State::Running { future: self.inner.call(request) } }
    }
}

/// The least bytes the body says to have.
fn declared<B: Body>(request: &Request<B>) -> u64 {
    let hint = request.body().size_hint();
    // a body that knows its length has it from that header
    if let Some(exact) = hint.exact() {
        return exact;
    }
    let header = request.headers().get(CONTENT_LENGTH);
    let header = header.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    hint.lower().max(header)
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
        // boxed, since the others should not carry its size
        Collecting { waiting: Option<Box<Waiting<S, B>>> },
        Running {
            #[pin]
            future: F,
        },
        Refused { refusal: Option<Rejected> },
    }
}

/// A request whose body has not come yet.
struct Waiting<S, B> {
    inner: S,
    request: Request<B>,
    collecting: Collecting,
}

/// A body as far as it has come.
struct Collecting {
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

impl Collecting {
    fn new(limits: &Limits, body: &impl Body) -> Self {
        let cap = limits.replay_cap;
        let ceiling = body.size_hint().upper().unwrap_or(cap).min(cap);
        Self { pieces: Pieces::new(&limits.budget, ceiling), body_limit: limits.body_limit, replay_cap: cap }
    }

    fn poll<B>(&mut self, body: &mut B, cx: &mut Context<'_>) -> Poll<Collected>
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        loop {
            let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
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
            if body.is_end_stream() {
                return Poll::Ready(Collected::Whole(None));
            }
        }
    }

    /// The request to send, with the body that collecting came to.
    fn into_request<B>(self, mut request: Request<B>, collected: Collected) -> Result<Request<ReplayBody>, Rejected>
    where
        B: Body + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match collected {
            Collected::Whole(trailers) => {
                let data = self.pieces.join();
                RequestContext::of(&mut request).set_body(data.clone());
                Ok(request.map(|_| ReplayBody::full(data, trailers)))
            }
            Collected::Large(piece) => {
                let left = self.body_limit.saturating_sub(self.pieces.len() + piece.len() as u64);
                let read = [self.pieces.join(), piece];
                Ok(request.map(|rest| ReplayBody::once(read, rest, left)))
            }
            Collected::Refused(refusal) => Err(refusal),
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
                StateProj::Running { future } => {
                    return match future.poll(cx) {
                        Poll::Ready(Ok(response)) => Poll::Ready(Ok(response)),
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                        Poll::Pending => Poll::Pending,
                    };
                }
                StateProj::Refused { refusal } => {
                    let refusal = refusal.take().expect("polled after it was ready");
                    return Poll::Ready(Err(refusal.into()));
                }
                StateProj::Collecting { waiting } => {
                    let running = waiting.as_mut().expect("only taken to be replaced at once");
                    let collected = ready!(running.collecting.poll(running.request.body_mut(), cx));
                    let Waiting { mut inner, request, collecting } = *waiting.take().expect("it just ran");
                    match collecting.into_request(request, collected) {
                        Ok(request) => State::Running { future: inner.call(request) },
                        Err(refusal) => State::Refused { refusal: Some(refusal) },
                    }
                }
            };
            state.set(next);
        }
    }
}
