//! Many tasks at once that come, get ready, change their minds and leave: all of them end, and nothing stays behind.

use std::{net::SocketAddr, thread, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::{
    runtime::Handle,
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tower::{Service, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, HedgeLayer, OpenRouter,
    buffer::ReplayBody,
    openrouter::HyperTransport,
    poller::AccountPoller,
    select::Pool,
    simulator::{Scenario, Simulator, serve},
    stream::HearOutLayer,
};

const TASKS: usize = 10_000;

/// Two accounts, four keys, and an upstream that fails one time in eight, each time in another way.
const SCENARIO: &str = r#"
accounts = [{ name = "a", credits = 1000.0 }, { name = "b", credits = 1000.0 }]
keys = [
  { label = "a-1", account = "a" }, { label = "a-2", account = "a" },
  { label = "b-1", account = "b" }, { label = "b-2", account = "b" },
]
models = [{ id = "acme/swift-1" }]
endpoints = [{ model = "acme/swift-1", provider = "One", accept_ms = 2, first_token_ms = 2, tokens_per_second = 4000, jitter = 0.5 }]
faults = [
  { probability = 0.03, what = { kind = "reset" } },
  { probability = 0.03, what = { kind = "status", status = 500 } },
  { probability = 0.03, what = { kind = "pool_full" } },
  { probability = 0.03, what = { kind = "cut", after_tokens = 2 } },
]
keep = { log = 100, requests = 0, generations = 100 }
"#;

fn pool(simulator: &Simulator, max_in_flight: usize) -> Pool {
    let keys =
        simulator.keys().into_iter().map(|key| ApiKey::new(key.secret).unwrap().label(key.label).account(key.account));
    Pool::new(keys.map(|key| key.max_in_flight(max_in_flight).unwrap())).unwrap()
}

fn request(stream: bool) -> Request<Full<Bytes>> {
    let body = format!(r#"{{"model":"acme/swift-1","stream":{stream},"messages":[{{"role":"user","content":"Hi"}}]}}"#);
    Request::post("/v1/chat/completions").body(Full::from(body)).unwrap()
}

/// One task's life with its clone of a service.
async fn churn<S, B>(mut service: S, fate: u8)
where
    S: Service<Request<Full<Bytes>>, Response = http::Response<B>> + Clone + Unpin,
    S::Future: Unpin,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    if fate == 0 {
        return;
    }
    let Ok(_) = service.ready().await else { panic!("it cannot fail") };
    match fate {
        1 => {}
        // who is ready may be cloned, and the clone is not
        2 => {
            let mut clone = service.clone();
            drop(service);
            let Ok(_) = clone.ready().await else { panic!("it cannot fail") };
        }
        3 => drop(service.call(request(true))),
        4 => {
            let mut polls = fastrand::u8(1..20);
            let left = std::pin::pin!(async {
                while polls > 0 {
                    polls -= 1;
                    yield_now().await;
                }
            });
            if let Either::Left((Ok(response), _)) = select(service.call(request(true)), left).await {
                drop(response);
            }
        }
        _ => {
            let Ok(response) = service.call(request(fate.is_multiple_of(2))).await else { panic!("it cannot fail") };
            let mut body = response.into_body();
            let mut frames = if fate == 5 { 1 } else { usize::MAX };
            while frames > 0 && matches!(body.frame().await, Some(Ok(_))) {
                frames -= 1;
            }
        }
    }
}

/// Waits until `is` holds, for a second at most.
async fn within_a_second(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(1), "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r124_ten_thousand_tasks_that_come_and_go_all_end() {
    let simulator = Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap();
    let pool = pool(&simulator, 16);
    let balancer: Balancer<Full<Bytes>> = Balancer::builder(pool.clone())
        .max_wait(Duration::from_secs(5))
        .max_waiters(TASKS)
        .hedge(HedgeLayer::new())
        .build(OpenRouter::new(simulator.service()));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(churn(balancer.clone(), fastrand::u8(..10)));
    }
    let ended = timeout(Duration::from_secs(60), async {
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no task panics");
        }
    });
    assert!(ended.await.is_ok(), "{} tasks hang; {:?}", tasks.len(), simulator.counts());
    within_a_second("requests run on", || simulator.counts().in_flight == 0).await;
    assert!(pool.waiting().iter().all(|(_, waiting)| *waiting == 0), "{:?}", pool.waiting());
    // every place is free again: as many as there are run at once
    simulator.clear_faults();
    pool.endpoints().iter().for_each(|key| assert!(pool.reset(key.key().name())));
    let mut calls = JoinSet::new();
    (0..64).for_each(|_| drop(calls.spawn(churn(balancer.clone(), 7))));
    calls.join_all().await;
    assert!(simulator.counts().finished > 64);
}

/// A simulator on a thread of its own, so that none of its tasks are counted here.
fn elsewhere() -> (Simulator, SocketAddr) {
    let simulator = Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let served = simulator.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { serve(tokio::net::TcpListener::from_std(listener).unwrap(), served).await })
    });
    (simulator, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r125_a_second_after_the_service_is_dropped_no_task_of_it_lives() {
    let (simulator, address) = elsewhere();
    let alive = || Handle::current().metrics().num_alive_tasks();
    let before = alive();
    {
        let pool = pool(&simulator, 16);
        let base = format!("http://{address}/api/v1");
        let leaf = OpenRouter::builder().base_url(base).build(HyperTransport::<ReplayBody>::new()).unwrap();
        let lookups = OpenRouter::builder().base_url(format!("http://{address}/api/v1"));
        let poller = AccountPoller::new(&pool, lookups.build(HyperTransport::new()).unwrap());
        tokio::spawn(poller.run());
        let hear_out = HearOutLayer::new(|rest| drop(tokio::spawn(rest))).time(Duration::from_millis(300));
        let balancer: Balancer<Full<Bytes>> =
            Balancer::builder(pool.clone()).max_wait(Duration::from_secs(5)).hedge(HedgeLayer::new()).build(leaf);
        let service = tower::Layer::layer(&hear_out, balancer);
        let mut tasks = JoinSet::new();
        for _ in 0..300 {
            tasks.spawn(churn(service.clone(), fastrand::u8(..10)));
        }
        tasks.join_all().await;
        assert!(alive() > before, "connections are kept, and the poller waits");
    }
    within_a_second("tasks live on", || alive() == before).await;
}
