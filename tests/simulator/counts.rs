//! What the other side saw, and that it sees the same every time.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::time::advance;
use tower_openrouter::simulator::{Ending, Fault, Keep, Scenario, ScenarioError, SimKey, Simulator, What};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_by_status_key_and_account() {
    let simulator = simulator(scenario());
    chat(&simulator, "a1", PAID).await;
    chat(&simulator, "a2", PAID).await;
    chat(&simulator, "a2", "no/such").await;
    let nobody = Request::post("/api/v1/chat/completions").body(Full::from("{}")).expect("a valid request");
    call(&simulator, nobody).await;
    call(&simulator, get(&simulator, "a1", "key")).await;
    let counts = simulator.counts();
    assert_eq!((counts.attempts, counts.lookups, counts.unknown_credentials), (4, 1, 1));
    assert_eq!(counts.by_status.into_iter().collect::<Vec<_>>(), [(200, 2), (400, 1), (401, 1)]);
    assert_eq!(counts.keys["a2"].by_status.clone().into_iter().collect::<Vec<_>>(), [(200, 1), (400, 1)]);
    assert_eq!((counts.accounts["alpha"].attempts, counts.accounts["beta"].attempts), (3, 0));
    assert_eq!((counts.finished, counts.in_flight, counts.peak_in_flight), (4, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn in_flight_lasts_until_the_body_ends_or_is_dropped() {
    let mut scenario = scenario();
    scenario.endpoints[0].first_token_ms = 1_000.0;
    let simulator = simulator(scenario);
    let first = stream(&simulator, "a1", PAID).await;
    let second = stream(&simulator, "a2", PAID).await;
    let third = stream(&simulator, "b1", PAID).await;
    let counts = simulator.counts();
    assert_eq!((counts.in_flight, counts.accounts["alpha"].in_flight, counts.keys["a1"].in_flight), (3, 2, 1));
    read(first).await;
    assert_eq!(simulator.counts().in_flight, 2);
    drop((second, third));
    let counts = simulator.counts();
    assert_eq!((counts.in_flight, counts.peak_in_flight, counts.finished, counts.abandoned), (0, 3, 1, 2));
    assert_eq!(counts.accounts["alpha"].peak_in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_each_attempt_in_virtual_time_up_to_its_capacity() {
    let mut scenario = scenario();
    scenario.keep = Keep { log: 2, ..Keep::default() };
    scenario.endpoints[0].accept_ms = 250.0;
    scenario.endpoints[0].first_token_ms = 750.0;
    let simulator = simulator(scenario);
    chat(&simulator, "a1", PAID).await;
    advance(seconds(9)).await;
    chat(&simulator, "b1", PAID).await;
    drop(stream(&simulator, "a2", PAID).await);
    let log = simulator.log();
    assert_eq!(log.len(), 2, "the first went");
    let [whole, left] = log.as_slice() else { panic!("{log:?}") };
    assert_eq!((whole.number, whole.at, whole.status), (1, seconds(10), Some(200)));
    assert_eq!(whole.answered.map(|at| at.as_millis()), Some(10_250));
    assert_eq!(whole.ended, Some(seconds(11)));
    assert_eq!((whole.key.as_deref(), whole.account.as_deref()), (Some("b1"), Some("beta")));
    assert_eq!((whole.model.as_deref(), whole.provider.as_deref()), (Some(PAID), Some("DeepInfra")));
    assert_eq!((whole.ending, left.ending), (Ending::Finished, Ending::Abandoned));
}

#[tokio::test(start_paused = true)]
async fn requests_are_kept_as_they_came_without_secrets() {
    let mut scenario = scenario();
    scenario.keep.requests = 1;
    let simulator = simulator(scenario);
    let request = |authorization: &str| {
        Request::post("/api/v1/chat/completions")
            .header("authorization", authorization)
            .header("x-title", "Test")
            .body(Full::from("hello"))
            .expect("a valid request")
    };
    call(&simulator, request("Bearer leaked-client-secret")).await;
    let seen = simulator.requests();
    assert_eq!(seen[0].headers["authorization"], "<unknown>");
    call(&simulator, request(&format!("Bearer {}", secret(&simulator, "a1")))).await;
    let seen = simulator.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0].body[..], &seen[0].headers["x-title"]), (&b"hello"[..], &"Test".parse().expect("valid")));
    assert_eq!(seen[0].headers["authorization"], "<a1>");
}

/// Everything one run says, for a seed.
async fn transcript(seed: u64) -> Vec<Bytes> {
    let simulator = simulator(Scenario { seed, ..Scenario::default() });
    simulator
        .inject(Fault::new(What::Status { status: 502, retry_after: None }).probability(0.3))
        .expect("a valid fault");
    let mut said = Vec::new();
    for index in 0..40 {
        let label = ["alpha-1", "beta-1", "gamma-1"][index % 3];
        let model = ["acme/swift-1", "acme/deep-2", "acme/swift-1:free"][index % 3];
        let response = stream(&simulator, label, model).await;
        said.push(Bytes::from(format!("{:?}", response.headers())));
        said.push(response.into_body().collect().await.expect("a body").to_bytes());
    }
    said.push(Bytes::from(format!("{:?}", simulator.log())));
    said
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_says_the_same_bytes() {
    assert_eq!(transcript(7).await, transcript(7).await);
    assert_ne!(transcript(7).await, transcript(8).await);
}

#[tokio::test(start_paused = true)]
async fn debug_output_has_no_secret() {
    let simulator = simulator(scenario());
    let response = stream(&simulator, "a1", PAID).await;
    let keys = simulator.keys();
    let own = SimKey { secret: Some(keys[0].secret.clone()), ..SimKey::new("x", "alpha") };
    let all = format!("{simulator:?} {keys:?} {own:?} {response:?} {:?}", simulator.service());
    assert!(!all.contains("sk-or-v1"), "{all}");
}

#[tokio::test(start_paused = true)]
async fn keys_and_money_change_while_it_runs() {
    let simulator = simulator(scenario());
    simulator.disable_key("a1", true).expect("a key");
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 401);
    simulator.disable_key("a1", false).expect("a key");
    simulator.set_key_cap("a1", Some(0.0)).expect("a key");
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 403);
    simulator.set_key_cap("a1", None).expect("a key");
    assert_eq!(chat(&simulator, "a1", PAID).await.status, 200);
    let added = simulator.add_key(&SimKey::new("a3", "alpha")).expect("a new key");
    assert_eq!(added.secret.len(), 73);
    assert_eq!(chat(&simulator, "a3", PAID).await.status, 200);
    assert!(simulator.add_key(&SimKey::new("a3", "alpha")).is_err());
    assert!(simulator.disable_key("nobody", true).is_err());
    assert!(simulator.set_credits("nobody", 1.0).is_err());
}

#[test]
fn mistakes_in_a_scenario_name_their_field() {
    let field = |change: &dyn Fn(&mut Scenario)| {
        let mut scenario = scenario();
        change(&mut scenario);
        Simulator::new(scenario).expect_err("a mistake").field().to_owned()
    };
    assert_eq!(field(&|s| s.keys[1].account = "nobody".to_owned()), "keys[1].account");
    assert_eq!(field(&|s| s.keys[1].label = "a1".to_owned()), "keys[1].label");
    assert_eq!(field(&|s| s.keys[2].workspace = Some("w".to_owned())), "keys[2].workspace");
    assert_eq!(field(&|s| s.keys[0].cap = Some(f64::NAN)), "keys[0].cap");
    assert_eq!(field(&|s| s.models[0].id = "swift".to_owned()), "models[0].id");
    assert_eq!(field(&|s| s.endpoints[1].prompt_price = 1.0), "endpoints[1].prompt_price");
    assert_eq!(field(&|s| s.endpoints[0].jitter = 2.0), "endpoints[0].jitter");
    assert_eq!(field(&|s| s.start = Some("yesterday".to_owned())), "start");
    assert_eq!(field(&|s| s.faults = vec![Fault::new(What::Html { status: 200 })]), "faults[0].what");
    let text = |text: &str| Scenario::from_toml(text).expect_err("a mistake").to_string();
    assert!(text("accounts = [{ nmae = \"a\" }]").contains("nmae"));
    let _: ScenarioError = Scenario::from_toml("seed = -1").expect_err("a mistake");
}
