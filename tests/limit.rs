//! What the concurrency limit promises.

mod support;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::Request;
use http_body_util::BodyExt;
use support::{Act, BodyAct, Probe};
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_openrouter::{
    error::{Rejected, Why},
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer, LimitError, LimitHandle},
};

fn request() -> Request<()> {
    Request::new(())
}

fn limited(
    cap: usize,
    mode: impl FnOnce(ConcurrencyLimitLayer) -> ConcurrencyLimitLayer,
) -> (Probe, ConcurrencyLimit<Probe>, LimitHandle) {
    let probe = Probe::ok();
    let layer = mode(ConcurrencyLimitLayer::new(cap).unwrap());
    (probe.clone(), layer.layer(probe), layer.handle())
}

fn not_ready(layer: ConcurrencyLimitLayer) -> ConcurrencyLimitLayer {
    layer
}

fn refusing(layer: ConcurrencyLimitLayer) -> ConcurrencyLimitLayer {
    layer.refuse()
}

fn waiting(layer: ConcurrencyLimitLayer) -> ConcurrencyLimitLayer {
    layer.wait(100, Duration::from_secs(10))
}

const MODES: [fn(ConcurrencyLimitLayer) -> ConcurrencyLimitLayer; 3] = [not_ready, refusing, waiting];

fn why(error: &BoxError) -> Why {
    Rejected::find(&**error).expect("a refusal").why()
}

async fn ready<S: Service<Request<()>, Error = BoxError>>(service: &mut S) -> &mut S {
    service.ready().await.unwrap()
}

fn poll_ready(service: &mut ConcurrencyLimit<Probe>) -> Poll<()> {
    let polled = Service::<Request<()>>::poll_ready(service, &mut Context::from_waker(Waker::noop()));
    polled.map(|result| result.unwrap())
}

#[test]
fn r117_a_cap_of_zero_is_refused_when_built_and_when_set() {
    assert_eq!(ConcurrencyLimitLayer::new(0).unwrap_err(), LimitError::ZeroCap);
    let handle = ConcurrencyLimitLayer::new(3).unwrap().handle();
    assert_eq!(handle.set_cap(0), Err(LimitError::ZeroCap));
    assert_eq!(handle.cap(), 3);
}

#[tokio::test(start_paused = true)]
async fn r118_any_time_and_any_number_of_waiters_can_be_given() {
    for (waiters, wait) in [(usize::MAX, Duration::MAX), (1, Duration::ZERO), (0, Duration::MAX)] {
        let (_, service, handle) = limited(1, |layer| layer.wait(waiters, wait));
        let held = service.clone().oneshot(request()).await.unwrap();
        let mut second = task::spawn(service.oneshot(request()));
        match second.poll() {
            Poll::Pending => assert_eq!(handle.waiting(), 1),
            Poll::Ready(result) => assert!(matches!(why(&result.unwrap_err()), Why::QueueFull | Why::LimitReached)),
        }
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn r001_every_call_runs_on_the_instance_that_was_ready() {
    for mode in MODES {
        let (probe, service, _) = limited(1, mode);
        probe.set(Act::ok().delay(Duration::from_millis(10)));
        let calls = (0..5).map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move {
                let response = ready(&mut service).await.call(request()).await?;
                response.collect().await
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let _ = call.await.unwrap();
        }
        assert!(probe.calls() > 0);
        assert_eq!(probe.unready_calls(), 0);
    }
}

#[test]
fn r002_being_asked_often_takes_one_permit() {
    let (_, mut service, handle) = limited(2, not_ready);
    for _ in 0..10 {
        assert!(poll_ready(&mut service).is_ready());
    }
    assert_eq!(handle.in_flight(), 1);
}

#[test]
fn r003_a_ready_instance_that_is_dropped_gives_its_permit_back_and_a_clone_has_none() {
    let (_, mut service, handle) = limited(1, not_ready);
    assert!(poll_ready(&mut service).is_ready());
    let mut clone = service.clone();
    assert!(poll_ready(&mut clone).is_pending());
    drop(service);
    assert_eq!(handle.in_flight(), 0);
    assert!(poll_ready(&mut clone).is_ready());
}

#[test]
fn r004_a_pending_instance_is_woken_and_not_polled_in_a_loop() {
    let (probe, mut first, _) = limited(1, not_ready);
    let mut second = task::spawn(first.clone());
    assert!(poll_ready(&mut first).is_ready());
    assert_pending!(second.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
    assert!(!second.is_woken());
    let polls = probe.seen().polls.load(SeqCst);
    drop(first);
    assert!(second.is_woken());
    assert_ready_ok!(second.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
    assert_eq!(probe.seen().polls.load(SeqCst), polls + 1, "the inner service is asked only once there is a place");
}

#[test]
fn a_pending_instance_holds_nothing_while_the_inner_service_is_not_ready() {
    let (probe, mut service, handle) = limited(1, not_ready);
    assert!(poll_ready(&mut service).is_ready());
    probe.block(true);
    assert!(poll_ready(&mut service).is_pending());
    assert_eq!(handle.in_flight(), 0);
    probe.block(false);
    assert!(poll_ready(&mut service).is_ready());
}

#[tokio::test]
async fn a_refused_instance_keeps_nothing_that_the_inner_service_reserved() {
    let below = ConcurrencyLimitLayer::new(9).unwrap();
    for layer in
        [ConcurrencyLimitLayer::new(1).unwrap().refuse(), ConcurrencyLimitLayer::new(1).unwrap().wait(0, Duration::MAX)]
    {
        let mut service = layer.layer(below.layer(Probe::ok()));
        let _running = service.clone().oneshot(request()).await.unwrap();
        ready(&mut service).await;
        assert_eq!(below.handle().in_flight(), 2);
        service.call(request()).await.unwrap_err();
        assert_eq!(below.handle().in_flight(), 1, "only what runs");
    }
}

/// Takes a permit of the limit around it while it becomes ready.
struct Rival<S> {
    inner: S,
    other: Arc<Mutex<Option<ConcurrencyLimit<Probe>>>>,
}

impl<S: Clone> Clone for Rival<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), other: self.other.clone() }
    }
}

impl<S: Service<Request<()>>> Service<Request<()>> for Rival<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if let Some(other) = &mut *self.other.lock().unwrap() {
            assert!(poll_ready(other).is_ready());
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> S::Future {
        self.inner.call(request)
    }
}

#[test]
fn who_loses_the_last_permit_keeps_nothing_that_the_inner_service_reserved() {
    let (layer, below) = (ConcurrencyLimitLayer::new(1).unwrap(), ConcurrencyLimitLayer::new(9).unwrap());
    let other = Arc::new(Mutex::new(Some(layer.layer(Probe::ok()))));
    let rival = Rival { inner: below.layer(Probe::ok()), other: other.clone() };
    let mut service = task::spawn(layer.layer(rival));
    assert_pending!(service.enter(|cx, mut service| service.poll_ready(cx)));
    assert_eq!((layer.handle().in_flight(), below.handle().in_flight()), (1, 0));
    assert!(!service.is_woken());
    *other.lock().unwrap() = None;
    assert!(service.is_woken());
    assert_ready_ok!(service.enter(|cx, mut service| service.poll_ready(cx)));
    assert_eq!((layer.handle().in_flight(), below.handle().in_flight()), (1, 1));
}

/// tower's limiter gives the permit to the clone that was refused and idles.
#[tokio::test]
async fn experiment_02_an_idle_clone_that_was_refused_strands_no_permit() {
    let (_, service, _) = limited(1, not_ready);
    let service = ServiceBuilder::new().load_shed().service(service);
    let (mut a, mut b, mut c) = (service.clone(), service.clone(), service);
    let running = ready(&mut a).await.call(request()).await.unwrap();
    assert!(ready(&mut b).await.call(request()).await.is_err(), "overloaded");
    drop(running);
    assert!(ready(&mut c).await.call(request()).await.is_ok(), "b is idle and holds nothing");
    drop(b);
}

/// tower's limiter gives the permit back with the head.
#[tokio::test(start_paused = true)]
async fn r041_experiment_03_a_permit_lasts_until_the_body_ends_fails_or_is_dropped() {
    for body in [BodyAct::Whole("x"), BodyAct::Frames { pause: Duration::from_secs(1), frames: 3 }, BodyAct::Cut] {
        let (probe, service, handle) = limited(1, not_ready);
        probe.set(Act::ok().body(body));
        let mut other = service.clone();
        let mut response = service.oneshot(request()).await.unwrap();
        assert_eq!(handle.in_flight(), 1);
        assert!(poll_ready(&mut other).is_pending());
        while let Some(Ok(_)) = response.frame().await {}
        assert_eq!(handle.in_flight(), 0, "the response still lives, but its body is over");
        assert!(poll_ready(&mut other).is_ready());
    }
    let (probe, service, handle) = limited(1, not_ready);
    probe.set(Act::ok().body(BodyAct::Hang));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(handle.in_flight(), 1);
    drop(response);
    assert_eq!(handle.in_flight(), 0);
}

#[tokio::test]
async fn an_error_of_the_inner_service_gives_the_permit_back_with_it() {
    let (probe, mut service, handle) = limited(1, not_ready);
    probe.set(Act::Fail { delay: Duration::ZERO });
    let mut call = task::spawn(ready(&mut service).await.call(request()));
    assert!(assert_ready!(call.poll()).is_err());
    assert_eq!(handle.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn r005_dropped_at_any_poll_nothing_is_left() {
    for mode in MODES {
        for busy in [false, true] {
            for polls in 0..6 {
                let (probe, service, handle) = limited(1, mode);
                probe.set(
                    Act::ok()
                        .delay(Duration::from_secs(1))
                        .body(BodyAct::Frames { pause: Duration::from_secs(1), frames: 2 }),
                );
                let running = if busy { Some(service.clone().oneshot(request()).await) } else { None };
                let mut call = task::spawn(async move { service.oneshot(request()).await?.collect().await });
                for _ in 0..polls {
                    if call.poll().is_ready() {
                        break;
                    }
                    tokio::time::advance(Duration::from_millis(600)).await;
                }
                drop((call, running));
                assert_eq!((handle.in_flight(), handle.waiting(), probe.in_flight()), (0, 0, 0));
            }
        }
    }
}

#[tokio::test]
async fn r006_refusals_are_answers_and_the_service_stays_usable() {
    let (probe, mut service, handle) = limited(1, refusing);
    let held = ready(&mut service).await.call(request()).await.unwrap();
    for _ in 0..10_000 {
        let error = ready(&mut service).await.call(request()).await.unwrap_err();
        assert_eq!(why(&error), Why::LimitReached);
    }
    assert_eq!((probe.calls(), handle.in_flight()), (1, 1));
    drop(held);
    ready(&mut service).await.call(request()).await.unwrap();
}

#[tokio::test]
async fn r008_a_panic_anywhere_gives_the_permit_back() {
    for mode in MODES {
        let (probe, service, handle) = limited(1, mode);
        for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
            probe.script([act]);
            let service = service.clone();
            let task = tokio::spawn(async move { service.oneshot(request()).await?.collect().await });
            assert!(task.await.unwrap_err().is_panic());
            assert_eq!(handle.in_flight(), 0);
        }
        probe.seen().panic_in_poll_ready.store(1, SeqCst);
        let mut once = service.clone();
        assert!(catch_unwind(AssertUnwindSafe(|| poll_ready(&mut once))).is_err());
        drop(once);
        assert_eq!((handle.in_flight(), handle.waiting()), (0, 0));
        service.oneshot(request()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r040_the_cap_is_never_passed_under_load() {
    for mode in MODES {
        let (probe, service, handle) = limited(3, mode);
        let tasks: Vec<_> = (0..64)
            .map(|i| {
                let mut service = service.clone();
                tokio::spawn(async move {
                    for round in 0..100 {
                        if (i + round) % 7 == 0 {
                            let mut future = task::spawn(ready(&mut service).await.call(request()));
                            let _ = future.poll();
                        } else if let Ok(response) = ready(&mut service).await.call(request()).await {
                            tokio::task::yield_now().await;
                            let _ = response.collect().await;
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(probe.seen().peak.load(SeqCst) <= 3);
        assert_eq!((handle.in_flight(), handle.waiting(), probe.in_flight()), (0, 0, 0));
        assert_eq!(probe.unready_calls(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn r044_waiters_run_in_order_of_arrival() {
    let (_, service, handle) = limited(1, waiting);
    let held = service.clone().oneshot(request()).await.unwrap();
    let mut calls: Vec<_> = (0..5).map(|_| task::spawn(service.clone().oneshot(request()))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    assert_eq!(handle.waiting(), 5);
    let mut running = held;
    for i in 0..5 {
        assert!(calls[i..].iter().all(|call| !call.is_woken()));
        drop(running);
        assert!(calls[i].is_woken());
        running = assert_ready_ok!(calls[i].poll());
    }
}

#[tokio::test(start_paused = true)]
async fn r045_beyond_the_bound_a_request_is_refused_at_once() {
    let (probe, service, handle) = limited(1, |layer| layer.wait(2, Duration::from_secs(10)));
    let _held = service.clone().oneshot(request()).await.unwrap();
    let mut queued: Vec<_> = (0..2).map(|_| task::spawn(service.clone().oneshot(request()))).collect();
    for call in &mut queued {
        assert_pending!(call.poll());
    }
    let started = Instant::now();
    let error = service.clone().oneshot(request()).await.unwrap_err();
    assert_eq!((why(&error), started.elapsed()), (Why::QueueFull, Duration::ZERO));
    queued.pop();
    assert_eq!(handle.waiting(), 1, "who leaves makes room");
    assert_pending!(task::spawn(service.oneshot(request())).poll());
    assert_eq!(probe.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn r045_a_waiter_whose_time_is_over_leaves_no_ghost() {
    let (_, service, handle) = limited(1, waiting);
    let held = service.clone().oneshot(request()).await.unwrap();
    let started = Instant::now();
    let error = service.clone().oneshot(request()).await.unwrap_err();
    assert_eq!(why(&error), Why::LimitReached);
    assert!(started.elapsed() - Duration::from_secs(10) <= Duration::from_millis(1));
    assert_eq!(handle.waiting(), 0);
    drop(held);
    assert_eq!(handle.in_flight(), 0);
    service.oneshot(request()).await.unwrap();
}

#[tokio::test]
async fn r045_a_granted_waiter_that_is_dropped_wakes_the_next() {
    let (_, service, handle) = limited(1, waiting);
    let held = service.clone().oneshot(request()).await.unwrap();
    let mut first = task::spawn(service.clone().oneshot(request()));
    let mut second = task::spawn(service.oneshot(request()));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(held);
    assert!(first.is_woken());
    drop(first);
    assert!(second.is_woken());
    drop(assert_ready_ok!(second.poll()));
    assert_eq!((handle.in_flight(), handle.waiting()), (0, 0));
}

#[tokio::test]
async fn r046_the_cap_changes_under_load() {
    let (_, service, handle) = limited(3, waiting);
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(service.clone().oneshot(request()).await.unwrap());
    }
    handle.set_cap(1).unwrap();
    assert_eq!((handle.cap(), handle.in_flight()), (1, 3), "running work is kept");
    let mut waiters: Vec<_> = (0..2).map(|_| task::spawn(service.clone().oneshot(request()))).collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    running.truncate(1);
    assert!(!waiters[0].is_woken(), "new work obeys the new cap");
    handle.set_cap(3).unwrap();
    for waiter in &mut waiters {
        assert!(waiter.is_woken());
        running.push(assert_ready_ok!(waiter.poll()));
    }
    assert_eq!(handle.in_flight(), 3);
    running.clear();
    assert_eq!(handle.in_flight(), 0);
}

#[test]
fn r046_a_raised_cap_wakes_pending_instances() {
    let (_, mut first, handle) = limited(1, not_ready);
    let mut second = task::spawn(first.clone());
    assert!(poll_ready(&mut first).is_ready());
    assert_pending!(second.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
    handle.set_cap(2).unwrap();
    assert!(second.is_woken());
    assert_ready_ok!(second.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
}

#[tokio::test]
async fn r048_two_layers_do_not_know_each_other_but_one_layer_is_one_cap() {
    let (_, a, _) = limited(1, not_ready);
    let (_, mut b, _) = limited(1, not_ready);
    let _held = a.clone().oneshot(request()).await.unwrap();
    assert!(poll_ready(&mut b).is_ready());

    let layer = ConcurrencyLimitLayer::new(1).unwrap();
    let (x, mut y) = (layer.layer(Probe::ok()), layer.clone().layer(Probe::ok()));
    let _held = x.oneshot(request()).await.unwrap();
    assert!(poll_ready(&mut y).is_pending());
}

#[test]
fn services_and_futures_are_as_sendable_as_what_they_hold() {
    fn check<T: Clone + Send + Sync + 'static>(_: &T) {}
    fn send<T: Future + Send + Sync + 'static>(_: &T) {}
    let (_, mut service, _) = limited(1, not_ready);
    check(&service);
    assert!(poll_ready(&mut service).is_ready());
    send(&service.call(request()));
}
