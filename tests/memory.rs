//! What the default stack takes of the heap: for each key, and for each request.

use std::{alloc::System, convert::Infallible, fmt, future::ready, pin::pin, sync::Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, ExplainLayer, OpenRouter,
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
    let answer = Bytes::from_static(br#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"cost":0.1}}"#);
    let transport = service_fn(move |_: Request<_>| {
        let response = Response::builder().header("content-type", "application/json");
        ready(Ok::<_, Infallible>(response.body(Full::new(answer.clone())).unwrap()))
    });
    Balancer::builder(pool).pick(RoundRobin::default()).service(OpenRouter::new(transport))
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
    // a tenth of them will do here: the histograms come with the eighth success
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
