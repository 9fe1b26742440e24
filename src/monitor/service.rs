use std::{
    cmp::Ordering,
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{BoxError, load::Load};
use tower_service::Service;

use super::layer::Place;
use crate::{
    Rejected, RequestContext,
    body::{Ending, Guard, Guarded, Held},
    outcome::{Cause, Fault, Judge, Outcome, OutcomeCell, Said, Scope},
    request::Deadline,
    spans::{self, Upshot, Wanted},
};

/// The service of [`LoadMonitorLayer`](super::LoadMonitorLayer).
#[derive(Debug, Clone)]
pub struct LoadMonitor<S> {
    inner: S,
    monitored: Monitored,
}

/// Where to write, and who judges.
#[derive(Clone)]
pub(super) struct Monitored {
    pub(super) place: Place,
    pub(super) classify: Judge,
}

impl fmt::Debug for Monitored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitored").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<S> LoadMonitor<S> {
    pub(super) fn new(inner: S, monitored: Monitored) -> Self {
        Self { inner, monitored }
    }
}

impl<S, B, ResB> Service<Request<B>> for LoadMonitor<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body,
{
    type Response = Response<Guarded<ResB, Exchange>>;
    type Error = BoxError;
    type Future = LoadMonitorFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // together with what the layers below look at
        self.monitored.place.figures().fetch();
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // before the call, so that one that panics is over too
        let exchange = Exchange::start(self.monitored.clone(), &request);
        let span = exchange.span.clone();
        let exchange = Held::new(exchange);
        let _entered = span.as_ref().map(|span| span.enter());
        LoadMonitorFuture { inner: self.inner.call(request), exchange }
    }
}

impl<S> Load for LoadMonitor<S> {
    type Metric = CurrentLoad;

    fn load(&self) -> CurrentLoad {
        CurrentLoad(self.monitored.place.figures().load(Instant::now()))
    }
}

/// Requests in flight, and what is left of the virtual ones that failures add; totally ordered.
#[derive(Debug, Clone, Copy)]
pub struct CurrentLoad(f64);

impl CurrentLoad {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Ord for CurrentLoad {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for CurrentLoad {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for CurrentLoad {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for CurrentLoad {}

pin_project! {
    /// The future of [`LoadMonitor`].
    #[derive(Debug)]
    pub struct LoadMonitorFuture<F> {
        #[pin]
        inner: F,
        exchange: Held<Exchange>,
    }
}

impl<F, ResB, E> Future for LoadMonitorFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<BoxError>,
    ResB: Body,
{
    type Output = Result<Response<Guarded<ResB, Exchange>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match this.exchange.get_mut().and_then(|exchange| exchange.span.as_ref()) {
            Some(span) => span.in_scope(|| this.inner.poll(cx)),
            None => this.inner.poll(cx),
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(response)) => {
                let exchange = this.exchange.take().map(|exchange| exchange.answered(&response));
                Poll::Ready(Ok(response.map(|body| Guarded::new(body, exchange))))
            }
            Poll::Ready(Err(error)) => {
                let error = error.into();
                if let Some(exchange) = this.exchange.take() {
                    exchange.failed(&*error);
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

/// One attempt being measured: the guard in its future, then in its body.
#[derive(Debug)]
pub struct Exchange {
    monitored: Monitored,
    started: Instant,
    deadline: Deadline,
    first_byte: FirstByte,
    said: Said,
    span: Wanted,
}

/// The first byte of an answer.
#[derive(Debug)]
enum FirstByte {
    /// It has not come; the body says to have so many bytes.
    Awaited(u64),
    At(Instant),
}

/// A body that does not say how long it is.
const UNKNOWN: u64 = u64::MAX;

impl Exchange {
    fn start<B>(monitored: Monitored, request: &Request<B>) -> Self {
        let context = RequestContext::get(request.extensions());
        let span = match &monitored.place {
            Place::Endpoint(endpoint) => spans::attempt(|| endpoint.key().name(), request.uri().path(), context),
            Place::Own(_) => None,
        };
        monitored.place.figures().start();
        Self {
            monitored,
            started: Instant::now(),
            deadline: context.map(RequestContext::deadline_of).unwrap_or_default(),
            first_byte: FirstByte::Awaited(UNKNOWN),
            said: Said::Nothing,
            span,
        }
    }

    fn answered<B: Body>(mut self, response: &Response<B>) -> Self {
        self.first_byte = FirstByte::Awaited(response.body().size_hint().exact().unwrap_or(UNKNOWN));
        self.said = Said::of(response, &*self.monitored.classify);
        if let Some(span) = &self.span {
            span.record("http.response.status_code", response.status().as_u16());
        }
        self
    }

    fn failed(self, error: &(dyn Error + 'static)) {
        if let Some(refusal) = Rejected::find(error) {
            let (now, figures) = (Instant::now(), self.monitored.place.figures());
            figures.leave();
            figures.refuse(refusal.after(), now - self.started, now);
            self.tell(Upshot::Refused(refusal.why()));
        } else {
            let outcome = self.monitored.classify.error(error);
            self.book(Some(outcome));
        }
    }

    /// Writes the end into the books, once.
    fn book(self, outcome: Option<Outcome>) {
        let (now, place) = (Instant::now(), &self.monitored.place);
        let (figures, total) = (place.figures(), now - self.started);
        figures.leave();
        // whoever keeps the deadline drops us too, and that is no client's doing
        let late = || self.deadline.is_over(now).then(|| Fault::new(Cause::Timeout, Scope::Pool).into());
        let outcome = outcome.or_else(late);
        match outcome {
            Some(Outcome::Success) => {
                let first_byte = match self.first_byte {
                    FirstByte::Awaited(_) => {
                        figures.first_byte(total, now);
                        now
                    }
                    FirstByte::At(instant) => instant,
                };
                figures.succeed(first_byte - self.started, total);
            }
            Some(Outcome::Fault(fault)) => figures.fail(&fault, total, now),
            None => figures.cancel(total),
        }
        if let Some(cell) = self.said.cell() {
            if let Some(usage) = cell.usage() {
                figures.spend(&usage);
            }
            if let (Place::Endpoint(endpoint), Some(account)) = (place, cell.account()) {
                endpoint.learn_account(account);
            }
        }
        self.tell(Upshot::of(outcome));
    }

    /// Says on the span how it came out.
    fn tell(&self, upshot: Upshot) {
        let Some(span) = &self.span else { return };
        upshot.record(span);
        if let Upshot::Failed(fault) = upshot {
            span.record("scope", fault.scope.as_str());
            if let Some(rest) = fault.rest {
                span.record("rest_ms", u64::try_from(rest.duration.as_millis()).unwrap_or(u64::MAX));
            }
        }
        if let Some(usage) = self.said.cell().and_then(OutcomeCell::usage) {
            span.record("gen_ai.usage.input_tokens", usage.prompt_tokens);
            span.record("gen_ai.usage.output_tokens", usage.completion_tokens);
            span.record("cost_usd", usage.cost);
        }
    }
}

impl Guard for Exchange {
    fn data(&mut self, chunk: &[u8]) {
        // a body that comes in one piece is over with its first byte: no need to read the clock twice
        let FirstByte::Awaited(length) = self.first_byte else { return };
        if chunk.is_empty() || length == chunk.len() as u64 {
            return;
        }
        // until something is committed, what flows keeps the stream open and says nothing
        if self.said.is_output() {
            let now = Instant::now();
            self.first_byte = FirstByte::At(now);
            self.monitored.place.figures().first_byte(now - self.started, now);
        }
    }

    fn trailers(&mut self, found: &HeaderMap) {
        self.said.trailers(found, &*self.monitored.classify);
    }

    fn finish(self, ending: Ending) {
        let outcome = self.said.outcome(ending, &*self.monitored.classify);
        self.book(outcome);
    }
}
