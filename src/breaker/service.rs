use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Service};

use super::{
    admission::{Admission, Wiring},
    shared::Breaker,
    state::{Admit, Ticket},
};
use crate::{
    body::Guarded,
    error::{Rejected, Why},
};

/// A service behind a circuit breaker; see [the module](crate::breaker).
///
/// All clones, and all services of one layer, share one breaker. A clone holds nothing.
#[derive(Debug)]
pub struct CircuitBreaker<S> {
    inner: S,
    wiring: Wiring,
    /// Whether it refuses instead of waiting.
    reject: bool,
    /// Whether `inner` said ready and was not called since.
    inner_ready: bool,
    // boxed, since few probe or wait, and every attempt clones and moves an instance
    /// The slot of a probe, reserved by being ready.
    probe: Option<Box<Admission>>,
    waiting: Option<Box<Waiting>>,
}

impl<S> CircuitBreaker<S> {
    pub(super) fn new(inner: S, wiring: Wiring, reject: bool) -> Self {
        Self { inner, wiring, reject, inner_ready: false, probe: None, waiting: None }
    }

    /// The service behind the breaker.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Waits, holding nothing, until the breaker would let something through.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let breaker = &self.wiring.breaker;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::new(Waiting { breaker: breaker.clone(), number: None, sleep: None }));
        loop {
            let Some(until) = breaker.wait(&mut waiting.number, cx.waker(), Instant::now()) else {
                return Poll::Ready(());
            };
            let Some(until) = until else {
                waiting.sleep = None;
                return Poll::Pending;
            };
            let sleep = match &mut waiting.sleep {
                Some(sleep) => {
                    if sleep.deadline() != until {
                        sleep.as_mut().reset(until);
                    }
                    sleep
                }
                None => waiting.sleep.insert(Box::pin(tokio::time::sleep_until(until))),
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<S: Clone> CircuitBreaker<S> {
    /// Gives back what the inner service reserved by being ready.
    fn release_inner(&mut self) {
        if std::mem::take(&mut self.inner_ready) {
            self.inner = self.inner.clone();
        }
    }

    /// How the request about to be made is admitted; `None` when it is refused.
    fn admission(&mut self) -> Option<Admission> {
        if let Some(probe) = self.probe.take() {
            probe.renew();
            return Some(*probe);
        }
        let breaker = &self.wiring.breaker;
        let ticket = match breaker.free() {
            // in the refusing mode readiness promises nothing
            _ if self.reject && !self.inner_ready => return None,
            Some(ticket) => ticket,
            None if self.reject => match breaker.admit(Instant::now()) {
                Admit::Pass(ticket) => ticket,
                Admit::Shut(_) => return None,
            },
            // it was ready before the breaker opened, and ready is a promise; it goes, and its verdict counts nowhere
            None => Ticket::stray(),
        };
        Some(Admission::new(self.wiring.clone(), ticket))
    }

    fn refusal(&self) -> Box<Rejected> {
        let now = Instant::now();
        let after = self.wiring.breaker.shut(now).flatten().map(|until| until.saturating_duration_since(now));
        let detail = match self.wiring.breaker.endpoint() {
            Some(endpoint) => format!("the circuit breaker of key {} is open", endpoint.key().name()),
            None => "the circuit breaker is open: the service behind it failed repeatedly".to_owned(),
        };
        Box::new(Rejected::new(Why::BreakerOpen, detail).retry_after(after))
    }
}

impl<S: Clone> Clone for CircuitBreaker<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.wiring.clone(), self.reject)
    }
}

impl<S, B, ResB> Service<Request<B>> for CircuitBreaker<S>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    ResB: Body,
{
    type Response = Response<Guarded<ResB, Admission>>;
    type Error = BoxError;
    type Future = CircuitBreakerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.probe.as_ref().is_some_and(|probe| !probe.renew()) {
            self.probe = None;
        }
        loop {
            let free = self.wiring.breaker.free().is_some();
            if !free && self.probe.is_none() {
                if self.reject {
                    if self.wiring.breaker.shut(Instant::now()).is_some() {
                        self.release_inner();
                        return Poll::Ready(Ok(()));
                    }
                } else if self.poll_gate(cx).is_pending() {
                    self.release_inner();
                    return Poll::Pending;
                }
            }
            self.waiting = None;
            self.inner_ready = false;
            match self.inner.poll_ready(cx) {
                Poll::Ready(Ok(())) => self.inner_ready = true,
                Poll::Ready(Err(error)) => {
                    self.probe = None;
                    return Poll::Ready(Err(error.into()));
                }
                Poll::Pending => {
                    self.probe = None;
                    return Poll::Pending;
                }
            }
            if free || self.probe.is_some() || self.reject {
                return Poll::Ready(Ok(()));
            }
            match self.wiring.breaker.admit(Instant::now()) {
                Admit::Pass(ticket) => {
                    let admission = Admission::new(self.wiring.clone(), ticket);
                    self.probe = admission.is_probe().then(|| Box::new(admission));
                    return Poll::Ready(Ok(()));
                }
                // another was first
                Admit::Shut(_) => self.release_inner(),
            }
        }
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(mut admission) = self.admission() else {
            self.release_inner();
            return CircuitBreakerFuture { state: State::Refused { error: Some(self.refusal()) } };
        };
        self.inner_ready = false;
        admission.start(request.extensions());
        let future = self.inner.call(request);
        CircuitBreakerFuture { state: State::Running { future, admission: Some(admission) } }
    }
}

/// An instance that waits for the breaker.
#[derive(Debug)]
struct Waiting {
    breaker: Arc<Breaker>,
    number: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.breaker.leave(number);
        }
    }
}

pin_project! {
    /// The future of a [`CircuitBreaker`].
    #[derive(Debug)]
    pub struct CircuitBreakerFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProject]
    enum State<F> {
        Running {
            #[pin]
            future: F,
            admission: Option<Admission>,
        },
        Refused {
            error: Option<Box<Rejected>>,
        },
    }
}

impl<F, ResB, E> Future for CircuitBreakerFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<BoxError>,
    ResB: Body,
{
    type Output = Result<Response<Guarded<ResB, Admission>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProject::Running { future, admission } => match future.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(response)) => {
                    let guard = admission.take().and_then(|admission| admission.head(&response));
                    Poll::Ready(Ok(response.map(|body| Guarded::new(body, guard))))
                }
                Poll::Ready(Err(error)) => {
                    let error = error.into();
                    if let Some(admission) = admission.take() {
                        admission.error(&*error);
                    }
                    Poll::Ready(Err(error))
                }
            },
            StateProject::Refused { error } => {
                let error = error.take().expect("a future is not polled after it resolved");
                Poll::Ready(Err(error))
            }
        }
    }
}
