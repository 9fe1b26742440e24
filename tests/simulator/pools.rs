//! Shared pools: drained by everybody, and what OpenRouter does about it.

use serde_json::json;
use tokio::time::advance;
use tower_openrouter::simulator::{Fault, Pool, PoolKind, RetryAfter, Scenario, What};

use crate::support::*;

fn pool(requests: u64, retry_after: RetryAfter) -> Option<Pool> {
    Some(Pool { requests, window_s: 60.0, kind: PoolKind::Fixed, retry_after })
}

fn with_pool(requests: u64, retry_after: RetryAfter) -> Scenario {
    let mut scenario = scenario();
    scenario.endpoints[0].pool = pool(requests, retry_after);
    scenario
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_drained_by_all_accounts_together() {
    let simulator = simulator(with_pool(3, RetryAfter::Honest));
    for label in ["a1", "b1", "a2"] {
        assert_eq!(chat(&simulator, label, PAID).await.status, 200);
    }
    advance(seconds(31)).await;
    for label in ["a1", "a2", "b1"] {
        let answer = chat(&simulator, label, PAID).await;
        assert_eq!(answer.status, 429, "no key helps");
        assert_eq!(answer.header("retry-after"), Some("29"));
        assert_eq!(answer.header("x-ratelimit-limit"), None, "not a limit of the platform");
        assert!(answer.header("x-generation-id").is_some());
        let error = &answer.json()["error"];
        assert_eq!(error["message"], "Provider returned error");
        let metadata = &error["metadata"];
        assert_eq!(metadata["limit_source"], "upstream_provider_shared_pool");
        assert_eq!(metadata["provider_name"], "DeepInfra");
        assert_eq!(metadata["retry_after_seconds"], 29);
        assert_eq!(metadata["headers"], json!({"Retry-After": "29"}));
        assert!(metadata["raw"].as_str().is_some_and(|raw| raw.contains("temporarily rate-limited upstream")));
    }
    advance(seconds(29)).await;
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 200, "the hint was true");
}

#[tokio::test(start_paused = true)]
async fn another_provider_takes_over_before_the_commit() {
    let mut scenario = with_pool(1, RetryAfter::Honest);
    scenario.endpoints.push(endpoint(PAID, "Together", 2.0));
    scenario.endpoints[0].accept_ms = 100.0;
    let simulator = simulator(scenario);
    let provider = async || chat(&simulator, "a1", PAID).await.json()["provider"].clone();
    assert_eq!(provider().await, "DeepInfra", "the cheaper");
    assert_eq!(provider().await, "Together");
    assert_eq!(provider().await, "Together", "one that failed lately is asked last");
    advance(seconds(60)).await;
    assert_eq!(provider().await, "DeepInfra");
    let log = simulator.log();
    assert_eq!(log[1].provider.as_deref(), Some("Together"));
}

#[tokio::test(start_paused = true)]
async fn when_all_providers_fail_the_last_answers_for_all() {
    let mut scenario = with_pool(0, RetryAfter::Seconds(7));
    scenario.endpoints.push(endpoint(PAID, "Together", 2.0));
    scenario.endpoints[1 + 1].pool = pool(0, RetryAfter::Seconds(5));
    let simulator = simulator(scenario.clone());
    let answer = chat(&simulator, "a1", PAID).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("5")), "the least of the hints");
    let metadata = &answer.json()["error"]["metadata"];
    assert_eq!(metadata["provider_name"], "Together");
    let first = json!([{"provider": "DeepInfra", "code": 429, "status": 429}]);
    assert_eq!(metadata["previous_errors"], first);

    scenario.endpoints[0].pool = pool(0, RetryAfter::Never);
    let simulator = crate::support::simulator(scenario);
    let answer = chat(&simulator, "a1", PAID).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, None), "not every provider gave one");
    assert!(answer.json()["error"]["metadata"].get("retry_after_seconds").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_provider_5xx_moves_on_and_a_400_does_not() {
    let mut scenario = scenario();
    scenario.endpoints.push(endpoint(PAID, "Together", 2.0));
    for (status, answered) in [(502, 200), (503, 200), (529, 200), (400, 400)] {
        scenario.faults = vec![Fault::new(What::ProviderFails { status }).provider("DeepInfra")];
        let answer = chat(&simulator(scenario.clone()), "a1", PAID).await;
        assert_eq!(answer.status, answered, "after a provider's {status}");
    }
    scenario.faults = vec![Fault::new(What::ProviderFails { status: 502 }).provider("DeepInfra")];
    let simulator = simulator(scenario);
    let mut body = chat_body(PAID);
    body["provider"] = json!({"order": ["deepinfra"], "allow_fallbacks": false});
    let answer = call(&simulator, post(&simulator, "a1", "chat/completions", &body)).await;
    assert_eq!(answer.status, 502, "fallbacks forbidden");
    assert_eq!(answer.json()["error"]["metadata"]["error_type"], "provider_unavailable");
}

#[tokio::test(start_paused = true)]
async fn hints_and_sources_can_be_left_out_of_the_wire() {
    let mut scenario = with_pool(0, RetryAfter::Seconds(7));
    scenario.wire.omit_hints = true;
    let answer = chat(&simulator(scenario.clone()), "a1", PAID).await;
    assert_eq!(answer.header("retry-after"), None);
    let metadata = &answer.json()["error"]["metadata"];
    assert!(metadata.get("retry_after_seconds").is_none() && metadata.get("headers").is_none());
    assert_eq!(metadata["limit_source"], "upstream_provider_shared_pool");

    scenario.wire.omit_hints = false;
    scenario.wire.legacy_bodies = true;
    let answer = chat(&simulator(scenario.clone()), "a1", PAID).await;
    assert_eq!(answer.header("retry-after"), Some("7"));
    let metadata = &answer.json()["error"]["metadata"];
    for member in ["limit_source", "remedy_hint", "retry_after_seconds", "error_type"] {
        assert!(metadata.get(member).is_none(), "{member} in {metadata}");
    }
    assert_eq!(metadata["provider_name"], "DeepInfra");

    scenario.wire.legacy_bodies = false;
    scenario.wire.omit_error_type = true;
    let answer = chat(&simulator(scenario), "a1", PAID).await;
    let metadata = &answer.json()["error"]["metadata"];
    assert!(metadata.get("error_type").is_none());
    assert_eq!(metadata["limit_source"], "upstream_provider_shared_pool");
}
