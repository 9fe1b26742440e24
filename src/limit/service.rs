//! The limit as a service: where the permit is at each moment.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;
use tower_service::Service;

use super::{
    WhenFull,
    permits::{Enqueued, Permit, Permits, Ticket, Watch},
};
use crate::{
    body::{Ending, Guard, Guarded},
    clock,
    error::{Rejected, Why},
};

/// The service of a [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer).
#[derive(Debug)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    /// What else than not to be ready; shared, so that the many who are just not ready carry nothing of it.
    when_full: Option<Arc<WhenFull>>,
    watch: Watch,
    /// Taken when this instance became ready, for its next call.
    permit: Option<Permit>,
}

impl<S> ConcurrencyLimit<S> {
    pub(super) fn new(inner: S, permits: Permits, when_full: WhenFull) -> Self {
        let when_full = (!matches!(when_full, WhenFull::NotReady)).then(|| Arc::new(when_full));
        Self { inner, when_full, watch: Watch::new(permits), permit: None }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone> ConcurrencyLimit<S> {
    /// Takes the inner instance that is ready, leaving one that holds nothing.
    fn take_ready(&mut self) -> S {
        let fresh = self.inner.clone();
        mem::replace(&mut self.inner, fresh)
    }
}

impl<S: Clone> Clone for ConcurrencyLimit<S> {
    /// The clone shares the cap; a permit this instance holds stays with it.
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), when_full: self.when_full.clone(), watch: self.watch.clone(), permit: None }
    }
}

impl<S, B, ResB> Service<Request<B>> for ConcurrencyLimit<S>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    ResB: Body,
{
    type Response = Response<Guarded<ResB, LimitPermit>>;
    type Error = BoxError;
    type Future = LimitFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.when_full.is_some() {
            return self.inner.poll_ready(cx).map_err(Into::into);
        }
        if self.permit.is_none() {
            ready!(self.watch.poll_free(cx));
        }
        // whoever is not ready holds nothing, not even a permit from an earlier poll
        match self.inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.permit = None;
                return Poll::Ready(Err(error.into()));
            }
            Poll::Pending => {
                self.permit = None;
                return Poll::Pending;
            }
        }
        if self.permit.is_none() {
            match self.watch.poll_acquire(cx) {
                Poll::Ready(permit) => self.permit = Some(permit),
                Poll::Pending => {
                    // the last one went while the inner service became ready, which must not idle in here
                    drop(self.take_ready());
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (max_waiters, max_wait) = self.when_full.as_deref().map_or((0, Duration::ZERO), |full| full.patience());
        let entered = match self.permit.take() {
            Some(permit) => Enqueued::Granted(permit),
            None => self.watch.permits().enqueue(max_waiters),
        };
        let state = match entered {
            Enqueued::Granted(permit) => State::Running { future: self.inner.call(request), permit: Some(permit) },
            Enqueued::Queued(ticket) => State::Waiting {
                waiting: Box::pin(Waiting {
                    ticket,
                    waits_for: Some((self.take_ready(), request)),
                    max_wait,
                    timer: sleep_until(clock::after(Instant::now(), max_wait)),
                }),
            },
            Enqueued::Full => {
                drop(self.take_ready());
                let refusal = match self.when_full.as_deref() {
                    Some(WhenFull::Wait { .. }) => {
                        let detail = format!("all places are taken and {max_waiters} requests wait already");
                        Rejected::new(Why::QueueFull, detail)
                    }
                    _ => Rejected::new(Why::LimitReached, "all places are taken"),
                };
                State::Refused { refusal: Some(refusal) }
            }
        };
        LimitFuture { state }
    }
}

pin_project! {
    /// The response future of [`ConcurrencyLimit`].
    pub struct LimitFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S::Future, S, B>,
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for LimitFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitFuture").finish_non_exhaustive()
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S, B> {
        Running {
            #[pin]
            future: F,
            permit: Option<Permit>,
        },
        // boxed, since whoever waits has time for it and the others should not carry its size
        Waiting { waiting: Pin<Box<Waiting<S, B>>> },
        Refused { refusal: Option<Rejected> },
    }
}

pin_project! {
    struct Waiting<S, B> {
        ticket: Ticket,
        waits_for: Option<(S, Request<B>)>,
        max_wait: Duration,
        #[pin]
        timer: Sleep,
    }
}

impl<S, B> Waiting<S, B> {
    /// What waited, with its permit; `None` when the time is over.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<(Permit, S, Request<B>)>> {
        let this = self.project();
        if let Poll::Ready(permit) = this.ticket.poll(cx) {
            return Poll::Ready(this.waits_for.take().map(|(service, request)| (permit, service, request)));
        }
        this.timer.poll(cx).map(|()| None)
    }
}

impl<S, B, ResB> Future for LimitFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body,
{
    type Output = Result<Response<Guarded<ResB, LimitPermit>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Running { future, permit } => {
                    return match future.poll(cx) {
                        Poll::Pending => Poll::Pending,
                        Poll::Ready(Ok(response)) => {
                            let permit = permit.take().map(LimitPermit);
                            Poll::Ready(Ok(response.map(|body| Guarded::new(body, permit))))
                        }
                        Poll::Ready(Err(error)) => {
                            *permit = None;
                            Poll::Ready(Err(error.into()))
                        }
                    };
                }
                StateProj::Waiting { waiting } => {
                    let max_wait = waiting.max_wait;
                    match ready!(waiting.as_mut().poll(cx)) {
                        Some((permit, mut service, request)) => {
                            State::Running { future: service.call(request), permit: Some(permit) }
                        }
                        None => State::Refused {
                            refusal: Some(Rejected::new(
                                Why::LimitReached,
                                format!("no place became free within {max_wait:?}"),
                            )),
                        },
                    }
                }
                StateProj::Refused { refusal } => {
                    let refusal = refusal.take().expect("polled after it was ready");
                    return Poll::Ready(Err(refusal.into()));
                }
            };
            // what waited leaves the queue here, before the answer
            state.set(next);
        }
    }
}

/// A permit on its way through a response body.
#[derive(Debug)]
pub struct LimitPermit(#[expect(dead_code, reason = "held for its drop")] Permit);

impl Guard for LimitPermit {
    fn finish(self, _: Ending) {}
}
