//! Credentials, limits and routing: what the platform refuses by itself, and in which order.

use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::time::advance;
use tower_openrouter::simulator::Scenario;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn credentials_are_checked_before_anything_else() {
    let mut scenario = scenario();
    scenario.keys[1].disabled = true;
    scenario.keys[2].expires = Some("2026-01-15T12:00:10Z".to_owned());
    let simulator = simulator(scenario);
    let with = |header: Option<(&str, &str)>| {
        let mut request = Request::post("/api/v1/chat/completions");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        request.body(Full::from("not even JSON")).expect("a valid request")
    };
    let unknown = format!("Bearer sk-or-v1-{}", "0".repeat(64));
    for (header, message) in [
        (None, "Missing Authentication header"),
        (Some(("authorization", "Basic abc")), "No cookie auth credentials found"),
        (Some(("authorization", "Bearer ")), "No cookie auth credentials found"),
        (Some(("authorization", unknown.as_str())), "User not found."),
    ] {
        let answer = call(&simulator, with(header)).await;
        assert_eq!((answer.status, answer.message().as_str()), (401, message));
        assert_eq!(answer.json(), json!({"error": {"code": 401, "message": message}}), "no metadata, no user_id");
        assert_eq!(answer.header("x-ratelimit-limit"), None);
    }
    assert_eq!(chat(&simulator, "a2", PAID).await.status, 401, "a disabled key");
    assert_eq!(chat(&simulator, "b1", PAID).await.status, 200, "a key not yet expired");
    advance(seconds(10)).await;
    assert_eq!(chat(&simulator, "b1", PAID).await.message(), "User not found.", "an expired key");
    let own = format!("Bearer {}", secret(&simulator, "a1"));
    let answer = call(&simulator, with(Some(("authorization", &own)))).await;
    assert_eq!(answer.status, 400, "only a known key learns about its body");
    assert!(answer.json()["user_id"].as_str().is_some_and(|id| id.starts_with("user_")));
}

#[tokio::test(start_paused = true)]
async fn keys_of_one_account_name_the_same_user() {
    let simulator = simulator(scenario());
    let mut ids = Vec::new();
    for label in ["a1", "a2", "b1"] {
        ids.push(chat(&simulator, label, "no/such").await.json()["user_id"].clone());
    }
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
}

#[tokio::test(start_paused = true)]
async fn messages_errors_have_anthropics_envelope() {
    let simulator = simulator(scenario());
    let body = json!({"model": FREE, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]});
    let request = |body: &serde_json::Value| {
        Request::post("/api/v1/messages")
            .header("x-api-key", secret(&simulator, "a1"))
            .body(Full::from(body.to_string()))
            .expect("a valid request")
    };
    for _ in 0..20 {
        assert_eq!(call(&simulator, request(&body)).await.status, 200);
    }
    let answer = call(&simulator, request(&body)).await;
    assert_eq!(answer.status, 429);
    let json = answer.json();
    assert_eq!(json["type"], "error");
    assert_eq!(json["error"]["type"], "rate_limit_error");
    assert_eq!(json["error"]["error_type"], "rate_limit_exceeded");
    assert!(json["request_id"].is_null(), "refused before routing");
    assert_eq!(json["metadata"]["limit_source"], "openrouter_free_tier_per_minute");
}

#[tokio::test(start_paused = true)]
async fn free_requests_are_limited_per_account_and_minute() {
    let simulator = simulator(scenario());
    for index in 0..20 {
        let label = if index % 2 == 0 { "a1" } else { "a2" };
        assert_eq!(chat(&simulator, label, FREE).await.status, 200);
    }
    advance(seconds(30)).await;
    let answer = chat(&simulator, "a2", FREE).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.message(), "Rate limit exceeded: free-models-per-min. ");
    let reset = (simulator.wall_clock_ms() + 30_000).to_string();
    assert_eq!(answer.header("x-ratelimit-limit"), Some("20"));
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("0"));
    assert_eq!(answer.header("x-ratelimit-reset"), Some(reset.as_str()), "the next minute, in milliseconds");
    assert_eq!(answer.header("retry-after"), None);
    let metadata = &answer.json()["error"]["metadata"];
    assert_eq!(metadata["headers"]["X-RateLimit-Reset"], reset);
    assert_eq!(metadata["limit_source"], "openrouter_free_tier_per_minute");
    assert!(metadata["provider_name"].is_null());

    assert_eq!(chat(&simulator, "a1", PAID).await.status, 200, "paid models of the account stay usable");
    assert_eq!(chat(&simulator, "b1", FREE).await.status, 200, "another account has its own quota");
    advance(seconds(30)).await;
    assert_eq!(chat(&simulator, "a1", FREE).await.status, 200, "a new minute");
}

#[tokio::test(start_paused = true)]
async fn refused_free_requests_count_for_the_day() {
    let mut scenario = scenario();
    scenario.accounts[0].ever_purchased = Some(8.99);
    scenario.start = Some("2026-01-15T23:50:00Z".to_owned());
    let simulator = simulator(scenario);
    // 20 served and 15 refused in the first minute leave 15 of 50 for the next.
    for _ in 0..35 {
        chat(&simulator, "a1", FREE).await;
    }
    advance(seconds(60)).await;
    let mut served = 0;
    while chat(&simulator, "a1", FREE).await.status == 200 {
        served += 1;
    }
    assert_eq!(served, 15);
    let answer = chat(&simulator, "a1", FREE).await;
    assert!(answer.message().starts_with("Rate limit exceeded: free-models-per-day. "), "{}", answer.message());
    assert_eq!(answer.header("x-ratelimit-limit"), Some("50"));
    assert_eq!(answer.header("x-ratelimit-reset"), Some("1768521600000"), "00:00 UTC");
    let key = call(&simulator, get(&simulator, "a2", "key")).await.json();
    let quota = &key["data"]["free_model_daily_requests"];
    assert_eq!(quota, &json!({"limit": 50, "used": 52, "remaining": 0}), "used may exceed the limit");
    advance(seconds(9 * 60)).await;
    assert_eq!(chat(&simulator, "a1", FREE).await.status, 200, "a new day");
}

#[tokio::test(start_paused = true)]
async fn nine_credits_ever_bought_raise_the_daily_quota() {
    let mut scenario = scenario();
    scenario.accounts[0].free_per_minute = 2_000;
    let simulator = simulator(scenario);
    for _ in 0..1_000 {
        assert_eq!(chat(&simulator, "a1", FREE).await.status, 200);
    }
    let answer = chat(&simulator, "a1", FREE).await;
    assert!(answer.message().contains("free-models-per-day-high-balance"), "{}", answer.message());
}

#[tokio::test(start_paused = true)]
async fn the_platform_checks_in_the_documented_order() {
    // Everything is wrong with this request at once; each repair uncovers the next check.
    let base: Scenario = toml_scenario(
        r#"
        accounts = [{ name = "a", credits = 1.0, used = 2.0, free_per_minute = 0, allowed_providers = ["Other"] }]
        workspaces = [{ name = "w", account = "a", budgets = [{ limit = 0.0, reset = "daily" }] }]
        models = [{ id = "acme/x:free" }, { id = "acme/x", max_output = 1000 }]
        [[keys]]
        label = "k"
        account = "a"
        workspace = "w"
        cap = 0.001
        used = 0.001
        management = true
        [[endpoints]]
        model = "acme/x:free"
        provider = "Chutes"
        [[endpoints]]
        model = "acme/x"
        provider = "Chutes"
        completion_price = 10.0
        "#,
    );
    let free = "acme/x:free";
    let mut now = base.clone();
    let check = async |scenario: &Scenario, model: &str| {
        let answer = chat(&simulator(scenario.clone()), "k", model).await;
        (answer.status, answer.message())
    };
    let expect = |(status, message): (u16, String), wanted: u16, part: &str| {
        assert!(status == wanted && message.contains(part), "{status} {message}, wanted {wanted} {part}");
    };
    expect(check(&now, free).await, 403, "Management keys");
    now.keys[0].management = false;
    expect(check(&now, free).await, 403, "Workspace daily budget of $0");
    now.workspaces[0].budgets.clear();
    expect(check(&now, free).await, 403, "Key limit exceeded (total limit)");
    now.keys[0].used = 0.0;
    expect(check(&now, free).await, 402, "Insufficient credits");
    now.accounts[0].used = 0.0;
    expect(check(&now, free).await, 429, "free-models-per-min");
    now.accounts[0].free_per_minute = 20;
    expect(check(&now, free).await, 404, "No allowed providers");
    now.accounts[0].allowed_providers.clear();
    expect(check(&now, free).await, 200, "");
    // 100 tokens at ten dollars a million cost a tenth of a cent and the prompt something on top.
    now.keys[0].cap = Some(0.0005);
    expect(check(&now, "acme/x").await, 402, "can only afford 50");
    now.keys[0].cap = None;
    now.accounts[0].in_flight = Some(tower_openrouter::simulator::InFlight::default());
    now.accounts[0].credits = 0.001;
    now.accounts[0].ever_purchased = Some(0.001);
    expect(check(&now, "acme/x").await, 402, "exceeds the in-flight budget");
    now.accounts[0].in_flight = None;
    expect(check(&now, "acme/x").await, 200, "");
}

#[tokio::test(start_paused = true)]
async fn an_accounts_quota_refuses_all_its_keys_as_a_platform_limit() {
    for (kind, hints) in [("fixed", true), ("fixed", false), ("bucket", true), ("bucket", false)] {
        let mut scenario = scenario();
        scenario.accounts[0].quota = serde_json::from_value(
            json!({"requests": 2, "window_s": 10.0, "kind": kind, "phase_s": 4.0, "hints": hints}),
        )
        .expect("a valid quota");
        let simulator = simulator(scenario);
        assert_eq!(chat(&simulator, "a1", PAID).await.status, 200);
        assert_eq!(chat(&simulator, "a2", FREE).await.status, 200);
        let full = chat(&simulator, "a2", PAID).await;
        assert_eq!((full.status, full.message().as_str()), (429, "Rate limit exceeded"));
        let wait = if kind == "fixed" { 6_000 } else { 5_000 };
        let reset = (simulator.wall_clock_ms() + wait + 2).to_string();
        assert_eq!(full.header("x-ratelimit-remaining"), Some("0"));
        assert_eq!(full.header("x-ratelimit-limit"), hints.then_some("2"));
        assert_eq!(full.header("x-ratelimit-reset"), hints.then_some(reset.as_str()), "{kind}");
        assert_eq!(chat(&simulator, "b1", PAID).await.status, 200, "another account");
        advance(std::time::Duration::from_millis(wait as u64 + 2)).await;
        assert_eq!(chat(&simulator, "a1", PAID).await.status, 200, "{kind}");
    }
}
