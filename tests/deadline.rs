//! What the deadline promises.

mod support;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering::SeqCst,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Channel};
use proptest::prelude::*;
use support::{Act, BodyAct, Probe};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_openrouter::{
    RequestContext,
    deadline::{Deadline, DeadlineError, DeadlineLayer, DeadlineService},
    error::{Rejected, Why},
    limit::ConcurrencyLimitLayer,
};

const SECOND: Duration = Duration::from_secs(1);

fn request() -> Request<()> {
    Request::new(())
}

fn within(seconds: u64) -> DeadlineLayer {
    DeadlineLayer::new(SECOND * seconds as u32).unwrap()
}

fn why(error: &BoxError) -> Why {
    Rejected::find(&**error).expect("a refusal").why()
}

/// Allows a timer's millisecond.
fn assert_at(started: Instant, after: Duration) {
    let elapsed = started.elapsed();
    assert!(elapsed >= after && elapsed <= after + Duration::from_millis(1), "{elapsed:?} is not {after:?}");
}

#[test]
fn r117_a_total_of_zero_is_refused_when_built() {
    assert_eq!(DeadlineLayer::new(Duration::ZERO).unwrap_err(), DeadlineError::ZeroTotal);
}

proptest! {
    #[test]
    fn r118_any_time_can_be_given(total in any::<Duration>(), own in any::<Option<Duration>>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let Ok(layer) = DeadlineLayer::new(total) else { return };
            let mut request = request();
            if let Some(own) = own {
                request.extensions_mut().insert(Deadline::within(own));
            }
            let _ = task::spawn(layer.layer(Probe::new(Act::Hang)).oneshot(request)).poll();
        });
    }
}

#[tokio::test(start_paused = true)]
async fn r011_a_request_is_over_at_its_deadline_and_what_is_below_is_dropped() {
    let probe = Probe::new(Act::Hang);
    let started = Instant::now();
    let mut service = within(30).layer(probe.clone());
    let mut call = task::spawn(ready(&mut service).await.call(request()));
    assert_pending!(call.poll());
    advance(SECOND * 30 + Duration::from_millis(1)).await;
    assert!(call.is_woken());
    assert_eq!(why(&assert_ready!(call.poll()).unwrap_err()), Why::Deadline);
    assert_at(started, SECOND * 30);
    assert_eq!((probe.in_flight(), probe.seen().cancelled.load(SeqCst)), (0, 1), "though the future still lives");
}

#[tokio::test(start_paused = true)]
async fn r011_one_deadline_covers_the_queue_the_attempt_and_the_body() {
    let limit = ConcurrencyLimitLayer::new(1).unwrap().wait(10, Duration::from_secs(3600));
    let probe = Probe::new(Act::ok().delay(SECOND * 4).body(BodyAct::Frames { pause: SECOND * 4, frames: 9 }));
    let service = ServiceBuilder::new().layer(within(10)).layer(limit.clone()).service(probe.clone());
    let started = Instant::now();
    let (first, second) =
        tokio::join!(async { service.clone().oneshot(request()).await.unwrap().collect().await.unwrap_err() }, async {
            service.clone().oneshot(request()).await.unwrap_err()
        },);
    assert_eq!((why(&first), why(&second)), (Why::Deadline, Why::Deadline));
    assert_at(started, SECOND * 10);
    assert_eq!((limit.handle().in_flight(), limit.handle().waiting(), probe.in_flight()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn r071_a_trickling_body_is_ended_with_an_error_and_dropped_at_once() {
    let probe = Probe::new(Act::ok().body(BodyAct::Frames { pause: SECOND * 3, frames: 1000 }));
    let started = Instant::now();
    let mut body = within(10).layer(probe.clone()).oneshot(request()).await.unwrap().into_body();
    let mut frames = 0;
    let error = loop {
        match body.frame().await.expect("not a clean end") {
            Ok(_) => frames += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((frames, why(&error)), (3, Why::Deadline));
    assert_at(started, SECOND * 10);
    assert_eq!(probe.in_flight(), 0, "though the body still lives");
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn r071_a_body_that_never_waits_is_ended_too() {
    let probe = Probe::new(Act::ok().body(BodyAct::Frames { pause: Duration::ZERO, frames: 1000 }));
    let mut body = within(10).layer(probe.clone()).oneshot(request()).await.unwrap().into_body();
    for _ in 0..9 {
        body.frame().await.unwrap().unwrap();
        advance(SECOND).await;
    }
    advance(SECOND).await;
    assert_eq!(why(&body.frame().await.unwrap().unwrap_err()), Why::Deadline, "a slow reader gets no more");
    assert_eq!(probe.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_read_in_time_ends_cleanly_however_late_its_end_is_asked_for() {
    let probe = Probe::new(Act::ok().body(BodyAct::Whole("ok")));
    let mut body = within(10).layer(probe).oneshot(request()).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    advance(SECOND * 20).await;
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_default_is_ten_minutes() {
    let started = Instant::now();
    let error = DeadlineLayer::default().layer(Probe::new(Act::Hang)).oneshot(request()).await.unwrap_err();
    assert_eq!(why(&error), Why::Deadline);
    assert_eq!(error.to_string(), "the request was not over within 600s");
    assert_at(started, SECOND * 600);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_bring_its_own_deadline_and_an_earlier_limit_of_its_context_holds() {
    for (own, context, expected) in [
        (None, None, 30),
        (Some(5), None, 5),
        (Some(90), None, 90),
        (None, Some(5), 5),
        (None, Some(90), 30),
        (Some(90), Some(60), 60),
        (Some(5), Some(60), 5),
    ] {
        let started = Instant::now();
        let mut request = request();
        if let Some(seconds) = own {
            request.extensions_mut().insert(Deadline::within(SECOND * seconds));
        }
        if let Some(seconds) = context {
            RequestContext::of(&mut request).limit(started + SECOND * seconds);
        }
        within(30).layer(Probe::new(Act::Hang)).oneshot(request).await.unwrap_err();
        assert_at(started, SECOND * expected);
    }
}

#[tokio::test(start_paused = true)]
async fn inner_layers_see_the_deadline() {
    let started = Instant::now();
    let inner = service_fn(move |request: Request<()>| async move {
        let deadline = RequestContext::get(request.extensions()).unwrap().deadline();
        assert_eq!(deadline, Some(started + SECOND * 30));
        Ok::<_, BoxError>(Response::new(String::new()))
    });
    within(30).layer(inner).oneshot(request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_too_late_is_not_sent_and_leaves_nothing_reserved() {
    let probe = Probe::ok();
    let below = ConcurrencyLimitLayer::new(9).unwrap();
    let mut service = within(30).layer(below.layer(probe.clone()));
    let mut late = request();
    late.extensions_mut().insert(Deadline::at(Instant::now()));
    let error = ready(&mut service).await.call(late).await.unwrap_err();
    assert_eq!((why(&error), probe.calls(), below.handle().in_flight()), (Why::Deadline, 0, 0));
    ready(&mut service).await.call(request()).await.unwrap();
    assert_eq!(probe.unready_calls(), 0);
}

/// Without a time driver a timer would panic: none is set.
#[test]
fn an_exchange_that_never_waits_sets_no_timer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(async {
        within(30).layer(Probe::ok()).oneshot(request()).await.unwrap().collect().await.unwrap().to_bytes()
    });
    assert_eq!(body, "ok");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_reaches_a_waiting_body_by_its_waker() {
    let inner = service_fn(|_: Request<()>| async {
        let (sender, body) = Channel::<bytes::Bytes, BoxError>::new(1);
        std::mem::forget(sender);
        Ok::<_, BoxError>(Response::new(body))
    });
    let body = within(10).layer(inner).oneshot(request()).await.unwrap().into_body();
    let mut read = task::spawn(body.collect());
    assert_pending!(read.poll());
    advance(SECOND * 11).await;
    assert!(read.is_woken());
    assert_eq!(why(&assert_ready!(read.poll()).unwrap_err()), Why::Deadline);
}

async fn ready<S>(service: &mut DeadlineService<S>) -> &mut DeadlineService<S>
where
    DeadlineService<S>: Service<Request<()>, Error = BoxError>,
{
    service.ready().await.unwrap()
}

#[tokio::test]
async fn r001_r002_r006_readiness_passes_through_unchanged() {
    let probe = Probe::ok();
    let mut service = task::spawn(within(30).layer(probe.clone()));
    probe.block(true);
    assert_pending!(service.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
    probe.block(false);
    assert!(service.is_woken());
    for _ in 0..10 {
        assert_ready_ok!(service.enter(|cx, mut service| Service::<Request<()>>::poll_ready(&mut *service, cx)));
    }
    service.enter(|_, mut service| service.call(request())).await.unwrap();
    assert_eq!((probe.calls(), probe.unready_calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn r005_dropped_at_any_poll_nothing_is_left() {
    for polls in 0..8 {
        let probe = Probe::new(Act::ok().delay(SECOND).body(BodyAct::Frames { pause: SECOND, frames: 2 }));
        let service = within(10).layer(probe.clone());
        let mut call = task::spawn(async move { service.oneshot(request()).await?.collect().await });
        for _ in 0..polls {
            if call.poll().is_ready() {
                break;
            }
            advance(Duration::from_millis(600)).await;
        }
        drop(call);
        assert_eq!(probe.in_flight(), 0);
    }
}

#[tokio::test]
async fn r008_a_panic_passes_through_and_the_next_call_works() {
    let probe = Probe::ok();
    let service = within(10).layer(probe.clone());
    for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
        probe.script([act]);
        let service = service.clone();
        let task = tokio::spawn(async move { service.oneshot(request()).await?.collect().await });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(probe.in_flight(), 0);
    }
    probe.seen().panic_in_poll_ready.store(1, SeqCst);
    let mut once = service.clone();
    let mut cx = Context::from_waker(Waker::noop());
    let poll = AssertUnwindSafe(|| Service::<Request<()>>::poll_ready(&mut once, &mut cx).is_ready());
    assert!(catch_unwind(poll).is_err());
    service.oneshot(request()).await.unwrap();
}

#[tokio::test]
async fn services_bodies_and_futures_are_as_sendable_as_what_they_hold() {
    fn check<T: Send + Sync + 'static>(_: &T) {}
    fn send<T: Future + Send + Sync + 'static>(future: T) -> T {
        future
    }
    let mut service = within(10).layer(Probe::ok());
    check(&service.clone());
    let response = send(ready(&mut service).await.call(request())).await.unwrap();
    check(response.body());
    assert!(matches!(task::spawn(response.into_body().frame()).poll(), Poll::Ready(Some(Ok(_)))));
}
