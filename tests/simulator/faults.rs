//! What goes wrong on demand: before the answer, instead of it, and inside it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{advance, timeout};
use tower_openrouter::simulator::{Fault, Reason, SimulatorError, What};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn each_reason_has_its_status_and_signature() {
    let metadata = |pointer: &'static str, value: Value| (pointer, value);
    for (reason, status, sign) in [
        (Reason::InFlightBudget, 402, metadata("reason", json!("in_flight_budget_exhausted"))),
        (Reason::WeightExceedsBudget, 402, metadata("reason", json!("weight_exceeds_budget"))),
        (Reason::CannotAfford, 402, metadata("limit_source", json!("openrouter_credits"))),
        (Reason::KeyCannotAfford, 402, metadata("limit_source", json!("openrouter_key_limit"))),
        (Reason::InsufficientCredits, 402, metadata("limit_source", json!("openrouter_credits"))),
        (Reason::NeverPurchased, 402, metadata("limit_source", json!("openrouter_credits"))),
        (Reason::KeyLimit, 403, metadata("limit_source", Value::Null)),
        (Reason::WorkspaceBudget, 403, metadata("error_type", json!("permission_denied"))),
        (Reason::ManagementKey, 403, metadata("error_type", json!("permission_denied"))),
        (Reason::Guardrail, 403, metadata("patterns", json!(["ignore all previous instructions"]))),
        (Reason::Moderation, 403, metadata("reasons", json!(["violence"]))),
        (Reason::ContentPolicy, 403, metadata("error_type", json!("content_policy_violation"))),
        (Reason::Harness, 403, metadata("failed_routing_step", json!("Gate Free Endpoints by Agentic Harness"))),
        (Reason::Geo, 403, metadata("failed_routing_step", json!("Gate Endpoints with Geo Restrictions"))),
        (Reason::DataPolicy, 404, metadata("failed_routing_step", json!("Filter by Data Policy"))),
        (Reason::Parameters, 404, metadata("failed_routing_step", json!("Filter by Parameters"))),
        (Reason::ProviderBadRequest, 400, metadata("provider_error_code", json!("400"))),
        (
            Reason::CapacityAs400,
            400,
            metadata("previous_errors", json!([{"provider": "SomeProvider", "code": 429, "status": 429}])),
        ),
        (Reason::FreePerMinute, 429, metadata("limit_source", json!("openrouter_free_tier_per_minute"))),
        (Reason::FreePerDay, 429, metadata("limit_source", json!("openrouter_free_tier_daily"))),
        (Reason::PlatformLimit, 429, metadata("limit_source", Value::Null)),
        (Reason::UpstreamByok, 429, metadata("limit_source", json!("upstream_provider_byok"))),
        (Reason::Unidentified429, 429, metadata("error_type", Value::Null)),
    ] {
        let simulator = struck(What::Refuse { reason });
        let answer = chat(&simulator, "a1", PAID).await;
        let json = answer.json();
        assert_eq!(answer.status, status, "{reason:?}");
        assert_eq!(json["error"]["code"], status, "{reason:?}: the code is the status");
        assert!(json["user_id"].is_string(), "{reason:?}");
        assert_eq!(json["error"]["metadata"][sign.0], sign.1, "{reason:?}: {json}");
        let platform = matches!(reason, Reason::FreePerMinute | Reason::FreePerDay | Reason::PlatformLimit);
        assert_eq!(answer.header("x-ratelimit-reset").is_some(), platform, "{reason:?}");
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
        let simulator = struck(What::Status { status, retry_after: Some(9) });
        let answer = chat(&simulator, "a1", PAID).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, Some("9")));
        assert_eq!(answer.json()["error"]["metadata"]["error_type"], kind);
    }
}

#[tokio::test(start_paused = true)]
async fn the_edge_answers_in_html_and_anything_can_be_said() {
    for status in [403, 429, 502, 503, 524] {
        let answer = chat(&struck(What::Html { status }), "a1", PAID).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("content-type"), Some("text/html; charset=UTF-8"));
        assert!(answer.header("cf-ray").is_some());
        assert!(answer.body.starts_with(b"<!DOCTYPE html>"));
    }
    let raw = What::Raw { status: 418, content_type: "text/plain".to_owned(), body: "teapot".to_owned() };
    let answer = chat(&struck(raw), "a1", PAID).await;
    assert_eq!((answer.status, &answer.body[..]), (418, &b"teapot"[..]));
}

#[tokio::test(start_paused = true)]
async fn an_unauthorized_storm_strikes_every_key_and_passes() {
    let simulator = simulator(scenario());
    simulator.inject(Fault::new(What::Unauthorized).window(10.0, 5.0)).expect("a valid fault");
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
        (Fault::new(What::Status { status: 503, retry_after: None }).key("a2"), [200, 503, 200, 200]),
        (Fault::new(What::Status { status: 503, retry_after: None }).account("alpha"), [503, 503, 200, 503]),
        (Fault::new(What::Status { status: 503, retry_after: None }).model(FREE), [200, 200, 200, 503]),
        (Fault::new(What::PoolFull { retry_after: Some(4) }).provider("Chutes"), [200, 200, 200, 429]),
        (Fault::new(What::Status { status: 503, retry_after: None }).times(2), [503, 503, 200, 200]),
        (Fault::new(What::Status { status: 503, retry_after: None }).probability(0.0), [200; 4]),
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
    simulator.inject(Fault::new(What::Reset).times(1)).expect("a valid fault");
    let request = || post(&simulator, "a1", "chat/completions", &chat_body(PAID));
    let error = send(&simulator, request()).await.expect_err("a reset");
    assert!(matches!(error, SimulatorError::Reset), "{error:?}");
    simulator.inject(Fault::new(What::Stall)).expect("a valid fault");
    let waited = timeout(Duration::from_secs(3_600), send(&simulator, request())).await;
    assert!(waited.is_err(), "no answer in an hour");
    let counts = simulator.counts();
    assert_eq!((counts.broken, counts.abandoned, counts.unanswered, counts.in_flight), (1, 1, 2, 0));
}
