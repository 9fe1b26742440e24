use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::{ConcurrencyLimit, ConcurrencyLimitLayer, LimitHandle, permits::Permits};
use crate::{
    Rejected, RequestContext,
    adaptive::{AdaptivePolicy, Learned, Sample, is_busy},
    body::{Ending, Guard, Guarded, Held},
    outcome::{Classify, HttpStatus, Outcome, OutcomeCell, Verdict},
    request::Deadline,
    sync::{Mutex, lock},
};

/// Limits how many requests run at once to what upstream turns out to bear.
///
/// OpenRouter names no such limit, and an account's may change by the hour. Too low a cap leaves paid capacity unused, too
/// high a one collects refusals. Here the cap follows the answers, as the [`AdaptivePolicy`] says. It shrinks when an answer
/// says that too much runs: a 429 of key or account, a 402 for its cost in flight, a 503, a timeout. It grows with answers
/// that have begun, and with [`gradient`](AdaptivePolicy::gradient) it also minds how soon. How long a stream goes on means
/// nothing, for that is the answer's length; nor do calls that are cancelled, refusals of our own, quotas by time, and faults
/// that say nothing about load.
///
/// In all else it is a [`ConcurrencyLimitLayer`]: permits last until the body ends, and at the cap it is not ready, or
/// [waits](Self::wait), or [refuses](Self::refuse). One layer is one cap; for a cap per key make one for each endpoint. For an
/// account, or each of its models, take the [selection filter](crate::select::AdaptiveLimit).
///
/// ```
/// use http::{Request, Response};
/// use tower::{BoxError, ServiceBuilder, ServiceExt};
/// use tower_openrouter::limit::{AdaptiveConcurrencyLimitLayer, AdaptivePolicy};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
/// let limit = AdaptiveConcurrencyLimitLayer::new(AdaptivePolicy::aimd());
/// let handle = limit.handle();
/// let service = ServiceBuilder::new()
///     .layer(limit)
///     .service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new(String::from("hello"))));
/// service.oneshot(Request::new(())).await?;
/// assert_eq!(handle.cap(), 20);
/// # Ok(()) }
/// ```
///
/// For each key, with bounds of one's own, minding the time to the first output:
///
/// ```
/// use tower_openrouter::{ApiKey, Endpoint, KeySelectLayer, endpoint_fn, select::Pool};
/// use tower_openrouter::limit::{AdaptiveConcurrencyLimitLayer, AdaptivePolicy};
///
/// let policy = AdaptivePolicy::gradient().range(2..=64)?.start(8)?;
/// let pool = Pool::new([ApiKey::new("key-a")?, ApiKey::new("key-b")?])?;
/// let select = KeySelectLayer::new(pool, endpoint_fn(move |_: &Endpoint| AdaptiveConcurrencyLimitLayer::new(policy)));
/// # let _ = select;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct AdaptiveConcurrencyLimitLayer {
    limit: ConcurrencyLimitLayer,
    meter: Arc<Meter>,
}

impl AdaptiveConcurrencyLimitLayer {
    /// A cap over all services that this layer, or a clone of it, is applied to.
    pub fn new(policy: AdaptivePolicy) -> Self {
        let permits = Permits::new(policy.first_cap());
        let limit = ConcurrencyLimitLayer { permits: permits.clone(), when_full: super::WhenFull::NotReady };
        let learned = Arc::new(Mutex::new(Learned::new(&policy)));
        Self { limit, meter: Arc::new(Meter { policy, permits, learned, classify: Arc::new(HttpStatus) }) }
    }

    /// Lets requests queue at the cap; see [`ConcurrencyLimitLayer::wait`].
    pub fn wait(mut self, max_waiters: usize, max_wait: Duration) -> Self {
        self.limit = self.limit.wait(max_waiters, max_wait);
        self
    }

    /// Refuses requests at the cap; see [`ConcurrencyLimitLayer::refuse`].
    pub fn refuse(mut self) -> Self {
        self.limit = self.limit.refuse();
        self
    }

    /// Sets who judges answers that carry no outcome, and errors; default [`HttpStatus`].
    pub fn classify(mut self, classify: impl Classify) -> Self {
        Arc::make_mut(&mut self.meter).classify = Arc::new(classify);
        self
    }

    /// A handle to watch the cap. One that is set by hand holds until the next answer that counts.
    pub fn handle(&self) -> LimitHandle {
        self.limit.handle()
    }
}

impl<S> Layer<S> for AdaptiveConcurrencyLimitLayer {
    type Service = AdaptiveConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        self.limit.layer(Metered { inner, meter: self.meter.clone() })
    }
}

/// The service of an [`AdaptiveConcurrencyLimitLayer`]: a limit around what it learns from.
pub type AdaptiveConcurrencyLimit<S> = ConcurrencyLimit<Metered<S>>;

#[derive(Clone)]
struct Meter {
    policy: AdaptivePolicy,
    permits: Permits,
    learned: Arc<Mutex<Learned>>,
    classify: Arc<dyn Classify>,
}

impl Meter {
    fn learn(&self, sample: Sample, now: Instant) {
        let mut learned = lock(&self.learned);
        let before = learned.cap();
        let cap = learned.learn(&self.policy, sample, now);
        if cap != before {
            // under the lock, so that caps are set in the order in which they were learned
            self.permits.set_cap(cap);
        }
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// A service whose answers teach the cap of the limit around it.
#[derive(Debug, Clone)]
pub struct Metered<S> {
    inner: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for Metered<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body,
{
    type Response = Response<Guarded<ResB, Sampling>>;
    type Error = BoxError;
    type Future = MeteredFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let sampling = Sampling {
            in_flight: self.meter.permits.in_flight(),
            meter: self.meter.clone(),
            sent: Instant::now(),
            deadline: RequestContext::get(request.extensions()).map(RequestContext::deadline_of).unwrap_or_default(),
            streamed: false,
            said: Said::Nothing,
        };
        MeteredFuture { inner: self.inner.call(request), sampling: Held::new(sampling) }
    }
}

pin_project! {
    /// The future of [`Metered`].
    #[derive(Debug)]
    pub struct MeteredFuture<F> {
        #[pin]
        inner: F,
        sampling: Held<Sampling>,
    }
}

impl<F, ResB, E> Future for MeteredFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<BoxError>,
    ResB: Body,
{
    type Output = Result<Response<Guarded<ResB, Sampling>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.inner.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(response)) => {
                let sampling = this.sampling.take().map(|sampling| sampling.answered(&response));
                Poll::Ready(Ok(response.map(|body| Guarded::new(body, sampling))))
            }
            Poll::Ready(Err(error)) => {
                let error = error.into();
                if let Some(mut sampling) = this.sampling.take()
                    && Rejected::find(&*error).is_none()
                {
                    let outcome = sampling.meter.classify.error(&*error);
                    sampling.tell(outcome, Instant::now());
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

/// One answer on its way to become a sample, at its first real output or its failure before that.
#[derive(Debug)]
pub struct Sampling {
    meter: Arc<Meter>,
    sent: Instant,
    in_flight: usize,
    deadline: Deadline,
    /// Whether the time to the first output is not that of the whole answer.
    streamed: bool,
    said: Said,
}

/// What the answer has said so far.
#[derive(Debug)]
enum Said {
    Nothing,
    /// The leaf judges, in here.
    Cell(OutcomeCell),
    /// Its head was that of a success.
    Success,
    /// Its trailers will tell; when its first data came, and what the trailers said.
    Open(Option<Instant>, Option<Outcome>),
    /// All there was to say.
    Told,
}

impl Sampling {
    fn answered<B: Body>(mut self, response: &Response<B>) -> Self {
        let json = |kind: &[u8]| kind.get(..16).is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json"));
        let whole = response.headers().get(CONTENT_TYPE).is_some_and(|kind| json(kind.as_bytes()));
        self.streamed = !whole && response.body().size_hint().exact().is_none();
        match Verdict::of(response, &*self.meter.classify) {
            Verdict::Known(Outcome::Success) => self.said = Said::Success,
            Verdict::Known(fault) => self.tell(fault, Instant::now()),
            Verdict::AtCommit(cell) => self.said = Said::Cell(cell),
            Verdict::AtEnd => self.said = Said::Open(None, None),
        }
        self
    }

    /// Becomes a sample, if it is one; `at` is when the first output came.
    fn tell(&mut self, outcome: Outcome, at: Instant) {
        self.said = Said::Told;
        let sample = match outcome {
            Outcome::Success => {
                let first_output = self.streamed.then(|| at.saturating_duration_since(self.sent));
                Sample::Served { in_flight: self.in_flight, first_output }
            }
            Outcome::Fault(fault) if is_busy(&fault) => Sample::Busy { in_flight: self.in_flight, sent: self.sent },
            Outcome::Fault(_) => return,
        };
        self.meter.learn(sample, at);
    }
}

impl Guard for Sampling {
    fn data(&mut self, chunk: &[u8]) {
        if chunk.is_empty() {
            return;
        }
        let outcome = match &mut self.said {
            Said::Cell(cell) => cell.at_commit(),
            Said::Success => Some(Outcome::Success),
            Said::Open(first, _) => {
                first.get_or_insert_with(Instant::now);
                None
            }
            Said::Nothing | Said::Told => None,
        };
        if let Some(outcome) = outcome {
            self.tell(outcome, Instant::now());
        }
    }

    fn trailers(&mut self, found: &HeaderMap) {
        if let Said::Open(_, said) = &mut self.said {
            *said = Some(self.meter.classify.end(Some(found)));
        }
    }

    fn finish(mut self, ending: Ending) {
        let now = Instant::now();
        let whole = matches!(ending, Ending::Complete | Ending::HeadOnly);
        let outcome = match &self.said {
            Said::Cell(cell) => cell.at_commit(),
            Said::Success => whole.then_some(Outcome::Success),
            Said::Open(_, said) => said.or_else(|| whole.then(|| self.meter.classify.end(None))),
            Said::Nothing => None,
            Said::Told => return,
        };
        let first = if let Said::Open(first, _) = self.said { first } else { None };
        match outcome {
            Some(outcome) => self.tell(outcome, first.unwrap_or(now)),
            // whoever keeps the deadline drops us too, and that is no client's doing
            None if !whole && first.is_none() && self.deadline.is_over(now) => {
                self.meter.learn(Sample::Busy { in_flight: self.in_flight, sent: self.sent }, now);
            }
            None => {}
        }
    }
}
