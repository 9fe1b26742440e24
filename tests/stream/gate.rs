use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;
use tokio::time::{Instant, timeout};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, CommitGateLayer, Endpoint, ExplainLayer, KeySelectLayer, LoadMonitorLayer, OpenRouter,
    RequestContext, RetryLayer, endpoint_fn,
    explain::{Found, Next, Trace},
    outcome::{Cause, Grpc, Outcome, OutcomeCell, Retry, Scope},
    select::{Pool, RoundRobin},
    stack::BalancerBuilder,
};

use crate::upstream::{Answer, COMMENT, DOWN, HEAD, JSON, SSE, STOP, Step, Upstream, WORD, clean, clean_text, read};

const SECOND: Duration = Duration::from_secs(1);
const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];

fn pool() -> Pool {
    Pool::new(["a", "b", "c"].map(|label| ApiKey::new(label).unwrap().label(label).account(label))).unwrap()
}

fn builder(pool: &Pool) -> BalancerBuilder<RoundRobin> {
    Balancer::builder(pool.clone()).pick(RoundRobin::default())
}

fn ask(path: &str) -> Request<Full<Bytes>> {
    Request::post(path).body(Full::from(r#"{"model":"m","stream":true}"#)).unwrap()
}

/// What a balancer of three keys makes of it: status, text, and whether it ends cleanly.
async fn asked(upstream: &Upstream, path: &str) -> (u16, String, bool) {
    let balancer = builder(&pool()).build(OpenRouter::new(upstream.clone()));
    let Ok(response) = balancer.oneshot(ask(path)).await;
    let status = response.status().as_u16();
    let (text, clean) = read(response.into_body()).await;
    (status, text, clean)
}

/// Errors as the first thing a stream says, and where the next attempt goes.
fn early_errors() -> Vec<(&'static str, String)> {
    let chat = |code: &str| format!("data: {{\"error\":{{\"code\":{code},\"message\":\"m\"}},\"choices\":[]}}\n\n");
    let finish = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error","error":{"code":502,"message":"m"}}]}"#;
    let failed =
        r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"m"}}}"#;
    let created = r#"{"type":"response.created","response":{"status":"in_progress","error":null}}"#;
    let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":3}}}"#;
    vec![
        (PATHS[0], chat("502")),
        (PATHS[0], chat("\"server_error\"")),
        (PATHS[0], "data: {\"error\":{\"code\":402,\"message\":\"Insufficient credits\"}}\n\n".into()),
        (PATHS[0], format!("data: {finish}\n\ndata: [DONE]\n\n")),
        (PATHS[0], format!("{COMMENT}{HEAD}{}", chat("503"))),
        (PATHS[1], format!("event: response.failed\ndata: {failed}\n\n")),
        (PATHS[1], format!("event: response.created\ndata: {created}\n\nevent: response.failed\ndata: {failed}\n\n")),
        (PATHS[2], format!("event: error\ndata: {overloaded}\n\n")),
        (PATHS[2], format!("event: message_start\ndata: {start}\n\nevent: error\ndata: {overloaded}\n\n")),
    ]
}

#[tokio::test(start_paused = true)]
async fn r068_an_error_before_the_first_output_is_a_failed_attempt_in_every_shape() {
    for (path, error) in early_errors() {
        let failing = || Answer::stream([error.clone()]);
        let upstream = Upstream::new([failing(), failing(), clean()]);
        assert_eq!(asked(&upstream, path).await, (200, clean_text(), true), "{error}");
        let mut keys = upstream.keys();
        keys.sort();
        assert_eq!(keys, ["a", "b", "c"], "{error}");
        assert!(upstream.seen().iter().all(|attempt| attempt.beside == 0), "the failed answer is dropped first");
    }
}

#[tokio::test(start_paused = true)]
async fn r069_an_error_in_the_json_of_a_200_is_a_failed_attempt() {
    let error = r#"{"id":"gen-1","error":{"code":402,"message":"Insufficient credits"},"user_id":"user_1"}"#;
    let whole = Answer::json(200, error);
    let padded = Answer::json(200, " \n").pause(SECOND).data("  ").data(&error[..20]).data(&error[20..]);
    let good = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"cost":0.5}}"#;
    let upstream = Upstream::new([whole, padded, Answer::json(200, "\n ").pause(5 * SECOND).data(good)]);
    assert_eq!(asked(&upstream, PATHS[0]).await, (200, format!("\n {good}"), true));
    let at: Vec<_> = upstream.seen().iter().map(|attempt| attempt.at - upstream.seen()[0].at).collect();
    assert_eq!(at, [Duration::ZERO, Duration::ZERO, SECOND], "an account's error moves on at once");
}

#[tokio::test(start_paused = true)]
async fn the_failed_exchange_is_over_before_the_wait() {
    let upstream = Upstream::new([Answer::stream([DOWN]).then(Step::Hang), clean()]);
    let balancer = builder(&pool()).build(OpenRouter::new(upstream.clone()));
    let answer = tokio::spawn(balancer.clone().oneshot(ask(PATHS[0])));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((upstream.seen().len(), upstream.running()), (1, 0));
    let total = balancer.handle().snapshot().total;
    assert_eq!((total.in_flight, total.outcomes["provider_unavailable"]), (0, 1));
    let Ok(response) = answer.await.unwrap();
    assert_eq!(read(response.into_body()).await, (clean_text(), true));
}

#[tokio::test(start_paused = true)]
async fn when_retries_are_spent_the_caller_gets_the_last_answer_as_it_was() {
    let error = [COMMENT, HEAD, DOWN, "data: [DONE]\n\n"];
    let upstream = Upstream::new([Answer::stream(error).header("x-generation-id", "gen-1").then(Step::Fail)]);
    let gate = CommitGateLayer::new();
    let stack = ServiceBuilder::new().layer(RetryLayer::new()).layer(gate).service(OpenRouter::new(upstream.clone()));
    let response = stack.oneshot(ask(PATHS[0])).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-generation-id"]), (200, &"gen-1".parse().unwrap()));
    assert_eq!(read(response.into_body()).await, (error.concat(), false), "every byte, and the cut");
    assert_eq!(upstream.keys().len(), 3);
    assert_eq!(upstream.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn r061_nothing_is_tried_again_once_there_was_output() {
    for (end, clean) in [(Answer::stream([HEAD, WORD, DOWN]), true), (Answer::stream([WORD]).then(Step::Fail), false)] {
        let upstream = Upstream::new([end]);
        let (status, text, ended) = asked(&upstream, PATHS[0]).await;
        assert_eq!((status, ended, upstream.keys().len()), (200, clean, 1), "{text}");
        assert!(text.contains("word"));
    }
}

/// What had come, then the error as an event, and no clean end.
fn assert_broken((status, text, clean): &(u16, String, bool)) {
    let told = text.strip_prefix(&[COMMENT, HEAD].concat()).unwrap();
    assert!(told.starts_with("data: ") && told.contains("\"reason\":\"truncated\""), "{told}");
    assert_eq!((*status, *clean), (200, false));
}

#[tokio::test(start_paused = true)]
async fn r065_an_end_before_any_output_is_repeated_once_and_a_cut_not_at_all() {
    let ended = || Answer::stream([COMMENT, HEAD]);
    let upstream = Upstream::new([ended(), ended(), clean()]);
    assert_broken(&asked(&upstream, PATHS[0]).await);
    assert_eq!(upstream.keys().len(), 2);
    let upstream = Upstream::new([ended(), clean()]);
    assert_eq!(asked(&upstream, PATHS[0]).await, (200, clean_text(), true));
    // it may have run, and be billed
    let upstream = Upstream::new([ended().then(Step::Fail), clean()]);
    assert_broken(&asked(&upstream, PATHS[0]).await);
    assert_eq!(upstream.keys().len(), 1);
    let upstream = Upstream::new([ended().then(Step::Fail), clean()]);
    let willing = builder(&pool()).retry(RetryLayer::new().retry_unclear(true)).build(OpenRouter::new(upstream));
    let Ok(response) = willing.oneshot(ask(PATHS[0])).await;
    assert_eq!(read(response.into_body()).await, (clean_text(), true));
}

#[tokio::test(start_paused = true)]
async fn r067_every_piece_passes_at_its_time() {
    let pause = Duration::from_millis(700);
    let slow = Answer::stream([COMMENT]).pause(pause).data(HEAD).pause(pause).data(WORD).pause(pause).data(STOP);
    let balancer = builder(&pool()).build(OpenRouter::new(Upstream::new([slow])));
    let start = Instant::now();
    let Ok(response) = balancer.oneshot(ask(PATHS[0])).await;
    assert_eq!(start.elapsed(), 2 * pause, "the head with the first word");
    let mut body = response.into_body();
    for (piece, times) in [(COMMENT, 2), (HEAD, 2), (WORD, 2), (STOP, 3)] {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        assert_eq!(start.elapsed(), times * pause, "{piece}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_is_held_no_longer_than_allowed_unless_the_caller_is_told_to_wait() {
    let mut thinks = Answer::stream([COMMENT]);
    for _ in 0..12 {
        thinks = thinks.pause(10 * SECOND).data(COMMENT);
    }
    let upstream = Upstream::new([thinks.data(DOWN), clean()]);
    let gate = CommitGateLayer::new();
    let start = Instant::now();
    let passed = gate.layer(OpenRouter::new(upstream.clone())).oneshot(ask(PATHS[0])).await.unwrap();
    assert_eq!(start.elapsed(), 30 * SECOND);
    let cell = passed.extensions().get::<OutcomeCell>().unwrap().clone();
    assert_eq!(cell.at_commit(), None);
    let (text, _) = read(passed.into_body()).await;
    assert_eq!(text, COMMENT.repeat(13) + DOWN, "let through as it was");
    assert_eq!(start.elapsed(), 120 * SECOND);

    for begins in [0, 20] {
        let mut thinks = Answer::stream([COMMENT]);
        for _ in 0..12 {
            thinks = thinks.pause(10 * SECOND).data(COMMENT);
        }
        let upstream = Upstream::new([thinks.data(DOWN), clean()]);
        let mut request = ask(PATHS[0]);
        let context = RequestContext::of(&mut request);
        let start = Instant::now();
        let held = tokio::spawn(gate.layer(OpenRouter::new(upstream)).oneshot(request));
        tokio::time::sleep(begins * SECOND).await;
        context.keep_alive();
        let held = held.await.unwrap().unwrap();
        assert_eq!(start.elapsed(), 120 * SECOND);
        let outcome = held.extensions().get::<OutcomeCell>().unwrap().at_commit().unwrap();
        assert_eq!(outcome.fault().unwrap().cause, Cause::ProviderUnavailable);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_held_than_allowed() {
    let frames = || Answer::stream([COMMENT; 100]).data(DOWN);
    for (bytes, head_only) in [(0, true), (1, true), (10 * COMMENT.len(), true), (101 * COMMENT.len(), false)] {
        let gate = CommitGateLayer::new().hold_bytes(bytes);
        let response = gate.layer(OpenRouter::new(Upstream::new([frames()]))).oneshot(ask(PATHS[0])).await.unwrap();
        let known = response.extensions().get::<OutcomeCell>().unwrap().at_commit().is_some();
        assert_eq!(known, !head_only, "{bytes}");
        assert_eq!(read(response.into_body()).await, (COMMENT.repeat(100) + DOWN, true));
    }
    let gate = CommitGateLayer::new().hold(Duration::ZERO);
    let hangs = Upstream::new([Answer::stream([COMMENT]).then(Step::Hang)]);
    timeout(SECOND, gate.layer(OpenRouter::new(hangs)).oneshot(ask(PATHS[0]))).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_fail_in_its_body_is_not_held() {
    let hang = |status, kind| Answer::new(status, kind, [Step::Hang]);
    for (method, answer) in [
        (Method::HEAD, hang(200, SSE)),
        (Method::POST, hang(204, "")),
        (Method::POST, hang(307, "")),
        (Method::POST, hang(200, SSE).header("content-encoding", "gzip")),
        (Method::POST, hang(200, JSON).header("content-encoding", "zstd")),
        (Method::POST, Answer::new(429, JSON, [Step::Data(Bytes::from(vec![b' '; 70_000])), Step::Hang])),
    ] {
        let gate = CommitGateLayer::new().layer(OpenRouter::new(Upstream::new([answer.clone()])));
        let mut request = ask(PATHS[0]);
        *request.method_mut() = method;
        timeout(SECOND / 10, gate.oneshot(request)).await.unwrap_or_else(|_| panic!("{answer:?}")).unwrap();
    }
    // what is neither JSON nor events begins with its first byte
    let audio = Answer::new(200, "audio/mpeg", [Step::Pause(SECOND), Step::Data("ID3".into()), Step::Hang]);
    let start = Instant::now();
    CommitGateLayer::new().layer(OpenRouter::new(Upstream::new([audio]))).oneshot(ask(PATHS[0])).await.unwrap();
    assert_eq!(start.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn r078_everybody_sees_the_one_outcome_of_an_attempt() {
    let money = "data: {\"error\":{\"code\":402,\"message\":\"Insufficient credits\"},\"user_id\":\"user_1\"}\n\n";
    let upstream = Upstream::new([Answer::stream([COMMENT]).pause(SECOND).data(money), clean()]);
    let pool = pool();
    let balancer = builder(&pool).build(OpenRouter::new(upstream.clone()));
    let mut request = ask(PATHS[0]);
    let context = RequestContext::of(&mut request);
    let response = ExplainLayer::new().all().layer(balancer.clone()).oneshot(request).await.unwrap();
    let trace = response.extensions().get::<Trace>().unwrap().clone();
    let keys = upstream.keys();
    assert_eq!((keys.len(), &*keys[0]), (2, "a"), "another account at once");
    {
        let ledger = context.ledger();
        let fault = *ledger.attempts()[0].outcome.unwrap().fault().unwrap();
        assert_eq!((fault.cause, fault.scope, fault.retry), (Cause::NoCredit, Scope::Account, Retry::Elsewhere));
    }
    assert_eq!(read(response.into_body()).await, (clean_text(), true));
    assert_eq!(context.ledger().attempts()[1].outcome, Some(Outcome::Success));
    let snapshot = balancer.handle().snapshot();
    assert_eq!((snapshot.total.attempts, snapshot.total.in_flight), (2, 0));
    let outcomes: Vec<_> = snapshot.total.outcomes.iter().filter(|(_, count)| **count > 0).collect();
    assert_eq!(outcomes, [(&"complete", &1), (&"no_credit", &1)]);
    let told = trace.explanation();
    let first = &told.attempts[0];
    assert_eq!(
        (first.status, first.gate.unwrap().found, first.gate.unwrap().held_ms),
        (Some(200), Found::Failure, 1000)
    );
    assert_eq!(first.outcome.unwrap().fault().unwrap().cause, Cause::NoCredit);
    assert_eq!(first.next, Some(Next::Failover));
    assert_eq!(told.attempts[1].gate.unwrap().found, Found::Output);
    let header = trace.header();
    let start = format!("1:a=no_credit(600s) gate=failure(1s) next=failover;2:{}=ok", keys[1]);
    assert!(header.to_str().unwrap().starts_with(&start), "{header:?}");
    // the account rests: nobody asks it again
    for _ in 0..6 {
        let Ok(next) = balancer.clone().oneshot(ask(PATHS[0])).await;
        read(next.into_body()).await;
    }
    assert_eq!(upstream.keys().iter().filter(|key| *key == "a").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn r077_leaving_while_the_head_is_held_ends_the_exchange() {
    let upstream = Upstream::new([Answer::stream([COMMENT]).then(Step::Hang)]);
    let balancer = builder(&pool()).build(OpenRouter::new(upstream.clone()));
    timeout(SECOND, balancer.clone().oneshot(ask(PATHS[0]))).await.unwrap_err();
    assert_eq!(upstream.running(), 0);
    let total = balancer.handle().snapshot().total;
    assert_eq!((total.in_flight, total.outcomes["client_gone"]), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn around_a_service_that_judges_nothing_the_first_byte_is_output() {
    let gate = CommitGateLayer::new();
    let start = Instant::now();
    let slow = Upstream::new([Answer::new(200, "", [Step::Pause(SECOND), Step::Data("x".into()), Step::Hang])]);
    let response = gate.layer(slow).oneshot(ask("/")).await.unwrap();
    assert_eq!(start.elapsed(), SECOND);
    assert!(response.extensions().get::<OutcomeCell>().is_none());

    // with a selector between, so that there is a ledger
    let cut = Upstream::new([Answer::new(200, "", [Step::Fail]), Answer::new(200, "", [Step::Data("x".into())])]);
    let monitor = LoadMonitorLayer::new();
    let figures = monitor.handle();
    let select = KeySelectLayer::new(pool(), endpoint_fn(move |_: &Endpoint| monitor.clone()));
    let stack = ServiceBuilder::new().layer(gate.clone()).layer(select).service(cut);
    let mut request = ask("/");
    let context = RequestContext::of(&mut request);
    let response = stack.clone().oneshot(request).await.unwrap();
    let fault = *response.extensions().get::<OutcomeCell>().unwrap().at_commit().unwrap().fault().unwrap();
    assert_eq!((fault.cause, fault.scope, fault.retry), (Cause::Truncated, Scope::Pool, Retry::Unclear));
    assert_eq!(context.ledger().attempts()[0].outcome, Some(fault.into()));
    assert_eq!(read(response.into_body()).await, (String::new(), false));
    assert_eq!((figures.figures().failed(), figures.figures().started()), (1, 1));
    // nothing wrong with an empty answer
    let empty = gate.layer(Upstream::new([Answer::new(200, "", [])])).oneshot(ask("/")).await.unwrap();
    assert!(empty.extensions().get::<OutcomeCell>().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grpc_status_in_trailers_alone_is_a_failed_attempt() {
    let trailers = |status: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
    let busy = Answer::new(200, "application/grpc", [Step::Pause(SECOND), Step::Trailers(trailers("14"))]);
    let good = Answer::new(200, "application/grpc", [Step::Data("\0".into()), Step::Trailers(trailers("0"))]);
    let upstream = Upstream::new([busy, good]);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new().classify(Grpc))
        .layer(CommitGateLayer::new().classify(Grpc))
        .service(upstream.clone());
    let response = stack.oneshot(ask("/service/Method")).await.unwrap();
    assert_eq!(upstream.keys().len(), 2);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers("0")));
}

/// The pieces of a text that is cut at these places.
fn cut(text: &str, mut at: Vec<usize>) -> Vec<Bytes> {
    at.extend([0, text.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]])).collect()
}

fn streams() -> Vec<String> {
    let mut streams: Vec<_> = early_errors().into_iter().map(|(_, error)| error).collect();
    let unusual = format!(
        "\u{feff}: ü€\r\n\r\n{HEAD}data: {{\"choices\":[{{\"delta\":\r\ndata: {{\"content\":\"ü\"}}}}]}}\r\n\r\n"
    );
    streams.extend([clean_text(), clean_text().replace('\n', "\r\n"), COMMENT.repeat(5), String::new(), unusual]);
    streams.push(format!("{WORD}{DOWN}"));
    streams
}

proptest! {
    #[test]
    fn r066_any_cut_of_any_stream_passes_byte_for_byte_with_the_same_outcome(
        (text, at) in prop::sample::select(streams()).prop_flat_map(|text| {
            let places = prop::collection::vec(0..=text.len(), 0..40);
            (Just(text), places)
        }),
        kind in prop::sample::select(vec![SSE, JSON, "", "audio/mpeg"]), bound in 0_usize..600, fails: bool,
    ) {
        let pieces = cut(&text, at);
        let whole = Mutex::new(Vec::new());
        let ask_of = |pieces: Vec<Bytes>, gate: CommitGateLayer| {
            let frames: Vec<_> = pieces.into_iter().map(|piece| Ok(Frame::data(piece)))
                .chain(fails.then(|| Err::<_, BoxError>("cut".into()))).collect();
            let answer = Mutex::new(Some(Response::builder().header("content-type", kind)
                .body(StreamBody::new(stream::iter(frames))).unwrap()));
            let transport = service_fn(move |_: Request<Full<Bytes>>| {
                std::future::ready(Ok::<_, BoxError>(answer.lock().unwrap().take().unwrap()))
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let mut service = gate.layer(OpenRouter::new(transport));
                let response = tower::Service::call(&mut service, ask(PATHS[0])).await.unwrap();
                let cell = response.extensions().get::<OutcomeCell>().unwrap().clone();
                let (passed, clean) = read(response.into_body()).await;
                whole.lock().unwrap().push((passed, clean, cell.at_commit(), cell.at_end()));
            });
        };
        ask_of(pieces.clone(), CommitGateLayer::new().hold_bytes(bound));
        ask_of(pieces, CommitGateLayer::new().hold_bytes(0));
        ask_of(vec![Bytes::from(text.clone())], CommitGateLayer::new());
        let whole = whole.into_inner().unwrap();
        prop_assert_eq!(&whole[0].0, &text);
        prop_assert_eq!(&whole[0], &whole[1], "held or not");
        prop_assert_eq!(&whole[0], &whole[2], "cut or not");
    }
}
