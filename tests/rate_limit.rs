//! What the rate limit promises, and what pacing by given limits does in a selector.

mod support;

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use support::{Act, Probe};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{BoxError, Layer, Service, ServiceExt, layer::util::Identity};
use tower_openrouter::{
    ApiKey, Endpoint, KeySelectLayer, RateLimitLayer, Rejected, endpoint_fn,
    error::Why,
    limit::RateLimit,
    pace::{PacePolicy, PaceScope, Rate},
    select::{Pacing, Pool},
};

const SECOND: Duration = Duration::from_secs(1);

fn rate(per_second: f64, burst: u32) -> Rate {
    Rate::per_second(per_second).unwrap().burst(burst).unwrap()
}

fn request() -> Request<()> {
    Request::new(())
}

fn why(error: &BoxError) -> Why {
    Rejected::find(&**error).expect("a refusal").why()
}

fn poll_ready(service: &mut RateLimit<Probe>) -> Poll<()> {
    Service::<Request<()>>::poll_ready(service, &mut Context::from_waker(Waker::noop())).map(Result::unwrap)
}

#[tokio::test(start_paused = true)]
async fn r042_clones_and_services_of_one_layer_share_its_rate() {
    let (probe, layer) = (Probe::ok(), RateLimitLayer::new(rate(10.0, 2)));
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut service = layer.clone().layer(probe.clone());
        running.spawn(async move {
            for _ in 0..10 {
                Service::<Request<()>>::call(service.ready().await.unwrap(), request()).await.unwrap();
            }
        });
    }
    running.join_all().await;
    let took = start.elapsed().as_secs_f64();
    assert!((3.8..3.9).contains(&took), "40 at 10 a second, 2 of them at once: {took}");
}

#[tokio::test(start_paused = true)]
async fn r043_ten_minutes_of_demand_are_served_at_the_rate() {
    for per_second in [0.7, 3.3, 20.0, 333.3] {
        let mut service = RateLimitLayer::new(Rate::per_second(per_second).unwrap()).layer(Probe::ok());
        let (start, mut served) = (Instant::now(), 0);
        while start.elapsed() < 600 * SECOND {
            Service::<Request<()>>::call(service.ready().await.unwrap(), request()).await.unwrap();
            served += 1;
        }
        let measured = f64::from(served - 3) / start.elapsed().as_secs_f64();
        assert!((0.98 * per_second..=per_second).contains(&measured), "{per_second}: {measured}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_dropped_gives_its_slot_back() {
    let layer = RateLimitLayer::new(rate(1.0, 1));
    let mut one = layer.layer(Probe::ok());
    let mut other = layer.layer(Probe::ok());
    assert!(poll_ready(&mut one).is_ready());
    assert!(poll_ready(&mut other).is_pending());
    assert!(poll_ready(&mut one.clone()).is_pending(), "a clone holds nothing");
    drop(one);
    assert!(poll_ready(&mut other).is_ready());
}

#[tokio::test(start_paused = true)]
async fn who_is_not_ready_is_woken_for_its_slot_and_holds_nothing_inside() {
    let probe = Probe::ok();
    let layer = RateLimitLayer::new(rate(2.0, 1));
    layer.layer(probe.clone()).oneshot(request()).await.unwrap();
    let mut service = layer.layer(probe.clone());
    let mut waiting = task::spawn(async { Service::<Request<()>>::ready(&mut service).await.map(|_| ()) });
    assert_pending!(waiting.poll());
    assert_eq!(probe.reserved(), 0);
    advance(Duration::from_millis(499)).await;
    assert!(!waiting.is_woken());
    advance(Duration::from_millis(2)).await;
    assert!(waiting.is_woken());
    assert_ready_ok!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn those_who_queue_are_served_in_order_and_the_hopeless_refused_at_once() {
    let layer = RateLimitLayer::new(rate(1.0, 1)).wait(100, 3 * SECOND);
    let service = layer.layer(Probe::ok());
    let start = Instant::now();
    let mut running: Vec<_> =
        (0..5).map(|_| task::spawn(ServiceExt::<Request<()>>::oneshot(service.clone(), request()))).collect();
    let mut ended = vec![None; 5];
    for _ in 0..50 {
        for (index, running) in running.iter_mut().enumerate() {
            if ended[index].is_none()
                && let Poll::Ready(answer) = running.poll()
            {
                ended[index] = Some((start.elapsed().as_secs(), answer.map(|_| ()).map_err(|error| why(&error))));
            }
        }
        advance(Duration::from_millis(100)).await;
    }
    let at = |seconds| Some((seconds, Ok(())));
    assert_eq!(ended, [at(0), at(1), at(2), at(3), Some((0, Err(Why::LimitReached)))]);
    assert_eq!(layer.handle().waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_bounded_and_who_leaves_it_makes_room() {
    let layer = RateLimitLayer::new(rate(1.0, 1)).wait(1, 60 * SECOND);
    let service = layer.layer(Probe::ok());
    let ask = || task::spawn(ServiceExt::<Request<()>>::oneshot(service.clone(), request()));
    assert_ready_ok!(ask().poll());
    let mut first = ask();
    assert_pending!(first.poll());
    match ask().poll() {
        Poll::Ready(Err(error)) => assert_eq!(why(&error), Why::QueueFull),
        other => panic!("{other:?}"),
    }
    drop(first);
    let mut second = ask();
    assert_pending!(second.poll());
    advance(Duration::from_millis(1001)).await;
    assert_ready_ok!(second.poll());
}

#[tokio::test(start_paused = true)]
async fn a_refusing_layer_names_the_time_of_the_next_slot() {
    let service = RateLimitLayer::new(rate(0.5, 1)).refuse().layer(Probe::ok());
    service.clone().oneshot(request()).await.unwrap();
    let error = service.oneshot(request()).await.unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!(refusal.why(), Why::LimitReached);
    assert!(refusal.to_string().contains("slot"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn r046_a_raised_rate_reaches_those_who_wait() {
    let layer = RateLimitLayer::new(Rate::per_minute(1.0).unwrap()).wait(10, 600 * SECOND);
    let service = layer.layer(Probe::ok());
    service.clone().oneshot(request()).await.unwrap();
    let start = Instant::now();
    let waiting = tokio::spawn(ServiceExt::<Request<()>>::oneshot(service.clone(), request()));
    tokio::task::yield_now().await;
    layer.handle().set_rate(rate(10.0, 1));
    waiting.await.unwrap().unwrap();
    assert!(start.elapsed() <= SECOND, "{:?}", start.elapsed());
}

type Asked = Request<Full<Bytes>>;

fn key(label: &str, account: &str) -> ApiKey {
    ApiKey::new(format!("secret-of-{label}")).unwrap().label(label).account(account)
}

/// How many of `count` requests, asked at once, were sent within each of ten seconds.
async fn sent(policy: PacePolicy, count: usize) -> Vec<usize> {
    let probe = Probe::new(Act::ok());
    let pool = Pool::new([key("a", "one"), key("b", "one"), key("c", "two")]).unwrap();
    let layer = KeySelectLayer::new(pool, endpoint_fn(|_: &Endpoint| Identity::new())).filter(Pacing::new(policy));
    let service = layer.max_wait(60 * SECOND).layer(probe.clone());
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..count {
        let service = service.clone();
        running.spawn(async move {
            let body = r#"{"model":"some/model","max_tokens":100}"#;
            let answer = ServiceExt::<Asked>::oneshot(service, Request::new(Full::from(body))).await;
            answer.is_ok().then(|| start.elapsed().as_secs() as usize)
        });
    }
    let mut seconds = vec![0; 10];
    for second in running.join_all().await.into_iter().flatten() {
        seconds[second.min(9)] += 1;
    }
    seconds
}

#[tokio::test(start_paused = true)]
async fn given_limits_are_kept_for_each_key_account_or_pool() {
    for (scope, each) in [(PaceScope::Key, 3), (PaceScope::Account, 2), (PaceScope::Pool, 1)] {
        let policy = PacePolicy::default().requests(rate(1.0, 1)).scope(scope);
        let sent = sent(policy, 5 * each).await;
        assert_eq!(sent[..5], [each; 5], "{scope:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_has_so_many_requests_of_each_account() {
    let policy = PacePolicy::default().per_day(3).unwrap();
    let sent = sent(policy, 10).await;
    assert_eq!(sent.iter().sum::<usize>(), 6, "3 of each account, and no wait until midnight: {sent:?}");
}

#[test]
fn r117_a_policy_that_paces_nothing_is_refused() {
    assert!(PacePolicy::default().learn(false).is_err());
    assert!(PacePolicy::default().per_day(0).is_err());
    assert!(PacePolicy::default().requests(rate(1.0, 1)).learn(false).is_ok());
}
