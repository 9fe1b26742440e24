//! The SSE shape and its timing.

use http_body_util::BodyExt;
use tokio::time::Instant;
use tower_openrouter::simulator::{Fault, What};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_chat_stream_has_role_and_content_everywhere_two_finishes_and_an_end_marker() {
    let simulator = simulator(scenario());
    let answer = read(stream(&simulator, "a1", PAID).await).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert!(answer.body.ends_with(b"data: [DONE]\n\n"), "{:?}", answer.body);
    assert!(!answer.body.contains(&b'\r'));
    let events = events(&answer.body);
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["choices"][0]["delta"]["role"], "assistant");
        assert!(event["choices"][0]["delta"]["content"].is_string());
        assert!(event.get("system_fingerprint").is_none(), "strict clients reject a null");
        assert!(event["created"].is_i64());
    }
    let [.., last_token, finish, usage] = events.as_slice() else { panic!("{events:?}") };
    assert!(last_token["choices"][0]["finish_reason"].is_null());
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert!(finish.get("usage").is_none());
    assert_eq!(usage["choices"].as_array().map(Vec::len), Some(1));
    assert_eq!(usage["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["usage"]["completion_tokens"], events.len() as u64 - 2);
    assert_eq!(answer.header("x-generation-id"), usage["id"].as_str());
}

#[tokio::test(start_paused = true)]
async fn status_precedes_the_first_token_and_comments_fill_the_wait() {
    let mut scenario = scenario();
    let endpoint = &mut scenario.endpoints[0];
    (endpoint.accept_ms, endpoint.first_token_ms, endpoint.tokens_per_second) = (100.0, 3_000.0, 10.0);
    (scenario.wire.comment_first_ms, scenario.wire.comment_every_ms) = (1_000.0, 500.0);
    scenario.reply.min_tokens = 5;
    scenario.reply.max_tokens = 5;
    let simulator = simulator(scenario);
    let start = Instant::now();
    let mut body = stream(&simulator, "a1", PAID).await.into_body();
    assert_eq!(start.elapsed().as_millis(), 100);
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("no failure").into_data().expect("data");
        let kind = if frame.starts_with(b": OPENROUTER PROCESSING\n\n") { "comment" } else { "data" };
        seen.push((start.elapsed().as_millis(), kind));
    }
    let comments = [1_100, 1_600, 2_100, 2_600].map(|at| (at, "comment"));
    let tokens = [3_100, 3_200, 3_300, 3_400, 3_500].map(|at| (at, "data"));
    let end = [(3_500, "data"); 3];
    assert_eq!(seen, [&comments[..], &tokens[..], &end[..]].concat());
}

#[tokio::test(start_paused = true)]
async fn an_event_may_carry_several_tokens_and_comes_with_the_last_of_them() {
    let mut scenario = scenario();
    let endpoint = &mut scenario.endpoints[0];
    (endpoint.first_token_ms, endpoint.tokens_per_second) = (1_000.0, 10.0);
    (scenario.reply.min_tokens, scenario.reply.max_tokens, scenario.reply.tokens_per_event) = (12, 12, 5);
    let simulator = simulator(scenario);
    let start = Instant::now();
    let mut body = stream(&simulator, "a1", PAID).await.into_body();
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.expect("no failure").into_data().expect("data");
        let words = events(&data).first().map_or(0, |event| {
            let text = event["choices"][0]["delta"]["content"].as_str().expect("text");
            text.split_ascii_whitespace().count()
        });
        seen.push((start.elapsed().as_millis(), words));
    }
    assert_eq!(seen, [(1_000, 1), (1_500, 5), (2_000, 5), (2_100, 1), (2_100, 0), (2_100, 0), (2_100, 0)]);
    let mut text = chat_body(PAID);
    text["stream"] = true.into();
    text["input"] = text["messages"][0]["content"].take();
    let answer = call(&simulator, post(&simulator, "a1", "responses", &text)).await;
    let numbers: Vec<_> = events(&answer.body).iter().map(|event| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, (0..12).map(Some).collect::<Vec<_>>(), "four to open, four of text, four to close");
}

#[tokio::test(start_paused = true)]
async fn a_cut_comes_after_its_tokens_however_many_an_event_carries() {
    let mut scenario = scenario();
    (scenario.reply.min_tokens, scenario.reply.max_tokens, scenario.reply.tokens_per_event) = (100, 100, 50);
    let simulator = simulator(scenario);
    simulator.inject(Fault::new(What::Cut { after_tokens: 7, reset: false, half: false })).expect("a fault");
    let mut body = stream(&simulator, "a1", PAID).await.into_body();
    let mut words = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let events = events(&frame.into_data().expect("data"));
        let text = events[0]["choices"][0]["delta"]["content"].as_str().expect("text");
        words += text.split_ascii_whitespace().count();
    }
    assert_eq!(words, 7);
}

#[tokio::test(start_paused = true)]
async fn first_tokens_come_log_normally_late_and_the_seed_says_when() {
    let late = || async {
        let mut scenario = scenario();
        let endpoint = &mut scenario.endpoints[0];
        (endpoint.first_token_ms, endpoint.first_token_sigma) = (1_000.0, 0.8);
        let simulator = simulator(scenario);
        let mut seen = Vec::new();
        for _ in 0..999 {
            let start = Instant::now();
            let mut body = stream(&simulator, "a1", PAID).await.into_body();
            body.frame().await.expect("a frame").expect("no failure");
            seen.push(start.elapsed().as_secs_f64());
        }
        seen
    };
    let mut seen = late().await;
    assert_eq!(seen, late().await);
    seen.sort_by(f64::total_cmp);
    for (place, wanted) in [(99, 0.359), (499, 1.0), (899, 2.788)] {
        assert!((seen[place] / wanted - 1.0).abs() < 0.1, "{place}: {} for {wanted}", seen[place]);
    }
}
