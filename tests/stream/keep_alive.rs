use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, BufferLayer, KeepAliveLayer, OpenRouter, RequestContext, RespondLayer, RetryLayer,
    error::{Rejected, Why},
    select::{Pool, RoundRobin},
    stream::StreamError,
};

use crate::upstream::{Answer, COMMENT, DOWN, HEAD, JSON, SSE, STOP, Step, Upstream, WORD, clean, clean_text, read};

const SECOND: Duration = Duration::from_secs(1);
const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];

fn ask(path: &str) -> Request<Full<Bytes>> {
    Request::post(path).body(Full::from(r#"{"model":"m","stream":true}"#)).unwrap()
}

/// The same where nothing below reads bodies.
fn accepting(path: &str) -> Request<Full<Bytes>> {
    let mut request = ask(path);
    request.headers_mut().insert("accept", SSE.parse().unwrap());
    request
}

fn balancer(upstream: &Upstream) -> Balancer<Full<Bytes>> {
    let keys = ["a", "b", "c"].map(|label| ApiKey::new(label).unwrap().label(label).account(label));
    Balancer::builder(Pool::new(keys).unwrap()).pick(RoundRobin::default()).build(OpenRouter::new(upstream.clone()))
}

/// Comments, then one event of which this is the document.
fn one_event(text: &str) -> Value {
    let event = text.trim_start_matches(COMMENT).strip_suffix("\n\n").unwrap();
    let data: Vec<_> = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.len(), 1, "{text}");
    serde_json::from_str(data[0]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_nothing_to_say_is_opened_and_then_goes_on_byte_for_byte() {
    let upstream = Upstream::new([clean().delay(45 * SECOND).pause(SECOND).data("data: 1\n\n")]);
    let service = KeepAliveLayer::new().layer(balancer(&upstream));
    let start = Instant::now();
    let mut request = ask(PATHS[0]);
    let context = RequestContext::of(&mut request);
    let Ok(response) = service.oneshot(request).await;
    assert_eq!((start.elapsed(), response.status().as_u16()), (10 * SECOND, 200));
    assert_eq!(response.headers()["content-type"], SSE);
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert!(context.is_kept_alive());
    let mut body = response.into_body();
    for at in [10, 25, 40] {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), COMMENT);
        assert_eq!(start.elapsed(), at * SECOND);
    }
    for (piece, at) in [(HEAD, 45), (WORD, 45), (WORD, 45), (STOP, 45), ("data: 1\n\n", 46)] {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        assert_eq!(start.elapsed(), at * SECOND, "{piece}");
    }
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_time_is_left_as_it_is() {
    let answers = [
        (200, clean().header("x-generation-id", "gen-1").delay(9 * SECOND), clean_text()),
        (402, Answer::json(402, "no").delay(9 * SECOND), "no".to_owned()),
    ];
    for (status, answer, text) in answers {
        let service = KeepAliveLayer::new().layer(Upstream::new([answer]));
        let response = service.oneshot(ask(PATHS[0])).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers().contains_key("x-generation-id")),
            (status, status == 200)
        );
        assert_eq!(read(response.into_body()).await, (text, true));
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_asks_for_a_stream_gets_one() {
    let slow = || Upstream::new([Answer::json(200, "{}").delay(60 * SECOND)]);
    let buffered = || ServiceBuilder::new().layer(KeepAliveLayer::new()).layer(BufferLayer::new()).service(slow());
    let body = |text: &'static str| Full::<Bytes>::from(text);
    for (request, opened) in [
        (Request::post("/").body(body(r#"{"stream":true}"#)), true),
        (Request::post("/").body(body(r#"{"stream":false}"#)), false),
        (Request::post("/").body(body("{}")), false),
        (Request::post("/").header("accept", "text/event-stream").body(body("{}")), true),
        (Request::post("/").header("accept", "application/json, text/event-stream").body(body("{}")), false),
        (Request::post("/").header("accept", "*/*").body(body("{}")), false),
        (Request::get("/").header("accept", "text/event-stream").body(body("")), false),
    ] {
        let request = request.unwrap();
        let of = format!("{request:?}");
        let start = Instant::now();
        let response = buffered().oneshot(request).await.unwrap();
        assert_eq!(start.elapsed() == 10 * SECOND, opened, "{of}");
        assert_eq!(response.headers()["content-type"], if opened { SSE } else { JSON }, "{of}");
    }
    let never = KeepAliveLayer::new().after(Duration::ZERO).layer(slow());
    assert_eq!(never.oneshot(ask("/")).await.unwrap().headers()["content-type"], JSON);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_comes_late_is_opened_then() {
    let request = {
        let pieces = futures_util::stream::unfold(0, async |step| match step {
            0 => {
                tokio::time::sleep(20 * SECOND).await;
                Some((Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(r#"{"stream":true}"#))), 1))
            }
            _ => None,
        });
        Request::post("/").body(http_body_util::StreamBody::new(Box::pin(pieces))).unwrap()
    };
    let slow = Upstream::new([clean().delay(60 * SECOND)]);
    let service = ServiceBuilder::new().layer(KeepAliveLayer::new()).layer(BufferLayer::new()).service(slow);
    let start = Instant::now();
    service.oneshot(request).await.unwrap();
    assert_eq!(start.elapsed(), 20 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_200_is_one_event_in_the_shape_of_the_path() {
    let error =
        r#"{"error":{"code":402,"message":"Insufficient credits","metadata":{"limit_source":"openrouter_credits"}}}"#;
    let refused = Upstream::new([Answer::json(402, error).delay(30 * SECOND)]);
    for path in PATHS {
        let response = KeepAliveLayer::new().layer(refused.clone()).oneshot(accepting(path)).await.unwrap();
        assert_eq!(response.status(), 200);
        let (text, clean) = read(response.into_body()).await;
        assert!(clean && text.starts_with(COMMENT), "{text}");
        let event = one_event(&text);
        let code = &event["error"][if path == PATHS[3] { "type" } else { "code" }];
        let expected: Value = match path {
            "/v1/messages" => "billing_error".into(),
            "/v1/responses" => "payment_required".into(),
            _ => 402.into(),
        };
        assert_eq!((code, &event["error"]["message"]), (&expected, &"Insufficient credits".into()), "{text}");
        assert!(text.contains("openrouter_credits"), "what the upstream said beside it is kept");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_stream_is_told_as_an_error() {
    for (answer, code, message) in [
        (Answer::json(503, "<html>"), 503, "the upstream answered with 503"),
        (Answer::new(500, JSON, [Step::Fail]), 500, "the upstream answered with 500"),
        (Answer::json(500, vec![b' '; 200_000]).then(Step::Hang), 500, "the upstream answered with 500"),
        (Answer::json(200, "{}"), 502, "the upstream answered with something other than an event stream"),
        (Answer::new(307, "", []), 502, "the upstream answered with something other than an event stream"),
        (
            clean().header("content-encoding", "gzip"),
            502,
            "the upstream answered with something other than an event stream",
        ),
    ] {
        let slow = Upstream::new([answer.delay(20 * SECOND)]);
        let response = KeepAliveLayer::new().layer(slow).oneshot(accepting(PATHS[0])).await.unwrap();
        let (text, clean) = read(response.into_body()).await;
        let event = one_event(&text);
        assert_eq!((&event["error"]["code"], &event["error"]["message"]), (&code.into(), &message.into()));
        assert!(clean);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_is_told_by_its_own_name_with_or_without_a_respond_layer_below() {
    let refuse = service_fn(async |_: Request<Full<Bytes>>| {
        tokio::time::sleep(20 * SECOND).await;
        Err::<Response<Full<Bytes>>, BoxError>(Rejected::new(Why::NoKey, "no key can serve").into())
    });
    let bare = KeepAliveLayer::new().layer(refuse).oneshot(accepting(PATHS[0])).await.unwrap();
    let ended = ServiceBuilder::new().layer(KeepAliveLayer::new()).layer(RespondLayer::new()).service(refuse);
    let Ok(ended) = ended.oneshot(accepting(PATHS[0])).await;
    let (bare, ended) = (read(bare.into_body()).await.0, read(ended.into_body()).await.0);
    for text in [bare, ended] {
        let error = one_event(&text)["error"].clone();
        assert_eq!((&error["code"], &error["metadata"]["reason"]), (&429.into(), &"no_key".into()), "{text}");
        assert_eq!(error["metadata"]["limit_source"], "balancer");
        assert_eq!(error["metadata"]["retry_after_seconds"], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn r077_dropping_the_response_drops_what_still_runs() {
    for read_first in [false, true] {
        let upstream = Upstream::new([clean().delay(600 * SECOND)]);
        let balancer = balancer(&upstream);
        let Ok(response) = KeepAliveLayer::new().layer(balancer.clone()).oneshot(ask(PATHS[0])).await;
        let mut body = response.into_body();
        if read_first {
            timeout(20 * SECOND, body.frame()).await.unwrap().unwrap().unwrap();
            timeout(SECOND, body.frame()).await.unwrap_err();
        }
        assert_eq!(upstream.running(), 1);
        drop(body);
        assert_eq!(upstream.running(), 0);
        let total = balancer.handle().snapshot().total;
        assert_eq!((total.in_flight, total.outcomes["client_gone"]), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_may_think_for_minutes_and_then_fail_and_the_client_sees_one_clean_stream() {
    let mut thinks = Answer::stream([COMMENT]);
    for _ in 0..20 {
        thinks = thinks.pause(10 * SECOND).data(COMMENT);
    }
    let upstream = Upstream::new([thinks.data(DOWN), clean()]);
    let Ok(response) = KeepAliveLayer::new().layer(balancer(&upstream)).oneshot(ask(PATHS[0])).await;
    let (text, clean) = read(response.into_body()).await;
    assert_eq!((text.trim_start_matches(COMMENT), clean), (&*clean_text(), true));
    assert_eq!(upstream.keys().len(), 2);
    assert_eq!(text.matches(COMMENT).count(), 13, "from 10 s on every 15");
}

#[tokio::test(start_paused = true)]
async fn waits_of_every_kind_are_bridged() {
    // two full pools with a hint, then the answer
    let busy = || {
        Answer::json(
            429,
            r#"{"error":{"code":429,"message":"full","metadata":{"provider_name":"P","retry_after_seconds":20}}}"#,
        )
    };
    let upstream = Upstream::new([busy(), busy(), clean()]);
    let service = ServiceBuilder::new()
        .layer(KeepAliveLayer::new())
        .layer(RespondLayer::new())
        .layer(BufferLayer::new())
        .layer(RetryLayer::new())
        .service(OpenRouter::new(upstream.clone()));
    let Ok(response) = service.oneshot(ask(PATHS[0])).await;
    let (text, clean) = read(response.into_body()).await;
    assert_eq!((text.trim_start_matches(COMMENT), clean), (&*clean_text(), true));
    assert!(text.starts_with(COMMENT) && upstream.keys().len() == 3);
}

#[tokio::test(start_paused = true)]
async fn r118_extreme_times_are_only_long() {
    let layer = KeepAliveLayer::new().after(Duration::MAX).interval(Duration::MAX).unwrap();
    let service = layer.layer(Upstream::new([clean().delay(60 * SECOND)]));
    assert_eq!(service.oneshot(accepting("/")).await.unwrap().headers().len(), 1);
    let layer = KeepAliveLayer::new().after(Duration::from_nanos(1)).interval(Duration::MAX).unwrap();
    let response = layer.layer(Upstream::new([clean().delay(SECOND)])).oneshot(accepting("/")).await.unwrap();
    assert_eq!(read(response.into_body()).await, (COMMENT.to_owned() + &clean_text(), true));
    assert_eq!(KeepAliveLayer::new().interval(Duration::ZERO).unwrap_err(), StreamError::ZeroInterval);
}
