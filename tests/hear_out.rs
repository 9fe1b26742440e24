//! What hearing answers out promises: the books of who left are right where the provider works on, at a bounded price.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Channel, Empty, Full, StreamBody};
use serde_json::json;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, OpenRouter, Pool,
    endpoint::{KeyReport, Money, Price, Spendable},
    select::CreditLimit,
    simulator::{Scenario, Simulator},
    stream::HearOutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Twenty tokens of ten cents each, one a second, from a provider that does not stop when the stream is closed.
fn simulator(cancel: bool) -> Simulator {
    let text = format!(
        r#"
        accounts = [{{ name = "acme", credits = 100.0 }}]
        keys = [{{ label = "one", account = "acme" }}]
        models = [{{ id = "acme/swift" }}]
        endpoints = [{{ model = "acme/swift", provider = "Groq", completion_price = 100000.0, tokens_per_second = 1.0, cancel = {cancel} }}]
        reply = {{ min_tokens = 20, max_tokens = 20 }}
        "#
    );
    Simulator::new(Scenario::from_toml(&text).unwrap()).unwrap()
}

fn chat() -> Request<Full<Bytes>> {
    let body = json!({"model": "acme/swift", "stream": true, "max_tokens": 400, "messages": [{"role": "user", "content": "hi"}]});
    Request::post("/v1/chat/completions").body(Full::from(body.to_string())).unwrap()
}

fn balancer(simulator: &Simulator) -> Balancer<Full<Bytes>> {
    let key = simulator.keys().remove(0);
    let pool = Pool::new([ApiKey::new(key.secret).unwrap().label(key.label).account(key.account)]).unwrap();
    // as a poll would
    pool.prices().set([("acme/swift".into(), Price::per_million(0.0, 100_000.0))]);
    let told = KeyReport { left: Spendable::Money(Money::from_usd(100.0)), ..KeyReport::default() };
    pool.endpoints()[0].credit().report_key(told, Instant::now());
    Balancer::builder(pool).credit(CreditLimit::new()).build(OpenRouter::new(simulator.service()))
}

/// What the balancer takes its key to have left, in dollars.
fn left(balancer: &Balancer<Full<Bytes>>) -> f64 {
    let spendable = balancer.handle().pool().endpoints()[0].credit().spendable(Instant::now());
    spendable.money().expect("an amount").usd()
}

fn layer() -> HearOutLayer {
    let runtime = Handle::current();
    HearOutLayer::new(move |rest| drop(runtime.spawn(rest)))
}

/// Reads a few frames of an answer and leaves.
async fn leave(
    service: impl tower::Service<
        Request<Full<Bytes>>,
        Response = Response<impl http_body::Body<Data = Bytes>>,
        Error = Infallible,
    >,
) {
    let Ok(answer) = service.oneshot(chat()).await;
    let mut body = Box::pin(answer.into_body());
    for _ in 0..3 {
        assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_works_on_only_who_hears_it_out_knows_the_cost() {
    for heard in [false, true] {
        let simulator = simulator(false);
        let balancer = balancer(&simulator);
        if heard {
            leave(layer().layer(balancer.clone())).await;
        } else {
            leave(balancer.clone()).await;
        }
        let total = balancer.handle().snapshot().total;
        assert_eq!(total.in_flight, u64::from(heard), "it runs on, and holds what it holds");
        sleep(60 * SECOND).await;
        let billed = simulator.counts().keys["one"].cost;
        assert!((billed - 2.0).abs() < 1e-9, "{billed}: all of it, whoever listens");
        let total = balancer.handle().snapshot().total;
        let way = if heard { "complete" } else { "client_gone" };
        assert_eq!((total.in_flight, total.outcomes[way]), (0, 1));
        assert!((total.cost_usd - if heard { billed } else { 0.0 }).abs() < 1e-9, "{}", total.cost_usd);
        let spent = 100.0 - left(&balancer);
        let wanted = if heard { billed } else { 40.0 };
        assert!((spent - wanted).abs() < 1e-6, "heard {heard}: {spent} dollars, the worst case unless heard out");
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_stops_leaving_is_cheaper() {
    let simulators = [simulator(true), simulator(true)];
    leave(balancer(&simulators[0])).await;
    leave(layer().layer(balancer(&simulators[1]))).await;
    sleep(60 * SECOND).await;
    let [left, heard] = simulators.map(|simulator| simulator.counts().keys["one"].cost);
    assert!(left < 0.5 && heard > 1.9, "{left} {heard}");
}

#[tokio::test(start_paused = true)]
async fn it_is_bounded_by_time_and_by_bytes() {
    for (bounded, within) in [(layer().time(5 * SECOND), 6), (layer().bytes(300), 6), (layer().time(Duration::MAX), 30)]
    {
        let simulator = simulator(true);
        leave(bounded.layer(balancer(&simulator))).await;
        assert_eq!(simulator.counts().in_flight, 1);
        sleep(within * SECOND).await;
        assert_eq!(simulator.counts().in_flight, 0);
    }
    for nothing in [layer().time(Duration::ZERO), layer().bytes(0)] {
        let simulator = simulator(true);
        leave(nothing.layer(balancer(&simulator))).await;
        assert_eq!(simulator.counts().in_flight, 0, "let go at once");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_over_has_failed_or_has_not_begun_is_not_heard_out() {
    let spawned = Arc::new(AtomicUsize::new(0));
    let counting = spawned.clone();
    let layer = HearOutLayer::new(move |_| {
        counting.fetch_add(1, SeqCst);
    });
    let flowing = |status: u16| {
        let body = StreamBody::new(futures_util::stream::repeat_with(|| {
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data")))
        }));
        Response::builder().status(status).body(body).unwrap()
    };
    drop(layer.watch(flowing(500)));
    assert_eq!(spawned.load(SeqCst), 0, "an error's body says nothing of money");
    drop(layer.watch(Response::new(Empty::<Bytes>::new())));
    let mut over = layer.watch(Response::new(Full::<Bytes>::from("all"))).into_body();
    over.frame().await.unwrap().unwrap();
    drop(over);
    let (sender, body) = Channel::<Bytes, BoxError>::new(1);
    sender.abort("cut".into());
    let mut failed = layer.watch(Response::new(body)).into_body();
    failed.frame().await.unwrap().unwrap_err();
    drop(failed);
    let hanging = layer.layer(service_fn(async |_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
    }));
    let mut waiting = Box::pin(hanging.oneshot(Request::new(())));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(waiting);
    assert_eq!(spawned.load(SeqCst), 0);
    drop(layer.watch(flowing(200)));
    assert_eq!(spawned.load(SeqCst), 1);
}
