//! The circuit breaker against the probing service: tower's contract, and the promises R25 to R39.

mod support;

use std::{future::poll_fn, panic::AssertUnwindSafe, sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Channel};
use support::{Act, BodyAct, Probe};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Classify, Endpoint, Outcome, Rejected,
    breaker::{
        Admission, BreakerHandle, BreakerPolicy, BreakerState, CircuitBreaker, CircuitBreakerFuture,
        CircuitBreakerLayer, Trip, TripPolicy,
    },
    error::Why,
    outcome::{Cause, Fault, Grpc, OutcomeCell, Scope},
};

const MINUTE: Duration = Duration::from_secs(60);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Opened by one failure, for 60 to 75 s.
fn fragile() -> BreakerPolicy {
    BreakerPolicy::new(TripPolicy::consecutive(1).unwrap())
}

fn breaker(policy: BreakerPolicy, probe: &Probe) -> (CircuitBreaker<Probe>, BreakerHandle) {
    let layer = CircuitBreakerLayer::new(policy);
    (layer.layer(probe.clone()), layer.handle())
}

async fn status(service: &CircuitBreaker<Probe>) -> u16 {
    service.clone().oneshot(Request::new(())).await.unwrap().status().as_u16()
}

/// A breaker that has just been opened by its one failure; the probe answers well again.
async fn opened(policy: BreakerPolicy) -> (CircuitBreaker<Probe>, BreakerHandle, Probe) {
    let probe = Probe::ok();
    probe.script([Act::status(500)]);
    let (service, handle) = breaker(policy, &probe);
    assert_eq!(status(&service).await, 500);
    assert!(matches!(handle.snapshot().state, BreakerState::Open { .. }));
    (service, handle, probe)
}

/// The same, and its cooldown over.
async fn half_open(policy: BreakerPolicy) -> (CircuitBreaker<Probe>, BreakerHandle, Probe) {
    let opened = opened(policy).await;
    advance(seconds(75)).await;
    assert_eq!(opened.1.snapshot().state, BreakerState::HalfOpen { probes: 0 });
    opened
}

fn is_ready(service: &mut CircuitBreaker<Probe>) -> bool {
    let ready = poll_fn(|cx| Service::<Request<()>>::poll_ready(service, cx)).now_or_never();
    ready.map(Result::unwrap).is_some()
}

/// Makes the service ready and calls that very instance.
async fn call_ready(service: &mut CircuitBreaker<Probe>) -> Result<StatusCode, BoxError> {
    let ready = ServiceExt::<Request<()>>::ready(service).await?;
    ready.call(Request::new(())).await.map(|response| response.status())
}

#[test]
fn everything_public_is_send_and_sync() {
    use static_assertions::assert_impl_all as assert_impl;
    assert_impl!(CircuitBreakerLayer: Send, Sync, Clone);
    assert_impl!(CircuitBreaker<Probe>: Send, Sync, Clone);
    assert_impl!(CircuitBreakerFuture<std::future::Ready<()>>: Send, Sync);
    assert_impl!(Admission: Send, Sync);
    assert_impl!(BreakerHandle: Send, Sync, Clone);
}

#[tokio::test(start_paused = true)]
async fn r001_calls_run_on_the_instance_that_was_ready() {
    for reject in [false, true] {
        let probe = Probe::ok();
        let mut layer = CircuitBreakerLayer::new(fragile());
        if reject {
            layer = layer.reject();
        }
        let mut service = layer.layer(probe.clone());
        for n in 0..50 {
            if n % 10 == 5 {
                probe.script([Act::status(500)]);
                advance(seconds(400)).await;
            }
            let _ = call_ready(&mut service).await;
            service = service.clone();
        }
        assert!(probe.calls() > 5);
        assert_eq!(probe.unready_calls(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn r002_ready_asked_often_takes_one_slot() {
    let (mut service, handle, _probe) = half_open(fragile().probes(3).unwrap()).await;
    for _ in 0..10 {
        assert!(is_ready(&mut service));
        assert_eq!(handle.snapshot().state, BreakerState::HalfOpen { probes: 1 });
    }
    service.call(Request::new(())).await.unwrap();
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn r003_whatever_clones_do_every_slot_comes_back() {
    let (service, handle, probe) = half_open(fragile().probes(2).unwrap()).await;
    probe.set(Act::status(404));
    let mut random = fastrand::Rng::with_seed(7);
    let mut clones = vec![service; 8];
    let mut futures = Vec::new();
    for _ in 0..20_000 {
        let at = random.usize(..clones.len());
        match random.u8(..4) {
            0 => drop(is_ready(&mut clones[at])),
            1 => clones[at] = clones[random.usize(..8)].clone(),
            2 if is_ready(&mut clones[at]) => futures.push(clones[at].call(Request::new(()))),
            _ if !futures.is_empty() => drop(futures.swap_remove(random.usize(..futures.len()))),
            _ => {}
        }
        let BreakerState::HalfOpen { probes } = handle.snapshot().state else { panic!("404 says nothing") };
        assert!(probes <= 2);
    }
    drop((clones, futures));
    assert_eq!(handle.snapshot().state, BreakerState::HalfOpen { probes: 0 });
    assert_eq!((probe.unready_calls(), probe.in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn r004_a_waiter_is_woken_once_when_the_cooldown_ends() {
    let (mut service, handle, _probe) = opened(fragile()).await;
    let BreakerState::Open { until } = handle.snapshot().state else { panic!("open") };
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        Service::<Request<()>>::poll_ready(&mut service, cx)
    })
    .await
    .unwrap();
    assert_eq!(polls, 2);
    assert!(Instant::now() >= until && Instant::now() < until + seconds(1));
}

#[tokio::test(start_paused = true)]
async fn r004_waiters_are_woken_by_every_way_out() {
    let ways: [fn(&BreakerHandle); 2] = [BreakerHandle::reset, BreakerHandle::disable];
    for way in ways {
        for isolate in [false, true] {
            let (service, handle, _probe) = opened(fragile()).await;
            if isolate {
                handle.isolate();
            }
            let mut waiting = task::spawn(service.oneshot(Request::new(())));
            assert_pending!(waiting.poll());
            way(&handle);
            assert!(waiting.is_woken());
            assert_ready_ok!(waiting.poll());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pending_holds_nothing_and_releases_what_the_inner_service_reserved() {
    let (mut service, handle, probe) = half_open(fragile()).await;
    probe.block(true);
    assert!(!is_ready(&mut service));
    assert_eq!(handle.snapshot().state, BreakerState::HalfOpen { probes: 0 }, "no slot while the inner waits");
    probe.block(false);
    let mut ready = service.clone();
    handle.reset();
    assert!(is_ready(&mut ready));
    handle.isolate();
    let clones = probe.seen().clones.load(SeqCst);
    assert!(!is_ready(&mut ready));
    assert!(!is_ready(&mut ready));
    assert_eq!(probe.seen().clones.load(SeqCst), clones + 1, "swapped for a clone, once");
}

#[tokio::test(start_paused = true)]
async fn r006_refusals_do_not_wear_the_service_out() {
    let probe = Probe::ok();
    let layer = CircuitBreakerLayer::new(fragile()).reject();
    let mut service = layer.layer(probe.clone());
    layer.handle().isolate();
    for _ in 0..10_000 {
        let error = call_ready(&mut service).await.unwrap_err();
        assert_eq!(Rejected::find(&*error).unwrap().why(), Why::BreakerOpen);
    }
    layer.handle().reset();
    call_ready(&mut service).await.unwrap();
}

/// A half-open breaker whose verdict is at the end of the body.
async fn half_open_to_the_end() -> (CircuitBreaker<Probe>, BreakerHandle, Probe) {
    let probe = Probe::new(Act::status(500));
    let layer = CircuitBreakerLayer::new(fragile()).classify(Grpc);
    let service = layer.layer(probe.clone());
    assert_eq!(status(&service).await, 500);
    advance(seconds(75)).await;
    (service, layer.handle(), probe)
}

#[tokio::test(start_paused = true)]
async fn r008_a_panic_anywhere_gives_the_slot_back() {
    let (service, handle, probe) = half_open_to_the_end().await;
    let exchange = async || service.clone().oneshot(Request::new(())).await?.collect().await.map(drop);
    for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
        probe.script([act]);
        assert!(AssertUnwindSafe(exchange()).catch_unwind().await.is_err());
        assert_eq!(handle.snapshot().state, BreakerState::HalfOpen { probes: 0 });
    }
    probe.seen().panic_in_poll_ready.store(1, SeqCst);
    assert!(AssertUnwindSafe(exchange()).catch_unwind().await.is_err());
    probe.set(Act::ok().header("grpc-status", 0));
    exchange().await.unwrap();
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
    assert_eq!(probe.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn r025_the_call_after_the_nth_failure_is_not_sent() {
    for (policy, count) in [
        (BreakerPolicy::default(), 3),
        (BreakerPolicy::new(TripPolicy::consecutive(5).unwrap()), 5),
        (BreakerPolicy::new(TripPolicy::share(0.5, MINUTE, 8).unwrap()), 8),
    ] {
        let probe = Probe::new(Act::status(502));
        let (service, handle) = breaker(policy, &probe);
        for _ in 0..count {
            assert_eq!(handle.snapshot().state, BreakerState::Closed);
            status(&service).await;
        }
        assert_pending!(task::spawn(service.oneshot(Request::new(()))).poll());
        assert_eq!(probe.calls(), count);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_ones_own_decides() {
    struct Sixth(u32);
    impl Trip for Sixth {
        fn success(&mut self, _: Instant) {}
        fn failure(&mut self, _: Instant) -> bool {
            self.0 += 1;
            self.0 == 6
        }
        fn clear(&mut self) {
            self.0 = 0;
        }
    }
    let probe = Probe::new(Act::status(502));
    let (service, handle) = breaker(BreakerPolicy::new(TripPolicy::custom(|| Sixth(0))), &probe);
    for _ in 0..6 {
        assert_eq!(handle.snapshot().state, BreakerState::Closed);
        status(&service).await;
    }
    assert_eq!(handle.snapshot().trips, 1);
}

type Streaming = Response<Channel<Bytes, BoxError>>;
type Sent = std::sync::mpsc::Receiver<(OutcomeCell, http_body_util::channel::Sender<Bytes, BoxError>)>;

/// A service whose answers are streams that say only later how they went: the test holds the cell and the sending side.
fn streams() -> (impl Service<Request<()>, Response = Streaming, Error = BoxError, Future: Send> + Clone, Sent) {
    let (tell, told) = std::sync::mpsc::channel();
    let service = service_fn(move |_: Request<()>| {
        let (sender, body) = Channel::new(8);
        let (cell, mut response) = (OutcomeCell::new(), Response::new(body));
        response.extensions_mut().insert(cell.clone());
        tell.send((cell, sender)).unwrap();
        async { Ok::<_, BoxError>(response) }
    });
    (service, told)
}

#[tokio::test(start_paused = true)]
async fn r027_a_failure_counts_when_it_happens_not_when_the_stream_ends() {
    let (service, told) = streams();
    let layer = CircuitBreakerLayer::new(fragile());
    let mut body = layer.layer(service).oneshot(Request::new(())).await.unwrap().into_body();
    let (cell, mut sender) = told.recv().unwrap();
    sender.send_data(Bytes::from_static(b": comment\n\n")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    assert_eq!(layer.handle().snapshot().state, BreakerState::Closed);
    cell.commit(Fault::new(Cause::InvalidKey, Scope::Key).into());
    sender.send_data(Bytes::from_static(b"data: {}\n\n")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    assert!(matches!(layer.handle().snapshot().state, BreakerState::Open { .. }), "while the stream is still open");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_before_its_first_output_is_a_failure_and_after_it_is_not() {
    for (committed, trips) in [(false, 1), (true, 0)] {
        let (service, told) = streams();
        let layer = CircuitBreakerLayer::new(fragile());
        let response = layer.layer(service).oneshot(Request::new(())).await.unwrap();
        let (cell, sender) = told.recv().unwrap();
        if committed {
            cell.commit(Outcome::Success);
        }
        sender.abort("cut".into());
        response.collect().await.unwrap_err();
        assert_eq!(layer.handle().snapshot().trips, trips);
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_decide_where_only_they_can_tell() {
    for (code, closes) in [("0", true), ("13", false)] {
        let trailed = service_fn(move |_: Request<()>| async move {
            let (mut sender, body) = Channel::<Bytes, BoxError>::new(8);
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
            sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            sender.send_trailers(trailers).await.unwrap();
            Ok::<_, BoxError>(Response::new(body))
        });
        let layer = CircuitBreakerLayer::new(fragile()).classify(Grpc);
        layer.layer(trailed).oneshot(Request::new(())).await.unwrap().collect().await.unwrap();
        assert_eq!(layer.handle().snapshot().state == BreakerState::Closed, closes);
    }
}

#[tokio::test(start_paused = true)]
async fn r028_a_thousand_callers_at_the_moment_of_half_opening_send_one_probe() {
    for probes in [1, 3] {
        let (service, handle, probe) = opened(fragile().probes(probes).unwrap()).await;
        probe.set(Act::status(404).delay(seconds(1)));
        let before = probe.calls();
        let caller = |service| tokio::spawn(async move { status(&service).await });
        let callers: Vec<_> = (0..1000).map(|_| caller(service.clone())).collect();
        tokio::time::sleep(seconds(90)).await;
        assert_eq!(probe.seen().peak.load(SeqCst), probes as usize);
        assert!(probe.calls() - before >= 10 * probes as usize, "each 404 hands its slot on at once");
        probe.set(Act::ok());
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(handle.snapshot().state, BreakerState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn r029_a_probe_dropped_at_any_poll_returns_its_slot() {
    let (service, handle, probe) = half_open_to_the_end().await;
    probe.set(Act::ok().delay(seconds(3)).body(BodyAct::Frames { pause: seconds(3), frames: 3 }));
    let before = handle.snapshot();
    for polls in 1.. {
        let exchange = async { service.clone().oneshot(Request::new(())).await.unwrap().collect().await.map(drop) };
        let mut exchange = Box::pin(exchange);
        for _ in 0..polls {
            if futures_util::poll!(exchange.as_mut()).is_ready() {
                assert!(polls > 10, "it was dropped in its head, in each frame and between");
                return;
            }
            assert_eq!(handle.snapshot().state, BreakerState::HalfOpen { probes: 1 });
            advance(seconds(1)).await;
        }
        drop(exchange);
        assert_eq!(handle.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn r029_a_caller_that_waits_is_woken_when_the_probe_is_dropped() {
    let (service, handle, probe) = half_open(fragile()).await;
    probe.script([Act::Hang]);
    let mut hung = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(hung.poll());
    let mut waiting = task::spawn(service.oneshot(Request::new(())));
    assert_pending!(waiting.poll());
    assert!(!waiting.is_woken());
    drop(hung);
    assert!(waiting.is_woken());
    assert_ready_ok!(waiting.poll());
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn r030_a_hung_probe_cannot_wedge_the_breaker() {
    let (service, handle, probe) = half_open(fragile()).await;
    probe.script([Act::Hang]);
    let hung = tokio::spawn(service.clone().oneshot(Request::new(())));
    tokio::task::yield_now().await;
    let start = Instant::now();
    status(&service).await;
    assert!(start.elapsed() <= seconds(61));
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
    hung.abort();
}

#[tokio::test(start_paused = true)]
async fn r031_a_slow_but_good_probe_closes() {
    let policy = fragile().cooldown(seconds(1), seconds(10)).unwrap();
    let (service, handle, probe) = half_open(policy).await;
    probe.script([Act::ok().delay(seconds(50))]);
    assert_eq!(status(&service).await, 200);
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
}

/// Experiment 8 of the field notes: three good probes, each slower than the window, left another breaker half-open.
#[tokio::test(start_paused = true)]
async fn experiment_08_probes_slower_than_the_window_still_close() {
    let window = TripPolicy::share(0.5, Duration::from_millis(200), 1).unwrap();
    let (service, handle, probe) = half_open(BreakerPolicy::new(window).probes(3).unwrap()).await;
    probe.set(Act::ok().delay(Duration::from_millis(300)));
    for _ in 0..3 {
        assert_eq!(status(&service).await, 200);
    }
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn r032_a_429_on_a_probe_keeps_it_shut_for_the_hint() {
    let (service, handle, probe) = half_open(fragile()).await;
    probe.script([Act::status(429).header("retry-after", 7), Act::status(429)]);
    status(&service).await;
    assert_eq!(handle.snapshot().state, BreakerState::Open { until: Instant::now() + seconds(7) });
    status(&service).await;
    let BreakerState::Open { until } = handle.snapshot().state else { panic!("a 429 is no pass") };
    assert!(until >= Instant::now() + seconds(120), "without a hint, the next step");
}

#[tokio::test(start_paused = true)]
async fn r033_the_open_time_grows_to_its_cap_and_falls_back_after_a_success() {
    let (service, handle, probe) = opened(fragile()).await;
    probe.set(Act::status(500));
    let mut spans = Vec::new();
    for _ in 0..6 {
        let BreakerState::Open { until } = handle.snapshot().state else { panic!("open") };
        spans.push((until - Instant::now()).as_secs());
        status(&service).await;
    }
    let within = |span: u64, low| span >= low && span <= low * 5 / 4;
    assert!(within(spans[0], 60) && within(spans[1], 120), "{spans:?}");
    assert!(spans[2..].iter().all(|&span| within(span, 240)), "{spans:?}");
    probe.script([Act::ok(), Act::status(500)]);
    status(&service).await;
    status(&service).await;
    let BreakerState::Open { until } = handle.snapshot().state else { panic!("open") };
    assert!(within((until - Instant::now()).as_secs(), 60));
}

/// Experiment 9 of the field notes: a slow call from before the trip opened another breaker again.
#[tokio::test(start_paused = true)]
async fn r034_experiment_09_an_answer_from_before_the_trip_changes_no_state() {
    for straggler in [Act::ok(), Act::status(500), Act::status(429), Act::Fail { delay: Duration::ZERO }] {
        let probe = Probe::ok();
        probe.script([straggler.clone().delay(seconds(10)), straggler.delay(seconds(100)), Act::status(500)]);
        let (service, handle) = breaker(fragile(), &probe);
        let early = tokio::spawn(service.clone().oneshot(Request::new(())));
        let late = tokio::spawn(service.clone().oneshot(Request::new(())));
        tokio::task::yield_now().await;
        status(&service).await;
        let open = handle.snapshot();
        drop(early.await.unwrap());
        assert_eq!(handle.snapshot(), open);
        status(&service).await;
        let closed = handle.snapshot();
        assert_eq!(closed.state, BreakerState::Closed);
        drop(late.await.unwrap());
        assert_eq!(handle.snapshot(), closed);
    }
}

#[tokio::test(start_paused = true)]
async fn r035_slow_starts_can_trip_and_long_streams_never_do() {
    let policy = BreakerPolicy::default().slow_calls(seconds(5), 0.5, MINUTE * 60, 10).unwrap();
    let probe = Probe::new(Act::ok().body(BodyAct::Frames { pause: seconds(4), frames: 150 }));
    let layer = CircuitBreakerLayer::new(policy).classify(EndOnly);
    let service = layer.layer(probe.clone());
    for _ in 0..20 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        response.collect().await.unwrap();
    }
    assert_eq!(layer.handle().snapshot().state, BreakerState::Closed, "twenty good streams of ten minutes");
    layer.handle().reset();
    probe.set(Act::ok().delay(seconds(6)).body(BodyAct::Frames { pause: Duration::ZERO, frames: 1 }));
    for n in 1..=10 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        response.collect().await.unwrap();
        assert_eq!(layer.handle().snapshot().trips, u64::from(n == 10));
    }
}

struct EndOnly;

impl Classify for EndOnly {
    fn head(&self, _: StatusCode, _: &HeaderMap) -> Option<Outcome> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn r036_ten_thousand_bad_requests_and_cancelled_calls_leave_it_closed() {
    let probe = Probe::new(Act::status(400));
    let (service, handle) = breaker(fragile(), &probe);
    for _ in 0..10_000 {
        status(&service).await;
    }
    probe.set(Act::Hang);
    for _ in 0..1_000 {
        assert_pending!(task::spawn(service.clone().oneshot(Request::new(()))).poll());
    }
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
    assert_eq!((handle.snapshot().failures, probe.in_flight()), (0, 0));
    probe.set(Act::Fail { delay: Duration::ZERO });
    service.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(handle.snapshot().trips, 1, "a transport error counts");
}

#[tokio::test(start_paused = true)]
async fn r038_what_the_handle_says_holds_at_the_next_call() {
    let (service, handle, probe) = opened(fragile()).await;
    handle.disable();
    probe.set(Act::status(500));
    for _ in 0..10 {
        assert_eq!(status(&service).await, 500);
    }
    assert_eq!(handle.snapshot().state, BreakerState::Disabled);
    handle.enable();
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
    handle.isolate();
    let mut waiting = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(waiting.poll());
    advance(Duration::from_secs(86_400)).await;
    assert_pending!(waiting.poll());
    handle.reset();
    assert_ready!(waiting.poll()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn r039_while_open_the_inner_service_is_neither_polled_nor_cloned() {
    for reject in [false, true] {
        let probe = Probe::ok();
        let mut layer = CircuitBreakerLayer::default();
        if reject {
            layer = layer.reject();
        }
        let mut service = layer.layer(probe.clone());
        layer.handle().isolate();
        let seen = |probe: &Probe| (probe.seen().polls.load(SeqCst), probe.seen().clones.load(SeqCst), probe.calls());
        let before = seen(&probe);
        for _ in 0..100 {
            if is_ready(&mut service) {
                service.call(Request::new(())).await.unwrap_err();
            }
        }
        assert_eq!(seen(&probe), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_time_that_is_left_and_a_probe_is_let_through_after_it() {
    let probe = Probe::new(Act::status(500));
    let layer = CircuitBreakerLayer::new(fragile()).reject();
    let service = layer.layer(probe.clone());
    status(&service).await;
    advance(seconds(20)).await;
    let error = service.clone().oneshot(Request::new(())).await.unwrap_err();
    let after = Rejected::find(&*error).unwrap().after().unwrap();
    assert!(after >= seconds(40) && after <= seconds(55));
    advance(after).await;
    probe.set(Act::Hang);
    let mut hung = task::spawn(service.clone().oneshot(Request::new(())));
    assert_pending!(hung.poll());
    service.clone().oneshot(Request::new(())).await.map(drop).unwrap_err();
    drop(hung);
    probe.set(Act::ok());
    assert_eq!(status(&service).await, 200);
    assert_eq!(layer.handle().snapshot().state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn two_services_of_one_layer_share_one_breaker() {
    let (good, bad) = (Probe::ok(), Probe::new(Act::status(500)));
    let layer = CircuitBreakerLayer::new(fragile());
    let (first, mut second) = (layer.layer(bad), layer.clone().layer(good));
    status(&first).await;
    assert!(!is_ready(&mut second));
}

#[tokio::test(start_paused = true)]
async fn the_endpoint_shows_until_when_its_breaker_is_open() {
    struct KeyBroken;
    impl Classify for KeyBroken {
        fn head(&self, status: StatusCode, _: &HeaderMap) -> Option<Outcome> {
            let fault = Fault::new(Cause::InvalidKey, Scope::Key);
            Some(if status.is_success() { Outcome::Success } else { fault.into() })
        }
    }
    let endpoint = Endpoint::new(ApiKey::new("sk-or-v1-canary").unwrap().label("a"));
    let layer = CircuitBreakerLayer::new(fragile()).endpoint(&endpoint).classify(KeyBroken);
    let (probe, handle) = (Probe::new(Act::status(401)), layer.handle());
    let service = layer.layer(probe.clone());
    status(&service).await;
    let BreakerState::Open { until } = handle.snapshot().state else { panic!("open") };
    assert_eq!(endpoint.shut_until(Instant::now()), Some(until));
    probe.set(Act::ok());
    status(&service).await;
    assert_eq!(endpoint.shut_until(Instant::now()), None);
    handle.isolate();
    assert!(endpoint.shut_until(Instant::now() + MINUTE).is_some());
    handle.disable();
    assert_eq!(endpoint.shut_until(Instant::now()), None);
    assert!(!format!("{layer:?} {service:?}").contains("canary"));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_sat_ready_too_long_loses_its_slot() {
    let (mut idle, handle, _probe) = half_open(fragile()).await;
    assert!(is_ready(&mut idle));
    advance(seconds(61)).await;
    let mut other = idle.clone();
    assert!(is_ready(&mut other), "the lease is over");
    assert!(!is_ready(&mut idle));
    other.call(Request::new(())).await.unwrap();
    assert_eq!(handle.snapshot().state, BreakerState::Closed);
}
