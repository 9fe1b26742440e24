//! Every kind of answer against OpenRouter's own schemas.
//!
//! `fixtures/openrouter-schemas.json` is an extract of the OpenAPI document; its comment says from where.

#[allow(dead_code, reason = "shared with the tests in simulator/")]
#[path = "simulator/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use http::{Method, Request};
use http_body_util::Full;
use jsonschema::Validator;
use serde_json::{Value, json};
use support::*;
use tokio::time::advance;
use tower_openrouter::simulator::{Fault, InBand, Reason, Reset, SimKey, Simulator, What};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("fixtures/openrouter-schemas.json");
    serde_json::from_str(text).expect("JSON")
});

/// Compiled schemas by name: each takes longer to compile than hundreds of checks.
static VALIDATORS: Mutex<BTreeMap<String, Arc<Validator>>> = Mutex::new(BTreeMap::new());

fn validator(answer: &str) -> Arc<Validator> {
    let mut known = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || {
        let mut schema = DOCUMENT["answers"][answer].clone();
        assert!(schema.is_object(), "no schema is called {answer}");
        schema["$defs"] = DOCUMENT["$defs"].clone();
        Arc::new(jsonschema::draft202012::new(&schema).expect("a valid schema"))
    };
    Arc::clone(known.entry(answer.to_owned()).or_insert_with(compile))
}

/// Fails when `instance` is not what the schema called `answer` describes.
fn check(answer: &str, instance: &Value) {
    let validator = validator(answer);
    let place = |error: jsonschema::ValidationError<'_>| format!("{}: {error}", error.instance_path());
    let errors: Vec<_> = validator.iter_errors(instance).map(place).collect();
    assert!(errors.is_empty(), "{answer}: {errors:#?}\n{instance:#}");
}

fn platform() -> Simulator {
    let mut scenario = scenario();
    scenario.accounts[0].organization = true;
    scenario.keys[0].cap = Some(5.0);
    scenario.keys[0].reset = Reset::Monthly;
    scenario.keys.push(SimKey { management: true, ..SimKey::new("boss", "alpha") });
    simulator(scenario)
}

async fn asked(simulator: &Simulator, path: &str, body: Value) -> Answer {
    let mut request = post(simulator, "a1", path, &body);
    // The richest form of every answer.
    let enabled = "enabled".parse().expect("a header value");
    request.headers_mut().insert("x-openrouter-metadata", enabled);
    call(simulator, request).await
}

#[test]
#[should_panic(expected = "limit_remaining")]
fn the_check_can_fail() {
    check("key", &json!({"data": {"label": "x"}}));
}

#[tokio::test(start_paused = true)]
async fn lookups_fit() {
    let simulator = platform();
    let id = chat(&simulator, "a1", PAID).await.header("x-generation-id").expect("an id").to_owned();
    advance(seconds(5)).await;
    let generation = format!("generation?id={id}");
    for (schema, path) in [
        ("key", "key"),
        ("credits", "credits"),
        ("models", "models"),
        ("models", "models/user"),
        ("count", "models/count"),
        ("model", "model/acme/swift"),
        ("endpoints", "models/acme/swift/endpoints"),
        ("providers", "providers"),
        ("generation", generation.as_str()),
    ] {
        let answer = call(&simulator, get(&simulator, "a1", path)).await;
        assert_eq!(answer.status, 200, "{path}");
        check(schema, &answer.json());
    }
}

#[tokio::test(start_paused = true)]
async fn key_management_fits() {
    let simulator = platform();
    let manage = async |method: Method, path: &str, body: Value| {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{path}"))
            .header("authorization", format!("Bearer {}", secret(&simulator, "boss")))
            .body(Full::from(body.to_string()))
            .expect("a valid request");
        call(&simulator, request).await.json()
    };
    let made = manage(Method::POST, "keys", json!({"name": "n", "limit": 1, "limit_reset": "daily"})).await;
    check("key_created", &made);
    let path = format!("keys/{}", made["data"]["hash"].as_str().expect("a hash"));
    check("keys", &manage(Method::GET, "keys", Value::Null).await);
    check("key_one", &manage(Method::GET, &path, Value::Null).await);
    check("key_changed", &manage(Method::PATCH, &path, json!({"name": "m"})).await);
    check("key_deleted", &manage(Method::DELETE, &path, Value::Null).await);
}

#[tokio::test(start_paused = true)]
async fn replies_fit() {
    let simulator = platform();
    let messages = json!([{"role": "user", "content": "Hello"}]);
    // Three tokens cut every reply short, a thousand none.
    for tokens in [3, 1_000] {
        let chat = json!({"model": PAID, "max_tokens": tokens, "messages": messages});
        check("chat", &asked(&simulator, "chat/completions", chat.clone()).await.json());
        check("messages", &asked(&simulator, "messages", chat).await.json());
        let responses = json!({"model": PAID, "max_output_tokens": tokens, "input": "Hello"});
        check("responses", &asked(&simulator, "responses", responses).await.json());
    }
    let embeddings = json!({"model": PAID, "input": ["one", "two"]});
    let answer = asked(&simulator, "embeddings", embeddings).await.json();
    check("embeddings", &answer);
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(2));
}

#[tokio::test(start_paused = true)]
async fn stream_events_fit() {
    let simulator = platform();
    let messages = json!([{"role": "user", "content": "Hello"}]);
    for (path, schema, body) in [
        ("chat/completions", "chat_event", json!({"messages": messages})),
        ("messages", "messages_event", json!({"messages": messages})),
        ("responses", "responses_event", json!({"input": "Hello"})),
    ] {
        for tokens in [3, 1_000] {
            let mut body = body.clone();
            (body["model"], body["stream"]) = (json!(PAID), json!(true));
            let limit = if path == "responses" { "max_output_tokens" } else { "max_tokens" };
            body[limit] = tokens.into();
            let answer = asked(&simulator, path, body).await;
            let events = events(&answer.body);
            assert!(events.len() > 3);
            for (number, event) in events.iter().enumerate() {
                check(schema, event);
                if path == "responses" {
                    assert_eq!(event["sequence_number"], number);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_band_errors_fit_where_the_schema_knows_them() {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    for (path, schema, form) in [
        ("chat/completions", "chat_event", InBand::Standard),
        ("chat/completions", "chat_event", InBand::EmptyChoices),
        ("messages", "messages_event", InBand::Standard),
        ("responses", "responses_event", InBand::Standard),
        ("responses", "responses_event", InBand::EmptyChoices),
    ] {
        let simulator = platform();
        let what = What::InBand { form, after_tokens: 2, code: 502 };
        simulator.inject(Fault::new(what)).expect("a valid fault");
        let body = json!({
            "model": PAID, "max_tokens": 50, "stream": true, "messages": messages, "input": "Hello"
        });
        for event in events(&asked(&simulator, path, body).await.body) {
            check(schema, &event);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_fit_on_both_envelopes() {
    let refusals = [
        Reason::InFlightBudget,
        Reason::CannotAfford,
        Reason::KeyLimit,
        Reason::Guardrail,
        Reason::DataPolicy,
        Reason::CapacityAs400,
        Reason::FreePerDay,
        Reason::UpstreamByok,
    ]
    .map(|reason| What::Refuse { reason });
    let statuses = [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 524, 529]
        .map(|status| What::Status { status, retry_after: None });
    for what in refusals.into_iter().chain(statuses) {
        let simulator = platform();
        simulator.inject(Fault::new(what)).expect("a valid fault");
        let body = json!({"model": PAID, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]});
        let answer = asked(&simulator, "chat/completions", body.clone()).await;
        check(&format!("error_{}", answer.status), &answer.json());
        check("messages_error", &asked(&simulator, "messages", body).await.json());
    }
}
