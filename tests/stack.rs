//! The whole stack against the simulator, which does the counting.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::ServiceExt;
use tower_openrouter::{
    ApiKey, Balancer, OpenRouter,
    select::{Pool, RoundRobin},
    simulator::{Fault, Reason, Scenario, Simulator, What},
    stack::BalancerBuilder,
};

type Stack = Balancer<Full<Bytes>>;

const MODEL: &str = "acme/swift-1";

/// Three accounts, five keys, one model on two providers without limits.
const FIVE_KEYS: &str = r#"
accounts = [{ name = "a", credits = 100.0 }, { name = "b", credits = 100.0 }, { name = "c", credits = 100.0 }]
keys = [
  { label = "a-1", account = "a" }, { label = "a-2", account = "a" },
  { label = "b-1", account = "b" }, { label = "b-2", account = "b" },
  { label = "c-1", account = "c" },
]
models = [{ id = "acme/swift-1" }, { id = "acme/other" }]
[[endpoints]]
model = "acme/swift-1"
provider = "One"
prompt_price = 0.2
completion_price = 0.6
accept_ms = 50
first_token_ms = 100
tokens_per_second = 200
jitter = 0.3
[[endpoints]]
model = "acme/other"
provider = "Two"
accept_ms = 50
first_token_ms = 100
tokens_per_second = 200
[keep]
log = 50000
requests = 100
"#;

/// The simulator with latencies, so that requests overlap, and a pool of all its keys with their accounts.
fn upstream(scenario: Scenario) -> (Simulator, Pool) {
    let simulator = Simulator::new(scenario).unwrap();
    let keys = simulator
        .keys()
        .into_iter()
        .map(|key| ApiKey::new(&key.secret).unwrap().label(key.label.clone()).account(key.account.clone()));
    let pool = Pool::new(keys).unwrap();
    (simulator, pool)
}

fn stack<P: tower_openrouter::select::Pick>(simulator: &Simulator, builder: BalancerBuilder<P>) -> Stack {
    builder.build(OpenRouter::new(simulator.service()))
}

fn chat(model: &str) -> Request<Full<Bytes>> {
    let body = format!(r#"{{"model":"{model}","max_tokens":16,"messages":[{{"role":"user","content":"hello"}}]}}"#);
    Request::post("/v1/chat/completions").header("content-type", "application/json").body(Full::from(body)).unwrap()
}

/// The same as a stream, whose head is there while the body still flows.
fn streamed(model: &str) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":16,"messages":[{{"role":"user","content":"hello"}}],"stream":true}}"#
    );
    chat(model).map(|_| Full::from(body))
}

/// Sends `count` requests, `at_once` at a time, reads every body, and counts the statuses.
async fn send(stack: &Stack, model: &str, count: usize, at_once: usize) -> BTreeMap<u16, usize> {
    let statuses = stream::iter(0..count)
        .map(|_| {
            let (stack, request) = (stack.clone(), chat(model));
            async move {
                let response = stack.oneshot(request).await.unwrap();
                let status = response.status().as_u16();
                response.into_body().collect().await.expect("a body that ends well");
                status
            }
        })
        .buffer_unordered(at_once);
    statuses
        .fold(BTreeMap::new(), |mut counts, status| async move {
            *counts.entry(status).or_insert(0) += 1;
            counts
        })
        .await
}

fn five_keys() -> Scenario {
    Scenario::from_toml(FIVE_KEYS).unwrap()
}

/// When attempts on these keys were refused for the first time, and how many started after that.
fn after_first_refusal(simulator: &Simulator, keys: &[&str]) -> (usize, usize) {
    let log = simulator.log();
    let of_scope = || log.iter().filter(|attempt| keys.contains(&attempt.key.as_deref().unwrap_or_default()));
    let first = of_scope().filter(|attempt| attempt.status >= Some(400)).filter_map(|attempt| attempt.answered).min();
    let first = first.expect("was refused at least once");
    (of_scope().count(), of_scope().filter(|attempt| attempt.at > first).count())
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_requests_see_no_error_though_half_of_the_keys_are_out() {
    let (simulator, pool) = upstream(five_keys());
    simulator.disable_key("a-1", true).unwrap();
    simulator.set_key_cap("b-1", Some(0.0)).unwrap();
    simulator.set_credits("c", 0.0).unwrap();
    let stack = stack(&simulator, Balancer::builder(pool).pick(RoundRobin::default()));
    let start = Instant::now();
    assert_eq!(send(&stack, MODEL, 10_000, 64).await, BTreeMap::from([(200, 10_000)]));
    assert!(start.elapsed() < Duration::from_secs(60), "no re-check is due yet: {:?}", start.elapsed());
    for scope in [["a-1"], ["b-1"], ["c-1"]] {
        let (attempts, late) = after_first_refusal(&simulator, &scope);
        assert_eq!(late, 0, "{scope:?}");
        assert!(attempts <= 64, "{scope:?}: {attempts}");
    }
    let counts = simulator.counts();
    assert_eq!((counts.in_flight, counts.by_status[&200]), (0, 10_000));
    for endpoint in stack.handle().pool().endpoints().iter() {
        assert_eq!(endpoint.figures().in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn r023_an_account_without_credit_costs_one_attempt_for_all_its_keys() {
    let (simulator, pool) = upstream(five_keys());
    simulator.set_credits("a", 0.0).unwrap();
    let stack = stack(&simulator, Balancer::builder(pool).pick(RoundRobin::default()));
    assert_eq!(send(&stack, MODEL, 100, 1).await, BTreeMap::from([(200, 100)]));
    assert_eq!(after_first_refusal(&simulator, &["a-1", "a-2"]), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_providers_storm_of_429_benches_no_key_and_stays_in_the_budget() {
    for retry_after in [None, Some(2)] {
        let (simulator, pool) = upstream(five_keys());
        let stack = stack(&simulator, Balancer::builder(pool.clone()));
        send(&stack, MODEL, 100, 10).await;
        let before = simulator.counts().attempts;
        simulator.inject(Fault::new(What::PoolFull { retry_after }).model(MODEL).window(0.0, 30.0)).unwrap();
        let start = Instant::now();
        let storm = send(&stack, MODEL, 1000, 64);
        let watch = async {
            for _ in 0..30 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                for endpoint in pool.endpoints().iter() {
                    assert!(pool.resting(endpoint).is_none(), "{endpoint:?} rests");
                    assert!(endpoint.shut_until(Instant::now()).is_none(), "{endpoint:?} is open");
                }
                let other = stack.clone().oneshot(chat("acme/other")).await.unwrap();
                assert_eq!(other.status(), StatusCode::OK, "another model is not held back");
            }
        };
        let (statuses, ()) = tokio::join!(storm, watch);
        let attempts = simulator.counts().attempts - before;
        let requests = 1000 + 30;
        let budget = requests as f64 * 1.2 + 10.0 * start.elapsed().as_secs_f64();
        assert!((attempts as f64) < budget, "{attempts} attempts, {statuses:?}");
        assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
        for endpoint in pool.endpoints().iter() {
            assert_eq!(stack.handle().breaker(endpoint).unwrap().snapshot().trips, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_key_that_alone_fails_is_opened_and_a_pool_that_fails_together_is_not() {
    for (key, opened) in [(Some("a-1"), vec!["a-1"]), (None, vec![])] {
        let (simulator, pool) = upstream(five_keys());
        let stack = stack(&simulator, Balancer::builder(pool.clone()));
        send(&stack, MODEL, 50, 5).await;
        let mut fault = Fault::new(What::Status { status: 502, retry_after: None }).window(0.0, 20.0);
        fault.key = key.map(Into::into);
        simulator.inject(fault).unwrap();
        send(&stack, MODEL, 200, 10).await;
        let tripped: Vec<_> = pool
            .endpoints()
            .iter()
            .filter(|endpoint| stack.handle().breaker(endpoint).unwrap().snapshot().trips > 0)
            .map(|endpoint| endpoint.key().name().to_owned())
            .collect();
        assert_eq!(tripped, opened);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_fails_for_all_keys_rests_and_is_not_hammered() {
    let (simulator, pool) = upstream(five_keys());
    let stack = stack(&simulator, Balancer::builder(pool));
    send(&stack, MODEL, 50, 5).await;
    simulator.inject(Fault::new(What::Status { status: 502, retry_after: None }).window(0.0, 25.0)).unwrap();
    let (before, start) = (simulator.counts().attempts, Instant::now());
    send(&stack, MODEL, 500, 20).await;
    let log = simulator.log();
    let refused = log[before as usize..].iter().filter(|attempt| attempt.status == Some(502)).count();
    assert!(start.elapsed() > Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(refused < 200, "{refused} attempts met the outage");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_wait_gets_the_failing_upstreams_own_answer() {
    let (simulator, pool) = upstream(five_keys());
    simulator.inject(Fault::new(What::Status { status: 500, retry_after: None })).unwrap();
    let stack = stack(&simulator, Balancer::builder(pool).max_wait(Duration::from_millis(200)));
    assert_eq!(send(&stack, MODEL, 30, 3).await, BTreeMap::from([(500, 30)]));
}

#[tokio::test(start_paused = true)]
async fn r022_who_cannot_wait_longer_tries_a_key_it_has_not_met_before_one_that_failed_it() {
    for _ in 0..300 {
        let (simulator, pool) = upstream(five_keys());
        for label in ["b-2", "c-1"] {
            pool.remove(label);
        }
        for label in ["a-1", "a-2"] {
            let mut fault = Fault::new(What::Status { status: 502, retry_after: None });
            fault.key = Some(label.into());
            simulator.inject(fault).unwrap();
        }
        let builder = Balancer::builder(pool).pick(RoundRobin::default()).max_wait(Duration::from_millis(200));
        // the pool of the provider rests when the third attempt begins, and the wait for it may end just after it does
        assert_eq!(send(&stack(&simulator, builder), MODEL, 1, 1).await, BTreeMap::from([(200, 1)]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_platform_incident_of_401_on_every_key_kills_none() {
    let (simulator, pool) = upstream(five_keys());
    let stack = stack(&simulator, Balancer::builder(pool.clone()));
    send(&stack, MODEL, 50, 5).await;
    simulator.inject(Fault::new(What::Unauthorized).window(0.0, 20.0)).unwrap();
    let before = simulator.counts().attempts;
    let statuses = send(&stack, MODEL, 200, 10).await;
    let attempts = simulator.counts().attempts - before;
    assert!(attempts < 300, "{attempts} attempts for {statuses:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    for endpoint in pool.endpoints().iter() {
        assert!(pool.resting(endpoint).is_none(), "{endpoint:?}");
    }
    assert_eq!(send(&stack, MODEL, 200, 10).await, BTreeMap::from([(200, 200)]));
}

#[tokio::test(start_paused = true)]
async fn a_request_too_dear_for_every_account_gets_the_original_answer() {
    let (simulator, pool) = upstream(five_keys());
    simulator.inject(Fault::new(What::Refuse { reason: Reason::CannotAfford })).unwrap();
    let stack = stack(&simulator, Balancer::builder(pool.clone()));
    assert_eq!(send(&stack, MODEL, 1, 1).await, BTreeMap::from([(402, 1)]));
    assert_eq!(simulator.counts().attempts, 3, "one for each account");
    assert!(pool.endpoints().iter().all(|endpoint| pool.resting(endpoint).is_none()), "cheaper ones may pass");
}

#[tokio::test(start_paused = true)]
async fn r061_what_is_the_requests_own_fault_goes_to_one_key_and_hurts_none() {
    for (reason, status) in [
        (Reason::Moderation, 403),
        (Reason::Guardrail, 403),
        (Reason::Geo, 403),
        (Reason::Parameters, 404),
        (Reason::ProviderBadRequest, 400),
    ] {
        let (simulator, pool) = upstream(five_keys());
        simulator.inject(Fault::new(What::Refuse { reason })).unwrap();
        let stack = stack(&simulator, Balancer::builder(pool.clone()));
        assert_eq!(send(&stack, MODEL, 20, 1).await, BTreeMap::from([(status, 20)]), "{reason:?}");
        assert_eq!(simulator.counts().attempts, 20, "{reason:?}");
        for endpoint in pool.endpoints().iter() {
            assert!(pool.resting(endpoint).is_none());
            assert_eq!(endpoint.figures().load(Instant::now()), 0.0, "{reason:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r079_the_books_agree_with_the_other_side() {
    let (simulator, pool) = upstream(five_keys());
    simulator.disable_key("a-1", true).unwrap();
    let stack = stack(&simulator, Balancer::builder(pool));
    send(&stack, MODEL, 500, 20).await;
    let snapshot = serde_json::to_value(stack.handle().snapshot()).unwrap();
    let counts = simulator.counts();
    for endpoint in snapshot["endpoints"].as_array().unwrap() {
        let label = endpoint["key"].as_str().unwrap();
        assert_eq!(endpoint["attempts"].as_u64(), Some(counts.keys[label].attempts), "{endpoint}");
        assert!((endpoint["cost_usd"].as_f64().unwrap() - counts.keys[label].cost).abs() < 1e-6, "{endpoint}");
    }
    assert_eq!(snapshot["retry"]["requests"], 500);
    assert_eq!(snapshot["retry"]["attempts"].as_u64(), Some(counts.attempts));
}

#[tokio::test(start_paused = true)]
async fn a_lone_keys_refusal_says_when_the_key_comes_back() {
    let simulator = Simulator::new(five_keys()).unwrap();
    simulator.disable_key("a-1", true).unwrap();
    let key = ApiKey::new(&simulator.keys()[0].secret).unwrap().label("a-1");
    let stack = stack(&simulator, Balancer::builder(Pool::new([key]).unwrap()));
    let answer = stack.clone().oneshot(chat(MODEL)).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"60".parse().unwrap())
    );
    let stats = serde_json::to_value(stack.handle().snapshot()).unwrap();
    assert_eq!(stats["retry"]["attempts"], 1, "what selection refused was no attempt: {stats}");
}

#[tokio::test(start_paused = true)]
async fn stacks_over_pools_that_share_their_keys_share_limits_and_breakers() {
    let (simulator, pool) = upstream(five_keys());
    let key = pool.endpoints()[0].key().clone();
    let common = Balancer::builder(pool.clone()).max_in_flight(1).unwrap().max_wait(Duration::ZERO);
    let [group, twin] = [0, 1].map(|_| common.clone().pool(pool.share([key.clone()]).unwrap()));
    let (group, twin) = (stack(&simulator, group), stack(&simulator, twin));
    let running = group.clone().oneshot(streamed(MODEL)).await.unwrap();
    assert_eq!(running.status(), StatusCode::OK);
    assert_eq!(send(&twin, MODEL, 1, 1).await, BTreeMap::from([(429, 1)]), "its one request runs elsewhere");

    let next = pool.share([key.clone()]).unwrap();
    let keeping = Balancer::builder(next.clone()).max_wait(Duration::ZERO);
    let keeping = stack(&simulator, keeping.max_in_flight(1).unwrap().keep(&common.handle()));
    assert_eq!(send(&keeping, MODEL, 1, 1).await, BTreeMap::from([(429, 1)]), "it runs on");
    let endpoint = &next.endpoints()[0];
    common.handle().breaker(endpoint).unwrap().isolate();
    drop(running);
    assert_eq!(send(&keeping, MODEL, 1, 1).await, BTreeMap::from([(429, 1)]), "one breaker for all");
    keeping.handle().breaker(endpoint).unwrap().reset();
    for stack in [&group, &twin, &keeping] {
        assert_eq!(send(stack, MODEL, 1, 1).await, BTreeMap::from([(200, 1)]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_heeds_its_own_caps() {
    let (simulator, pool) = upstream(five_keys());
    let key = pool.endpoints()[0].key().clone();
    let old = Balancer::builder(pool.share([key.clone()]).unwrap()).max_in_flight(1).unwrap().max_wait(Duration::ZERO);
    let old = stack(&simulator, old);
    let running = old.clone().oneshot(streamed(MODEL)).await.unwrap();
    let wider = Balancer::builder(old.handle().pool().share([key]).unwrap()).max_in_flight(2).unwrap();
    let wider = stack(&simulator, wider.max_wait(Duration::ZERO).keep(old.handle()));
    let second = wider.clone().oneshot(streamed(MODEL)).await.unwrap();
    assert_eq!((running.status(), second.status()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(send(&wider, MODEL, 1, 1).await, BTreeMap::from([(429, 1)]), "two run");
}

thread_local! {
    /// When the simulator started, and what its clock showed.
    static START: std::cell::Cell<Option<(Instant, Duration)>> = const { std::cell::Cell::new(None) };
}

/// The simulator's own time, by which it names resets.
fn wall_clock() -> std::time::SystemTime {
    let (start, shown) = START.get().unwrap();
    std::time::UNIX_EPOCH + shown + start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_meets_a_limit_of_the_only_account_waits_for_it_as_those_who_come_later_do() {
    for (limit, least) in [(Reason::PlatformLimit, 59), (Reason::InFlightBudget, 3)] {
        let (simulator, pool) = upstream(five_keys());
        START.set(Some((Instant::now(), Duration::from_millis(simulator.wall_clock_ms() as u64))));
        for label in ["b-1", "b-2", "c-1"] {
            pool.remove(label);
        }
        let leaf = OpenRouter::builder().wall_clock(wall_clock).build(simulator.service()).unwrap();
        let stack: Stack = Balancer::builder(pool).max_wait(Duration::from_secs(90)).build(leaf);
        simulator.inject(Fault::new(What::Refuse { reason: limit }).times(1)).unwrap();
        let start = Instant::now();
        let (first, second) = tokio::join!(stack.clone().oneshot(chat(MODEL)), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stack.clone().oneshot(chat(MODEL)).await
        });
        assert_eq!((first.unwrap().status(), second.unwrap().status()), (StatusCode::OK, StatusCode::OK), "{limit:?}");
        assert!(start.elapsed() >= Duration::from_secs(least), "{limit:?}: {:?}", start.elapsed());
        assert_eq!(simulator.counts().attempts, 3, "{limit:?}");
    }
}
