//! What an operator takes out of service and puts back, in virtual time; the simulator counts.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower::ServiceExt;
use tower_openrouter::{
    AccountPoller, ApiKey, Balancer, DeadlineLayer, ExplainLayer, OpenRouter, Pool,
    breaker::{BreakerPolicy, BreakerState, TripPolicy},
    endpoint::AdminState,
    select::RoundRobin,
    simulator::{Fault, Reason, Scenario, Simulator, What},
    stack::BalancerBody,
};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    simulator: Simulator,
    balancer: Balancer<Full<Bytes>>,
}

impl World {
    /// Accounts of one key each, `a`, `b` and `c`, each asked in turn.
    fn new() -> Self {
        let scenario = Scenario::from_toml(
            r#"
            reply = { min_tokens = 40, max_tokens = 40 }
            accounts = [{ name = "a", credits = 9.0 }, { name = "b", credits = 9.0 }, { name = "c", credits = 9.0 }]
            keys = [{ label = "a", account = "a" }, { label = "b", account = "b" }, { label = "c", account = "c" }]
            models = [{ id = "acme/swift" }]
            endpoints = [{ model = "acme/swift", provider = "DeepInfra", prompt_price = 1.0, completion_price = 2.0 }]
            "#,
        );
        let simulator = Simulator::new(scenario.unwrap()).unwrap();
        let key = |key: tower_openrouter::simulator::SimulatedKey| ApiKey::new(key.secret).unwrap().label(key.label);
        let balancer = Balancer::builder(Pool::new(simulator.keys().into_iter().map(key)).unwrap())
            .pick(RoundRobin::default())
            .max_wait(3600 * SECOND)
            .deadline(DeadlineLayer::new(3600 * SECOND).unwrap())
            .breaker(BreakerPolicy::new(TripPolicy::consecutive(1).unwrap()))
            .build(OpenRouter::new(simulator.service()));
        Self { simulator, balancer }
    }

    fn pool(&self) -> &Pool {
        self.balancer.handle().pool()
    }

    fn attempts(&self, label: &str) -> u64 {
        self.simulator.counts().keys[label].attempts
    }

    fn ask(&self) -> JoinHandle<(u16, String)> {
        let answer = self.balancer.clone().oneshot(request(false));
        tokio::spawn(async { read(answer.await.unwrap()).await })
    }

    /// Has a key rest for ten minutes.
    async fn rest(&self, label: &str) {
        let key = self.pool().endpoints().iter().find(|key| key.key().name() == label).unwrap().clone();
        self.simulator
            .inject(Fault::new(What::Refuse { reason: Reason::InsufficientCredits }).key(label).times(1))
            .unwrap();
        while self.pool().resting(&key).is_none() {
            // one that waits for the end of the rest is not waited for
            let asking = self.ask();
            sleep(SECOND).await;
            asking.abort();
        }
    }

    async fn served(&self, count: usize) {
        for _ in 0..count {
            let (status, body) = self.ask().await.unwrap();
            assert_eq!(status, 200, "{body}");
        }
    }
}

fn request(stream: bool) -> Request<Full<Bytes>> {
    let body = format!(r#"{{"model":"acme/swift","stream":{stream},"messages":[{{"role":"user","content":"Hi"}}]}}"#);
    Request::post("/v1/chat/completions").body(body.into()).unwrap()
}

async fn read(response: Response<BalancerBody>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into())
}

#[tokio::test(start_paused = true)]
async fn what_is_out_of_service_gets_nothing_and_what_is_reset_gets_its_share_again() {
    for isolate in [false, true] {
        let world = World::new();
        let handle = world.balancer.handle();
        world.served(3).await;
        assert_eq!(["a", "b", "c"].map(|key| world.attempts(key)), [1, 1, 1]);
        assert!(if isolate { handle.isolate("b") } else { handle.drain("b") });
        world.served(6).await;
        assert_eq!(["a", "b", "c"].map(|key| world.attempts(key)), [4, 1, 4], "isolate: {isolate}");
        assert!(handle.reset("b") && !handle.reset("unknown"));
        world.served(6).await;
        assert_eq!(["a", "b", "c"].map(|key| world.attempts(key)), [6, 3, 6], "isolate: {isolate}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_on_a_drained_key_is_finished_and_counted_until_it_is() {
    let world = World::new();
    world.pool().isolate("b");
    world.pool().isolate("c");
    let response = world.balancer.clone().oneshot(request(true)).await.unwrap();
    let key = world.pool().endpoints()[0].clone();
    world.pool().drain("a");
    assert_eq!((key.admin_state(), key.figures().in_flight()), (AdminState::Draining, 1));
    let (status, body) = read(response).await;
    assert!(status == 200 && body.ends_with("data: [DONE]\n\n"), "{body}");
    assert_eq!((key.admin_state(), key.figures().in_flight()), (AdminState::Draining, 0));
    assert_eq!(world.simulator.counts().finished, 1);
}

#[tokio::test(start_paused = true)]
async fn with_no_key_in_service_requests_are_refused_at_once_and_told_why() {
    let world = World::new();
    for key in ["a", "b", "c"] {
        world.pool().drain(key);
    }
    let start = Instant::now();
    let (status, body) = world.ask().await.unwrap();
    assert_eq!((status, start.elapsed()), (429, Duration::ZERO));
    assert!(body.contains("3 taken_out_of_service"), "{body}");
    assert_eq!(world.simulator.counts().attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_go_to_what_is_isolated_and_the_trace_says_so() {
    let world = World::new();
    world.simulator.inject(Fault::new(What::Unauthorized).key("a")).unwrap();
    world.pool().isolate("b");
    world.pool().drain("c");
    let service = tower::Layer::layer(&ExplainLayer::new(), world.balancer.clone());
    let mut request = request(false);
    request.headers_mut().insert("x-balancer-explain", "1".parse().unwrap());
    let response = service.oneshot(request).await.unwrap();
    let told = response.headers()["x-balancer-explain"].to_str().unwrap();
    assert!(told.contains("isolated*1") && told.contains("drained*1"), "{told}");
    assert_eq!(["a", "b", "c"].map(|key| world.attempts(key)), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_key_that_rests_goes_at_once_when_any_is_reset() {
    for (isolated, reset) in [(None, "a"), (Some("b"), "b")] {
        let world = World::new();
        world.pool().drain("c");
        world.rest("a").await;
        match isolated {
            None => world.rest("b").await,
            Some(key) => drop(world.pool().isolate(key)),
        }
        let waits: Vec<_> = (0..3).map(|_| world.ask()).collect();
        sleep(5 * SECOND).await;
        assert!(waits.iter().all(|waiting| !waiting.is_finished()), "they wait");
        let before = world.attempts(reset);
        assert!(world.balancer.handle().reset(reset));
        for waiting in waits {
            let (status, body) = timeout(8 * SECOND, waiting).await.expect("they need not wait any more").unwrap();
            assert_eq!(status, 200, "{body}");
        }
        assert_eq!(world.attempts(reset), before + 3, "by the key that was reset");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_key_that_is_isolated_is_refused_when_no_other_comes_back() {
    let world = World::new();
    for key in ["b", "c"] {
        world.pool().drain(key);
    }
    world.rest("a").await;
    let waiting = world.ask();
    sleep(5 * SECOND).await;
    assert!(!waiting.is_finished());
    world.pool().isolate("a");
    let (status, body) = timeout(2 * SECOND, waiting).await.expect("nobody comes back").unwrap();
    assert!(status == 429 && body.contains("3 taken_out_of_service"), "{status} {body}");
}

#[tokio::test(start_paused = true)]
async fn reset_closes_the_breaker_too() {
    let world = World::new();
    world.served(3).await;
    world.simulator.inject(Fault::new(What::Status { status: 500, retry_after: None }).key("a").times(3)).unwrap();
    // the first are laid to nobody until the peers have done better for a while
    world.served(9).await;
    let key = world.pool().endpoints()[0].clone();
    let state = || world.balancer.handle().breaker(&key).unwrap().snapshot().state;
    assert!(matches!(state(), BreakerState::Open { .. }), "{:?}", state());
    assert!(world.balancer.handle().reset("a"));
    assert_eq!((state(), key.shut_until(Instant::now())), (BreakerState::Closed, None));
    let before = world.attempts("a");
    world.served(3).await;
    assert_eq!(world.attempts("a"), before + 1);
}

#[tokio::test(start_paused = true)]
async fn an_isolated_key_is_not_asked_about_a_drained_one_is_and_after_a_reset_both_are() {
    let world = World::new();
    world.pool().isolate("a");
    world.pool().drain("b");
    let poller = AccountPoller::new(world.pool(), OpenRouter::new(world.simulator.service()));
    tokio::spawn(poller.run());
    sleep(300 * SECOND).await;
    let told = |at: usize| world.pool().endpoints()[at].credit().report().is_some();
    assert_eq!([0, 1, 2].map(told), [false, true, true]);
    let lookups = world.simulator.counts().lookups;
    for key in ["b", "c"] {
        world.pool().isolate(key);
    }
    sleep(300 * SECOND).await;
    assert_eq!(world.simulator.counts().lookups, lookups, "nothing that carries a key leaves");
    world.pool().reset("a");
    sleep(5 * SECOND).await;
    assert_eq!([0, 1, 2].map(told), [true; 3]);
}
