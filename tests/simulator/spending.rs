//! Money: what is charged, to whom, and what happens at the end of it.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::advance;
use tower_openrouter::simulator::{
    Budget, Fault, InBand, InFlight, Reset, Scenario, SimKey, Simulator, What, Workspace,
};

use crate::support::*;

/// Every reply has ten tokens; a million of them cost the given price, prompts nothing.
fn priced(per_million: f64) -> Scenario {
    let mut scenario = scenario();
    (scenario.reply.min_tokens, scenario.reply.max_tokens) = (10, 10);
    scenario.endpoints[0].prompt_price = 0.0;
    scenario.endpoints[0].completion_price = per_million;
    scenario
}

async fn key(simulator: &Simulator, label: &str) -> Value {
    call(simulator, get(simulator, label, "key")).await.json()["data"].clone()
}

fn near(found: &Value, wanted: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-9, "{found} is not {wanted}");
}

#[tokio::test(start_paused = true)]
async fn the_reported_cost_is_charged_to_key_workspace_and_account() {
    let mut scenario = priced(10_000.0);
    let budgets = vec![Budget { limit: 5.0, reset: Reset::Weekly }];
    scenario.workspaces = vec![Workspace { name: "w".to_owned(), account: "alpha".to_owned(), budgets }];
    scenario.keys[0] =
        SimKey { cap: Some(2.0), reset: Reset::Daily, workspace: Some("w".to_owned()), ..SimKey::new("a1", "alpha") };
    let simulator = simulator(scenario);
    let body = json!({"model": PAID, "max_tokens": 20, "messages": [{}]});
    let answer = call(&simulator, post(&simulator, "a1", "chat/completions", &body)).await;
    near(&answer.json()["usage"]["cost"], 0.1);
    let own = key(&simulator, "a1").await;
    near(&own["usage_daily"], 0.1);
    near(&own["limit_remaining"], 1.9);
    assert_eq!(own["limit_reset"], "daily");
    let scopes: Vec<_> = own["budgets"].as_array().expect("a list").iter().map(|b| &b["scope"]).collect();
    assert_eq!(scopes, ["workspace", "key_limit"]);
    near(&own["budgets"][0]["remaining_usd"], 4.9);
    assert_eq!(own["budgets"][0]["resets_at"], "2026-01-19T00:00:00.000Z", "a Monday");
    assert_eq!(own["effective_budget"]["scope"], "key_limit");
    near(&key(&simulator, "a2").await["usage"], 0.0);
    let credits = call(&simulator, get(&simulator, "a2", "credits")).await.json();
    near(&credits["data"]["total_usage"], 0.1);
    near(&json!(simulator.counts().keys["a1"].cost), 0.1);
}

#[tokio::test(start_paused = true)]
async fn a_spent_key_is_403_until_its_reset_and_one_too_dear_a_request_is_402() {
    let mut scenario = priced(10_000.0);
    scenario.start = Some("2026-01-31T23:59:00Z".to_owned());
    scenario.keys[0].cap = Some(0.15);
    scenario.keys[0].reset = Reset::Monthly;
    let simulator = simulator(scenario);
    let ask = async |label: &str, tokens: u64| {
        let body = json!({"model": PAID, "max_tokens": tokens, "messages": [{}]});
        call(&simulator, post(&simulator, label, "chat/completions", &body)).await
    };
    let dear = ask("a1", 16).await;
    assert_eq!(dear.status, 402);
    assert!(dear.message().contains("You requested up to 16 tokens, but can only afford 15."), "{}", dear.message());
    assert!(dear.message().contains("create a key with a higher monthly limit"), "{}", dear.message());
    assert_eq!(dear.json()["error"]["metadata"]["limit_source"], "openrouter_key_limit");
    assert_eq!(ask("a2", 16).await.status, 200, "another key of the account may");
    assert_eq!(ask("a1", 10).await.status, 200);
    assert_eq!(ask("a1", 5).await.status, 200);
    let spent = ask("a1", 1).await;
    assert_eq!(spent.status, 403);
    assert!(spent.message().starts_with("Key limit exceeded (monthly limit)"), "{}", spent.message());
    assert!(spent.json()["error"].get("metadata").is_none());
    advance(seconds(60)).await;
    assert_eq!(ask("a1", 1).await.status, 200, "February");
}

#[tokio::test(start_paused = true)]
async fn an_empty_account_is_402_with_its_own_sentences() {
    let mut scenario = priced(10_000.0);
    scenario.accounts[0].credits = 0.1;
    scenario.accounts.push(account("gamma", 0.0));
    scenario.keys.push(SimKey::new("g1", "gamma"));
    let simulator = simulator(scenario);
    let never = chat(&simulator, "g1", PAID).await;
    assert!(never.status == 402 && never.message().contains("never purchased credits"), "{}", never.message());
    assert_eq!(chat(&simulator, "g1", FREE).await.status, 200, "free models need no balance");
    let dear = chat(&simulator, "a1", PAID).await;
    assert!(dear.message().contains("upgrade to a paid account"), "{}", dear.message());
    assert_eq!(dear.json()["error"]["metadata"]["limit_source"], "openrouter_credits");
    simulator.set_credits("alpha", 0.0).expect("an account");
    let empty = chat(&simulator, "a2", PAID).await;
    assert!(empty.status == 402 && empty.message().starts_with("Insufficient credits."), "{}", empty.message());
    simulator.set_credits("alpha", -0.01).expect("an account");
    assert_eq!(chat(&simulator, "a1", FREE).await.status, 402, "a negative balance closes free models too");
    simulator.set_credits("alpha", 5.0).expect("an account");
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_spent_workspace_closes_all_its_keys_until_the_next_day() {
    let mut scenario = priced(10_000.0);
    let budgets = vec![Budget { limit: 0.1, reset: Reset::Daily }];
    scenario.workspaces = vec![Workspace { name: "w".to_owned(), account: "alpha".to_owned(), budgets }];
    for label in ["w1", "w2"] {
        scenario.keys.push(SimKey { workspace: Some("w".to_owned()), ..SimKey::new(label, "alpha") });
    }
    let simulator = simulator(scenario);
    assert_eq!(chat(&simulator, "w1", PAID).await.status, 200);
    for label in ["w1", "w2"] {
        let answer = chat(&simulator, label, PAID).await;
        assert_eq!(answer.status, 403);
        assert!(answer.message().starts_with("Workspace daily budget of $0.1"), "{}", answer.message());
    }
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 200, "another workspace");
    advance(seconds(12 * 3_600)).await;
    assert_eq!(chat(&simulator, "w2", PAID).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn running_requests_hold_their_estimate_and_settle_slowly() {
    let mut scenario = priced(10_000.0);
    // Half of ten dollars; a hundred tokens are a dollar.
    scenario.accounts[0].in_flight = Some(InFlight { settle_s: 2.0, ..InFlight::default() });
    scenario.endpoints[0].first_token_ms = 1_000.0;
    let simulator = simulator(scenario);
    let mut running = Vec::new();
    for label in ["a1", "a2", "a1", "a2", "a1"] {
        running.push(stream(&simulator, label, PAID).await);
    }
    let refused = chat(&simulator, "a2", PAID).await;
    assert_eq!((refused.status, refused.header("retry-after")), (402, Some("3")));
    let metadata = &refused.json()["error"]["metadata"];
    assert_eq!(metadata["limit_source"], "openrouter_in_flight_budget");
    assert_eq!(metadata["reason"], "in_flight_budget_exhausted");
    assert_eq!(chat(&simulator, "b1", PAID).await.status, 200, "another account");
    assert_eq!(chat(&simulator, "a1", FREE).await.status, 200, "free models are exempt");
    // One ends and leaves its true cost, a tenth: still no room for a whole dollar, until it settled.
    read(running.pop().expect("running")).await;
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 402);
    advance(seconds(2)).await;
    // The balance fell a little, so half of it does not hold five whole dollars any more.
    let mut body = chat_body(PAID);
    body["max_tokens"] = 90.into();
    let answer = call(&simulator, post(&simulator, "a1", "chat/completions", &body)).await;
    assert_eq!(answer.status, 200);
    let mut body = chat_body(PAID);
    body["max_tokens"] = 600.into();
    let answer = call(&simulator, post(&simulator, "a1", "chat/completions", &body)).await;
    assert_eq!(answer.json()["error"]["metadata"]["reason"], "weight_exceeds_budget");
}

#[tokio::test(start_paused = true)]
async fn leaving_a_stream_saves_money_only_where_the_provider_cancels() {
    for (cancel, streamed, tokens) in [(true, true, 3.0), (false, true, 10.0), (true, false, 10.0)] {
        let mut scenario = priced(10_000.0);
        scenario.endpoints[0].cancel = cancel;
        scenario.endpoints[0].tokens_per_second = 1.0;
        let simulator = simulator(scenario);
        let mut body = chat_body(PAID);
        body["stream"] = streamed.into();
        let answer = send(&simulator, post(&simulator, "a1", "chat/completions", &body)).await;
        let mut body = answer.expect("an answer").into_body();
        if streamed {
            for _ in 0..3 {
                body.frame().await.expect("a frame").expect("no failure");
            }
        }
        drop(body);
        near(&key(&simulator, "a1").await["usage"], tokens / 100.0);
        assert_eq!(simulator.counts().abandoned, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn replies_without_output_or_with_an_error_finish_are_free() {
    let mut scenario = priced(10_000.0);
    scenario.endpoints[0].first_token_ms = 1_000.0;
    let simulator = simulator(scenario);
    drop(stream(&simulator, "a1", PAID).await);
    let error = What::InBand { form: InBand::Standard, after_tokens: 4, code: 502 };
    simulator.inject(Fault::new(error).times(1)).expect("a valid fault");
    read(stream(&simulator, "a1", PAID).await).await;
    near(&key(&simulator, "a1").await["usage"], 0.0);
    read(stream(&simulator, "a1", PAID).await).await;
    near(&key(&simulator, "a1").await["usage"], 0.1);
}
