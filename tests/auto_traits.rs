//! What can be sent, shared and shown; and that every layer fits around the services people have.

use std::{convert::Infallible, fmt::Debug};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use static_assertions::assert_impl_all;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, layer::util::Identity, service_fn};
use tower_openrouter::{
    AccountPoller, ApiKey, Balancer, Batch, BufferLayer, CircuitBreakerLayer, CommitGateLayer, ConcurrencyLimitLayer,
    DeadlineLayer, Endpoint, ExplainLayer, HedgeLayer, KeepAliveLayer, KeyError, KeySelect, KeySelectLayer,
    LoadMonitorLayer, ModelRouter, ObserveLayer, OpenRouter, Outcome, RateLimitLayer, Rejected, RequestContext,
    RespondLayer, RetryLayer, Snapshot, TimeoutsLayer,
    answer::{ErrorAnswer, Shape},
    batch::{AsTheyCome, InOrder},
    breaker::{Admission, BreakerHandle, BreakerPolicy, CircuitBreaker, CircuitBreakerFuture, TripPolicy},
    buffer::{Buffer, BufferFuture, ReplayBody},
    deadline::{Deadline, DeadlineBody, DeadlineFuture, DeadlineService},
    endpoint::{Credit, Figures, Prices},
    endpoint_fn,
    error::UpstreamError,
    events::{Event, Events},
    explain::{Explain, ExplainFuture, Explanation, Trace},
    hedge::{Hedge, HedgeFuture, HedgeHandle},
    limit::{
        AdaptiveConcurrencyLimit, AdaptiveConcurrencyLimitLayer, AdaptivePolicy, ConcurrencyLimit, LimitFuture,
        LimitHandle, LimitPermit, RateLimit, RateLimitFuture, RateLimitHandle,
    },
    monitor::{LoadMonitor, LoadMonitorFuture, MonitorHandle},
    observe::{Observe, ObserveFuture},
    openrouter::{
        AccountClient, Authorize, AuthorizeLayer, HyperTransport, OpenRouterBody, OpenRouterFuture, ProviderLayer,
        ProviderPreferences, ReqwestTransport,
        provider::{ProviderFuture, ProviderService},
    },
    outcome::{Grpc, OutcomeCell},
    pace::{PacePolicy, Rate},
    respond::{Respond, RespondBody, RespondFuture, ToldBody},
    retry::{Backoff, Retry, RetryBudget, RetryFuture, RetryHandle},
    route::{Routes, RoutesFuture},
    select::{
        AdaptiveLimit, Candidates, CreditFloor, CreditLimit, EndpointFn, KeySelectFuture, LeastInFlight, MostCredit,
        Pacing, PeakEwma, Pick, Pool, PriorityTiers, Rank, Rendezvous, RequireTags, RoundRobin, SelectError,
        SmoothWeighted, Sticky, WeightedRandom,
    },
    stack::{BalancerBuilder, BalancerHandle},
    stream::{
        CommitGate, CommitGateBody, CommitGateFuture, HearOutLayer, KeepAlive, KeepAliveBody, KeepAliveFuture,
        StreamError,
        hear_out::{HearOut, HearOutBody, HearOutFuture},
        timeouts::{Timeouts, TimeoutsBody, TimeoutsFuture},
    },
};

/// A service whose parts are as plain as can be.
type Plain = tower::util::BoxCloneSyncService<Request<Full<Bytes>>, Response<Full<Bytes>>, BoxError>;
type ToReplay = tower::util::BoxCloneSyncService<Request<ReplayBody>, Response<Full<Bytes>>, BoxError>;
type PerKey = EndpointFn<fn(&Endpoint) -> Identity>;
type Body = Full<Bytes>;

type Requests = tower_openrouter::batch::Iter<std::vec::IntoIter<Request<Body>>>;

macro_rules! assert_layers_and_services {
    ($($type:ty),* $(,)?) => { $(assert_impl_all!($type: Clone, Debug, Send, Sync);)* };
}

macro_rules! assert_handles {
    ($($type:ty),* $(,)?) => { $(assert_impl_all!($type: Debug, Send, Sync);)* };
}

macro_rules! assert_send {
    ($($type:ty),* $(,)?) => { $(assert_impl_all!($type: Send);)* };
}

assert_layers_and_services! {
    RespondLayer, Respond<Plain>,
    ExplainLayer, Explain<Plain>, Trace,
    ObserveLayer, Observe<Plain>,
    KeepAliveLayer, KeepAlive<Plain>, CommitGateLayer, CommitGate<Plain>,
    DeadlineLayer, DeadlineService<Plain>, Deadline,
    TimeoutsLayer, Timeouts<Plain>, HearOutLayer, HearOut<Plain>,
    BufferLayer, Buffer<ToReplay>,
    RetryLayer, Retry<Plain>,
    HedgeLayer, Hedge<Plain>, HedgeHandle,
    ModelRouter<Plain>, Routes<ToReplay>, ProviderLayer, ProviderPreferences, ProviderService<Plain>,
    KeySelectLayer<PerKey>, KeySelectLayer<PerKey, LeastInFlight>, KeySelect<Plain>, KeySelect<Plain, LeastInFlight>,
    LoadMonitorLayer, LoadMonitor<Plain>,
    ConcurrencyLimitLayer, ConcurrencyLimit<Plain>,
    RateLimitLayer, RateLimit<Plain>, RateLimitHandle, Rate, PacePolicy, Pacing,
    AdaptiveConcurrencyLimitLayer, AdaptiveConcurrencyLimit<Plain>, AdaptivePolicy, AdaptiveLimit,
    AuthorizeLayer, Authorize<Plain>,
    OpenRouter<Plain>, ReqwestTransport, AccountClient<Plain>,
    CircuitBreakerLayer,
    Balancer<Body>, BalancerBuilder, BalancerBuilder<RoundRobin>, BalancerHandle, Batch<Plain, Requests>,
    BreakerHandle, LimitHandle, MonitorHandle, RetryHandle,
    Pool, Endpoint, ApiKey, RequestContext, OutcomeCell, Outcome, Snapshot,
    BreakerPolicy, TripPolicy, Backoff, RetryBudget,
    Rejected, KeyError,
}
#[cfg(feature = "hyper")]
assert_layers_and_services!(tower_openrouter::openrouter::HyperTransport<Body>);
assert_impl_all!(CircuitBreaker<Plain>: Clone, Debug, Send, Sync);

assert_handles!(Event, Events, MostCredit, Sticky, CreditLimit, CreditFloor, Credit, Prices);
assert_handles!(AccountPoller<Plain>, Figures, UpstreamError, ErrorAnswer, Shape, LimitPermit, Admission);
assert_handles!(RoundRobin, LeastInFlight, SmoothWeighted, WeightedRandom, PeakEwma, Rendezvous, PriorityTiers);
assert_handles!(Candidates<'_>, Rank, SelectError, RequireTags, StreamError);
assert_impl_all!(Box<dyn Pick>: Pick);

// futures and bodies are as sendable as what they hold; `Full` and a boxed future are `Send`
assert_send! {
    ExplainFuture<<Plain as Service<Request<Body>>>::Future>, Explanation,
    ObserveFuture<<Plain as Service<Request<Body>>>::Future>, <Observe<Plain> as Service<Request<Body>>>::Response,
    RespondFuture<<Plain as Service<Request<Body>>>::Future>, RespondBody<Body>, ToldBody<Body>,
    KeepAliveFuture<<Plain as Service<Request<Body>>>::Future, Body>, KeepAliveBody<<Plain as Service<Request<Body>>>::Future, Body>,
    CommitGateFuture<<Plain as Service<Request<Body>>>::Future, Body>, CommitGateBody<Body>,
    DeadlineFuture<<Plain as Service<Request<Body>>>::Future>, DeadlineBody<Body>,
    HearOutFuture<<Plain as Service<Request<Body>>>::Future>, HearOutBody<Body>,
    TimeoutsFuture<<Plain as Service<Request<Body>>>::Future>, TimeoutsBody<Body>,
    BufferFuture<ToReplay, Body>, ReplayBody,
    RetryFuture<Plain, Body, Body>, HedgeFuture<Plain, Body, Body>, RoutesFuture<ToReplay>, ProviderFuture<<Plain as Service<Request<Body>>>::Future>,
    KeySelectFuture<Plain, RoundRobin, Body>, <KeySelect<Plain> as Service<Request<Body>>>::Response,
    LoadMonitorFuture<<Plain as Service<Request<Body>>>::Future>,
    CircuitBreakerFuture<<Plain as Service<Request<Body>>>::Future>,
    <AdaptiveConcurrencyLimit<Plain> as Service<Request<Body>>>::Future,
    <AdaptiveConcurrencyLimit<Plain> as Service<Request<Body>>>::Response,
    LimitFuture<Plain, Body>, RateLimitFuture<Plain, Request<Body>>, <ConcurrencyLimit<Plain> as Service<Request<Body>>>::Response,
    OpenRouterFuture<<Plain as Service<Request<Body>>>::Future, Body>, OpenRouterBody<Body>,
    <Balancer<Body> as Service<Request<Body>>>::Future,
    AsTheyCome<Plain, Requests>, InOrder<Plain, Requests>,
}

fn pool() -> Pool {
    Pool::new([ApiKey::new("sk-or-v1-a").unwrap()]).unwrap()
}

fn limit() -> ConcurrencyLimitLayer {
    ConcurrencyLimitLayer::new(8).unwrap()
}

/// What a server or a client asks of a service.
fn finished<S, B, ResB>(service: S) -> S
where
    S: Service<Request<B>, Response = Response<ResB>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static,
    ResB: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    service
}

/// Each layer by itself, closed off by `$respond`, around `$service` with requests of `$body`.
macro_rules! each_around {
    ($respond:expr, $service:expr, $body:ty) => {{
        let respond = $respond;
        let service = $service;
        finished::<_, $body, _>(respond.clone().layer(service.clone()));
        finished::<_, $body, _>(ExplainLayer::new().layer(respond.clone().layer(service.clone())));
        finished::<_, $body, _>(ObserveLayer::new().layer(respond.clone().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(ObserveLayer::new().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(DeadlineLayer::default().layer(service.clone())));
        finished::<_, $body, _>(KeepAliveLayer::new().layer(respond.clone().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(CommitGateLayer::new().layer(service.clone())));
        finished::<_, $body, _>(HearOutLayer::new(drop).layer(respond.clone().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(TimeoutsLayer::default().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(LoadMonitorLayer::new().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(CircuitBreakerLayer::default().reject().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(limit().layer(service.clone())));
        finished::<_, $body, _>(respond.clone().layer(limit().refuse().layer(service.clone())));
        let rate = RateLimitLayer::new(Rate::per_second(100.0).unwrap());
        finished::<_, $body, _>(respond.clone().layer(rate.layer(service.clone())));
        let adaptive = AdaptiveConcurrencyLimitLayer::new(AdaptivePolicy::gradient());
        finished::<_, $body, _>(respond.clone().layer(adaptive.refuse().layer(service.clone())));
        let authorize = AuthorizeLayer::new(&ApiKey::new("sk-or-v1-a").unwrap());
        finished::<_, $body, _>(respond.clone().layer(authorize.layer(service.clone())));
        let select = KeySelectLayer::new(pool(), endpoint_fn(|_: &Endpoint| Identity::new()));
        finished::<_, $body, _>(respond.clone().layer(select.layer(service.clone())));
    }};
}

/// All of them in the order of the default stack; retry replays what the buffer keeps. `$into` makes the body that the
/// service takes.
macro_rules! all_around {
    ($respond:expr, $buffer:expr, $into:expr, $service:expr) => {{
        let per_key = endpoint_fn(|endpoint: &Endpoint| {
            ServiceBuilder::new()
                .layer(LoadMonitorLayer::endpoint(endpoint))
                .layer(CircuitBreakerLayer::default().endpoint(endpoint))
                .layer(limit())
                .layer(AuthorizeLayer::new(endpoint.key()))
                .into_inner()
        });
        ServiceBuilder::new()
            .layer(KeepAliveLayer::new())
            .layer($respond)
            .layer(DeadlineLayer::default())
            .layer($buffer)
            .layer(RetryLayer::new())
            .layer(HedgeLayer::new())
            .layer(CommitGateLayer::new())
            .layer(KeySelectLayer::new(pool(), per_key).pick(LeastInFlight::default()))
            .layer(TimeoutsLayer::default())
            .map_request(|request: Request<ReplayBody>| request.map($into))
            .service($service)
    }};
}

async fn answer<S, B, ResB>(service: S, request: Request<B>) -> Response<ResB>
where
    S: Service<Request<B>, Response = Response<ResB>, Error = Infallible>,
{
    let Ok(response) = service.oneshot(request).await;
    response
}

#[tokio::test]
async fn every_layer_fits_around_an_axum_router() {
    use axum::{Router, body::Body, routing::post};
    let router = Router::<()>::new().route("/v1/chat/completions", post(async |body: String| body));
    each_around!(RespondLayer::new(), router.clone(), Body);
    finished::<_, Body, _>(RespondLayer::new().layer(ProviderLayer::default().layer(router.clone())));
    let stack = finished::<_, Body, _>(all_around!(RespondLayer::new(), BufferLayer::new(), Body::new, router.clone()));
    // and inside one, as its middleware
    let app = Router::<()>::new().fallback_service(stack);
    let request = Request::post("/v1/chat/completions").body(Body::from("hello")).unwrap();
    let response = answer(app, request).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    let layers = ServiceBuilder::new()
        .layer(RespondLayer::new())
        .layer(DeadlineLayer::default())
        .layer(BufferLayer::new())
        .layer(LoadMonitorLayer::new())
        .layer(CircuitBreakerLayer::default().reject())
        .layer(limit().refuse());
    let request = Request::post("/v1/chat/completions").body(Body::from("hello")).unwrap();
    let response = answer(router.layer(layers), request).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
}

/// A gRPC service written by hand: one that answers everything with its own status.
#[derive(Clone)]
struct Greeter;

impl tonic::server::NamedService for Greeter {
    const NAME: &'static str = "test.Greeter";
}

impl Service<Request<tonic::body::Body>> for Greeter {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        std::future::ready(Ok(tonic::Status::already_exists("greeted").into_http()))
    }
}

#[tokio::test]
async fn every_layer_fits_around_a_tonic_server_and_a_tonic_channel() {
    use tonic::{
        body::Body,
        service::Routes,
        transport::{Channel, Endpoint as Address, Server, server::TcpIncoming},
    };
    let respond = RespondLayer::grpc();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();

    // around the service, and around the whole server
    each_around!(respond.clone(), Routes::new(Greeter), Body);
    let _ = finished::<_, Body, _>(all_around!(respond.clone(), BufferLayer::tee(), Body::new, Routes::new(Greeter)));
    let layers = ServiceBuilder::new()
        .layer(respond.clone())
        .layer(DeadlineLayer::default())
        .layer(BufferLayer::tee())
        .layer(LoadMonitorLayer::new().classify(Grpc))
        .layer(CircuitBreakerLayer::default().classify(Grpc).reject())
        .layer(limit().refuse())
        .into_inner();
    let server = Server::builder().layer(layers);
    let server = server.serve_with_incoming(Routes::new(Greeter), TcpIncoming::from(listener));
    let server = tokio::spawn(server);

    let channel: Channel = Address::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    each_around!(respond.clone(), channel.clone(), Body);
    let client = finished::<_, Body, _>(all_around!(respond, BufferLayer::tee(), Body::new, channel));
    let request = Request::post(format!("http://{address}/test.Greeter/Greet"));
    let request = request.header("content-type", "application/grpc").body(Body::empty()).unwrap();
    let response = answer(client, request).await;
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!((status.code(), status.message()), (tonic::Code::AlreadyExists, "greeted"));
    server.abort();
}

#[tokio::test]
async fn every_layer_fits_around_a_reqwest_client() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().fallback(async |body: String| body);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let transport = ReqwestTransport::new(reqwest::Client::new());
    each_around!(RespondLayer::new(), transport.clone(), ReplayBody);
    finished::<_, ReplayBody, _>(RespondLayer::new().layer(ProviderLayer::default().layer(transport.clone())));
    let routes = ModelRouter::new().route("*", transport.clone()).build().unwrap();
    finished::<_, Body, _>(tower_openrouter::stack::front(routes));
    let leaf = OpenRouter::builder().base_url(format!("http://{address}/api/v1")).build(transport).unwrap();
    each_around!(RespondLayer::new(), leaf.clone(), ReplayBody);
    let client =
        finished::<_, Body, _>(all_around!(RespondLayer::new(), BufferLayer::new(), std::convert::identity, leaf));
    let request = Request::post("/v1/chat/completions").body(Body::from("{}")).unwrap();
    let response = answer(client, request).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{}");
    server.abort();
}

#[test]
fn a_stack_ends_infallible_whatever_the_error_of_what_is_inside() {
    #[derive(Debug, thiserror::Error)]
    #[error("odd")]
    struct Odd;
    macro_rules! with_error {
        ($error:ty) => {{
            let service =
                service_fn(|_: Request<Body>| async { Ok::<_, $error>(Response::new(Full::<Bytes>::default())) });
            each_around!(RespondLayer::new(), service, Body);
        }};
    }
    with_error!(Odd);
    with_error!(Infallible);
    with_error!(BoxError);
    with_error!(std::io::Error);
    with_error!(tonic::Status);
    with_error!(tonic::transport::Error);
    with_error!(reqwest::Error);
}

#[tokio::test]
async fn the_poller_can_be_spawned_over_every_transport() {
    let pool = Pool::new([ApiKey::new("sk-or-v1-a").unwrap()]).unwrap();
    let reqwest = ReqwestTransport::default_client().unwrap();
    let hyper = tokio::spawn(AccountPoller::new(&pool, OpenRouter::new(HyperTransport::new())).run());
    let reqwest = tokio::spawn(AccountPoller::new(&pool, OpenRouter::new(reqwest)).run());
    drop(pool);
    hyper.await.unwrap();
    reqwest.await.unwrap();
}
