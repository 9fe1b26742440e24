//! What is asked about keys and accounts beside the traffic, in virtual time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::{BoxError, ServiceExt, service_fn};
use tower_openrouter::{
    AccountPoller, ApiKey, Balancer, OpenRouter, Pool,
    endpoint::{Money, Spendable},
    openrouter::{AccountClient, LookupError},
    outcome::Cause,
    select::{CreditFloor, RoundRobin},
    simulator::{Fault, Scenario, SimKey, Simulator, Stale, What},
};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Two accounts: `alpha` with two keys, one of them capped, and `beta`, an organisation, with one.
fn scenario() -> Scenario {
    Scenario::from_toml(
        r#"
        accounts = [{ name = "alpha", credits = 10.0, used = 4.0 }, { name = "beta", credits = 3.0, organization = true }]
        keys = [
            { label = "a1", account = "alpha", cap = 2.0, reset = "daily", used = 0.5 },
            { label = "a2", account = "alpha" },
            { label = "b1", account = "beta" },
        ]
        models = [{ id = "acme/swift", max_output = 1000 }]
        endpoints = [{ model = "acme/swift", provider = "DeepInfra", prompt_price = 1.0, completion_price = 2.0 }]
        "#,
    )
    .unwrap()
}

struct World {
    simulator: Simulator,
    pool: Pool,
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let simulator = Simulator::new(scenario).unwrap();
        let keys = simulator.keys().into_iter().map(|key| ApiKey::new(key.secret).unwrap().label(key.label));
        let pool = Pool::new(keys).unwrap();
        Self { simulator, pool }
    }

    fn poll(&self) -> JoinHandle<()> {
        tokio::spawn(AccountPoller::new(&self.pool, OpenRouter::new(self.simulator.service())).run())
    }

    fn spendable(&self, label: &str) -> Spendable {
        let endpoints = self.pool.endpoints();
        let endpoint = endpoints.iter().find(|endpoint| endpoint.key().name() == label).expect("a key of this label");
        endpoint.credit().spendable(Instant::now())
    }

    fn account(&self, label: &str) -> Option<String> {
        let endpoints = self.pool.endpoints();
        endpoints.iter().find(|endpoint| endpoint.key().name() == label)?.account().map(str::to_owned)
    }

    fn resting(&self, label: &str) -> Option<Cause> {
        let endpoints = self.pool.endpoints();
        let endpoint = endpoints.iter().find(|endpoint| endpoint.key().name() == label)?;
        self.pool.resting(endpoint).map(|resting| resting.cause)
    }

    fn balancer(&self) -> Balancer<Full<Bytes>> {
        Balancer::builder(self.pool.clone())
            .pick(RoundRobin::default())
            .build(OpenRouter::new(self.simulator.service()))
    }

    fn lookups(&self) -> u64 {
        self.simulator.counts().lookups
    }
}

async fn chat(balancer: &Balancer<Full<Bytes>>) -> u16 {
    let body = r#"{"model":"acme/swift","max_tokens":10,"messages":[{"role":"user","content":"Hi"}]}"#;
    let request = Request::post("/v1/chat/completions").body(Full::from(body)).unwrap();
    let response = balancer.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

fn usd(usd: f64) -> Spendable {
    Spendable::Money(Money::from_usd(usd))
}

#[tokio::test(start_paused = true)]
async fn caps_balances_accounts_and_prices_are_known_within_seconds() {
    let world = World::new(scenario());
    assert_eq!(world.spendable("a1"), Spendable::Unknown);
    let _poller = world.poll();
    sleep(3 * SECOND).await;
    assert_eq!(world.spendable("a1"), usd(1.5), "its cap");
    assert_eq!(world.spendable("a2"), usd(6.0), "its account's balance");
    assert_eq!(world.spendable("b1"), usd(3.0));
    assert_eq!(world.account("a1"), world.account("a2"));
    assert!(world.account("b1").is_some_and(|account| account.starts_with("org_")));
    let price = world.pool.prices().get("acme/swift").expect("a price");
    assert_eq!(price.worst_case(0, None, u64::MAX), Money::from_usd(0.002));
    assert_eq!(world.lookups(), 1 + 3 + 2, "the models, three keys, two accounts");
}

#[tokio::test(start_paused = true)]
async fn r085_what_changes_elsewhere_is_known_after_an_interval() {
    let mut scenario = scenario();
    scenario.stale = Stale { cap_ms: 5_000.0, ..Stale::default() };
    let world = World::new(scenario);
    let _poller = world.poll();
    sleep(3 * SECOND).await;
    world.simulator.set_key_cap("a1", Some(5.0)).unwrap();
    world.simulator.set_credits("beta", 0.0).unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(world.spendable("a1"), usd(1.5), "nobody has asked since");
    // 60 s with jitter of a fifth
    sleep(72 * SECOND).await;
    assert_eq!(world.spendable("a1"), usd(4.5));
    assert_eq!(world.spendable("b1"), usd(0.0));
}

#[tokio::test(start_paused = true)]
async fn r085_a_key_rests_below_the_floor_and_is_back_when_a_poll_finds_it_above() {
    let world = World::new(scenario());
    let _poller = world.poll();
    let leaf = OpenRouter::new(world.simulator.service());
    let floor = CreditFloor::new(Money::from_usd(1.0));
    let balancer = Balancer::builder(world.pool.clone()).filter(floor).pick(RoundRobin::default()).build(leaf);
    let served = async |label: &str| {
        let attempts = || world.simulator.counts().keys[label].attempts;
        let before = attempts();
        for _ in 0..6 {
            assert_eq!(chat(&balancer).await, 200);
        }
        attempts() - before
    };
    sleep(3 * SECOND).await;
    assert_eq!(served("b1").await, 2);
    world.simulator.set_credits("beta", 0.5).unwrap();
    sleep(72 * SECOND).await;
    assert_eq!(served("b1").await, 0);
    world.simulator.set_credits("beta", 5.0).unwrap();
    sleep(72 * SECOND).await;
    assert_eq!(served("b1").await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_credits_endpoint_leaves_the_balance_unknown_and_the_keys_caps_known() {
    let mut scenario = scenario();
    scenario.wire.credits_management_only = true;
    let world = World::new(scenario);
    let _poller = world.poll();
    sleep(MINUTE * 10).await;
    assert_eq!(world.spendable("a1"), usd(1.5));
    assert_eq!(world.spendable("a2"), Spendable::Unknown, "unlimited by its key, and who knows by its account");
}

#[tokio::test(start_paused = true)]
async fn r086_a_poller_that_fails_stops_no_traffic_and_forgets_nothing() {
    for what in [
        What::Stall,
        What::Reset,
        What::Html { status: 502 },
        What::Status { status: 500, retry_after: None },
        What::Status { status: 429, retry_after: Some(30) },
        What::Raw { status: 200, content_type: "application/json".into(), body: "{\"data\":".into() },
        What::Raw { status: 200, content_type: "application/json".into(), body: "[7]".into() },
    ] {
        let world = World::new(scenario());
        let troubled = Simulator::new(scenario()).unwrap();
        let poller = AccountPoller::new(&world.pool, OpenRouter::new(troubled.service()));
        let _poller = tokio::spawn(poller.run());
        let balancer = world.balancer();
        sleep(3 * SECOND).await;
        assert_eq!(world.spendable("a1"), usd(1.5));
        troubled.inject(Fault::new(what.clone())).unwrap();
        let before = troubled.counts().lookups;
        for _ in 0..60 {
            assert_eq!(chat(&balancer).await, 200, "{what:?}");
            sleep(MINUTE).await;
        }
        let asked = troubled.counts().lookups - before;
        // six questions, each after 1, 2, 4, 8, 15, 15, … minutes
        assert!((6..=6 * 9).contains(&asked), "{asked} questions in an hour of {what:?}");
        assert!(matches!(world.spendable("a1"), Spendable::Money(left) if left > Money::ZERO), "{what:?}");
        assert!(["a1", "a2", "b1"].iter().all(|key| world.resting(key).is_none()), "{what:?}");
        assert_eq!(balancer.handle().snapshot().total.attempts, 60, "no question counts as an attempt");
    }
}

#[tokio::test(start_paused = true)]
async fn r087_nobody_is_asked_more_than_about_once_an_interval() {
    let mut scenario = scenario();
    scenario.keys.extend((0..97).map(|number| SimKey::new(format!("k{number}"), "beta")));
    let world = World::new(scenario);
    let _poller = world.poll();
    let mut before = 0;
    let mut most = 0;
    for _ in 0..300 {
        sleep(SECOND).await;
        let asked = world.lookups();
        most = most.max(asked - before);
        before = asked;
    }
    // a hundred keys and two accounts a minute, and the models once
    let mean = before as f64 / 300.0;
    assert!((1.6..2.1).contains(&mean), "{mean} a second");
    assert!(most <= 4, "{most} in one second");
}

#[tokio::test(start_paused = true)]
async fn r089_it_ends_with_the_pool_and_follows_keys_that_come_and_go() {
    let world = World::new(scenario());
    let poller = world.poll();
    sleep(3 * SECOND).await;
    let added = world.simulator.add_key(&SimKey { cap: Some(0.25), ..SimKey::new("new", "alpha") }).unwrap();
    world.pool.add(ApiKey::new(added.secret).unwrap().label("new"));
    sleep(SECOND).await;
    assert_eq!(world.spendable("new"), usd(0.25), "asked about at once");

    for label in ["a1", "a2", "new"] {
        world.pool.remove(label);
    }
    let before = world.lookups();
    sleep(10 * MINUTE).await;
    let asked = world.lookups() - before;
    assert!((16..=26).contains(&asked), "one key and one account in ten minutes: {asked} questions");

    drop(world.pool);
    tokio::time::timeout(SECOND, poller).await.expect("it ends with its pool").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_401_by_mistake_costs_a_key_seconds_and_a_revoked_key_stays_out() {
    let world = World::new(scenario());
    let _poller = world.poll();
    let balancer = world.balancer();
    sleep(30 * SECOND).await;
    let attempts = |label: &str| world.simulator.counts().keys[label].by_status.get(&401).copied();
    world.simulator.inject(Fault::new(What::Unauthorized).key("a1").times(1)).unwrap();
    for _ in 0..3 {
        assert_eq!(chat(&balancer).await, 200);
    }
    assert_eq!((attempts("a1"), world.resting("a1")), (Some(1), Some(Cause::InvalidKey)));
    sleep(2 * SECOND).await;
    assert_eq!(world.resting("a1"), None, "the upstream vouches for it");

    // long enough after the first for the two not to be one event of the platform
    sleep(30 * SECOND).await;
    world.simulator.disable_key("a2", true).unwrap();
    for _ in 0..3 {
        assert_eq!(chat(&balancer).await, 200);
    }
    sleep(20 * SECOND).await;
    assert_eq!((attempts("a2"), world.resting("a2")), (Some(1), Some(Cause::InvalidKey)));
}

#[tokio::test(start_paused = true)]
async fn a_key_given_up_for_dead_comes_back_when_it_is_enabled_again() {
    let world = World::new(scenario());
    let _poller = world.poll();
    let balancer = world.balancer();
    world.simulator.disable_key("a2", true).unwrap();
    for _ in 0..600 {
        assert_eq!(chat(&balancer).await, 200);
        sleep(2 * SECOND).await;
    }
    let refused = world.simulator.counts().keys["a2"].by_status[&401];
    assert!((3..=6).contains(&refused), "given up after {refused} refusals");
    assert_eq!(world.resting("a2"), Some(Cause::InvalidKey));
    world.simulator.disable_key("a2", false).unwrap();
    sleep(20 * MINUTE).await;
    assert_eq!(world.resting("a2"), None);
}

#[tokio::test(start_paused = true)]
async fn dropping_it_stops_it_at_any_point() {
    for after in [0, 1, 10, 250, 251, 1_000] {
        let world = World::new(scenario());
        world.simulator.inject(Fault::new(What::Stall).probability(0.5)).unwrap();
        let poller = world.poll();
        sleep(Duration::from_millis(after)).await;
        poller.abort();
        assert!(poller.await.is_err_and(|error| error.is_cancelled()));
        let before = world.lookups();
        sleep(10 * MINUTE).await;
        assert_eq!(world.lookups(), before, "{after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_below_a_second_is_refused() {
    let world = World::new(scenario());
    let poller = AccountPoller::new(&world.pool, OpenRouter::new(world.simulator.service()));
    let error = poller.interval(Duration::from_millis(999)).unwrap_err();
    assert!(error.to_string().contains("999ms"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_old_path_is_asked_where_there_is_no_new_one() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let transport = service_fn(move |request: Request<Empty<Bytes>>| {
        count.fetch_add(1, Ordering::Relaxed);
        let (status, body) = match request.uri().path() {
            "/api/v1/auth/key" => (200, r#"{"data":{"label":"x","usage":1,"limit":null,"limit_remaining":null}}"#),
            _ => (404, r#"{"error":{"code":404,"message":"Not Found"}}"#),
        };
        async move { Ok::<_, BoxError>(Response::builder().status(status).body(Full::<Bytes>::from(body))?) }
    });
    let client = AccountClient::new(OpenRouter::new(transport));
    let info = client.key(&ApiKey::new("sk-or-v1-old").unwrap()).await.unwrap();
    assert_eq!((info.report.left, info.account), (Spendable::Unlimited, None));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let error = client.credits(&ApiKey::new("sk-or-v1-old").unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "GET /credits was answered 404 (not_found)");
}

#[tokio::test(start_paused = true)]
async fn r099_what_goes_wrong_is_told_without_the_key_or_what_the_upstream_wrote() {
    let secret = "sk-or-v1-0123456789abcdef-canary";
    let echo = service_fn(|request: Request<Empty<Bytes>>| async move {
        let authorization = request.headers()["authorization"].to_str()?.to_owned();
        Ok::<_, BoxError>(Response::builder().status(401).body(Full::<Bytes>::from(authorization))?)
    });
    let client = AccountClient::new(OpenRouter::new(echo));
    let error = client.key(&ApiKey::new(secret).unwrap()).await.unwrap_err();
    assert!(matches!(error, LookupError::Refused { .. }));
    for shown in [error.to_string(), format!("{error:?}"), format!("{client:?}")] {
        assert!(!shown.contains("canary") && !shown.contains("0123"), "{shown}");
    }
    let world = World::new(scenario());
    let stalled = Simulator::new(scenario()).unwrap();
    stalled.inject(Fault::new(What::Stall)).unwrap();
    let client = AccountClient::new(OpenRouter::new(stalled.service())).timeout(3 * SECOND);
    let error = client.key(world.pool.endpoints()[0].key()).await.unwrap_err();
    assert_eq!(error.to_string(), "GET /key was not answered within 3s");
}
