//! Which models and providers a request can reach.

use http::Request;
use http_body_util::Full;
use serde_json::json;
use tower_openrouter::simulator::{Fault, SimKey, What};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn what_the_router_cannot_place_is_a_404_with_its_step() {
    let mut scenario = scenario();
    scenario.accounts[0].denied_providers = vec!["DeepInfra".to_owned()];
    scenario.keys.push(SimKey { allowed_models: vec![FREE.to_owned()], ..SimKey::new("b2", "beta") });
    scenario.endpoints.push(endpoint(PAID, "Together", 2.0));
    scenario.accounts[0].denied_providers.push("Together".to_owned());
    let simulator = simulator(scenario);
    let routed = async |label: &str, provider: serde_json::Value| {
        let mut body = chat_body(PAID);
        body["provider"] = provider;
        let answer = call(&simulator, post(&simulator, label, "chat/completions", &body)).await;
        let json = answer.json();
        (answer.status, json["error"]["metadata"]["failed_routing_step"].as_str().unwrap_or("").to_owned())
    };
    let step = |name: &str| (404, name.to_owned());
    assert_eq!(routed("a1", json!({})).await, step("Filter by Data Policy"));
    assert_eq!(routed("b2", json!({})).await, step("Filter by Guardrails"));
    assert_eq!(routed("b1", json!({"only": ["azure"]})).await, step("Filter by Allowed Providers"));
    assert_eq!(routed("b1", json!({"ignore": ["deepinfra", "Together"]})).await, step("Filter by Allowed Providers"));
    assert_eq!(routed("b1", json!({"max_price": {"prompt": "0.5"}})).await, step("Filter by Max Price"));
    assert_eq!(routed("b1", json!({"order": ["azure"], "allow_fallbacks": false})).await, step("Filter by Fallback"));
    assert_eq!(routed("b1", json!({"only": ["together"]})).await.0, 200);
    assert_eq!(routed("b1", json!({"surprise": 1})).await.0, 400, "unknown members of provider");
    let mut body = chat_body(FREE);
    body["provider"] = json!({"data_collection": "deny"});
    let answer = call(&simulator, post(&simulator, "b1", "chat/completions", &body)).await;
    assert_eq!(answer.status, 404, "free models always collect data");
}

#[tokio::test(start_paused = true)]
async fn models_are_named_exactly_or_with_a_variant() {
    let mut scenario = scenario();
    scenario.models.push(model("acme/only-paid"));
    let simulator = simulator(scenario);
    let asked = async |model: &str| {
        let answer = chat(&simulator, "a1", model).await;
        (answer.status, if answer.status == 200 { String::new() } else { answer.message() })
    };
    assert_eq!(asked("acme/nope").await, (400, "acme/nope is not a valid model ID".to_owned()));
    assert_eq!(asked("acme/only-paid").await, (404, "No endpoints found for acme/only-paid.".to_owned()));
    let gone = asked("acme/only-paid:free").await;
    assert!(gone.0 == 404 && gone.1.contains("is unavailable for free"), "{gone:?}");
    for variant in ["nitro", "floor", "exacto", "online"] {
        assert_eq!(asked(&format!("{PAID}:{variant}")).await.0, 200);
    }
    assert_eq!(asked("openrouter/free").await.0, 200);
    let body = json!({"model": "acme/nope", "models": [PAID], "messages": [{}]});
    let answer = call(&simulator, post(&simulator, "a1", "chat/completions", &body)).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!(PAID)), "the fallback served");
}

#[tokio::test(start_paused = true)]
async fn too_long_and_too_large_requests_are_refused() {
    let mut scenario = scenario();
    scenario.models[0].context_length = 200;
    scenario.models[0].max_output = 100;
    scenario.wire.max_body_bytes = 2_000;
    let simulator = simulator(scenario);
    let said = async |length: usize| {
        let mut body = chat_body(PAID);
        body["messages"][0]["content"] = "x".repeat(length).into();
        call(&simulator, post(&simulator, "a1", "chat/completions", &body)).await
    };
    assert_eq!(said(100).await.status, 200);
    let long = said(1_000).await;
    assert_eq!(long.status, 400);
    assert_eq!(long.json()["error"]["metadata"]["error_type"], "context_length_exceeded");
    let large = said(3_000).await;
    assert_eq!(large.status, 413);
    assert_eq!(large.json()["error"]["metadata"]["error_type"], "payload_too_large");
}

#[tokio::test(start_paused = true)]
async fn both_bases_serve_and_unknown_paths_are_404_in_api_form() {
    let simulator = simulator(scenario());
    for base in ["/api/v1", "/v1"] {
        let request = Request::post(format!("{base}/completions"))
            .header("authorization", format!("bearer {}", secret(&simulator, "a1")))
            .body(Full::from(json!({"model": PAID, "prompt": "Once"}).to_string()))
            .expect("a valid request");
        let answer = call(&simulator, request).await;
        assert_eq!((answer.status, &answer.json()["object"]), (200, &json!("text_completion")));
    }
    for path in ["nothing", "chat", ""] {
        let answer = call(&simulator, get(&simulator, "a1", path)).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!(404)), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_opt_in_learn_how_they_were_routed() {
    let mut scenario = scenario();
    scenario.endpoints.push(endpoint(PAID, "Together", 2.0));
    scenario.faults = vec![Fault::new(What::ProviderFails { status: 503 }).provider("DeepInfra").times(1)];
    scenario.accounts[1].denied_providers = vec!["DeepInfra".to_owned(), "Together".to_owned()];
    let simulator = simulator(scenario);
    let opted = async |label: &str, model: &str, stream: bool| {
        let mut body = chat_body(model);
        body["stream"] = stream.into();
        let mut request = post(&simulator, label, "chat/completions", &body);
        let enabled = "enabled".parse().expect("a header value");
        request.headers_mut().insert("x-openrouter-metadata", enabled);
        call(&simulator, request).await
    };
    let found = opted("a1", PAID, false).await.json()["openrouter_metadata"].clone();
    assert_eq!((&found["attempt"], &found["strategy"]), (&json!(2), &json!("direct")));
    assert_eq!(found["attempts"][0]["status"], 503);
    assert_eq!(found["endpoints"]["available"][1]["selected"], true);

    let streamed = events(&opted("a1", PAID, true).await.body);
    let (last, before) = streamed.split_last().expect("events");
    assert!(last["openrouter_metadata"].is_object(), "on the last chunk");
    assert!(before.iter().all(|event| event.get("openrouter_metadata").is_none()));

    let unrouted = opted("b1", PAID, false).await;
    let metadata = unrouted.json()["openrouter_metadata"].clone();
    assert_eq!((unrouted.status, &metadata["attempt"]), (404, &json!(0)), "no provider was asked");

    simulator.set_credits("alpha", -1.0).expect("an account");
    let before_routing = opted("a1", PAID, false).await;
    assert_eq!(before_routing.status, 402);
    assert!(before_routing.json().get("openrouter_metadata").is_none());
    assert!(chat(&simulator, "b1", PAID).await.json().get("openrouter_metadata").is_none(), "not asked for");
}
