//! Every layer behind one type, so that tests can put any around any other.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};
use http::{HeaderValue, Request, Response, header::ACCEPT};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tokio::time::Sleep;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    layer::util::Identity,
    util::{BoxCloneSyncService, MapRequestLayer},
};
use tower_openrouter::{
    ApiKey, BufferLayer, CircuitBreakerLayer, CommitGateLayer, ConcurrencyLimitLayer, DeadlineLayer, Endpoint,
    ExplainLayer, HedgeLayer, KeepAliveLayer, KeySelectLayer, LoadMonitorLayer, ModelRouter, OpenRouter,
    RateLimitLayer, RespondLayer, RetryLayer, TimeoutsLayer,
    breaker::{BreakerHandle, BreakerPolicy, BreakerState, TripPolicy},
    buffer::ReplayBody,
    endpoint_fn,
    limit::{AdaptiveConcurrencyLimitLayer, AdaptivePolicy, LimitHandle},
    monitor::MonitorHandle,
    openrouter::{AuthorizeLayer, OnFullPool, ProviderLayer, ProviderPreferences},
    pace::Rate,
    request::Replay,
    retry::{Backoff, RetryHandle},
    select::{LeastInFlight, Pool},
    stream::HearOutLayer,
};

use crate::support::Probe;

pub const CAP: usize = 8;

pub type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
pub type Stack = BoxCloneSyncService<Request<Payload>, Answer, BoxError>;

/// A request's body: here, or still coming.
pub enum Payload {
    Kept(ReplayBody),
    Coming { pieces: usize, pause: Duration, sleep: Option<Pin<Box<Sleep>>> },
}

impl Payload {
    pub fn whole() -> Self {
        Self::Kept(Bytes::from_static(br#"{"model":"some/model"}"#).into())
    }

    pub fn coming(pieces: usize, pause: Duration) -> Self {
        Self::Coming { pieces, pause, sleep: None }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Kept(bytes.into())
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Kept(body) => Pin::new(body).poll_frame(cx),
            Self::Coming { pieces: 0, .. } => Poll::Ready(None),
            Self::Coming { pieces, pause, sleep } => {
                let wait = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(*pause)));
                std::task::ready!(wait.as_mut().poll(cx));
                (*sleep, *pieces) = (None, *pieces - 1);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"[1, 2, 3]")))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Kept(body) => body.is_end_stream(),
            Self::Coming { pieces, .. } => *pieces == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Kept(body) => body.size_hint(),
            Self::Coming { .. } => SizeHint::default(),
        }
    }
}

impl Replay for Payload {
    fn replay(&self) -> Option<Self> {
        match self {
            Self::Kept(body) => body.replay().map(Self::Kept),
            Self::Coming { .. } => None,
        }
    }

    fn is_replayable(&self) -> bool {
        matches!(self, Self::Kept(body) if body.is_replayable())
    }
}

pub fn post(payload: Payload) -> Request<Payload> {
    Request::post("/v1/chat/completions").body(payload).unwrap()
}

/// Gives a service the one type.
pub fn erase<S, B>(service: S) -> Stack
where
    S: Service<Request<Payload>, Response = Response<B>, Error: Into<BoxError>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let service =
        service.map_response(|response: Response<B>| response.map(|body| body.map_err(Into::into).boxed_unsync()));
    BoxCloneSyncService::new(service.map_err(Into::into))
}

/// Reads the request's body while the probe answers.
#[derive(Clone)]
struct Reads(Probe);

impl Service<Request<Payload>> for Reads {
    type Response = Response<<ProbeAnswer as HasBody>::Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<Request<()>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        let (head, body) = request.into_parts();
        let answer = self.0.call(Request::from_parts(head, ()));
        Box::pin(async move { join(answer, body.collect()).await.0 })
    }
}

type ProbeAnswer = <Probe as Service<Request<()>>>::Response;

trait HasBody {
    type Body;
}

impl<B> HasBody for Response<B> {
    type Body = B;
}

pub fn innermost(probe: &Probe) -> Stack {
    erase(Reads(probe.clone()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    HearOut,
    Explain,
    KeepAlive,
    Respond,
    Deadline,
    Buffer,
    Tee,
    Retry,
    Hedge,
    Route,
    Provider,
    Gate,
    Select,
    Monitor,
    Breaker,
    RejectingBreaker,
    Limit,
    WaitingLimit,
    RefusingLimit,
    AdaptiveLimit,
    Rate,
    WaitingRate,
    Authorize,
    Timeouts,
    Leaf,
}

impl Stage {
    pub const ALL: [Self; 25] = [
        Self::HearOut,
        Self::Explain,
        Self::KeepAlive,
        Self::Respond,
        Self::Deadline,
        Self::Buffer,
        Self::Tee,
        Self::Retry,
        Self::Hedge,
        Self::Route,
        Self::Provider,
        Self::Gate,
        Self::Select,
        Self::Monitor,
        Self::Breaker,
        Self::RejectingBreaker,
        Self::Limit,
        Self::WaitingLimit,
        Self::RefusingLimit,
        Self::AdaptiveLimit,
        Self::Rate,
        Self::WaitingRate,
        Self::Authorize,
        Self::Timeouts,
        Self::Leaf,
    ];

    /// Puts the stage around `inner`; `watch` sees what it holds.
    pub fn around(self, inner: Stack, watch: &mut Watch) -> Stack {
        match self {
            // with nobody to hear it, what is left is let go
            Self::HearOut => erase(HearOutLayer::new(drop).layer(inner)),
            Self::Explain => erase(ExplainLayer::new().all().layer(inner)),
            Self::KeepAlive => {
                let accepting = MapRequestLayer::new(|mut request: Request<Payload>| {
                    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
                    request
                });
                let often = Duration::from_millis(50);
                let layer = KeepAliveLayer::new().after(often).interval(often).unwrap();
                erase(accepting.layer(layer.layer(inner)))
            }
            Self::Gate => erase(CommitGateLayer::new().hold(Duration::from_millis(100)).layer(inner)),
            Self::Respond => erase(RespondLayer::new().layer(inner)),
            Self::Deadline => erase(DeadlineLayer::new(Duration::from_secs(2)).unwrap().layer(inner)),
            Self::Buffer => watch.buffer(BufferLayer::new(), inner),
            Self::Tee => watch.buffer(BufferLayer::tee(), inner),
            Self::Retry => {
                let retry = RetryLayer::new().backoff(quick()).retry_unclear(true);
                watch.retries.push(retry.handle());
                erase(retry.layer(inner))
            }
            Self::Hedge => erase(eager(HedgeLayer::new()).layer(inner)),
            Self::Route => {
                let kept = MapRequestLayer::new(|request: Request<ReplayBody>| request.map(Payload::Kept));
                let route = kept.layer(inner);
                let router = ModelRouter::new().route("some/*", route.clone()).fallback(route);
                let routes = router.fallback_models(["some/spare", "other"]).build().unwrap();
                let buffer = BufferLayer::new();
                watch.buffers.push(buffer.clone());
                erase(buffer.layer(routes))
            }
            Self::Provider => {
                let layer = ProviderLayer::new(ProviderPreferences::new().order(["a", "b"]).zdr(true)).unwrap();
                erase(layer.on_full_pool(OnFullPool::IgnoreFailed).unwrap().layer(inner))
            }
            Self::Select => {
                let layer = KeySelectLayer::new(watch.pool(), endpoint_fn(|_: &Endpoint| Identity::new()));
                let select = layer.max_wait(Duration::from_secs(2)).max_waiters(32).layer(inner);
                let line = select.clone();
                watch.lines.push(Box::new(move || line.waiting()));
                erase(select)
            }
            Self::Monitor => {
                let monitor = LoadMonitorLayer::new();
                watch.monitors.lock().unwrap().push(monitor.handle());
                erase(monitor.layer(inner))
            }
            Self::Breaker => erase(watch.breaker(CircuitBreakerLayer::new(brief())).layer(inner)),
            Self::RejectingBreaker => erase(watch.breaker(CircuitBreakerLayer::new(brief())).reject().layer(inner)),
            Self::Limit => erase(watch.limit().layer(inner)),
            Self::WaitingLimit => erase(watch.limit().wait(16, Duration::from_millis(200)).layer(inner)),
            Self::RefusingLimit => erase(watch.limit().refuse().layer(inner)),
            Self::AdaptiveLimit => {
                let policy = AdaptivePolicy::gradient().range(1..=CAP).unwrap();
                let limit = AdaptiveConcurrencyLimitLayer::new(policy);
                watch.limits.lock().unwrap().push(limit.handle());
                erase(limit.layer(inner))
            }
            Self::Rate => erase(rate().layer(inner)),
            Self::WaitingRate => {
                let rate = rate().wait(16, Duration::from_millis(200));
                let handle = rate.handle();
                watch.lines.push(Box::new(move || handle.waiting()));
                erase(rate.layer(inner))
            }
            Self::Authorize => erase(AuthorizeLayer::new(&ApiKey::new("sk-or-v1-key").unwrap()).layer(inner)),
            Self::Timeouts => erase(timeouts().layer(inner)),
            Self::Leaf => erase(OpenRouter::new(inner)),
        }
    }
}

pub fn pool() -> Pool {
    Pool::new(["a", "b", "c"].map(|label| ApiKey::new(format!("sk-or-v1-{label}")).unwrap().label(label))).unwrap()
}

/// Hedges as many as it may.
pub fn eager(hedge: HedgeLayer) -> HedgeLayer {
    hedge.percentile(0.5).unwrap().share(1.0).unwrap()
}

/// Waits short enough for a storm to see several.
pub fn quick() -> Backoff {
    Backoff::new(Duration::from_millis(10), Duration::from_millis(100)).unwrap()
}

/// A rate that a storm meets now and then.
pub fn rate() -> RateLimitLayer {
    RateLimitLayer::new(Rate::per_second(1000.0).unwrap().burst(4).unwrap())
}

/// Limits that a storm's hanging calls and bodies meet.
pub fn timeouts() -> TimeoutsLayer {
    let limits = TimeoutsLayer::default().headers(Duration::from_millis(1000)).unwrap();
    limits.first_output(Duration::from_millis(1200)).unwrap().gap(Duration::from_millis(500)).unwrap()
}

/// A breaker that opens and half-opens many times in a storm.
pub fn brief() -> BreakerPolicy {
    let trip = TripPolicy::failures(2, Duration::from_secs(2)).unwrap();
    let (shortest, longest) = (Duration::from_millis(100), Duration::from_millis(300));
    BreakerPolicy::new(trip).cooldown(shortest, longest).unwrap().lease(Duration::from_millis(200)).unwrap()
}

/// The handles of what stands in a stack.
#[derive(Default)]
pub struct Watch {
    pub limits: Arc<Mutex<Vec<LimitHandle>>>,
    pub breakers: Arc<Mutex<Vec<BreakerHandle>>>,
    pub monitors: Arc<Mutex<Vec<MonitorHandle>>>,
    pub lines: Vec<Box<dyn Fn() -> usize>>,
    pub pools: Vec<Pool>,
    pub buffers: Vec<BufferLayer>,
    pub retries: Vec<RetryHandle>,
}

impl Watch {
    fn pool(&mut self) -> Pool {
        self.pools.push(pool());
        self.pools[self.pools.len() - 1].clone()
    }

    fn limit(&self) -> ConcurrencyLimitLayer {
        let limit = ConcurrencyLimitLayer::new(CAP).unwrap();
        self.limits.lock().unwrap().push(limit.handle());
        limit
    }

    fn breaker(&self, breaker: CircuitBreakerLayer) -> CircuitBreakerLayer {
        self.breakers.lock().unwrap().push(breaker.handle());
        breaker
    }

    fn buffer(&mut self, buffer: BufferLayer, inner: Stack) -> Stack {
        self.buffers.push(buffer.clone());
        let kept = MapRequestLayer::new(|request: Request<ReplayBody>| request.map(Payload::Kept));
        erase(buffer.layer(kept.layer(inner)))
    }

    /// That nothing is held by anybody.
    pub fn assert_idle(&self, probe: &Probe, of: &str) {
        for limit in &*self.limits.lock().unwrap() {
            assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{of}: permits out, waiters");
        }
        for breaker in &*self.breakers.lock().unwrap() {
            let state = breaker.snapshot().state;
            assert!(
                !matches!(state, BreakerState::HalfOpen { probes: 1.. }),
                "{of}: a probe's slot is taken: {state:?}"
            );
        }
        for monitor in &*self.monitors.lock().unwrap() {
            let figures = monitor.figures();
            assert_eq!(figures.in_flight(), 0, "{of}: in flight");
            let ended = figures.succeeded() + figures.failed() + figures.cancelled() + figures.refused();
            assert_eq!(ended, figures.started(), "{of}: every attempt ends in one way");
        }
        for line in &self.lines {
            assert_eq!(line(), 0, "{of}: waiters for a key");
        }
        for buffer in &self.buffers {
            assert_eq!(buffer.used(), 0, "{of}: bytes of the buffer's budget");
        }
        assert_eq!(probe.in_flight(), 0, "{of}: exchanges");
        assert_eq!(probe.reserved(), 0, "{of}: instances that are ready and idle");
        assert_eq!(probe.unready_calls(), 0, "{of}: calls on an instance that was not ready");
    }
}

/// These stages around a probe, the outermost first.
pub fn stack(stages: &[Stage], probe: &Probe) -> (Stack, Watch) {
    let mut watch = Watch::default();
    let inner = innermost(probe);
    let stack = stages.iter().rev().fold(inner, |inner, stage| stage.around(inner, &mut watch));
    (stack, watch)
}

/// All stages in the order of the default stack.
pub fn whole(probe: &Probe) -> (Stack, Watch) {
    let mut watch = Watch::default();
    let buffer = BufferLayer::new();
    watch.buffers.push(buffer.clone());
    let retry = RetryLayer::new().backoff(quick());
    watch.retries.push(retry.handle());
    let (limits, breakers, monitors) = (watch.limits.clone(), watch.breakers.clone(), watch.monitors.clone());
    let per_key = endpoint_fn(move |endpoint: &Endpoint| {
        let monitor = LoadMonitorLayer::endpoint(endpoint);
        let breaker = CircuitBreakerLayer::new(brief()).endpoint(endpoint);
        let limit = ConcurrencyLimitLayer::new(CAP).unwrap();
        monitors.lock().unwrap().push(monitor.handle());
        breakers.lock().unwrap().push(breaker.handle());
        limits.lock().unwrap().push(limit.handle());
        ServiceBuilder::new()
            .layer(monitor)
            .layer(breaker)
            .layer(limit)
            .layer(AuthorizeLayer::new(endpoint.key()))
            .into_inner()
    });
    let select = KeySelectLayer::new(watch.pool(), per_key).pick(LeastInFlight::default());
    let select = select
        .max_wait(Duration::from_millis(1500))
        .max_waiters(32)
        .layer(timeouts().layer(OpenRouter::new(innermost(probe))));
    let line = select.clone();
    watch.lines.push(Box::new(move || line.waiting()));
    let kept = MapRequestLayer::new(|request: Request<ReplayBody>| request.map(Payload::Kept));
    let service = ServiceBuilder::new()
        .layer(RespondLayer::new())
        .layer(DeadlineLayer::new(Duration::from_secs(2)).unwrap())
        .layer(buffer)
        .layer(kept)
        .layer(retry)
        .layer(ProviderLayer::new(ProviderPreferences::new().zdr(true)).unwrap())
        .layer(CommitGateLayer::new())
        .service(select);
    (erase(service), watch)
}
