//! A 200 that does not keep its promise.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower_openrouter::simulator::{Fault, InBand, What};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn every_form_of_an_error_inside_a_stream() {
    for form in [InBand::Standard, InBand::Choice, InBand::EmptyChoices, InBand::StringCode, InBand::Bare] {
        for after_tokens in [0, 3] {
            let simulator = struck(What::InBand { form, after_tokens, code: 502 });
            let answer = read(stream(&simulator, "a1", PAID).await).await;
            assert_eq!(answer.status, 200);
            let events = events(&answer.body);
            assert_eq!(events.len() as u64, after_tokens + 1, "{form:?}: the error is the last event");
            let last = events.last().expect("an event");
            assert_eq!(last["error"]["metadata"]["error_type"], "provider_unavailable");
            let code = if form == InBand::StringCode { json!("server_error") } else { json!(502) };
            assert_eq!(last["error"]["code"], code);
            match form {
                InBand::Bare => assert!(last.get("choices").is_none() && last.get("id").is_none()),
                InBand::EmptyChoices => assert_eq!(last["choices"], json!([])),
                _ => assert_eq!(last["choices"][0]["finish_reason"], "error"),
            }
            assert_eq!(last["choices"][0]["error"].is_object(), form == InBand::Choice);
            let done = answer.body.ends_with(b"data: [DONE]\n\n");
            assert_eq!(done, matches!(form, InBand::Standard | InBand::Choice), "{form:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_inside_json_come_alone_or_beside_partial_text() {
    let alone = chat(&struck(What::InBand { form: InBand::Standard, after_tokens: 0, code: 429 }), "a1", PAID).await;
    let json = alone.json();
    assert_eq!((alone.status, &json["error"]["code"]), (200, &json!(429)));
    assert!(json.get("choices").is_none() && json["id"].is_string());
    let beside = chat(&struck(What::InBand { form: InBand::Choice, after_tokens: 2, code: 502 }), "a1", PAID).await;
    let choice = &beside.json()["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["error"]["code"]), (&json!("error"), &json!(502)));
    let text = choice["message"]["content"].as_str().expect("text");
    assert_eq!(text.split(' ').count(), 2, "{text}");
}

#[tokio::test(start_paused = true)]
async fn responses_and_messages_tell_failures_in_their_own_events() {
    let simulator = struck(What::InBand { form: InBand::Standard, after_tokens: 1, code: 529 });
    let body = json!({"model": PAID, "input": "Hello", "stream": true});
    let answer = call(&simulator, post(&simulator, "a1", "responses", &body)).await;
    let last = events(&answer.body).pop().expect("an event");
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error_type"], "provider_overloaded");
    let body = json!({"model": PAID, "max_tokens": 9, "stream": true, "messages": [{}]});
    let answer = call(&simulator, post(&simulator, "a1", "messages", &body)).await;
    let last = events(&answer.body).pop().expect("an event");
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("overloaded_error")));
}

#[tokio::test(start_paused = true)]
async fn streams_end_quietly_fail_or_hang() {
    let frames = async |what: What| {
        let simulator = struck(what);
        let mut body = stream(&simulator, "a1", PAID).await.into_body();
        let mut good = 0;
        loop {
            match timeout(seconds(60), body.frame()).await {
                Err(_) => return (simulator, good, "hangs".to_owned()),
                Ok(None) => return (simulator, good, "ends".to_owned()),
                Ok(Some(Ok(_))) => good += 1,
                Ok(Some(Err(error))) => return (simulator, good, error.to_string()),
            }
        }
    };
    let (simulator, good, end) = frames(What::Eof { after_tokens: 2 }).await;
    assert_eq!((good, end.as_str(), simulator.counts().broken), (2, "ends", 1));
    let (simulator, good, end) = frames(What::Cut { after_tokens: 3, reset: false, half: false }).await;
    assert_eq!((good, end.as_str(), simulator.counts().broken), (3, "simulated body cut short", 1));
    let (_, good, end) = frames(What::Cut { after_tokens: 0, reset: true, half: false }).await;
    assert_eq!((good, end.as_str()), (0, "simulated connection reset"));
    let (simulator, good, end) = frames(What::Hang { after_tokens: 1 }).await;
    assert_eq!((good, end.as_str(), simulator.counts().abandoned), (1, "hangs", 1));
}

#[tokio::test(start_paused = true)]
async fn json_bodies_can_be_broken_padded_empty_or_huge() {
    let malformed = chat(&struck(What::Malformed), "a1", PAID).await;
    assert!(serde_json::from_slice::<Value>(&malformed.body).is_err());
    let padding = chat(&struck(What::PaddingOnly), "a1", PAID).await;
    assert!(padding.status == 200 && padding.body.iter().all(u8::is_ascii_whitespace));
    let half = chat(&struck(What::Eof { after_tokens: 0 }), "a1", PAID).await;
    assert!(half.body.starts_with(b"{") && serde_json::from_slice::<Value>(&half.body).is_err());
    let huge = chat(&struck(What::Huge { bytes: 1_000_000 }), "a1", PAID).await;
    assert_eq!(huge.json()["choices"][0]["message"]["content"].as_str().map(str::len), Some(1_000_000));

    let mut scenario = scenario();
    scenario.endpoints[0].first_token_ms = 18_500.0;
    scenario.wire.padding_every_ms = 5_000.0;
    let answer = chat(&simulator(scenario), "a1", PAID).await;
    assert!(answer.body.starts_with(b"\n\n\n{"), "three times padded, then the answer");
    assert_eq!(answer.json()["object"], "chat.completion");
}

#[tokio::test(start_paused = true)]
async fn slowness_delays_acceptance_and_the_first_token() {
    let simulator = struck(What::Slow { factor: 1.0, accept_ms: 2_000.0, first_token_ms: 3_000.0 });
    let start = tokio::time::Instant::now();
    let response = stream(&simulator, "a1", PAID).await;
    assert_eq!(start.elapsed(), seconds(2));
    response.into_body().frame().await.expect("a frame").expect("no failure");
    assert_eq!(start.elapsed(), seconds(5));
}

#[tokio::test(start_paused = true)]
async fn a_brown_out_multiplies_every_time_of_whom_it_strikes() {
    let mut scenario = scenario();
    let endpoint = &mut scenario.endpoints[0];
    (endpoint.accept_ms, endpoint.first_token_ms, endpoint.tokens_per_second) = (100.0, 1_000.0, 10.0);
    (scenario.reply.min_tokens, scenario.reply.max_tokens) = (11, 11);
    let simulator = simulator(scenario);
    let slow = What::Slow { factor: 4.0, accept_ms: 50.0, first_token_ms: 0.0 };
    simulator.inject(Fault::new(slow).key("a1")).expect("a fault");
    for (key, millis) in [("a1", 450 + 4_000 + 4_000), ("a2", 100 + 1_000 + 1_000)] {
        let start = tokio::time::Instant::now();
        read(stream(&simulator, key, PAID).await).await;
        assert_eq!(start.elapsed().as_millis(), millis, "{key}");
    }
}
