//! What the default stack takes of the heap: for each key, and for each request.

use std::{
    alloc::System,
    convert::Infallible,
    fmt,
    future::{Future, pending, ready},
    pin::pin,
    sync::Mutex,
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, CommitGateLayer, ExplainLayer, ObserveLayer, OpenRouter, Snapshot, events,
    openrouter::BASE_URL,
    select::{Pool, RoundRobin},
};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counts are the whole process's, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

const KEYS: usize = 10_000;

fn pool(keys: usize) -> Pool {
    Pool::new((0..keys).map(|index| ApiKey::new(format!("sk-or-v1-{index:064}")).unwrap())).unwrap()
}

fn stack(
    pool: Pool,
) -> impl Service<Request<Full<Bytes>>, Response = Response<impl Body<Data = Bytes, Error: fmt::Debug>>, Error = Infallible>
{
    gated(pool, CommitGateLayer::new())
}

fn gated(
    pool: Pool,
    gate: CommitGateLayer,
) -> impl Service<Request<Full<Bytes>>, Response = Response<impl Body<Data = Bytes, Error: fmt::Debug>>, Error = Infallible>
{
    let answer = Bytes::from_static(br#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"cost":0.1}}"#);
    let transport = service_fn(move |_: Request<_>| {
        let response = Response::builder().header("content-type", "application/json");
        ready(Ok::<_, Infallible>(response.body(Full::new(answer.clone())).unwrap()))
    });
    Balancer::builder(pool).pick(RoundRobin::default()).commit_gate(gate).service(OpenRouter::new(transport))
}

async fn ask<S, B>(service: &mut S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: fmt::Debug>,
{
    let body = Full::from(r#"{"model":"acme/swift-1"}"#);
    let request = Request::post(format!("{BASE_URL}/chat/completions")).body(body).unwrap();
    let Ok(response) = service.ready().await.unwrap().call(request).await;
    assert_eq!(response.status(), 200);
    let mut body = pin!(response.into_body());
    while let Some(frame) = body.frame().await {
        frame.unwrap();
    }
}

/// Allocations that so many requests make.
async fn taken<S, B>(service: &mut S, requests: usize) -> usize
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: fmt::Debug>,
{
    for _ in 0..100 {
        ask(service).await;
    }
    let heap = Region::new(HEAP);
    for _ in 0..requests {
        ask(service).await;
    }
    heap.change().allocations
}

fn grown(stats: Stats) -> usize {
    stats.bytes_allocated - stats.bytes_deallocated
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn r019_ten_thousand_keys_take_at_most_4_kib_each_and_8_with_history() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let heap = Region::new(HEAP);
    let mut service = stack(pool(KEYS));
    // the first request makes the stacks of all keys
    ask(&mut service).await;
    let fresh = grown(heap.change()) / KEYS;
    drop(service);
    // a tenth of them will do here: the histograms come with the fourth success
    let heap = Region::new(HEAP);
    let mut service = stack(pool(KEYS / 10));
    for _ in 0..8 * KEYS / 10 {
        ask(&mut service).await;
    }
    let used = grown(heap.change()) / (KEYS / 10);
    println!("bytes a key: {fresh} without history, {used} with");
    assert!(fresh <= 4096, "without history: {fresh} bytes a key");
    assert!(used - fresh <= 4096, "the history takes {} bytes a key", used - fresh);
    assert!(used <= 8192, "with history: {used} bytes a key");
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn a_request_leaves_nothing_on_the_heap_and_takes_few_pieces_of_it() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut service = stack(pool(3));
    for _ in 0..100 {
        ask(&mut service).await;
    }
    let heap = Region::new(HEAP);
    for _ in 0..1000 {
        ask(&mut service).await;
    }
    let change = heap.change();
    println!("allocations a request: {}", change.allocations / 1000);
    assert_eq!(grown(change), 0);
    assert!(change.allocations <= 25 * 1000, "{} allocations for 1000 requests", change.allocations);
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn a_request_that_nobody_asks_to_explain_takes_no_piece_of_the_heap_for_it() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let without = taken(&mut stack(pool(3)), 1000).await;
    let off = taken(&mut ExplainLayer::new().layer(stack(pool(3))), 1000).await;
    let on = taken(&mut ExplainLayer::new().all().layer(stack(pool(3))), 1000).await;
    println!("allocations a request: {} without the layer, {} off, {} on", without / 1000, off / 1000, on / 1000);
    assert_eq!(off, without);
    assert!(on > without, "and this can tell");
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn r081_a_request_takes_no_piece_of_the_heap_for_an_observer_that_never_reads() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let pool = pool(3);
    let mut service = stack(pool.clone());
    let unwatched = taken(&mut service, 1000).await;
    let stuck = pool.events();
    for _ in 0..events::MOST {
        pool.drain(pool.endpoints()[0].key().name());
        pool.reset(pool.endpoints()[0].key().name());
    }
    assert_eq!(stuck.lost(), events::MOST as u64, "it is full");
    assert_eq!(taken(&mut service, 1000).await, unwatched);
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn r084_a_snapshot_takes_a_few_pieces_of_the_heap_for_each_key_however_many_there_are() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut each = Vec::new();
    for keys in [20, 1_000] {
        let pool = pool(keys);
        let mut service = stack(pool.clone());
        for _ in 0..8 * keys {
            ask(&mut service).await;
        }
        let heap = Region::new(HEAP);
        let snapshot = Snapshot::of(pool.endpoints().iter());
        let change = heap.change();
        assert_eq!(snapshot.total.attempts, 8 * keys as u64);
        each.push((change.allocations / keys, change.bytes_allocated / keys, grown(change) / keys));
    }
    println!("a snapshot, for each key: allocations, bytes, bytes that it keeps: {each:?}");
    for (allocations, bytes, kept) in each {
        assert!(allocations <= 16, "{allocations} allocations a key");
        assert!(bytes <= 6 * 1024, "{bytes} bytes a key");
        assert!(kept <= 2 * 1024, "{kept} bytes a key are kept");
    }
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn a_request_that_is_counted_takes_one_piece_of_the_heap_for_the_name_of_its_model() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let without = taken(&mut stack(pool(3)), 1000).await;
    let counted = taken(&mut ObserveLayer::new().layer(stack(pool(3))), 1000).await;
    println!("allocations a request: {} without the layer, {} with", without / 1000, counted / 1000);
    // and now and then one in which the recorder keeps times until they are read
    assert!(counted - without <= 1100, "{without} {counted}");
    assert!(recorder.handle().render().contains("outcome=\"success\""), "and it was counted");
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn a_head_whose_first_piece_of_body_is_there_is_held_on_no_piece_of_the_heap() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let without = taken(&mut gated(pool(3), CommitGateLayer::new().hold(Duration::ZERO)), 1000).await;
    assert_eq!(taken(&mut stack(pool(3)), 1000).await, without);
}

#[tokio::test(flavor = "current_thread")]
#[expect(clippy::await_holding_lock, reason = "one thread, and nobody else waits on this runtime")]
async fn an_open_stream_takes_at_most_4_kib() {
    const STREAMS: usize = 1000;
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let transport = service_fn(move |_: Request<_>| {
        let token = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
        let first = futures_util::stream::once(ready(Ok::<_, Infallible>(Frame::data(token))));
        let body = StreamBody::new(futures_util::StreamExt::chain(first, futures_util::stream::pending()));
        ready(Ok::<_, Infallible>(Response::builder().header("content-type", "text/event-stream").body(body).unwrap()))
    });
    let mut service = Balancer::builder(pool(3)).pick(RoundRobin::default()).service(OpenRouter::new(transport));
    let mut streams = Vec::with_capacity(STREAMS);
    let mut heap = None;
    for _ in 0..=STREAMS {
        let body = Full::<Bytes>::from(r#"{"model":"acme/swift-1","stream":true}"#);
        let request = Request::post(format!("{BASE_URL}/chat/completions")).body(body).unwrap();
        let Ok(response) = service.ready().await.unwrap().call(request).await;
        let mut body = Box::pin(response.into_body());
        body.frame().await.unwrap().unwrap();
        assert!(futures_util::poll!(body.frame()).is_pending());
        streams.push(body);
        // the first makes what all share
        heap.get_or_insert_with(|| Region::new(HEAP));
    }
    let change = heap.unwrap().change();
    let (each, pieces) = (grown(change) / STREAMS, (change.allocations - change.deallocations) / STREAMS);
    println!(
        "an open stream: {each} bytes in {pieces} pieces, {} of them its body",
        std::mem::size_of_val(&*streams[0])
    );
    assert!(each <= 4 * 1024, "{each} bytes");
}

#[tokio::test(flavor = "current_thread")]
async fn ten_thousand_waiters_behind_a_thousand_keys_take_less_than_64_mib() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let heap = Region::new(HEAP);
    let transport = service_fn(|_: Request<_>| pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let service = Balancer::builder(pool(1000)).max_in_flight(1).unwrap().max_waiters(10_000);
    let service = service.service(OpenRouter::new(transport));
    let (mut calls, cx) = (Vec::new(), &mut Context::from_waker(Waker::noop()));
    let mut with_keys = 0;
    for number in 0..11_000 {
        let body: Full<Bytes> = Full::from(r#"{"model":"acme/swift-1"}"#);
        let request = Request::post(format!("{BASE_URL}/chat/completions")).body(body).unwrap();
        let mut call = Box::pin(service.clone().oneshot(request));
        assert!(call.as_mut().poll(cx).is_pending(), "number {number}");
        calls.push(call);
        if number == 999 {
            with_keys = grown(heap.change());
        }
    }
    let all = grown(heap.change());
    println!("{all} bytes in all, of them {} a waiter", (all - with_keys) / 10_000);
    assert!(all < 64 << 20, "{all} bytes");
    drop(calls);
    let left = grown(heap.change());
    assert!(left < with_keys, "{left} bytes are left, of {all}");
}
