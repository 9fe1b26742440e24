use std::{
    cmp::Ordering,
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
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
    outcome::{Cause, Classify, Fault, Outcome, OutcomeCell, Scope},
};

/// The service of [`LoadMonitorLayer`](super::LoadMonitorLayer).
#[derive(Debug, Clone)]
pub struct LoadMonitor<S> {
    inner: S,
    monitored: Arc<Monitored>,
}

struct Monitored {
    place: Place,
    classify: Arc<dyn Classify>,
}

impl fmt::Debug for Monitored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitored").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<S> LoadMonitor<S> {
    pub(super) fn new(inner: S, place: Place, classify: Arc<dyn Classify>) -> Self {
        Self { inner, monitored: Arc::new(Monitored { place, classify }) }
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
        let deadline = RequestContext::get(request.extensions()).and_then(RequestContext::deadline);
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
        let result = ready!(this.inner.poll(cx)).map_err(Into::into);
        let exchange = this.exchange.take();
        Poll::Ready(match result {
            Ok(response) => {
                let exchange = exchange.map(|exchange| exchange.answered(&response));
                Ok(response.map(|body| Guarded::new(body, exchange)))
            }
            Err(error) => {
                if let Some(exchange) = exchange {
                    exchange.failed(&*error);
                }
                Err(error)
            }
        })
    }
}

/// One attempt being measured: the guard in its future, then in its body.
#[derive(Debug)]
pub struct Exchange {
    monitored: Arc<Monitored>,
    started: Instant,
    deadline: Option<Instant>,
    first_byte: Option<Instant>,
    /// How long the body says it is.
    length: Option<u64>,
    said: Said,
}

/// What the answer has said of its outcome so far.
#[derive(Debug)]
enum Said {
    /// No answer yet.
    Nothing,
    /// The leaf judges, in here.
    Cell(OutcomeCell),
    /// Nobody judged it, and its head is not final.
    Open,
    /// What its head meant.
    Head(Outcome),
    /// What its trailers meant.
    Trailers(Outcome),
}

impl Exchange {
    fn start(monitored: Arc<Monitored>, deadline: Option<Instant>) -> Self {
        monitored.place.figures().start();
        Self { monitored, started: Instant::now(), deadline, first_byte: None, length: None, said: Said::Nothing }
    }

    fn answered<B: Body>(mut self, response: &Response<B>) -> Self {
        self.length = response.body().size_hint().exact();
        self.said = match response.extensions().get::<OutcomeCell>() {
            Some(cell) => Said::Cell(cell.clone()),
            None => {
                let head = self.monitored.classify.head(response.status(), response.headers());
                head.map_or(Said::Open, Said::Head)
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
            Said::Head(outcome) => (Some(*outcome), None),
            Said::Trailers(outcome) => (None, Some(*outcome)),
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
                if self.first_byte.is_none() {
                    figures.first_byte(total, now);
                }
                figures.succeed(self.first_byte.unwrap_or(now) - self.started, total);
            }
            Some(Outcome::Fault(fault)) => figures.fail(&fault, total, now),
            // whoever keeps the deadline drops us too, and that is no client's doing
            None if self.deadline.is_some_and(|deadline| deadline <= now) => {
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
        if self.first_byte.is_some() || chunk.is_empty() || self.length == Some(chunk.len() as u64) {
            return;
        }
        // until something is committed, what flows keeps the stream open and says nothing
        let real = !matches!(&self.said, Said::Cell(cell) if cell.at_commit().is_none());
        if real {
            let now = Instant::now();
            self.first_byte = Some(now);
            self.monitored.place.figures().first_byte(now - self.started, now);
        }
    }

    fn trailers(&mut self, found: &HeaderMap) {
        if let Said::Open = self.said {
            self.said = Said::Trailers(self.monitored.classify.end(Some(found)));
        }
    }

    fn finish(self, ending: Ending) {
        let outcome = self.outcome(ending);
        self.book(outcome);
    }
}
