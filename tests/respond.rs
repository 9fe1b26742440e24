//! What the end of a stack promises.

mod support;

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering::SeqCst,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::{Act, BodyAct, Probe};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_openrouter::{
    buffer::BufferLayer,
    deadline::DeadlineLayer,
    error::{Rejected, UpstreamError, UpstreamErrorKind, Why},
    limit::ConcurrencyLimitLayer,
    respond::{Respond, RespondLayer},
};

fn refused(why: Why, after: impl Into<Option<Duration>>) -> BoxError {
    Rejected::new(why, "the detail").retry_after(after).into()
}

/// What a caller of `path` gets when the stack fails with `error`.
async fn answer(layer: RespondLayer, path: &str, error: BoxError) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut error = Some(error);
    let inner = service_fn(move |_: Request<()>| {
        let error = error.take().unwrap();
        async move { Err::<Response<String>, BoxError>(error) }
    });
    let Ok(response) = layer.layer(inner).oneshot(Request::post(path).body(()).unwrap()).await;
    let (head, body) = response.into_parts();
    (head.status, head.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn http(path: &str, error: BoxError) -> (u16, Option<String>, Value) {
    let (status, headers, body) = answer(RespondLayer::new(), path, error).await;
    assert_eq!(headers["content-type"], "application/json");
    let retry_after = headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (status.as_u16(), retry_after, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn r110_a_refusal_has_openrouters_shape() {
    let (status, retry_after, body) =
        http("/v1/chat/completions", refused(Why::NoKey, Duration::from_millis(1500))).await;
    assert_eq!((status, retry_after.as_deref()), (429, Some("2")));
    let metadata = json!({
        "error_type": "rate_limit_exceeded", "limit_source": "balancer", "reason": "no_key", "retry_after_seconds": 2,
    });
    let message = "the detail (try again in 2 s)";
    assert_eq!(body, json!({ "error": { "code": 429, "message": message, "metadata": metadata } }));
}

#[tokio::test]
async fn r110_a_refusal_of_messages_has_anthropics_shape() {
    for path in ["/v1/messages", "/api/v1/messages"] {
        let (status, _, body) = http(path, refused(Why::Draining, None)).await;
        assert_eq!(status, 503);
        let metadata = json!({ "error_type": "provider_overloaded", "reason": "draining", "retry_after_seconds": 1 });
        let error = json!({ "type": "overloaded_error", "message": "the detail" });
        assert_eq!(body, json!({ "type": "error", "error": error, "request_id": null, "metadata": metadata }));
    }
}

#[tokio::test]
async fn r110_retry_after_is_whole_seconds_rounded_up_and_at_least_one() {
    for (after, expected) in [
        (None, Some("1")),
        (Some(Duration::ZERO), Some("1")),
        (Some(Duration::from_millis(1)), Some("1")),
        (Some(Duration::from_secs(30)), Some("30")),
        (Some(Duration::from_nanos(30_000_000_001)), Some("31")),
    ] {
        for why in [Why::NoKey, Why::QueueFull, Why::LimitReached, Why::BreakerOpen, Why::Overloaded, Why::Draining] {
            assert_eq!(http("/", refused(why, after)).await.1.as_deref(), expected, "{why:?} {after:?}");
        }
    }
    let (_, retry_after, _) = http("/", refused(Why::NoKey, Duration::MAX)).await;
    assert_eq!(retry_after.unwrap(), u64::MAX.to_string());
    for why in [Why::Deadline, Why::BodyTooLarge, Why::BodyBroken] {
        assert_eq!(http("/", refused(why, None)).await.1, None);
    }
}

#[tokio::test]
async fn r110_failures_on_the_way_to_the_upstream_are_502_or_504() {
    for (kind, expected) in [
        (UpstreamErrorKind::Connect, 502),
        (UpstreamErrorKind::Reset, 502),
        (UpstreamErrorKind::HeadersTimeout, 504),
        (UpstreamErrorKind::FirstOutputTimeout, 504),
        (UpstreamErrorKind::GapTimeout, 504),
        (UpstreamErrorKind::TotalTimeout, 504),
    ] {
        let (status, retry_after, body) = http("/", UpstreamError::new(kind, None).into()).await;
        assert_eq!((status, retry_after, body["error"]["code"].as_u64()), (expected, None, Some(expected.into())));
    }
}

#[tokio::test]
async fn r099_the_text_of_a_foreign_error_is_never_passed_on() {
    const SECRET: &str = "sk-or-v1-secret";
    for layer in [RespondLayer::new(), RespondLayer::grpc()] {
        for error in
            [SECRET.into(), BoxError::from(UpstreamError::new(UpstreamErrorKind::Reset, BoxError::from(SECRET)))]
        {
            let (_, headers, body) = answer(layer.clone(), "/", error).await;
            assert!(!format!("{headers:?}{}", String::from_utf8_lossy(&body)).contains("secret"));
        }
    }
    assert_eq!(http("/", SECRET.into()).await.0, 502);
}

#[tokio::test]
async fn a_grpc_answer_is_trailers_only() {
    let error = refused(Why::NoKey, Duration::from_micros(1_500_001));
    let (status, headers, body) = answer(RespondLayer::grpc(), "/x.Y/messages", error).await;
    assert_eq!((status, body), (StatusCode::OK, vec![]));
    assert_eq!(headers["content-type"], "application/grpc");
    assert_eq!(headers["grpc-retry-pushback-ms"], "1501");
    let grpc = tonic::Status::from_header_map(&headers).unwrap();
    assert_eq!((grpc.code(), grpc.message()), (tonic::Code::ResourceExhausted, "the detail (try again in 2 s)"));
}

#[tokio::test]
async fn a_grpc_message_of_any_text_arrives() {
    let error = Rejected::new(Why::Deadline, "100 % für\nnichts");
    let (_, headers, _) = answer(RespondLayer::grpc(), "/", error.into()).await;
    let grpc = tonic::Status::from_header_map(&headers).unwrap();
    assert_eq!((grpc.code(), grpc.message()), (tonic::Code::DeadlineExceeded, "100 % für\nnichts"));
    assert!(!headers.contains_key("grpc-retry-pushback-ms"));
}

#[tokio::test]
async fn an_answer_of_the_inner_service_is_left_alone() {
    let probe = Probe::new(Act::status(503).header("x-upstream", 1).body(BodyAct::Cut));
    let Ok(mut response) = RespondLayer::new().layer(probe).oneshot(Request::new(())).await;
    assert_eq!((response.status().as_u16(), &response.headers()["x-upstream"]), (503, &"1".parse().unwrap()));
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert!(response.frame().await.unwrap().is_err(), "a cut body stays cut");
}

fn poll_ready(service: &mut Respond<Probe>) -> Poll<()> {
    let Poll::Ready(Ok(())) = Service::<Request<()>>::poll_ready(service, &mut Context::from_waker(Waker::noop()))
    else {
        return Poll::Pending;
    };
    Poll::Ready(())
}

#[tokio::test]
async fn r001_r002_r004_readiness_is_the_inner_services() {
    let probe = Probe::ok();
    let mut service = task::spawn(RespondLayer::new().layer(probe.clone()));
    probe.block(true);
    assert_pending!(service.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
    assert!(!service.is_woken());
    probe.block(false);
    assert!(service.is_woken());
    for _ in 0..10 {
        assert!(poll_ready(&mut service).is_ready());
    }
    let Ok(_) = service.enter(|_, mut service| service.call(Request::new(()))).await;
    assert_eq!((probe.calls(), probe.unready_calls()), (1, 0));
}

/// Is never ready the first time, and fine after that.
#[derive(Clone, Default)]
struct FailsOnce {
    failed: bool,
}

impl Service<Request<()>> for FailsOnce {
    type Response = Response<String>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<String>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if std::mem::replace(&mut self.failed, true) { Poll::Ready(Ok(())) } else { Poll::Ready(Err("no".into())) }
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(self.failed);
        std::future::ready(Ok(Response::new("ok".into())))
    }
}

#[tokio::test]
async fn r006_a_failed_readiness_answers_one_call() {
    let mut service = RespondLayer::new().layer(FailsOnce::default());
    for expected in [502, 200] {
        for _ in 0..3 {
            let Ok(_) = ServiceExt::<Request<()>>::ready(&mut service).await;
        }
        let Ok(response) = service.call(Request::new(())).await;
        assert_eq!(response.status().as_u16(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn r005_dropped_at_any_poll_nothing_is_left() {
    for polls in 0..4 {
        let probe = Probe::new(Act::ok().delay(Duration::from_secs(1)));
        let mut call = task::spawn(RespondLayer::new().layer(probe.clone()).oneshot(Request::new(())));
        for _ in 0..polls {
            if call.poll().is_ready() {
                break;
            }
            tokio::time::advance(Duration::from_millis(600)).await;
        }
        drop(call);
        assert_eq!(probe.in_flight(), 0);
    }
}

#[tokio::test]
async fn r008_a_panic_passes_through_and_the_next_call_works() {
    let probe = Probe::ok();
    let service = RespondLayer::new().layer(probe.clone());
    for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
        probe.script([act]);
        let service = service.clone();
        let task = tokio::spawn(async move {
            let Ok(response) = service.oneshot(Request::new(())).await;
            response.collect().await.map(drop)
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(probe.in_flight(), 0);
    }
    probe.seen().panic_in_poll_ready.store(1, SeqCst);
    let mut once = service.clone();
    assert!(catch_unwind(AssertUnwindSafe(|| poll_ready(&mut once))).is_err());
    let Ok(response) = service.oneshot(Request::new(())).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn the_layers_fit_around_an_axum_router() {
    let buffer = BufferLayer::new().body_limit(3);
    let limit = ConcurrencyLimitLayer::new(1).unwrap().refuse();
    let app = axum::Router::<()>::new().route("/v1/messages", axum::routing::post(async |body: String| body)).layer(
        ServiceBuilder::new().layer(RespondLayer::new()).layer(DeadlineLayer::default()).layer(limit).layer(buffer),
    );
    let send = |body: &'static str| {
        app.clone().oneshot(Request::post("/v1/messages").body(axum::body::Body::from(body)).unwrap())
    };
    let first = send("abc").await.unwrap();
    assert_eq!(first.status(), 200);
    assert_eq!(send("abc").await.unwrap().status(), 429);
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "abc");
    assert_eq!(send("abcd").await.unwrap().status(), 413);
}

#[tokio::test]
async fn the_layers_fit_around_a_tonic_server_and_a_tonic_channel() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stack = ServiceBuilder::new()
        .layer(RespondLayer::grpc())
        .layer(DeadlineLayer::default())
        .layer(ConcurrencyLimitLayer::new(8).unwrap().wait(8, Duration::from_secs(1)))
        .layer(BufferLayer::tee().body_limit(10))
        .into_inner();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().layer(stack);
    let server = tokio::spawn(server.serve_with_incoming(tonic::service::Routes::default(), incoming));

    let code = async |address: SocketAddr, size: usize| {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let client = ServiceBuilder::new()
            .layer(RespondLayer::grpc())
            .layer(DeadlineLayer::default())
            .layer(ConcurrencyLimitLayer::new(8).unwrap())
            .layer(BufferLayer::tee())
            .map_request(|request: Request<_>| request.map(tonic::body::Body::new))
            .service(channel);
        let body = http_body_util::Full::new(bytes::Bytes::from(vec![0; size]));
        let request = Request::post(format!("http://{address}/x.Y/Z")).header("content-type", "application/grpc");
        let Ok(response) = client.oneshot(request.body(body).unwrap()).await;
        tonic::Status::from_header_map(response.headers()).unwrap().code()
    };
    assert_eq!(code(address, 11).await, tonic::Code::InvalidArgument, "refused by the server's stack");
    assert_eq!(code(address, 10).await, tonic::Code::Unimplemented, "answered by the server itself");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(code(closed, 10).await, tonic::Code::Unavailable, "answered by the client's stack");
    server.abort();
}

#[test]
fn services_and_futures_are_as_sendable_as_what_they_hold() {
    fn check<T: Service<Request<()>, Error = Infallible> + Clone + Send + Sync + 'static>(_: &T) {}
    fn send<T: Future + Send + 'static>(_: &T) {}
    let mut service = RespondLayer::new().layer(Probe::ok());
    check(&service);
    assert_ready!(poll_ready(&mut service));
    send(&service.call(Request::new(())));
}
