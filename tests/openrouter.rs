//! The leaf service: what goes out, what comes back, and what is said about it.

mod support;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, header::AUTHORIZATION};
use http_body::Frame;
use http_body_util::{BodyExt, Channel, Full, StreamBody};
use proptest::prelude::*;
use support::{Act, BodyAct, Probe};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, OpenRouter,
    error::{UpstreamError, UpstreamErrorKind},
    openrouter::{AuthorizeLayer, BuildError},
    outcome::{Cause, Outcome, OutcomeCell, Retry, Scope},
};

const CANARY: &str = "sk-or-v1-0123456789abcdefcanary";

type Seen = Arc<Mutex<Vec<http::request::Parts>>>;

/// A transport that keeps what it is sent and answers with what it is given.
fn recording(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
) -> (Seen, impl Service<Request<String>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone) {
    let seen = Seen::default();
    let log = seen.clone();
    let service = service_fn(move |request: Request<String>| {
        log.lock().unwrap().push(request.into_parts().0);
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        std::future::ready(Ok(response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()))
    });
    (seen, service)
}

fn chat() -> Request<String> {
    Request::post("/v1/chat/completions").body("{}".into()).unwrap()
}

fn cell<B>(response: &Response<B>) -> OutcomeCell {
    response.extensions().get::<OutcomeCell>().expect("every answer carries its outcome").clone()
}

#[tokio::test]
async fn a_request_goes_below_the_api_root_with_the_apps_name() {
    let (seen, transport) = recording(200, &[], "{}");
    let leaf = OpenRouter::builder().title("Example").referer("https://example.com").build(transport).unwrap();
    let mut request = chat();
    request.headers_mut().insert("host", "evil.example".parse().unwrap());
    request.headers_mut().insert("connection", "x-private".parse().unwrap());
    request.headers_mut().insert("x-private", "1".parse().unwrap());
    request.headers_mut().insert("x-kept", "1".parse().unwrap());
    *request.version_mut() = http::Version::HTTP_2;
    leaf.oneshot(request).await.unwrap();
    let sent = seen.lock().unwrap().pop().unwrap();
    assert_eq!(sent.uri, "https://openrouter.ai/api/v1/chat/completions");
    assert_eq!(sent.version, http::Version::HTTP_11);
    let mut names: Vec<_> = sent.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["http-referer", "x-kept", "x-openrouter-title"]);
}

#[tokio::test]
async fn r104_the_target_of_a_request_never_chooses_the_host() {
    let (seen, transport) = recording(200, &[], "{}");
    let leaf = OpenRouter::new(transport);
    for target in ["http://evil.example/v1/chat/completions", "https://evil.example:1/chat/completions"] {
        leaf.clone().oneshot(Request::post(target).body(String::new()).unwrap()).await.unwrap();
        let sent = seen.lock().unwrap().pop().unwrap();
        assert_eq!(sent.uri, "https://openrouter.ai/api/v1/chat/completions");
    }
    for target in ["//evil.example/x", "/v1/../../x", "/v1/%2e%2e/x", "evil.example:443", "*"] {
        let response = leaf.clone().oneshot(Request::post(target).body(String::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 404, "{target}");
        assert_eq!(cell(&response).at_end().unwrap().fault().unwrap().scope, Scope::Request);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["error"]["code"] == 404);
        assert!(seen.lock().unwrap().is_empty(), "{target} was sent");
    }
}

#[tokio::test]
async fn r101_redirects_are_returned_not_followed() {
    let (seen, transport) = recording(307, &[("location", "https://evil.example/")], "moved");
    let leaf = AuthorizeLayer::new(&ApiKey::new(CANARY).unwrap()).layer(OpenRouter::new(transport));
    let response = leaf.oneshot(chat()).await.unwrap();
    assert_eq!(response.status(), 307);
    let fault = *cell(&response).at_end().unwrap().fault().unwrap();
    assert_eq!((fault.scope, fault.retry), (Scope::Request, Retry::Never));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "moved");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn r105_only_the_keys_credential_goes_out() {
    let (seen, transport) = recording(200, &[], "{}");
    let key = ApiKey::new(CANARY).unwrap();
    let leaf = AuthorizeLayer::new(&key).layer(OpenRouter::new(transport));
    let mut request = chat();
    for (name, value) in [
        ("authorization", "Bearer theirs"),
        ("authorization", "Bearer theirs, too"),
        ("x-api-key", "theirs"),
        ("cookie", "session=theirs"),
        ("proxy-authorization", "Basic theirs"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    leaf.oneshot(request).await.unwrap();
    let sent = seen.lock().unwrap().pop().unwrap();
    assert!(!sent.headers.values().any(|value| value.to_str().unwrap().contains("theirs")));
    let credentials: Vec<_> = sent.headers.get_all(AUTHORIZATION).iter().collect();
    assert_eq!(credentials, [format!("Bearer {CANARY}").as_str()]);
    assert!(credentials[0].is_sensitive());
}

#[tokio::test]
async fn r099_the_key_shows_in_no_debug_output() {
    let (seen, transport) = recording(200, &[], "{}");
    let layer = AuthorizeLayer::new(&ApiKey::new(CANARY).unwrap().base_url("https://eu.openrouter.ai/api/v1").unwrap());
    let leaf = layer.layer(OpenRouter::new(transport));
    let shown = format!("{layer:?} {:?}", OpenRouter::new(()));
    let response = leaf.oneshot(chat()).await.unwrap();
    let shown = format!("{shown} {response:?} {:?}", seen.lock().unwrap());
    assert!(!shown.contains("canary") && !shown.contains("01234567"), "{shown}");
}

#[tokio::test]
async fn a_key_with_a_base_url_of_its_own_goes_there_and_the_next_attempt_does_not() {
    let (seen, transport) = recording(200, &[], "{}");
    let leaf = OpenRouter::new(transport);
    let regional = ApiKey::new(CANARY).unwrap().base_url("https://eu.openrouter.ai/api/v1").unwrap();
    AuthorizeLayer::new(&regional).layer(leaf.clone()).oneshot(chat()).await.unwrap();
    assert_eq!(seen.lock().unwrap().pop().unwrap().uri, "https://eu.openrouter.ai/api/v1/chat/completions");
    // the second key's layer inside the first's, as if the request had been sent before
    let second = AuthorizeLayer::new(&ApiKey::new("k").unwrap()).layer(leaf);
    AuthorizeLayer::new(&regional).layer(second).oneshot(chat()).await.unwrap();
    assert_eq!(seen.lock().unwrap().pop().unwrap().uri, "https://openrouter.ai/api/v1/chat/completions");
}

#[tokio::test]
async fn an_error_is_judged_at_once_and_its_body_comes_again_byte_for_byte() {
    let body = "{\"error\":{\"code\":429,\"message\":\"m\",\"metadata\":{\"provider_name\":\"P\"}},\n \"user_id\":\"user_1\"} ";
    let (_, transport) = recording(429, &[("retry-after", "7"), ("connection", "close")], body);
    let response = OpenRouter::new(transport).oneshot(chat()).await.unwrap();
    let cell = cell(&response);
    let fault = *cell.at_commit().unwrap().fault().unwrap();
    assert_eq!(cell.at_end(), Some(fault.into()));
    assert_eq!((fault.cause, fault.scope), (Cause::ProviderLimit, Scope::Pool));
    assert_eq!(fault.rest.unwrap().duration, Duration::from_secs(7));
    assert_eq!(cell.account(), Some("user_1"));
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "7");
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
}

#[tokio::test]
async fn r119_a_huge_error_body_is_read_to_the_bound_and_streams_on() {
    let frames: Vec<Bytes> = (0..1000u32).map(|n| Bytes::from(format!("{n:01000}"))).collect();
    let pulled = Arc::new(Mutex::new(0));
    let transport = service_fn({
        let (frames, pulled) = (frames.clone(), pulled.clone());
        move |_: Request<String>| {
            let pulled = pulled.clone();
            let frames = frames.clone().into_iter().map(move |frame| {
                *pulled.lock().unwrap() += 1;
                Ok::<_, Infallible>(Frame::data(frame))
            });
            let response = Response::builder().status(500).body(StreamBody::new(stream::iter(frames))).unwrap();
            std::future::ready(Ok::<_, Infallible>(response))
        }
    });
    let response = OpenRouter::new(transport).oneshot(chat()).await.unwrap();
    assert_eq!(*pulled.lock().unwrap(), 66, "64 KiB are read and no more");
    assert_eq!(cell(&response).at_end().unwrap().fault().unwrap().cause, Cause::ServerError);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), frames.concat());
}

#[tokio::test]
async fn the_outcome_of_a_json_answer_is_known_at_its_end() {
    let body = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"cost":0.5}}"#;
    let (_, transport) = recording(200, &[("content-type", "application/json")], body);
    let response = OpenRouter::new(transport).oneshot(chat()).await.unwrap();
    let cell = cell(&response);
    assert_eq!(cell.at_commit(), None);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    assert_eq!(cell.at_end(), Some(Outcome::Success));
    assert_eq!(cell.usage().unwrap().cost, 0.5);
}

#[tokio::test]
async fn an_answer_without_a_body_is_over_with_its_head() {
    for (status, headers, complete) in
        [(204, &[][..], true), (200, &[][..], true), (200, &[("content-type", "application/json")][..], false)]
    {
        let (_, transport) = recording(status, headers, "");
        let response = OpenRouter::new(transport).oneshot(chat()).await.unwrap();
        assert_eq!(cell(&response).at_end().unwrap().is_success(), complete, "{status} {headers:?}");
    }
    let (_, transport) = recording(200, &[("content-type", "application/json")], "");
    let head = Request::head("/v1/models").body(String::new()).unwrap();
    let response = OpenRouter::new(transport).oneshot(head).await.unwrap();
    assert_eq!(cell(&response).at_end(), Some(Outcome::Success));
}

#[tokio::test]
async fn a_stream_is_committed_by_its_first_output_not_by_its_head() {
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(8);
    let mut body = Some(body);
    let transport = service_fn(move |_: Request<String>| {
        let response = Response::builder().header("content-type", "text/event-stream").body(body.take().unwrap());
        std::future::ready(Ok::<_, Infallible>(response.unwrap()))
    });
    let response = OpenRouter::new(transport).oneshot(chat()).await.unwrap();
    let cell = cell(&response);
    let mut body = response.into_body();
    for (event, commit, end) in [
        (": OPENROUTER PROCESSING\n\n", None, None),
        ("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n", None, None),
        ("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", Some(Outcome::Success), None),
        ("data: [DONE]\n\n", Some(Outcome::Success), Some(Outcome::Success)),
    ] {
        sender.send_data(Bytes::from(event)).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
        assert_eq!((cell.at_commit(), cell.at_end()), (commit, end), "{event}");
    }
}

#[tokio::test]
async fn a_caller_who_leaves_mid_stream_leaves_the_end_open() {
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let frames =
        stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(event))), Ok(Frame::data(Bytes::from(event)))]);
    let mut body = Some(StreamBody::new(frames));
    let transport = service_fn(move |_: Request<String>| {
        let response = Response::builder().header("content-type", "text/event-stream").body(body.take().unwrap());
        std::future::ready(Ok::<_, Infallible>(response.unwrap()))
    });
    let response = OpenRouter::new(transport).oneshot(chat()).await.unwrap();
    let cell = cell(&response);
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!((cell.at_commit(), cell.at_end()), (Some(Outcome::Success), None));
}

#[tokio::test(start_paused = true)]
async fn an_error_body_that_stalls_is_judged_by_what_came() {
    let probe = Probe::new(Act::status(401).delay(Duration::from_secs(10)).body(BodyAct::Hang));
    let started = Instant::now();
    let response = OpenRouter::new(probe).oneshot(chat()).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 20, "ten seconds from the head");
    assert_eq!(cell(&response).at_end().unwrap().fault().unwrap().cause, Cause::InvalidKey);
    let first = response.into_body().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first");
}

#[tokio::test]
async fn an_error_body_that_breaks_is_judged_and_breaks_for_the_caller_too() {
    let leaf = OpenRouter::new(Probe::new(Act::status(502).body(BodyAct::Cut)));
    let response = leaf.oneshot(chat()).await.unwrap();
    assert_eq!(cell(&response).at_end().unwrap().fault().unwrap().cause, Cause::ProviderUnavailable);
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_transport_that_fails_without_saying_how_may_have_sent_the_request() {
    let error = OpenRouter::new(Probe::new(Act::Fail { delay: Duration::ZERO })).oneshot(chat()).await.unwrap_err();
    assert_eq!(UpstreamError::find(&*error).unwrap().kind(), UpstreamErrorKind::Reset);
    let said = service_fn(|_: Request<String>| async {
        Err::<Response<Full<Bytes>>, BoxError>(UpstreamError::new(UpstreamErrorKind::Connect, None).into())
    });
    let error = OpenRouter::new(said).oneshot(chat()).await.unwrap_err();
    assert_eq!(UpstreamError::find(&*error).unwrap().kind(), UpstreamErrorKind::Connect);
}

#[tokio::test]
async fn r001_r005_the_leaf_calls_the_instance_that_was_ready_and_drops_clean() {
    let probe = Probe::new(Act::ok());
    let mut leaf = OpenRouter::new(probe.clone());
    for _ in 0..10 {
        ServiceExt::<Request<String>>::ready(&mut leaf).await.unwrap().call(chat()).await.unwrap();
    }
    assert_eq!((probe.calls(), probe.unready_calls()), (10, 0));
    probe.set(Act::Hang);
    for polls in 0..3 {
        let mut running = Box::pin(leaf.clone().oneshot(chat()));
        for _ in 0..polls {
            assert!(futures_util::poll!(&mut running).is_pending());
        }
        drop(running);
        assert_eq!(probe.in_flight(), 0);
    }
}

#[test]
fn r117_settings_that_cannot_be_used_are_refused_by_name() {
    let build = |builder: tower_openrouter::openrouter::OpenRouterBuilder| builder.build(()).unwrap_err();
    for url in ["", "openrouter.ai", "ftp://x", "https://u:p@x", "https://x/?q=1", "https://x/a/../b"] {
        assert!(matches!(build(OpenRouter::builder().base_url(url)), BuildError::BadBaseUrl(_)), "{url}");
    }
    assert_eq!(build(OpenRouter::builder().error_body_limit(0)), BuildError::ZeroErrorBodyLimit);
    assert_eq!(build(OpenRouter::builder().categories(["a", "b", "c"])), BuildError::TooManyCategories(3));
    assert_eq!(build(OpenRouter::builder().title("a\nb")), BuildError::BadHeader("X-OpenRouter-Title"));
}

#[tokio::test]
async fn the_transports_tell_a_connection_that_failed() {
    // nothing listens on the port of a listener that is gone
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let leaf = |url: &str| OpenRouter::builder().base_url(url);
    let url = format!("http://{free}/api/v1");
    let hyper = tower_openrouter::openrouter::HyperTransport::<Full<Bytes>>::new();
    let request = || Request::post("/v1/chat/completions").body(Full::<Bytes>::default()).unwrap();
    let error = leaf(&url).build(hyper).unwrap().oneshot(request()).await.unwrap_err();
    assert_eq!(UpstreamError::find(&*error).unwrap().kind(), UpstreamErrorKind::Connect);
    let reqwest = tower_openrouter::openrouter::ReqwestTransport::default_client().unwrap();
    let error = leaf(&url).build(reqwest).unwrap().oneshot(request()).await.unwrap_err();
    assert_eq!(UpstreamError::find(&*error).unwrap().kind(), UpstreamErrorKind::Connect);
}

#[tokio::test]
async fn the_transports_have_no_policy_of_their_own() {
    let seen = Arc::new(Mutex::new(0));
    let app = axum::Router::new()
        .route(
            "/api/v1/moved",
            axum::routing::post(|| async { (http::StatusCode::FOUND, [("location", "/api/v1/ok")], "") }),
        )
        .route("/api/v1/gzip", axum::routing::post(|| async { ([("content-encoding", "gzip")], "not gzip at all") }))
        .route(
            "/api/v1/down",
            axum::routing::post({
                let seen = seen.clone();
                move || async move {
                    *seen.lock().unwrap() += 1;
                    (http::StatusCode::SERVICE_UNAVAILABLE, "{}")
                }
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api/v1", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    async fn check<T, TB>(leaf: OpenRouter<T>, seen: &Mutex<usize>)
    where
        T: Service<Request<Full<Bytes>>, Response = Response<TB>> + Clone,
        T::Error: Into<BoxError>,
        TB: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let post = |path: &str| Request::post(path).body(Full::new(Bytes::from("{}"))).unwrap();
        let moved = leaf.clone().oneshot(post("/moved")).await.unwrap();
        assert_eq!(moved.status(), 302);
        let gzip = leaf.clone().oneshot(post("/gzip")).await.unwrap();
        assert_eq!(gzip.headers()["content-encoding"], "gzip");
        assert_eq!(gzip.into_body().collect().await.unwrap().to_bytes(), "not gzip at all");
        *seen.lock().unwrap() = 0;
        let down = leaf.oneshot(post("/down")).await.unwrap();
        assert_eq!((down.status().as_u16(), *seen.lock().unwrap()), (503, 1));
    }
    let builder = OpenRouter::builder().base_url(url);
    check(builder.clone().build(tower_openrouter::openrouter::HyperTransport::new()).unwrap(), &seen).await;
    let reqwest = tower_openrouter::openrouter::ReqwestTransport::default_client().unwrap();
    check(builder.build(reqwest).unwrap(), &seen).await;
    server.abort();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn r066_bytes_out_equal_bytes_in(
        body in proptest::collection::vec(any::<u8>(), 0..3000),
        cuts in proptest::collection::vec(1usize..300, 0..20),
        status in prop_oneof![Just(200u16), Just(429), Just(500)],
        kind in prop_oneof![Just("text/event-stream"), Just("application/json"), Just("audio/mpeg")],
        limit in 1usize..4000,
    ) {
        let (mut frames, mut rest) = (Vec::new(), Bytes::from(body.clone()));
        for cut in cuts {
            frames.push(rest.split_to(cut.min(rest.len())));
        }
        frames.push(rest);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let out = runtime.block_on(async move {
            let mut frames = Some(frames);
            let transport = service_fn(move |_: Request<String>| {
                let frames = frames.take().unwrap().into_iter().map(|frame| Ok::<_, Infallible>(Frame::data(frame)));
                let response = Response::builder().status(status).header("content-type", kind);
                std::future::ready(Ok::<_, Infallible>(response.body(StreamBody::new(stream::iter(frames))).unwrap()))
            });
            let leaf = OpenRouter::builder().error_body_limit(limit).build(transport).unwrap();
            let mut body = leaf.oneshot(chat()).await.unwrap().into_body();
            let mut out = Vec::new();
            // nonsense is no stream that has ended, so the end may be an error
            while let Some(Ok(frame)) = body.frame().await {
                out.extend_from_slice(&frame.into_data().unwrap());
            }
            out
        });
        prop_assert_eq!(out, body);
    }
}
