//! The edge answers from caches, so changes take effect late.

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::advance;
use tower_openrouter::simulator::{Reset, Scenario, SimKey, Simulator, Stale};

use crate::support::*;

fn stale(stale: Stale) -> Scenario {
    let mut scenario = Scenario { stale, ..scenario() };
    (scenario.reply.min_tokens, scenario.reply.max_tokens) = (10, 10);
    scenario.endpoints[0].prompt_price = 0.0;
    // a tenth of a dollar a reply
    scenario.endpoints[0].completion_price = 10_000.0;
    scenario
}

async fn status(simulator: &Simulator, label: &str) -> u16 {
    let body = json!({"model": PAID, "max_tokens": 10, "messages": [{}]});
    call(simulator, post(simulator, label, "chat/completions", &body)).await.status
}

async fn data(simulator: &Simulator, label: &str, path: &str) -> Value {
    call(simulator, get(simulator, label, path)).await.json()["data"].clone()
}

fn near(found: &Value, wanted: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-9, "{found} is not {wanted}");
}

#[tokio::test(start_paused = true)]
async fn a_disabled_key_works_for_a_while_and_so_does_a_deleted_one() {
    let mut scenario = stale(Stale { key_ms: 30_000.0, ..Stale::default() });
    scenario.keys.push(SimKey { management: true, ..SimKey::new("boss", "alpha") });
    let simulator = simulator(scenario);
    simulator.disable_key("a1", true).unwrap();
    let (a2, boss) = (simulator.keys()[1].clone(), secret(&simulator, "boss"));
    let delete = Request::delete(format!("/api/v1/keys/{}", a2.hash)).header("authorization", format!("Bearer {boss}"));
    assert_eq!(call(&simulator, delete.body(Full::default()).unwrap()).await.status, 200);
    let ask_deleted = async || {
        let request = Request::get("/api/v1/key").header("authorization", format!("Bearer {}", a2.secret));
        call(&simulator, request.body(Full::default()).unwrap()).await.status
    };

    let listed = data(&simulator, "boss", "keys?include_disabled=true").await;
    assert_eq!(listed[0]["disabled"], true, "the management sees it at once");
    assert_eq!((status(&simulator, "a1").await, ask_deleted().await), (200, 200));
    advance(seconds(30)).await;
    assert_eq!((status(&simulator, "a1").await, ask_deleted().await), (401, 401));

    simulator.disable_key("a1", false).unwrap();
    assert_eq!(status(&simulator, "a1").await, 401, "and coming back takes as long");
    advance(seconds(30)).await;
    assert_eq!(status(&simulator, "a1").await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_unknown_at_first_and_those_of_the_scenario_are_not() {
    let simulator = simulator(stale(Stale { key_ms: 5_000.0, ..Stale::default() }));
    assert_eq!(status(&simulator, "a1").await, 200);
    simulator.add_key(&SimKey::new("new", "alpha")).unwrap();
    assert_eq!(status(&simulator, "new").await, 401);
    advance(seconds(5)).await;
    assert_eq!(status(&simulator, "new").await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_changed_cap_is_enforced_and_shown_late() {
    let mut scenario = stale(Stale { cap_ms: 10_000.0, ..Stale::default() });
    scenario.keys[0] = SimKey { cap: Some(0.1), ..SimKey::new("a1", "alpha") };
    let simulator = simulator(scenario);
    assert_eq!(status(&simulator, "a1").await, 200);
    assert_eq!(status(&simulator, "a1").await, 403, "spending counts at once");
    simulator.set_key_cap("a1", Some(1.0)).unwrap();
    assert_eq!(status(&simulator, "a1").await, 403);
    near(&data(&simulator, "a1", "key").await["limit"], 0.1);
    advance(seconds(10)).await;
    near(&data(&simulator, "a1", "key").await["limit_remaining"], 0.9);
    assert_eq!(status(&simulator, "a1").await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_new_balance_is_enforced_and_shown_late() {
    let simulator = simulator(stale(Stale { credits_ms: 60_000.0, ..Stale::default() }));
    simulator.set_credits("alpha", 0.0).unwrap();
    assert_eq!(status(&simulator, "a1").await, 200, "the old balance still pays");
    near(&data(&simulator, "a1", "credits").await["total_credits"], 10.0);
    advance(seconds(60)).await;
    assert_eq!(status(&simulator, "a1").await, 402);
    simulator.set_credits("alpha", 1.0).unwrap();
    simulator.set_credits("alpha", 2.0).unwrap();
    assert_eq!(status(&simulator, "a1").await, 402);
    advance(seconds(60)).await;
    assert_eq!(status(&simulator, "a1").await, 200);
    let credits = data(&simulator, "a1", "credits").await;
    near(&json!(credits["total_credits"].as_f64().unwrap() - credits["total_usage"].as_f64().unwrap()), 1.9);
}

#[tokio::test(start_paused = true)]
async fn counters_tell_the_past_even_across_a_reset() {
    let mut scenario = stale(Stale { counters_ms: 120_000.0, ..Stale::default() });
    scenario.start = Some("2026-01-31T23:58:00Z".to_owned());
    scenario.keys[0] = SimKey { cap: Some(1.0), reset: Reset::Daily, ..SimKey::new("a1", "alpha") };
    let simulator = simulator(scenario);
    assert_eq!(status(&simulator, "a1").await, 200);
    assert_eq!(chat(&simulator, "a1", FREE).await.status, 200);
    let key = data(&simulator, "a1", "key").await;
    near(&key["usage_daily"], 0.0);
    near(&key["limit_remaining"], 1.0);
    near(&key["budgets"][0]["spend_usd"], 0.0);
    assert_eq!(key["free_model_daily_requests"]["used"], 0);
    near(&data(&simulator, "a1", "credits").await["total_usage"], 0.0);

    advance(seconds(121)).await;
    let key = data(&simulator, "a1", "key").await;
    near(&key["usage_daily"], 0.1);
    near(&key["limit_remaining"], 0.9);
    assert_eq!(key["free_model_daily_requests"]["used"], 1, "of yesterday");
    near(&data(&simulator, "a1", "credits").await["total_usage"], 0.1);

    advance(seconds(120)).await;
    let key = data(&simulator, "a1", "key").await;
    near(&key["usage_daily"], 0.0);
    near(&key["usage_monthly"], 0.0);
    near(&key["usage"], 0.1);
}

#[test]
fn a_delay_must_be_a_number_from_0_up() {
    for field in ["key_ms", "cap_ms", "credits_ms", "counters_ms"] {
        let error = Scenario::from_toml(&format!("stale = {{ {field} = -1.0 }}")).unwrap_err();
        assert_eq!(error.field(), format!("stale.{field}"));
    }
}
