//! The endpoints around inference.

use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::advance;
use tower_openrouter::simulator::{Reset, SimKey, Simulator};

use crate::support::*;

async fn manage(simulator: &Simulator, method: Method, path: &str, body: Value) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v1/{path}"))
        .header("authorization", format!("Bearer {}", secret(simulator, "boss")))
        .body(Full::from(body.to_string()))
        .expect("a valid request");
    call(simulator, request).await
}

#[tokio::test(start_paused = true)]
async fn a_key_learns_its_owner_and_limits() {
    let mut scenario = scenario();
    scenario.accounts[1].organization = true;
    scenario.accounts[1].ever_purchased = Some(0.0);
    scenario.keys[0].cap = Some(3.0);
    scenario.keys[0].reset = Reset::Weekly;
    let simulator = simulator(scenario);
    let key = async |label: &str, path: &str| call(&simulator, get(&simulator, label, path)).await;
    let answer = key("a1", "key").await;
    assert_eq!(answer.header("cache-control"), Some("private, no-store"));
    let a1 = answer.json()["data"].clone();
    assert_eq!(a1["limit"], 3.0);
    assert_eq!(a1["limit_reset"], "weekly");
    assert_eq!(a1["rate_limit"]["requests"], -1);
    assert!(a1["organization_id"].is_null() && a1["is_free_tier"] == false);
    assert_eq!(key("a1", "auth/key").await.json()["data"], a1, "the old path");
    let label = a1["label"].as_str().expect("a label");
    assert!(label.starts_with("sk-or-v1-") && label.contains("...") && label.len() == 18, "{label}");
    let b1 = key("b1", "key").await.json()["data"].clone();
    assert!(b1["organization_id"].as_str().is_some_and(|id| id.starts_with("org_")));
    assert_eq!(b1["is_free_tier"], true);
    let a2 = key("a2", "key").await.json()["data"].clone();
    assert_eq!(a1["creator_user_id"], a2["creator_user_id"], "keys group by account");
    assert_ne!(a1["creator_user_id"], b1["creator_user_id"]);
    assert_eq!(a1["workspace_id"], a2["workspace_id"]);
    let nobody = Request::get("/api/v1/key").body(Full::default()).expect("a valid request");
    assert_eq!(call(&simulator, nobody).await.status, 401);
}

#[tokio::test(start_paused = true)]
async fn credits_are_open_unless_the_scenario_says_otherwise() {
    let mut scenario = scenario();
    scenario.accounts[0].used = 4.0;
    let answer = call(&simulator(scenario.clone()), get(&simulator(scenario.clone()), "a1", "credits")).await;
    assert_eq!(answer.json(), json!({"data": {"total_credits": 10.0, "total_usage": 4.0}}));
    scenario.wire.credits_management_only = true;
    scenario.keys.push(SimKey { management: true, ..SimKey::new("boss", "alpha") });
    let simulator = simulator(scenario);
    assert_eq!(call(&simulator, get(&simulator, "a1", "credits")).await.status, 403);
    assert_eq!(call(&simulator, get(&simulator, "boss", "credits")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_management_key_makes_changes_and_ends_keys() {
    let mut scenario = scenario();
    scenario.keys.push(SimKey { management: true, ..SimKey::new("boss", "alpha") });
    let simulator = simulator(scenario);
    assert_eq!(call(&simulator, get(&simulator, "a1", "keys")).await.status, 401, "an ordinary key");

    let made = manage(&simulator, Method::POST, "keys", json!({"name": "new", "limit": 1.5})).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    let hash = made["data"]["hash"].as_str().expect("a hash").to_owned();
    assert_eq!(made["key"], secret(&simulator, "new"), "shown this once");
    assert_eq!(hash, simulator.keys().iter().find(|key| key.label == "new").expect("the key").hash);
    assert_eq!(chat(&simulator, "new", PAID).await.status, 200);

    let listed = manage(&simulator, Method::GET, "keys", Value::Null).await.json();
    let names: Vec<_> = listed["data"].as_array().expect("a list").iter().map(|key| &key["name"]).collect();
    assert_eq!(names, ["a1", "a2", "boss", "new"], "of this account only");
    assert!(listed["data"][3].get("key").is_none());

    let path = format!("keys/{hash}");
    let changed = manage(&simulator, Method::PATCH, &path, json!({"limit": null, "disabled": true})).await.json();
    assert_eq!((&changed["data"]["limit"], &changed["data"]["disabled"]), (&Value::Null, &json!(true)));
    assert_eq!(chat(&simulator, "new", PAID).await.status, 401);
    let listed = manage(&simulator, Method::GET, "keys", Value::Null).await.json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(3), "disabled ones are left out");
    manage(&simulator, Method::PATCH, &path, json!({"disabled": false, "name": "renamed"})).await;
    assert_eq!(chat(&simulator, "new", PAID).await.status, 200, "statistics keep the label");

    let bearer = format!("Bearer {}", secret(&simulator, "new"));
    let gone = manage(&simulator, Method::DELETE, &path, Value::Null).await;
    assert_eq!(gone.json(), json!({"deleted": true}));
    let request = Request::get("/api/v1/key").header("authorization", bearer);
    assert_eq!(call(&simulator, request.body(Full::default()).expect("valid")).await.status, 401);
    assert_eq!(manage(&simulator, Method::GET, &path, Value::Null).await.status, 404);
    assert_eq!(chat(&simulator, "boss", PAID).await.status, 403, "management keys cannot infer");
}

#[tokio::test(start_paused = true)]
async fn a_generation_appears_after_a_while_for_its_own_account() {
    let simulator = simulator(scenario());
    let answer = chat(&simulator, "a1", PAID).await;
    let path = format!("generation?id={}", answer.header("x-generation-id").expect("an id"));
    let ask = async |label: &str| call(&simulator, get(&simulator, label, &path)).await;
    assert_eq!(ask("a1").await.status, 404);
    advance(seconds(5)).await;
    let found = ask("a2").await;
    assert_eq!(found.status, 200);
    let (found, usage) = (found.json()["data"].clone(), answer.json()["usage"].clone());
    assert_eq!(found["total_cost"], usage["cost"]);
    assert_eq!(found["native_tokens_completion"], usage["completion_tokens"]);
    assert_eq!(found["provider_name"], "DeepInfra");
    assert_eq!(ask("b1").await.status, 404, "another account");
    let odd = call(&simulator, get(&simulator, "a1", "generation?id=nonsense")).await;
    assert_eq!(odd.status, 400);
}

#[tokio::test(start_paused = true)]
async fn the_catalogue_is_public_and_ignores_credentials() {
    let simulator = simulator(scenario());
    let open = async |path: &str| {
        let request = Request::get(format!("/api/v1/{path}"))
            .header("authorization", "Bearer wrong")
            .body(Full::default())
            .expect("a valid request");
        call(&simulator, request).await
    };
    let models = open("models").await.json();
    assert_eq!((&models["total_count"], &models["data"][0]["id"]), (&json!(2), &json!(PAID)));
    assert_eq!(models["data"][0]["pricing"]["prompt"], "0.000001", "USD per token");
    assert_eq!(open("models/count").await.json()["data"]["count"], 2);
    assert_eq!(open("model/acme/swift").await.json()["data"]["id"], PAID);
    let endpoints = open("models/acme/swift:free/endpoints").await.json();
    assert_eq!(endpoints["data"]["endpoints"][0]["provider_name"], "Chutes");
    assert_eq!(open("providers").await.json()["data"][1]["slug"], "deepinfra");
    assert_eq!(open("model/acme/nope").await.status, 404);
    assert_eq!(call(&simulator, get(&simulator, "a1", "models/user")).await.status, 200);
    assert_eq!(open("models/user").await.status, 401);
}
