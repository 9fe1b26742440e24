//! Key selection.

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use support::{Act, BodyAct, Probe};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceExt, layer::util::Identity, limit::ConcurrencyLimitLayer};
use tower_openrouter::{
    ApiKey, Endpoint, KeySelect, KeySelectLayer, Rejected, RequestContext, endpoint_fn,
    error::Why,
    outcome::{Cause, Fault, Outcome, OutcomeCell, Rest, Retry, Scope},
    select::{EndpointFn, EndpointLayer, LeastInFlight, Pick, Pool},
};

fn pool(count: usize) -> Pool {
    Pool::new((0..count).map(|index| ApiKey::new(format!("key-{index}")).unwrap().label(format!("k{index}")))).unwrap()
}

fn request() -> Request<Full<Bytes>> {
    Request::new(Full::from("{}"))
}

fn asking(model: &str) -> Request<Full<Bytes>> {
    let mut request = request();
    RequestContext::of(&mut request).set_body(format!("{{\"model\":\"{model}\"}}").into());
    request
}

fn rejected<T>(result: Result<T, BoxError>) -> Rejected {
    Rejected::find(&*result.err().expect("refused")).expect("by us").clone()
}

/// Gives each endpoint a probe of its own, by its position in the pool.
#[derive(Clone)]
struct Own(Arc<Vec<Probe>>, Pool);

impl Own {
    fn new(probes: Vec<Probe>) -> (Pool, Self) {
        let pool = pool(probes.len());
        (pool.clone(), Self(Arc::new(probes), pool))
    }
}

impl<S> EndpointLayer<S> for Own {
    type Service = Probe;

    fn layer(&self, endpoint: &Endpoint, _inner: S) -> Probe {
        let at = self.1.endpoints().iter().position(|other| other == endpoint).expect("in the pool");
        self.0[at].clone()
    }
}

fn plain() -> EndpointFn<impl Fn(&Endpoint) -> Identity + Clone> {
    endpoint_fn(|_: &Endpoint| Identity::new())
}

#[tokio::test]
async fn r001_only_a_readied_instance_is_called_and_the_service_is_always_ready() {
    let probe = Probe::ok();
    let mut service = KeySelectLayer::new(pool(3), plain()).layer(probe.clone());
    for _ in 0..30 {
        ServiceExt::<Request<Full<Bytes>>>::ready(&mut service).await.unwrap().call(request()).await.unwrap();
    }
    assert_eq!((probe.calls(), probe.unready_calls()), (30, 0));
}

#[tokio::test(start_paused = true)]
async fn r007_a_key_that_never_gets_ready_blocks_nobody() {
    let (pool, own) = Own::new(vec![Probe::ok(), Probe::ok(), Probe::ok()]);
    own.0[1].block(true);
    let service = KeySelectLayer::new(pool, own.clone()).layer(());
    let start = Instant::now();
    for _ in 0..100 {
        service.clone().oneshot(request()).await.unwrap();
    }
    assert_eq!((own.0[1].calls(), start.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn r012_one_usable_key_of_ten_thousand_is_found() {
    let pool = pool(10_000);
    let good = pool.endpoints()[7_777].clone();
    let own = endpoint_fn({
        let good = good.clone();
        move |endpoint: &Endpoint| {
            tower::util::MapRequestLayer::new({
                let is_good = *endpoint == good;
                move |request: Request<Full<Bytes>>| {
                    assert!(is_good, "picked a key that was out");
                    request
                }
            })
        }
    });
    let far = Instant::now() + Duration::from_secs(1000);
    for endpoint in pool.endpoints().iter().filter(|endpoint| **endpoint != good) {
        endpoint.set_shut_until(Some(far));
    }
    let service = KeySelectLayer::new(pool, own).layer(Probe::ok());
    for _ in 0..1000 {
        service.clone().oneshot(request()).await.unwrap();
    }
}

#[tokio::test]
async fn r013_turns_are_even_over_clones() {
    let (pool, own) = Own::new(vec![Probe::ok(), Probe::ok(), Probe::ok(), Probe::ok()]);
    let service = KeySelectLayer::new(pool, own.clone()).layer(());
    for _ in 0..400 {
        service.clone().oneshot(request()).await.unwrap();
    }
    for probe in own.0.iter() {
        assert_eq!(probe.calls(), 100);
    }
}

/// A leaf that judges its answers the way the real one does.
fn leaf(
    fault: Fault,
) -> impl Clone + Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send> {
    tower::service_fn(move |_: Request<Full<Bytes>>| async move {
        let cell = OutcomeCell::new();
        cell.end(Outcome::Fault(fault));
        let mut response = Response::new(Full::from("no"));
        response.extensions_mut().insert(cell);
        Ok::<_, BoxError>(response)
    })
}

#[tokio::test(start_paused = true)]
async fn a_refusal_because_a_key_is_busy_does_not_name_the_return_of_one_that_rests() {
    for (max_wait, max_waiters, why) in [(30, 0, Why::QueueFull), (0, 9, Why::NoKey)] {
        let (pool, own) = Own::new(vec![Probe::ok(), Probe::ok()]);
        pool.endpoints()[0].set_shut_until(Some(Instant::now() + Duration::from_secs(600)));
        own.0[1].block(true);
        let layer = KeySelectLayer::new(pool, own.clone()).max_wait(Duration::from_secs(max_wait));
        let refusal = rejected(layer.max_waiters(max_waiters).layer(()).oneshot(request()).await);
        assert_eq!((refusal.why(), refusal.after()), (why, None), "{refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn r016_nobody_usable_is_refused_at_once_with_the_earliest_return() {
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(50)));
    let service = KeySelectLayer::new(pool(2), plain()).layer(leaf(fault));
    service.clone().oneshot(request()).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    service.clone().oneshot(request()).await.unwrap();
    let start = Instant::now();
    let refusal = rejected(service.clone().oneshot(request()).await);
    assert_eq!((refusal.why(), start.elapsed()), (Why::NoKey, Duration::ZERO));
    assert_eq!(refusal.after(), Some(Duration::from_secs(40)));
    assert!(refusal.to_string().contains("2 key_limit"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn a_rest_that_ends_soon_is_waited_for_and_not_cut_short() {
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(10)));
    let service = KeySelectLayer::new(pool(1), plain()).layer(leaf(fault));
    service.clone().oneshot(request()).await.unwrap();
    let start = Instant::now();
    service.clone().oneshot(request()).await.unwrap();
    let waited = start.elapsed();
    assert!((10.0..=11.1).contains(&waited.as_secs_f64()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn r057_a_rest_beyond_the_deadline_is_not_waited_for() {
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(10)));
    let service = KeySelectLayer::new(pool(1), plain()).layer(leaf(fault));
    service.clone().oneshot(request()).await.unwrap();
    let mut late = request();
    RequestContext::of(&mut late).limit(Instant::now() + Duration::from_secs(5));
    let start = Instant::now();
    assert_eq!(rejected(service.oneshot(late).await).why(), Why::NoKey);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn r020_a_removed_key_gets_nothing_new_and_r021_an_added_one_its_share() {
    let probe = Probe::ok();
    let pool = pool(2);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let per_key = endpoint_fn({
        let seen = seen.clone();
        move |endpoint: &Endpoint| {
            let (seen, label) = (seen.clone(), endpoint.key().name().to_owned());
            tower::util::MapRequestLayer::new(move |request: Request<Full<Bytes>>| {
                seen.lock().unwrap().push(label.clone());
                request
            })
        }
    });
    let service = KeySelectLayer::new(pool.clone(), per_key).layer(probe);
    let held = service.clone().oneshot(request()).await.unwrap();
    pool.remove("k0");
    pool.add(ApiKey::new("key-new").unwrap().label("new"));
    seen.lock().unwrap().clear();
    for _ in 0..10 {
        service.clone().oneshot(request()).await.unwrap();
    }
    let count = |label: &str| seen.lock().unwrap().iter().filter(|seen| *seen == label).count();
    assert_eq!((count("k0"), count("k1"), count("new")), (0, 5, 5));
    held.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn r022_a_tried_key_is_the_last_resort() {
    let (pool, own) = Own::new(vec![Probe::ok(), Probe::ok(), Probe::ok()]);
    tries_all_before_any_again(KeySelectLayer::new(pool.clone(), own.clone()).layer(())).await;
    tries_all_before_any_again(KeySelectLayer::new(pool, own).pick(LeastInFlight::default()).layer(())).await;
}

async fn tries_all_before_any_again<P: Pick>(service: KeySelect<Probe, P>) {
    for _ in 0..50 {
        let context = RequestContext::new();
        for _ in 0..4 {
            let mut attempt = request();
            attempt.extensions_mut().insert(context.clone());
            service.clone().oneshot(attempt).await.unwrap();
        }
        let tried: Vec<_> = context.ledger().attempts().iter().map(|attempt| attempt.endpoint.id()).collect();
        let first_three: BTreeSet<_> = tried[..3].iter().collect();
        assert_eq!((first_three.len(), tried.len()), (3, 4), "the fourth has nobody new left");
    }
}

#[tokio::test]
async fn what_an_attempt_ruled_out_stays_out_for_the_request() {
    let keys = [("a1", "a"), ("a2", "a"), ("b", "b")];
    let pool = Pool::new(keys.map(|(key, account)| ApiKey::new(key).unwrap().label(key).account(account))).unwrap();
    let fault = Fault::new(Cause::TooDearForAccount, Scope::Account).retry(Retry::Elsewhere);
    let service = KeySelectLayer::new(pool, plain()).max_wait(Duration::ZERO).layer(leaf(fault));
    let mut first = request();
    let context = RequestContext::of(&mut first);
    service.clone().oneshot(first).await.unwrap();
    assert!(context.ledger().elsewhere(), "account b has not been asked");
    let mut second = request();
    second.extensions_mut().insert(context.clone());
    service.clone().oneshot(second).await.unwrap();
    assert!(!context.ledger().elsewhere());
    let accounts: Vec<_> =
        context.ledger().attempts().iter().map(|attempt| attempt.endpoint.account().unwrap().to_owned()).collect();
    assert_eq!(accounts, ["a", "b"]);
    let mut third = request();
    third.extensions_mut().insert(context.clone());
    assert_eq!(rejected(service.clone().oneshot(third).await).why(), Why::NoKey);
    service.oneshot(request()).await.expect("another request may be cheaper");
}

#[tokio::test]
async fn patterns_keep_models_from_keys_that_cannot_serve_them() {
    let pool = Pool::new([
        ApiKey::new("a").unwrap().label("a").models(["anthropic/*"]).unwrap(),
        ApiKey::new("b").unwrap().label("b").models(["openai/*"]).unwrap(),
    ])
    .unwrap();
    let service = KeySelectLayer::new(pool, plain()).layer(Probe::ok());
    for _ in 0..10 {
        let asks = asking("openai/gpt");
        let context = RequestContext::get(asks.extensions()).unwrap().clone();
        service.clone().oneshot(asks).await.unwrap();
        assert_eq!(context.ledger().attempts()[0].endpoint.key().name(), "b");
    }
    let refusal = rejected(service.oneshot(asking("meta/llama")).await);
    assert!(refusal.to_string().contains("2 other_models_tags_or_drained"), "{refusal}");
}

#[tokio::test]
async fn r014_a_key_of_weight_zero_gets_nothing() {
    let pool =
        Pool::new([ApiKey::new("a").unwrap().label("a").weight(0.0).unwrap(), ApiKey::new("b").unwrap().label("b")])
            .unwrap();
    let service = KeySelectLayer::new(pool, plain()).layer(Probe::ok());
    for _ in 0..20 {
        let context = RequestContext::new();
        let mut asks = request();
        asks.extensions_mut().insert(context.clone());
        service.clone().oneshot(asks).await.unwrap();
        assert_eq!(context.ledger().attempts()[0].endpoint.key().name(), "b");
    }
}

/// Four keys, two at once each, 200 calls of 10 ms of which 40 are cancelled half way: as fast as can be, nothing lost.
#[tokio::test(start_paused = true)]
async fn experiment_11_picking_in_the_future_is_work_conserving() {
    let probes: Vec<_> = (0..4).map(|_| Probe::new(Act::ok().delay(Duration::from_millis(10)))).collect();
    let (pool, own) = Own::new(probes);
    let limits = endpoint_fn({
        let own = own.clone();
        move |endpoint: &Endpoint| {
            let probe = EndpointLayer::<()>::layer(&own, endpoint, ());
            tower::layer::layer_fn(move |()| ConcurrencyLimitLayer::new(2).layer(probe.clone()))
        }
    });
    let service = KeySelectLayer::new(pool, limits).layer(());
    let start = Instant::now();
    let tasks: Vec<_> = (0..200)
        .map(|index| {
            let service = service.clone();
            tokio::spawn(async move {
                let patience = if index % 5 == 0 { 5 } else { 10_000 };
                tokio::time::timeout(Duration::from_millis(patience), service.oneshot(request())).await.is_ok()
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += usize::from(task.await.unwrap());
    }
    let elapsed = start.elapsed();
    assert_eq!(done, 160);
    assert!((200..=250).contains(&elapsed.as_millis()), "{elapsed:?}");
    assert_eq!(service.waiting(), 0);
    for probe in own.0.iter() {
        assert!(probe.seen().peak.load(std::sync::atomic::Ordering::SeqCst) <= 2);
        assert_eq!((probe.in_flight(), probe.unready_calls()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn r044_waiters_are_served_in_order_of_arrival() {
    let (pool, own) = Own::new(vec![Probe::new(Act::ok().delay(Duration::from_millis(10)))]);
    let one_at_a_time = endpoint_fn({
        let own = own.clone();
        move |endpoint: &Endpoint| {
            let probe = EndpointLayer::<()>::layer(&own, endpoint, ());
            tower::layer::layer_fn(move |()| ConcurrencyLimitLayer::new(1).layer(probe.clone()))
        }
    });
    let service = KeySelectLayer::new(pool, one_at_a_time).layer(());
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for index in 0..50 {
        let (service, order) = (service.clone(), order.clone());
        tasks.push(tokio::spawn(async move {
            service.oneshot(request()).await.unwrap();
            order.lock().unwrap().push(index);
        }));
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn r045_the_line_is_bounded_and_those_who_leave_leave_nothing() {
    let probe = Probe::ok();
    probe.block(true);
    let service = KeySelectLayer::new(pool(1), plain()).max_waiters(2).layer(probe.clone());
    let waiters: Vec<_> = (0..2).map(|_| tokio::spawn(service.clone().oneshot(request()))).collect();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(rejected(service.clone().oneshot(request()).await).why(), Why::QueueFull);
    waiters[0].abort();
    tokio::task::yield_now().await;
    assert_eq!(service.waiting(), 1);
    probe.block(false);
    for (waiter, served) in waiters.into_iter().zip([false, true]) {
        assert_eq!(waiter.await.is_ok(), served);
    }
    assert_eq!((service.waiting(), probe.calls()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_bound() {
    let probe = Probe::ok();
    probe.block(true);
    let service = KeySelectLayer::new(pool(3), plain()).max_wait(Duration::from_secs(2)).layer(probe);
    let start = Instant::now();
    assert_eq!(rejected(service.clone().oneshot(request()).await).why(), Why::NoKey);
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_for_one_model_does_not_hold_back_another() {
    let pool = Pool::new([
        ApiKey::new("a").unwrap().label("a").models(["a/*"]).unwrap(),
        ApiKey::new("b").unwrap().label("b").models(["b/*"]).unwrap(),
    ])
    .unwrap();
    let (blocked, free) = (Probe::ok(), Probe::ok());
    blocked.block(true);
    let per_key = endpoint_fn({
        let (blocked, free) = (blocked.clone(), free.clone());
        move |endpoint: &Endpoint| {
            let probe = if endpoint.key().name() == "a" { blocked.clone() } else { free.clone() };
            tower::layer::layer_fn(move |()| probe.clone())
        }
    });
    let service = KeySelectLayer::new(pool, per_key).layer(());
    let waiter = tokio::spawn(service.clone().oneshot(asking("a/x")));
    tokio::task::yield_now().await;
    service.clone().oneshot(asking("b/x")).await.unwrap();
    blocked.block(false);
    waiter.await.unwrap().unwrap();
    assert_eq!((blocked.calls(), free.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_added_while_others_wait_serves_them() {
    let probe = Probe::ok();
    probe.block(true);
    let pool = pool(1);
    let per_key = endpoint_fn({
        let probe = probe.clone();
        move |endpoint: &Endpoint| {
            let probe = if endpoint.key().name() == "new" { Probe::ok() } else { probe.clone() };
            tower::layer::layer_fn(move |()| probe.clone())
        }
    });
    let service = KeySelectLayer::new(pool.clone(), per_key).layer(());
    let waiter = tokio::spawn(service.clone().oneshot(request()));
    tokio::task::yield_now().await;
    let start = Instant::now();
    pool.add(ApiKey::new("new").unwrap().label("new"));
    waiter.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_key_without_history_is_tried_by_one_request_at_a_time() {
    let (pool, own) = Own::new(vec![Probe::ok(), Probe::new(Act::Hang)]);
    let proven = pool.endpoints()[0].clone();
    proven.figures().succeed(Duration::ZERO, Duration::ZERO);
    let monitored = endpoint_fn({
        let own = own.clone();
        move |endpoint: &Endpoint| {
            let (probe, endpoint) = (EndpointLayer::<()>::layer(&own, endpoint, ()), endpoint.clone());
            tower::layer::layer_fn(move |()| {
                let endpoint = endpoint.clone();
                probe.clone().map_request(move |request: Request<Full<Bytes>>| {
                    endpoint.figures().start();
                    request
                })
            })
        }
    });
    let service = KeySelectLayer::new(pool, monitored).layer(());
    service.clone().oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
    let mut running = Vec::new();
    for _ in 0..20 {
        let mut call = Box::pin(service.clone().oneshot(request()));
        let _ = futures_util::poll!(&mut call);
        running.push(call);
    }
    assert_eq!(own.0[1].calls(), 1);
    assert_eq!(own.0[0].calls(), 20);
}

#[tokio::test]
async fn r008_a_panic_in_a_keys_stack_leaves_the_selector_whole() {
    let probe = Probe::ok();
    let service = KeySelectLayer::new(pool(2), plain()).layer(probe.clone());
    for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
        probe.script([act]);
        let service = service.clone();
        let task = tokio::spawn(async move {
            let response = service.oneshot(request()).await.unwrap();
            response.into_body().collect().await.unwrap();
        });
        assert!(task.await.unwrap_err().is_panic());
    }
    probe.seen().panic_in_poll_ready.store(1, std::sync::atomic::Ordering::SeqCst);
    let panicking = service.clone();
    assert!(tokio::spawn(async move { panicking.oneshot(request()).await.is_ok() }).await.is_err());
    for _ in 0..10 {
        service.clone().oneshot(request()).await.unwrap();
    }
    assert_eq!(probe.in_flight(), 0);
}

/// Real threads, caps that are always full, callers that leave at random: every one who stays is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn r045_no_wake_up_is_lost_between_threads() {
    let probe = Probe::ok();
    let per_key = endpoint_fn(|_: &Endpoint| tower_openrouter::ConcurrencyLimitLayer::new(2).unwrap());
    let service = KeySelectLayer::new(pool(3), per_key).max_waiters(100_000).layer(probe.clone());
    let tasks: Vec<_> = (0..64)
        .map(|task: u64| {
            let service = service.clone();
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(task);
                let mut served = 0;
                for _ in 0..300 {
                    let mut call = Box::pin(service.clone().oneshot(request()));
                    if rng.u8(..4) == 0 {
                        // leaves after a few polls, perhaps with an offer in hand
                        for _ in 0..rng.u8(..3) {
                            if futures_util::poll!(&mut call).is_ready() {
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                        continue;
                    }
                    let response = call.await.unwrap();
                    tokio::task::yield_now().await;
                    response.into_body().collect().await.unwrap();
                    served += 1;
                }
                served
            })
        })
        .collect();
    let all = async {
        let mut served = 0;
        for task in tasks {
            served += task.await.unwrap();
        }
        served
    };
    let served = tokio::time::timeout(Duration::from_secs(60), all).await.expect("a waiter was forgotten");
    assert!(served > 10_000);
    assert_eq!((service.waiting(), probe.in_flight(), probe.unready_calls()), (0, 0, 0));
    assert!(probe.seen().peak.load(std::sync::atomic::Ordering::SeqCst) <= 6);
}
