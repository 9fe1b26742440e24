//! The whole stack before the simulator, which does the counting.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, KeepAliveLayer, OpenRouter,
    select::{Pool, RoundRobin},
    simulator::{Fault, InBand, Scenario, Simulator, What},
};

use crate::upstream::{COMMENT, read};

/// Three accounts with a key each; replies have six tokens.
const THREE_KEYS: &str = r#"
accounts = [{ name = "a", credits = 100.0 }, { name = "b", credits = 100.0 }, { name = "c", credits = 100.0 }]
keys = [{ label = "a", account = "a" }, { label = "b", account = "b" }, { label = "c", account = "c" }]
models = [{ id = "acme/swift-1" }]
reply = { min_tokens = 6, max_tokens = 6 }
[[endpoints]]
model = "acme/swift-1"
provider = "One"
prompt_price = 1.0
completion_price = 1.0
accept_ms = 50
first_token_ms = 200
tokens_per_second = 20
"#;

const ENDS: [(&str, &str); 3] = [
    ("/v1/chat/completions", "data: [DONE]\n\n"),
    ("/v1/responses", "response.completed"),
    ("/v1/messages", "message_stop"),
];

fn ask(path: &str, stream: bool) -> Request<Full<Bytes>> {
    let hello = match path {
        "/v1/responses" => r#""input":"hello""#,
        _ => r#""max_tokens":16,"messages":[{"role":"user","content":"hello"}]"#,
    };
    let body = format!(r#"{{"model":"acme/swift-1","stream":{stream},{hello}}}"#);
    Request::post(path).header("content-type", "application/json").body(Full::from(body)).unwrap()
}

/// A simulator with these faults of the keys a and b, and a balancer before it that asks those first.
fn world(what: &What) -> (Simulator, Balancer<Full<Bytes>>) {
    let mut scenario = Scenario::from_toml(THREE_KEYS).unwrap();
    scenario.faults = ["a", "b"].map(|key| Fault::new(what.clone()).key(key)).into();
    let simulator = Simulator::new(scenario).unwrap();
    let keys = simulator
        .keys()
        .into_iter()
        .map(|key| ApiKey::new(&key.secret).unwrap().label(key.label.clone()).account(key.account.clone()));
    let pool = Pool::new(keys).unwrap();
    let balancer = Balancer::builder(pool).pick(RoundRobin::default()).build(OpenRouter::new(simulator.service()));
    (simulator, balancer)
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_the_first_token_on_two_of_three_keys_is_one_clean_answer() {
    let forms = [InBand::Standard, InBand::Choice, InBand::EmptyChoices, InBand::StringCode, InBand::Bare];
    let faults = forms
        .into_iter()
        .flat_map(|form| [402, 429, 502, 503].map(|code| What::InBand { form, after_tokens: 0, code }));
    for what in faults {
        for (path, end) in ENDS {
            for stream in [true, false] {
                let (simulator, balancer) = world(&what);
                let Ok(response) = balancer.clone().oneshot(ask(path, stream)).await;
                let of = format!("{what:?} {path} {stream}");
                assert_eq!(response.status(), 200, "{of}");
                let (text, clean) = read(response.into_body()).await;
                assert!(clean && !text.contains("\"error\":{"), "{of}: {text}");
                assert!(!stream || text.contains(end), "{of}: {text}");
                let counts = simulator.counts();
                let made = counts.attempts;
                assert!(made > 1 && counts.keys.values().all(|key| key.attempts <= 1), "{of}");
                let snapshot = balancer.handle().snapshot();
                assert_eq!((snapshot.total.attempts, snapshot.total.in_flight), (made, 0), "{of}");
                assert_eq!(snapshot.total.outcomes["complete"], 1, "{of}");
                let cost: f64 = snapshot.endpoints.iter().map(|endpoint| endpoint.measures.cost_usd).sum();
                let billed: f64 = ["a", "b", "c"].iter().map(|key| counts.keys[*key].cost).sum();
                assert!((cost - billed).abs() < 1e-9 && billed > 0.0, "{of}: {cost} of {billed}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_before_it_began_is_asked_for_once_more() {
    let (simulator, balancer) = world(&What::Eof { after_tokens: 0 });
    let Ok(response) = balancer.oneshot(ask(ENDS[0].0, true)).await;
    let (text, _) = read(response.into_body()).await;
    assert!(!text.contains("[DONE]"), "the second attempt ends early as well: {text}");
    assert_eq!(simulator.counts().attempts, 2);
}

#[tokio::test(start_paused = true)]
async fn r077_a_client_that_leaves_a_kept_alive_stream_is_seen_upstream() {
    let (simulator, balancer) = world(&What::Stall);
    let start = Instant::now();
    let Ok(response) = KeepAliveLayer::new().layer(balancer.clone()).oneshot(ask(ENDS[0].0, true)).await;
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert_eq!(balancer.handle().snapshot().total.in_flight, 1);
    drop(response);
    assert_eq!(balancer.handle().snapshot().total.in_flight, 0);
    assert_eq!(simulator.counts().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn slow_models_are_waited_for_in_the_open() {
    let slow = What::Slow { factor: 1.0, accept_ms: 20_000.0, first_token_ms: 60_000.0 };
    for (path, end) in ENDS {
        let (_, balancer) = world(&slow);
        let Ok(response) = KeepAliveLayer::new().layer(balancer).oneshot(ask(path, true)).await;
        let (text, clean) = read(response.into_body()).await;
        assert!(clean && text.starts_with(&COMMENT.repeat(5)) && text.contains(end), "{text}");
    }
}
