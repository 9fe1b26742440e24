//! The rate as a service: where the slot is at each moment.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;
use tower_service::Service;

use super::{
    WhenFull,
    line::{Came, Line, Slot, Ticket},
};
use crate::{
    clock,
    error::{Rejected, Why},
};

/// How soon who waits looks again although its slot is later: the rate may have been raised, or a slot given back.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The service of a [`RateLimitLayer`](super::RateLimitLayer).
pub struct RateLimit<S> {
    inner: S,
    line: Line,
    when_full: WhenFull,
    /// Taken when this instance became ready, for its next call.
    slot: Option<Slot>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> RateLimit<S> {
    pub(super) fn new(inner: S, line: Line, when_full: WhenFull) -> Self {
        Self { inner, line, when_full, slot: None, timer: None }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

/// When to look for a slot that begins at `next`.
fn look_at(next: Instant, now: Instant) -> Instant {
    next.min(clock::after(now, LOOK_AGAIN))
}

fn poll_timer(timer: &mut Option<Pin<Box<Sleep>>>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
    let timer = match timer {
        Some(timer) => {
            timer.as_mut().reset(at);
            timer
        }
        None => timer.insert(Box::pin(sleep_until(at))),
    };
    timer.as_mut().poll(cx)
}

impl<S: Clone> RateLimit<S> {
    /// Takes the inner instance that is ready, leaving one that holds nothing.
    fn take_ready(&mut self) -> S {
        let fresh = self.inner.clone();
        mem::replace(&mut self.inner, fresh)
    }
}

impl<S: Clone> Clone for RateLimit<S> {
    /// The clone shares the rate; a slot this instance holds stays with it.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.line.clone(), self.when_full)
    }
}

impl<S: fmt::Debug> fmt::Debug for RateLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, R> Service<R> for RateLimit<S>
where
    S: Service<R> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = RateLimitFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !matches!(self.when_full, WhenFull::NotReady) {
            return self.inner.poll_ready(cx).map_err(Into::into);
        }
        loop {
            if self.slot.is_none() {
                let (next, now) = (self.line.next(), Instant::now());
                if next > now {
                    if poll_timer(&mut self.timer, look_at(next, now), cx).is_pending() {
                        return Poll::Pending;
                    }
                    continue;
                }
            }
            // whoever is not ready holds nothing, not even a slot from an earlier poll
            match self.inner.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.slot = None;
                    return Poll::Ready(Err(error.into()));
                }
                Poll::Pending => {
                    self.slot = None;
                    return Poll::Pending;
                }
            }
            if self.slot.is_some() {
                return Poll::Ready(Ok(()));
            }
            match self.line.take(Instant::now()) {
                Ok(slot) => {
                    (self.slot, self.timer) = (Some(slot), None);
                    return Poll::Ready(Ok(()));
                }
                // the slot went while the inner service became ready, which must not idle in here
                Err(_) => drop(self.take_ready()),
            }
        }
    }

    fn call(&mut self, request: R) -> Self::Future {
        let now = Instant::now();
        let (max_waiters, max_wait) = self.when_full.patience();
        let came = match self.slot.take() {
            Some(slot) => Came::Served(slot),
            None => self.line.come(max_waiters, max_wait, now, Waker::noop()),
        };
        let state = match came {
            Came::Served(slot) => {
                slot.use_up();
                State::Running { future: self.inner.call(request) }
            }
            Came::Waits(ticket) => {
                let give_up = clock::after(now, max_wait);
                let waits_for = Some((self.take_ready(), request));
                State::Waiting { waiting: Box::new(Waiting { ticket, waits_for, give_up, timer: None }) }
            }
            Came::Full => {
                drop(self.take_ready());
                let detail = format!("{max_waiters} requests wait for a slot already");
                State::Refused { refusal: Some(Rejected::new(Why::QueueFull, detail)) }
            }
            Came::TooLate(wait) => {
                drop(self.take_ready());
                let refusal = Rejected::new(Why::LimitReached, format!("the next slot begins in {wait:?}"));
                State::Refused { refusal: Some(refusal.retry_after(Some(wait))) }
            }
        };
        RateLimitFuture { state }
    }
}

pin_project! {
    /// The response future of [`RateLimit`].
    pub struct RateLimitFuture<S: Service<R>, R> {
        #[pin]
        state: State<S::Future, S, R>,
    }
}

impl<S: Service<R>, R> fmt::Debug for RateLimitFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitFuture").finish_non_exhaustive()
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S, R> {
        Running { #[pin] future: F },
        // boxed, since whoever waits has time for it and the others should not carry its size
        Waiting { waiting: Box<Waiting<S, R>> },
        Refused { refusal: Option<Rejected> },
    }
}

struct Waiting<S, R> {
    ticket: Ticket,
    waits_for: Option<(S, R)>,
    give_up: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S, R> Waiting<S, R> {
    /// What waited, with its slot; `None` when the time is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Slot, S, R)>> {
        loop {
            let now = Instant::now();
            let next = match self.ticket.poll(now, cx) {
                Ok(slot) => {
                    return Poll::Ready(self.waits_for.take().map(|(service, request)| (slot, service, request)));
                }
                Err(_) if now >= self.give_up => return Poll::Ready(None),
                Err(Some(next)) => look_at(next, now).min(self.give_up),
                // the one before wakes us, or our patience ends
                Err(None) => self.give_up,
            };
            if poll_timer(&mut self.timer, next, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<S, R> Future for RateLimitFuture<S, R>
where
    S: Service<R>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Running { future } => return future.poll(cx).map_err(Into::into),
                StateProj::Waiting { waiting } => match waiting.poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some((slot, mut service, request))) => {
                        slot.use_up();
                        State::Running { future: service.call(request) }
                    }
                    Poll::Ready(None) => {
                        State::Refused { refusal: Some(Rejected::new(Why::LimitReached, "no slot came in time")) }
                    }
                },
                StateProj::Refused { refusal } => {
                    let refusal = refusal.take().expect("polled after it was ready");
                    return Poll::Ready(Err(refusal.into()));
                }
            };
            // what waited leaves the line here, before the answer
            state.set(next);
        }
    }
}
