//! Tests owed because others were bitten, where they concern all layers or several together.

use std::{fmt::Debug, time::Duration};

use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, layer::util::Identity};
use tower_openrouter::{
    ApiKey, Balancer, BufferLayer, CircuitBreakerLayer, CommitGateLayer, ConcurrencyLimitLayer, DeadlineLayer,
    Endpoint, KeepAliveLayer, KeySelectLayer, LoadMonitorLayer, OpenRouter, RequestContext, RespondLayer, RetryLayer,
    Snapshot,
    breaker::{BreakerPolicy, BreakerState, TripPolicy},
    endpoint_fn,
    openrouter::AuthorizeLayer,
    select::{LeastInFlight, Pool},
};

use crate::{
    stages::{Payload, Stack, erase, innermost, pool, post},
    support::{Act, BodyAct, Probe},
};

/// Four keys, eight workers with 200 calls each: three answer in 2 s, one refuses in 20 ms.
#[tokio::test(start_paused = true)]
async fn experiment_01_a_fast_failing_key_does_not_attract_traffic_of_the_selector() {
    let keys = ["bad", "b", "c", "d"].map(|label| ApiKey::new(format!("sk-or-v1-{label}")).unwrap().label(label));
    let pool = Pool::new(keys).unwrap();
    let per_key = endpoint_fn(|endpoint: &Endpoint| {
        let bad = endpoint.key().name() == "bad";
        let slow = tower::layer::layer_fn(move |()| {
            tower::service_fn(move |_: Request<Payload>| async move {
                time::sleep(Duration::from_millis(if bad { 20 } else { 2000 })).await;
                // a failure that rests nobody, so that only the load speaks
                let status = if bad { 500 } else { 200 };
                Ok::<_, BoxError>(Response::builder().status(status).body(Full::new(bytes::Bytes::from("x"))).unwrap())
            })
        });
        ServiceBuilder::new().layer(LoadMonitorLayer::endpoint(endpoint)).layer(slow).into_inner()
    });
    let service = KeySelectLayer::new(pool.clone(), per_key).pick(LeastInFlight::default()).layer(());
    join_all((0..8).map(|_| async {
        for _ in 0..200 {
            let answer = service.clone().oneshot(post(Payload::whole())).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
    }))
    .await;
    let share = Snapshot::of(pool.endpoints().iter()).endpoints[0].share;
    assert!(share < 0.25, "{share}");
}

async fn call(service: &Stack) -> u16 {
    let answer = service.clone().oneshot(post(Payload::whole())).await.unwrap();
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    status
}

#[tokio::test(start_paused = true)]
async fn two_layers_built_from_one_value_share_one_state() {
    let hanging = || Probe::new(Act::ok().body(BodyAct::Hang));
    // one value applied twice, and a clone of it once
    let limit = ConcurrencyLimitLayer::new(3).unwrap().refuse();
    let all = [
        limit.layer(innermost(&hanging())),
        limit.layer(innermost(&hanging())),
        limit.clone().layer(innermost(&hanging())),
    ];
    let held = join_all(all.iter().map(|service| service.clone().oneshot(post(Payload::whole())))).await;
    assert_eq!(limit.handle().in_flight(), 3);
    assert!(all[0].clone().oneshot(post(Payload::whole())).await.is_err());
    drop(held);

    let breaker = CircuitBreakerLayer::new(BreakerPolicy::new(TripPolicy::consecutive(2).unwrap())).reject();
    let failing = Probe::new(Act::status(500));
    for service in [erase(breaker.layer(innermost(&failing))), erase(breaker.clone().layer(innermost(&failing)))] {
        assert_eq!(call(&service).await, 500);
    }
    assert!(matches!(breaker.handle().snapshot().state, BreakerState::Open { .. }));

    let monitor = LoadMonitorLayer::new();
    for service in
        [erase(monitor.layer(innermost(&Probe::ok()))), erase(monitor.clone().layer(innermost(&Probe::ok())))]
    {
        assert_eq!(call(&service).await, 200);
    }
    assert_eq!(monitor.handle().figures().succeeded(), 2);

    let retry = RetryLayer::new();
    for service in [erase(retry.layer(innermost(&Probe::ok()))), erase(retry.clone().layer(innermost(&Probe::ok())))] {
        assert_eq!(call(&service).await, 200);
    }
    assert_eq!(retry.handle().stats().requests, 2);

    let buffer = BufferLayer::new();
    let keep = tower::service_fn(|request: Request<tower_openrouter::buffer::ReplayBody>| async {
        Ok::<_, BoxError>(Response::new(request.into_body()))
    });
    let send = |layer: &BufferLayer| layer.layer(keep).oneshot(post(Payload::coming(1, Duration::ZERO)));
    let held = (send(&buffer).await.unwrap(), send(&buffer.clone()).await.unwrap());
    assert!(buffer.used() > 0);
    let one = buffer.used() / 2;
    drop(held.0);
    assert_eq!(buffer.used(), one);

    let (pool, probe) = (pool(), Probe::ok());
    let select = KeySelectLayer::new(pool.clone(), endpoint_fn(|_: &Endpoint| Identity::new()));
    let both = [erase(select.layer(innermost(&probe))), erase(select.clone().layer(innermost(&probe)))];
    probe.script([Act::status(429).header("retry-after", 10), Act::status(429).header("retry-after", 10)]);
    assert_eq!((call(&both[0]).await, call(&both[1]).await), (429, 429));
    assert_eq!(
        pool.endpoints().iter().filter(|endpoint| pool.resting(endpoint).is_some()).count(),
        2,
        "one book of rests"
    );
}

#[tokio::test(start_paused = true)]
async fn r099_no_debug_output_of_any_layer_service_handle_or_error_shows_a_secret() {
    const SECRET: &str = "sk-or-v1-0123456789abcdef0123456789abcdef";
    let key = ApiKey::new(SECRET).unwrap().label("team").account("acme");
    let pool = Pool::new([key.clone()]).unwrap();
    let endpoint = pool.endpoints()[0].clone();
    let mut shown = Vec::new();
    let mut show = |value: &dyn Debug| shown.push(format!("{value:?}\n{value:#?}"));

    let probe = Probe::new(Act::status(401));
    let per_key = endpoint_fn(|endpoint: &Endpoint| AuthorizeLayer::new(endpoint.key()));
    let select = KeySelectLayer::new(pool.clone(), per_key);
    let leaf = OpenRouter::new(probe.clone());
    let breaker = CircuitBreakerLayer::default().endpoint(&endpoint);
    let limit = ConcurrencyLimitLayer::new(1).unwrap();
    let monitor = LoadMonitorLayer::endpoint(&endpoint);
    let retry = RetryLayer::new();
    let balancer = Balancer::builder(pool.clone());
    let built: Balancer<Payload> = balancer.clone().build(OpenRouter::new(probe.clone()));
    show(&key);
    show(&pool);
    show(&endpoint);
    show(&pool.endpoints());
    show(&select);
    show(&select.layer(leaf.clone()));
    show(&leaf);
    show(&AuthorizeLayer::new(&key).layer(leaf.clone()));
    show(&AuthorizeLayer::new(&key));
    show(&breaker);
    show(&breaker.layer(leaf.clone()));
    show(&breaker.handle());
    show(&limit);
    show(&limit.layer(leaf.clone()));
    show(&limit.handle());
    show(&monitor);
    show(&monitor.layer(leaf.clone()));
    show(&monitor.handle());
    show(&retry);
    show(&retry.layer(leaf.clone()));
    show(&retry.handle());
    show(&BufferLayer::new());
    show(&BufferLayer::new().layer(leaf.clone()));
    show(&DeadlineLayer::default());
    show(&DeadlineLayer::default().layer(leaf.clone()));
    show(&CommitGateLayer::new());
    show(&CommitGateLayer::new().layer(leaf.clone()));
    show(&KeepAliveLayer::new());
    show(&KeepAliveLayer::new().layer(leaf.clone()));
    show(&RespondLayer::new());
    show(&RespondLayer::new().layer(leaf.clone()));
    show(&balancer);
    show(&balancer.handle());
    show(&balancer.handle().snapshot());
    show(&built);
    show(&ApiKey::new(format!("{SECRET}\n{SECRET}")).unwrap_err());
    show(&key.clone().base_url("nonsense").unwrap_err());

    // a request that carries it, an attempt on it, and what is refused after it
    let request = || Request::post("/v1/chat/completions").body(()).unwrap();
    let mut first = request();
    RequestContext::of(&mut first);
    first.headers_mut().insert("authorization", key.authorization().clone());
    let context = RequestContext::get(first.extensions()).unwrap().clone();
    let service = select.max_wait(Duration::ZERO).layer(leaf);
    show(&service.clone().oneshot(first).await.unwrap().into_parts().0);
    show(&context);
    let refused = service.oneshot(request()).await.unwrap_err();
    show(&refused);
    show(&refused.to_string());
    let pieces: Vec<_> = SECRET.strip_prefix("sk-or-v1-").unwrap().as_bytes().windows(8).collect();
    for text in shown {
        for piece in &pieces {
            let piece = std::str::from_utf8(piece).unwrap();
            assert!(!text.contains(piece), "{text}");
        }
    }
}
