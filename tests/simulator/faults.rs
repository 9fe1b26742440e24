//! What goes wrong on demand: before the answer, instead of it, and inside it.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::{advance, timeout};
use tower_openrouter::simulator::{Fault, InBand, Reason, Simulator, SimulatorError, What};

use crate::support::*;

fn struck(what: What) -> Simulator {
    let simulator = simulator(scenario());
    simulator.inject(Fault::new(what)).expect("a valid fault");
    simulator
}

#[tokio::test(start_paused = true)]
async fn each_reason_has_its_status_and_signature() {
    let metadata = |pointer: &'static str, value: Value| (pointer, value);
    for (reason, status, sign) in [
        (
            Reason::InFlightBudget,
            402,
            metadata("reason", json!("in_flight_budget_exhausted")),
        ),
        (
            Reason::WeightExceedsBudget,
            402,
            metadata("reason", json!("weight_exceeds_budget")),
        ),
        (
            Reason::CannotAfford,
            402,
            metadata("limit_source", json!("openrouter_credits")),
        ),
        (
            Reason::KeyCannotAfford,
            402,
            metadata("limit_source", json!("openrouter_key_limit")),
        ),
        (
            Reason::InsufficientCredits,
            402,
            metadata("limit_source", json!("openrouter_credits")),
        ),
        (
            Reason::NeverPurchased,
            402,
            metadata("limit_source", json!("openrouter_credits")),
        ),
        (Reason::KeyLimit, 403, metadata("limit_source", Value::Null)),
        (
            Reason::WorkspaceBudget,
            403,
            metadata("error_type", json!("permission_denied")),
        ),
        (
            Reason::ManagementKey,
            403,
            metadata("error_type", json!("permission_denied")),
        ),
        (
            Reason::Guardrail,
            403,
            metadata("patterns", json!(["ignore all previous instructions"])),
        ),
        (
            Reason::Moderation,
            403,
            metadata("reasons", json!(["violence"])),
        ),
        (
            Reason::ContentPolicy,
            403,
            metadata("error_type", json!("content_policy_violation")),
        ),
        (
            Reason::Harness,
            403,
            metadata(
                "failed_routing_step",
                json!("Gate Free Endpoints by Agentic Harness"),
            ),
        ),
        (
            Reason::Geo,
            403,
            metadata(
                "failed_routing_step",
                json!("Gate Endpoints with Geo Restrictions"),
            ),
        ),
        (
            Reason::DataPolicy,
            404,
            metadata("failed_routing_step", json!("Filter by Data Policy")),
        ),
        (
            Reason::Parameters,
            404,
            metadata("failed_routing_step", json!("Filter by Parameters")),
        ),
        (
            Reason::ProviderBadRequest,
            400,
            metadata("provider_error_code", json!("400")),
        ),
        (
            Reason::CapacityAs400,
            400,
            metadata(
                "previous_errors",
                json!([{"provider": "SomeProvider", "code": 429, "status": 429}]),
            ),
        ),
        (
            Reason::FreePerMinute,
            429,
            metadata("limit_source", json!("openrouter_free_tier_per_minute")),
        ),
        (
            Reason::FreePerDay,
            429,
            metadata("limit_source", json!("openrouter_free_tier_daily")),
        ),
        (
            Reason::PlatformLimit,
            429,
            metadata("limit_source", Value::Null),
        ),
        (
            Reason::UpstreamByok,
            429,
            metadata("limit_source", json!("upstream_provider_byok")),
        ),
        (
            Reason::Unidentified429,
            429,
            metadata("error_type", Value::Null),
        ),
    ] {
        let simulator = struck(What::Refuse { reason });
        let answer = chat(&simulator, "a1", PAID).await;
        let json = answer.json();
        assert_eq!(answer.status, status, "{reason:?}");
        assert_eq!(
            json["error"]["code"], status,
            "{reason:?}: the code is the status"
        );
        assert!(json["user_id"].is_string(), "{reason:?}");
        assert_eq!(
            json["error"]["metadata"][sign.0], sign.1,
            "{reason:?}: {json}"
        );
        let platform = matches!(
            reason,
            Reason::FreePerMinute | Reason::FreePerDay | Reason::PlatformLimit
        );
        assert_eq!(
            answer.header("x-ratelimit-reset").is_some(),
            platform,
            "{reason:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn any_error_status_is_available_in_api_form() {
    for (status, kind) in [
        (400, "invalid_request"),
        (408, "timeout"),
        (412, "precondition_failed"),
        (413, "payload_too_large"),
        (422, "unprocessable"),
        (500, "server"),
        (502, "provider_unavailable"),
        (503, "provider_overloaded"),
        (504, "timeout"),
        (524, "timeout"),
        (529, "provider_overloaded"),
    ] {
        let simulator = struck(What::Status {
            status,
            retry_after: Some(9),
        });
        let answer = chat(&simulator, "a1", PAID).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (status, Some("9"))
        );
        assert_eq!(answer.json()["error"]["metadata"]["error_type"], kind);
    }
}

#[tokio::test(start_paused = true)]
async fn the_edge_answers_in_html_and_anything_can_be_said() {
    for status in [403, 429, 502, 503, 524] {
        let answer = chat(&struck(What::Html { status }), "a1", PAID).await;
        assert_eq!(answer.status, status);
        assert_eq!(
            answer.header("content-type"),
            Some("text/html; charset=UTF-8")
        );
        assert!(answer.header("cf-ray").is_some());
        assert!(answer.body.starts_with(b"<!DOCTYPE html>"));
    }
    let raw = What::Raw {
        status: 418,
        content_type: "text/plain".to_owned(),
        body: "teapot".to_owned(),
    };
    let answer = chat(&struck(raw), "a1", PAID).await;
    assert_eq!((answer.status, &answer.body[..]), (418, &b"teapot"[..]));
}

#[tokio::test(start_paused = true)]
async fn an_unauthorized_storm_strikes_every_key_and_passes() {
    let simulator = simulator(scenario());
    simulator
        .inject(Fault::new(What::Unauthorized).window(10.0, 5.0))
        .expect("a valid fault");
    let all = async || {
        let mut statuses = Vec::new();
        for label in ["a1", "a2", "b1"] {
            statuses.push(chat(&simulator, label, PAID).await.status);
            statuses.push(call(&simulator, get(&simulator, label, "key")).await.status);
        }
        statuses
    };
    assert_eq!(all().await, [200; 6]);
    advance(seconds(10)).await;
    assert_eq!(all().await, [401; 6]);
    advance(seconds(5)).await;
    assert_eq!(all().await, [200; 6]);
}

#[tokio::test(start_paused = true)]
async fn faults_strike_whom_they_name() {
    let cases = [
        (
            Fault::new(What::Status {
                status: 503,
                retry_after: None,
            })
            .key("a2"),
            [200, 503, 200, 200],
        ),
        (
            Fault::new(What::Status {
                status: 503,
                retry_after: None,
            })
            .account("alpha"),
            [503, 503, 200, 503],
        ),
        (
            Fault::new(What::Status {
                status: 503,
                retry_after: None,
            })
            .model(FREE),
            [200, 200, 200, 503],
        ),
        (
            Fault::new(What::PoolFull {
                retry_after: Some(4),
            })
            .provider("Chutes"),
            [200, 200, 200, 429],
        ),
        (
            Fault::new(What::Status {
                status: 503,
                retry_after: None,
            })
            .times(2),
            [503, 503, 200, 200],
        ),
        (
            Fault::new(What::Status {
                status: 503,
                retry_after: None,
            })
            .probability(0.0),
            [200; 4],
        ),
    ];
    for (fault, wanted) in cases {
        let simulator = simulator(scenario());
        simulator.inject(fault.clone()).expect("a valid fault");
        let mut found = Vec::new();
        for (label, model) in [("a1", PAID), ("a2", PAID), ("b1", PAID), ("a1", FREE)] {
            found.push(chat(&simulator, label, model).await.status);
        }
        assert_eq!(found, wanted, "{fault:?}");
        simulator.clear_faults();
        assert_eq!(chat(&simulator, "a2", FREE).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn resets_and_stalls_come_without_a_status() {
    let simulator = simulator(scenario());
    simulator
        .inject(Fault::new(What::Reset).times(1))
        .expect("a valid fault");
    let request = || post(&simulator, "a1", "chat/completions", &chat_body(PAID));
    let error = send(&simulator, request()).await.expect_err("a reset");
    assert!(matches!(error, SimulatorError::Reset), "{error:?}");
    simulator
        .inject(Fault::new(What::Stall))
        .expect("a valid fault");
    let waited = timeout(Duration::from_secs(3_600), send(&simulator, request())).await;
    assert!(waited.is_err(), "no answer in an hour");
    let counts = simulator.counts();
    assert_eq!(
        (
            counts.broken,
            counts.abandoned,
            counts.unanswered,
            counts.in_flight
        ),
        (1, 1, 2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn every_form_of_an_error_inside_a_stream() {
    for form in [
        InBand::Standard,
        InBand::Choice,
        InBand::EmptyChoices,
        InBand::StringCode,
        InBand::Bare,
    ] {
        for after_tokens in [0, 3] {
            let simulator = struck(What::InBand {
                form,
                after_tokens,
                code: 502,
            });
            let answer = read(stream(&simulator, "a1", PAID).await).await;
            assert_eq!(answer.status, 200);
            let events = events(&answer.body);
            assert_eq!(
                events.len() as u64,
                after_tokens + 1,
                "{form:?}: the error is the last event"
            );
            let last = events.last().expect("an event");
            assert_eq!(
                last["error"]["metadata"]["error_type"],
                "provider_unavailable"
            );
            let code = if form == InBand::StringCode {
                json!("server_error")
            } else {
                json!(502)
            };
            assert_eq!(last["error"]["code"], code);
            match form {
                InBand::Bare => assert!(last.get("choices").is_none() && last.get("id").is_none()),
                InBand::EmptyChoices => assert_eq!(last["choices"], json!([])),
                _ => assert_eq!(last["choices"][0]["finish_reason"], "error"),
            }
            assert_eq!(
                last["choices"][0]["error"].is_object(),
                form == InBand::Choice
            );
            let done = answer.body.ends_with(b"data: [DONE]\n\n");
            assert_eq!(
                done,
                matches!(form, InBand::Standard | InBand::Choice),
                "{form:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_inside_json_come_alone_or_beside_partial_text() {
    let alone = chat(
        &struck(What::InBand {
            form: InBand::Standard,
            after_tokens: 0,
            code: 429,
        }),
        "a1",
        PAID,
    )
    .await;
    let json = alone.json();
    assert_eq!((alone.status, &json["error"]["code"]), (200, &json!(429)));
    assert!(json.get("choices").is_none() && json["id"].is_string());
    let beside = chat(
        &struck(What::InBand {
            form: InBand::Choice,
            after_tokens: 2,
            code: 502,
        }),
        "a1",
        PAID,
    )
    .await;
    let choice = &beside.json()["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["error"]["code"]),
        (&json!("error"), &json!(502))
    );
    let text = choice["message"]["content"].as_str().expect("text");
    assert_eq!(text.split(' ').count(), 2, "{text}");
}

#[tokio::test(start_paused = true)]
async fn responses_and_messages_tell_failures_in_their_own_events() {
    let simulator = struck(What::InBand {
        form: InBand::Standard,
        after_tokens: 1,
        code: 529,
    });
    let body = json!({"model": PAID, "input": "Hello", "stream": true});
    let answer = call(&simulator, post(&simulator, "a1", "responses", &body)).await;
    let last = events(&answer.body).pop().expect("an event");
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error_type"], "provider_overloaded");
    let body = json!({"model": PAID, "max_tokens": 9, "stream": true, "messages": [{}]});
    let answer = call(&simulator, post(&simulator, "a1", "messages", &body)).await;
    let last = events(&answer.body).pop().expect("an event");
    assert_eq!(
        (&last["type"], &last["error"]["type"]),
        (&json!("error"), &json!("overloaded_error"))
    );
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
    assert_eq!(
        (good, end.as_str(), simulator.counts().broken),
        (2, "ends", 1)
    );
    let (simulator, good, end) = frames(What::Cut {
        after_tokens: 3,
        reset: false,
    })
    .await;
    assert_eq!(
        (good, end.as_str(), simulator.counts().broken),
        (3, "simulated body cut short", 1)
    );
    let (_, good, end) = frames(What::Cut {
        after_tokens: 0,
        reset: true,
    })
    .await;
    assert_eq!((good, end.as_str()), (0, "simulated connection reset"));
    let (simulator, good, end) = frames(What::Hang { after_tokens: 1 }).await;
    assert_eq!(
        (good, end.as_str(), simulator.counts().abandoned),
        (1, "hangs", 1)
    );
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
    assert_eq!(
        huge.json()["choices"][0]["message"]["content"]
            .as_str()
            .map(str::len),
        Some(1_000_000)
    );

    let mut scenario = scenario();
    scenario.endpoints[0].first_token_ms = 18_500.0;
    scenario.wire.padding_every_ms = 5_000.0;
    let answer = chat(&simulator(scenario), "a1", PAID).await;
    assert!(
        answer.body.starts_with(b"\n\n\n{"),
        "three times padded, then the answer"
    );
    assert_eq!(answer.json()["object"], "chat.completion");
}

#[tokio::test(start_paused = true)]
async fn slowness_delays_acceptance_and_the_first_token() {
    let simulator = struck(What::Slow {
        accept_ms: 2_000.0,
        first_token_ms: 3_000.0,
    });
    let start = tokio::time::Instant::now();
    let response = stream(&simulator, "a1", PAID).await;
    assert_eq!(start.elapsed(), seconds(2));
    response
        .into_body()
        .frame()
        .await
        .expect("a frame")
        .expect("no failure");
    assert_eq!(start.elapsed(), seconds(5));
}
