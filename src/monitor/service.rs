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
    outcome::{Cause, Fault, Judge, Outcome, OutcomeCell, Scope},
    request::Deadline,
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
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // before the call, so that one that panics is over too
        let deadline = RequestContext::get(request.extensions()).map(RequestContext::deadline_of).unwrap_or_default();
        let exchange = Held::new(Exchange::start(self.monitored.clone(), deadline));
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
        match this.inner.poll(cx) {
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

/// What the answer has said of its outcome so far. Faults are boxed, since few fail and every attempt carries this.
#[derive(Debug)]
enum Said {
    /// No answer yet.
    Nothing,
    /// The leaf judges, in here.
    Cell(OutcomeCell),
    /// Nobody judged it, and its head is not final.
    Open,
    /// What its head meant.
    Head(Option<Box<Fault>>),
    /// What its trailers meant.
    Trailers(Option<Box<Fault>>),
}

/// An outcome, small.
fn small(outcome: Outcome) -> Option<Box<Fault>> {
    outcome.fault().copied().map(Box::new)
}

fn large(fault: &Option<Box<Fault>>) -> Outcome {
    fault.as_deref().copied().map_or(Outcome::Success, Outcome::Fault)
}

impl Exchange {
    fn start(monitored: Monitored, deadline: Deadline) -> Self {
        monitored.place.figures().start();
        Self {
            monitored,
            started: Instant::now(),
            deadline,
            first_byte: FirstByte::Awaited(UNKNOWN),
            said: Said::Nothing,
        }
    }

    fn answered<B: Body>(mut self, response: &Response<B>) -> Self {
        self.first_byte = FirstByte::Awaited(response.body().size_hint().exact().unwrap_or(UNKNOWN));
        self.said = match response.extensions().get::<OutcomeCell>() {
            Some(cell) => Said::Cell(cell.clone()),
            None => {
                let head = self.monitored.classify.head(response.status(), response.headers());
                head.map_or(Said::Open, |outcome| Said::Head(small(outcome)))
            }
        };
        self
    }

    fn failed(self, error: &(dyn Error + 'static)) {
        if let Some(refusal) = Rejected::find(error) {
            let (now, figures) = (Instant::now(), self.monitored.place.figures());
            figures.leave();
            figures.refuse(refusal.after(), now - self.started, now);
        } else {
            let outcome = self.monitored.classify.error(error);
            self.book(Some(outcome));
        }
    }

    /// What it came to; `None` when it was dropped before that could be known.
    fn outcome(&self, ending: Ending) -> Option<Outcome> {
        let (head, end) = match &self.said {
            Said::Nothing | Said::Open => (None, None),
            Said::Cell(cell) => (cell.at_commit(), cell.at_end()),
            Said::Head(fault) => (Some(large(fault)), None),
            Said::Trailers(fault) => (None, Some(large(fault))),
        };
        let fault = head.filter(|outcome| !outcome.is_success());
        let cut = Outcome::Fault(Fault::new(Cause::Truncated, Scope::Pool));
        match (ending, &self.said) {
            (Ending::FutureDropped | Ending::NoResponse, _) => None,
            _ if end.is_some() => end,
            (Ending::Complete | Ending::HeadOnly, Said::Open) => Some(self.monitored.classify.end(None)),
            (Ending::Complete | Ending::HeadOnly, _) => Some(head.unwrap_or(cut)),
            (Ending::Failed, _) => Some(fault.unwrap_or(cut)),
            (Ending::Dropped, _) => fault,
        }
    }

    /// Writes the end into the books, once.
    fn book(self, outcome: Option<Outcome>) {
        let (now, place) = (Instant::now(), &self.monitored.place);
        let (figures, total) = (place.figures(), now - self.started);
        figures.leave();
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
            // whoever keeps the deadline drops us too, and that is no client's doing
            None if self.deadline.is_over(now) => {
                figures.fail(&Fault::new(Cause::Timeout, Scope::Pool), total, now);
            }
            None => figures.cancel(total),
        }
        if let Said::Cell(cell) = &self.said {
            if let Some(usage) = cell.usage() {
                figures.spend(&usage);
            }
            if let (Place::Endpoint(endpoint), Some(account)) = (place, cell.account()) {
                endpoint.learn_account(account);
            }
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
        let real = !matches!(&self.said, Said::Cell(cell) if cell.at_commit().is_none());
        if real {
            let now = Instant::now();
            self.first_byte = FirstByte::At(now);
            self.monitored.place.figures().first_byte(now - self.started, now);
        }
    }

    fn trailers(&mut self, found: &HeaderMap) {
        if let Said::Open = self.said {
            self.said = Said::Trailers(small(self.monitored.classify.end(Some(found))));
        }
    }

    fn finish(self, ending: Ending) {
        let outcome = self.outcome(ending);
        self.book(outcome);
    }
}
