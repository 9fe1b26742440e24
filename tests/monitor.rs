//! What `LoadMonitorLayer` counts, when, and that its books balance.

mod support;

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;
use support::{Act, BodyAct, Probe};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{
    Layer, Service, ServiceExt, balance::p2c::Balance, buffer::Buffer, discover::ServiceList, load::Load, service_fn,
};
use tower_openrouter::{
    ApiKey, Balancer, Endpoint, LoadMonitorLayer, OpenRouter, Pool, Rejected, RequestContext, RetryLayer, Snapshot,
    breaker::{BreakerPolicy, Trip, TripPolicy},
    endpoint::Figures,
    error::Why,
    outcome::{Cause, Fault, Grpc, Outcome, OutcomeCell, Scope, Usage},
    stack::BalancerHandle,
};

const SECOND: Duration = Duration::from_secs(1);

fn endpoint(label: &str) -> Endpoint {
    Endpoint::new(ApiKey::new(format!("secret-{label}")).unwrap().label(label))
}

fn request() -> Request<()> {
    Request::new(())
}

/// Complete, faults, cancelled, refused.
fn ends(figures: &Figures) -> [u64; 4] {
    [figures.succeeded(), figures.failed(), figures.cancelled(), figures.refused()]
}

#[tokio::test(start_paused = true)]
async fn r001_r002_the_call_runs_on_the_readied_instance_and_readiness_costs_nothing() {
    let (probe, monitor) = (Probe::ok(), LoadMonitorLayer::new());
    let mut service = monitor.layer(probe.clone());
    for _ in 0..10 {
        ServiceExt::<Request<()>>::ready(&mut service).await.unwrap();
    }
    assert_eq!(monitor.handle().figures().started(), 0);
    service.call(request()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!((probe.unready_calls(), monitor.handle().figures().started()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn r004_r006_pending_is_passed_through_with_its_wake_up() {
    let (probe, monitor) = (Probe::ok(), LoadMonitorLayer::new());
    probe.block(true);
    let mut service = monitor.layer(probe.clone());
    let mut ready = task::spawn(ServiceExt::<Request<()>>::ready(&mut service));
    assert_pending!(ready.poll());
    probe.block(false);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    assert_eq!(probe.seen().polls.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn r005_a_call_dropped_after_any_poll_is_the_callers_leaving() {
    let body = BodyAct::Frames { pause: SECOND, frames: 3 };
    let probe = Probe::new(Act::ok().delay(SECOND).body(body));
    for k in 0..10 {
        let monitor = LoadMonitorLayer::new();
        let handle = monitor.handle();
        let service = monitor.layer(probe.clone());
        let mut call = Box::pin(async move { service.oneshot(request()).await.unwrap().into_body().collect().await });
        let mut over = false;
        for _ in 0..k {
            over = futures_util::poll!(&mut call).is_ready();
            if over {
                break;
            }
            tokio::time::advance(SECOND).await;
        }
        drop(call);
        let figures = handle.figures();
        assert_eq!((probe.in_flight(), figures.in_flight()), (0, 0));
        let expected = [u64::from(over), 0, u64::from(!over && figures.started() > 0), 0];
        assert_eq!(ends(figures), expected, "after {k} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn r008_a_panic_below_is_over_at_once() {
    let (probe, monitor) = (Probe::ok(), LoadMonitorLayer::new());
    let (service, handle) = (monitor.layer(probe.clone()), monitor.handle());
    let call = || AssertUnwindSafe(async { service.clone().oneshot(request()).await?.into_body().collect().await });
    probe.seen().panic_in_poll_ready.store(1, SeqCst);
    assert!(call().catch_unwind().await.is_err());
    for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
        probe.script([act]);
        assert!(call().catch_unwind().await.is_err());
    }
    assert_eq!((handle.figures().in_flight(), ends(handle.figures())), (0, [0, 0, 3, 0]));
    call().0.await.unwrap();
    assert_eq!(handle.figures().succeeded(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_in_flight_until_its_body_ends_fails_or_is_dropped() {
    for (body, expected) in [
        (BodyAct::Frames { pause: SECOND, frames: 2 }, [1, 0, 0, 0]),
        (BodyAct::Cut, [0, 1, 0, 0]),
        (BodyAct::Hang, [0, 0, 1, 0]),
    ] {
        let monitor = LoadMonitorLayer::new();
        let handle = monitor.handle();
        let response = monitor.layer(Probe::new(Act::ok().body(body))).oneshot(request()).await.unwrap();
        assert_eq!(handle.figures().in_flight(), 1);
        let _ = tokio::time::timeout(10 * SECOND, response.into_body().collect()).await;
        assert_eq!((handle.figures().in_flight(), ends(handle.figures())), (0, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn r078_each_end_is_counted_once_and_by_its_name() {
    let refuse = || Rejected::new(Why::BreakerOpen, "the breaker is open");
    let mut cases = vec![];
    for (act, name) in [
        (Act::ok(), "complete"),
        (Act::status(429), "platform_limit"),
        (Act::status(500), "server_error"),
        (Act::status(504), "upstream_timeout"),
        (Act::Fail { delay: SECOND }, "reset"),
        (Act::ok().body(BodyAct::Cut), "truncated"),
        (Act::Hang, "client_gone"),
    ] {
        let monitor = LoadMonitorLayer::new();
        let call = async {
            if let Ok(response) = monitor.layer(Probe::new(act)).oneshot(request()).await {
                let _ = response.into_body().collect().await;
            }
        };
        let _ = tokio::time::timeout(10 * SECOND, call).await;
        cases.push((monitor.handle().measures(), name));
    }
    let monitor = LoadMonitorLayer::new();
    let refusing = service_fn(move |_: Request<()>| async move { Err::<Response<Full<Bytes>>, _>(refuse()) });
    monitor.layer(refusing).oneshot(request()).await.unwrap_err();
    assert_eq!(monitor.handle().figures().load(Instant::now()), 1.0, "nor does a fast refusal attract traffic");
    cases.push((monitor.handle().measures(), "refused"));
    for (measures, name) in cases {
        assert_eq!(measures.outcomes.into_iter().collect::<Vec<_>>(), [(name, 1)]);
        assert_eq!((measures.attempts, measures.in_flight), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn r078_what_moderation_forbids_and_what_we_refuse_are_counted_apart() {
    let endpoint = endpoint("a");
    let (figures, now) = (endpoint.figures(), Instant::now());
    figures.start();
    figures.fail(&Fault::new(Cause::Refused, Scope::Request), SECOND, now);
    figures.leave();
    figures.start();
    figures.refuse(None, SECOND, now);
    figures.leave();

    let total = Snapshot::of([&endpoint]).total;
    assert_eq!((total.outcomes["forbidden"], total.outcomes["refused"]), (1, 1));
    assert_eq!(total.in_flight, 0);
    for way in ["complete", "refused", "client_gone"] {
        assert!(Cause::ALL.iter().all(|cause| cause.as_str() != way), "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn r078_what_is_dropped_after_its_deadline_timed_out() {
    for (given, name) in [(1, "timeout"), (3, "client_gone")] {
        let monitor = LoadMonitorLayer::new();
        let mut request = request();
        RequestContext::of(&mut request).limit(Instant::now() + given * SECOND);
        let call = monitor.layer(Probe::new(Act::Hang)).oneshot(request);
        let _ = tokio::time::timeout(2 * SECOND, call).await;
        assert_eq!(monitor.handle().measures().outcomes[name], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_counts_even_when_nobody_reads_its_body() {
    let monitor = LoadMonitorLayer::new();
    drop(monitor.layer(Probe::new(Act::status(429).body(BodyAct::Hang))).oneshot(request()).await.unwrap());
    assert_eq!(ends(monitor.handle().figures()), [0, 1, 0, 0]);
}

/// A service whose answers carry `cell`, and a body of these frames.
fn with_cell<B: Body + Clone>(
    cell: &OutcomeCell,
    body: B,
) -> impl Service<Request<()>, Response = Response<B>, Error = Infallible> {
    let cell = cell.clone();
    service_fn(move |_| {
        let mut response = Response::new(body.clone());
        response.extensions_mut().insert(cell.clone());
        async { Ok(response) }
    })
}

#[tokio::test(start_paused = true)]
async fn the_end_wins_over_the_commit_and_a_fault_counts_once() {
    let cut = Outcome::Fault(Fault::new(Cause::MidStream, Scope::Pool));
    for (commit, end, expected) in [
        (Outcome::Success, Some(cut), "mid_stream"),
        (Outcome::Success, Some(Outcome::Success), "complete"),
        (Outcome::Success, None, "complete"),
        (cut, Some(cut), "mid_stream"),
        (cut, None, "mid_stream"),
    ] {
        let (cell, monitor) = (OutcomeCell::new(), LoadMonitorLayer::new());
        let response = monitor.layer(with_cell(&cell, Full::new(Bytes::from("x")))).oneshot(request()).await.unwrap();
        cell.commit(commit);
        end.into_iter().for_each(|end| cell.end(end));
        response.into_body().collect().await.unwrap();
        assert_eq!(monitor.handle().measures().outcomes.into_iter().collect::<Vec<_>>(), [(expected, 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_used_and_whose_it_is_reach_the_endpoint() {
    let (cell, endpoint) = (OutcomeCell::new(), endpoint("a"));
    let service = LoadMonitorLayer::endpoint(&endpoint).layer(with_cell(&cell, Full::new(Bytes::from("x"))));
    let response = service.oneshot(request()).await.unwrap();
    cell.report_usage(Usage { prompt_tokens: 10, completion_tokens: 5, cost: 0.25 });
    cell.report_account("user_1");
    cell.end(Outcome::Success);
    response.into_body().collect().await.unwrap();
    let snapshot = Snapshot::of([&endpoint]);
    assert_eq!(snapshot.endpoints[0].account.as_deref(), Some("user_1"));
    assert_eq!((snapshot.total.prompt_tokens, snapshot.total.completion_tokens), (10, 5));
    assert_eq!(snapshot.total.cost_usd, 0.25);
}

#[tokio::test(start_paused = true)]
async fn r083_times_are_of_successes_and_the_first_byte_is_of_real_output() {
    let (cell, monitor) = (OutcomeCell::new(), LoadMonitorLayer::new());
    let committing = cell.clone();
    let frames = futures_util::stream::unfold(0, move |i| {
        let cell = committing.clone();
        async move {
            sleep(SECOND).await;
            match i {
                0 => {}
                1 => cell.commit(Outcome::Success),
                2 => cell.end(Outcome::Success),
                _ => return None,
            }
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from("x"))), i + 1))
        }
    });
    let mut body = Some(StreamBody::new(Box::pin(frames)));
    let service = service_fn(move |_: Request<()>| {
        let mut response = Response::new(body.take().unwrap());
        response.extensions_mut().insert(cell.clone());
        async { Ok::<_, Infallible>(response) }
    });
    monitor.layer(service).oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
    let spread = monitor.handle().measures();
    let (first, total) = (spread.first_byte_ms.unwrap(), spread.total_ms.unwrap());
    assert!((first.mean - 2000.0).abs() < 5.0, "{first:?}");
    assert!((total.mean - 4000.0).abs() < 5.0, "{total:?}");
    for at in [total.p50, total.p95, total.p99] {
        assert!((at / 4000.0 - 1.0).abs() < 0.035, "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn r083_cancels_refusals_and_failures_have_times_of_their_own() {
    let (probe, monitor) = (Probe::ok(), LoadMonitorLayer::new());
    let service = monitor.layer(probe.clone());
    for (seconds, act) in [(1, Act::ok()), (2, Act::status(500)), (3, Act::Fail { delay: Duration::ZERO })] {
        probe.script([act.delay(seconds * SECOND)]);
        if let Ok(response) = service.clone().oneshot(request()).await {
            response.into_body().collect().await.unwrap();
        }
    }
    probe.script([Act::Hang]);
    let _ = tokio::time::timeout(4 * SECOND, service.oneshot(request())).await;
    let slow = service_fn(|_: Request<()>| async {
        sleep(5 * SECOND).await;
        Err::<Response<Full<Bytes>>, _>(Rejected::new(Why::LimitReached, "the limit is reached"))
    });
    monitor.layer(slow).oneshot(request()).await.unwrap_err();
    let measures = monitor.handle().measures();
    let near = |millis: Option<f64>, expected: f64| assert!((millis.unwrap() - expected).abs() < 5.0, "{millis:?}");
    near(measures.total_ms.map(|spread| spread.mean), 1000.0);
    near(measures.fault_mean_ms, 2500.0);
    near(measures.client_gone_mean_ms, 4000.0);
    near(measures.refused_mean_ms, 5000.0);
    assert!((measures.error_share - 2.0 / 3.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn grpc_is_judged_by_its_trailers() {
    struct Trailers(Option<HeaderMap>);
    impl Body for Trailers {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
        }
    }
    for (status, outcome) in [("0", "complete"), ("8", "platform_limit"), ("14", "provider_unavailable")] {
        let monitor = LoadMonitorLayer::new().classify(Grpc);
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        let mut trailers = Some(Trailers(Some(trailers)));
        let service = service_fn(move |_: Request<()>| {
            let body = trailers.take().unwrap();
            async { Ok::<_, Infallible>(Response::new(body)) }
        });
        monitor.layer(service).oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(monitor.handle().measures().outcomes.into_keys().collect::<Vec<_>>(), [outcome]);
    }
}

#[tokio::test(start_paused = true)]
async fn r080_a_snapshot_tells_requests_and_attempts_apart_and_is_json() {
    let (a, b, probe) = (endpoint("a"), endpoint("b"), Probe::ok());
    let retry = RetryLayer::new();
    let on = |endpoint| retry.layer(LoadMonitorLayer::endpoint(endpoint).layer(probe.clone()));
    for (endpoint, acts) in [(&a, vec![503, 200]), (&b, vec![200]), (&b, vec![200])] {
        probe.script(acts.into_iter().map(Act::status));
        on(endpoint).oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
    }
    let snapshot = Snapshot::of([&a, &b]).with("retry", retry.handle().stats());
    let json = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(json["total"]["attempts"], probe.calls());
    assert_eq!((&json["retry"]["requests"], &json["retry"]["attempts"]), (&3.into(), &4.into()));
    assert_eq!(json["endpoints"][0]["outcomes"], serde_json::json!({ "complete": 1, "provider_unavailable": 1 }));
    assert_eq!((&json["endpoints"][1]["key"], &json["endpoints"][1]["share"]), (&"b".into(), &0.5.into()));
    assert_eq!(json["total"]["total_ms"]["p99"].as_f64().map(|millis| millis < 1.0), Some(true));
    assert!(!json.to_string().contains("secret"));
}

/// Four endpoints, eight workers with 200 calls each: three answer in 2 s, one refuses in 20 ms. tower's own load, by peak
/// latency, gives the failing one half of the calls.
/// Reads the balancer's snapshot where it is asked whether to open: on a request's way, under the breaker's lock.
struct LooksOn(Arc<OnceLock<BalancerHandle>>, Arc<AtomicUsize>);

impl Trip for LooksOn {
    fn success(&mut self, _now: Instant) {
        let (told, hear) = mpsc::channel();
        let balancer = self.0.get().unwrap().clone();
        thread::spawn(move || told.send(balancer.snapshot().total.attempts));
        let attempts = hear.recv_timeout(10 * SECOND).expect("the snapshot waits for a lock that the request holds");
        self.1.fetch_max(attempts as usize, SeqCst);
    }

    fn failure(&mut self, _now: Instant) -> bool {
        false
    }

    fn clear(&mut self) {}
}

#[tokio::test]
async fn r084_a_snapshot_is_read_while_a_request_holds_its_breakers_lock() {
    let (balancer, seen) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let trip = {
        let (balancer, seen) = (balancer.clone(), seen.clone());
        TripPolicy::custom(move || LooksOn(balancer.clone(), seen.clone()))
    };
    let pool = Pool::new([ApiKey::new("a").unwrap()]).unwrap();
    let builder = Balancer::builder(pool).breaker(BreakerPolicy::new(trip));
    assert!(balancer.set(builder.handle()).is_ok());
    let service = builder.service(OpenRouter::new(Probe::ok()));
    for requests in 1..=3 {
        let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from("{}")).unwrap();
        service.clone().oneshot(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(seen.load(SeqCst), requests);
    }
}

#[tokio::test(start_paused = true)]
async fn experiment_01_a_fast_failing_endpoint_does_not_attract_traffic() {
    let endpoints: Vec<_> = ["bad", "b", "c", "d"].into_iter().map(endpoint).collect();
    let services: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let bad = endpoint.key().name() == "bad";
            LoadMonitorLayer::endpoint(endpoint).layer(service_fn(move |_: Request<()>| async move {
                sleep(if bad { SECOND / 50 } else { 2 * SECOND }).await;
                let mut response = Response::new(Full::new(Bytes::from("x")));
                if bad {
                    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                }
                Ok::<_, Infallible>(response)
            }))
        })
        .collect();
    let pool = Buffer::new(Balance::new(ServiceList::new::<Request<()>>(services)), 16);
    join_all((0..8).map(|_| {
        let pool = pool.clone();
        async move {
            for _ in 0..200 {
                pool.clone().oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
            }
        }
    }))
    .await;
    let share = Snapshot::of(&endpoints).endpoints[0].share;
    assert!(share < 0.25, "{share}");
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_key_or_upstream_weighs_for_a_while_and_a_bad_request_does_not() {
    for (act, load) in
        [(Act::status(429), 1.0), (Act::status(401), 1.0), (Act::status(500), 1.0), (Act::status(400), 0.0)]
    {
        let service = LoadMonitorLayer::new().layer(Probe::new(act));
        service.clone().oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(service.load().get(), load);
        tokio::time::advance(300 * SECOND).await;
        assert_eq!(service.load().get(), 0.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn r079_the_books_balance_whenever_they_are_read(
        calls in prop::collection::vec((0u8..7, 0u32..5, 0u32..8), 1..40), reads in prop::collection::vec(0u32..12, 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let endpoint = endpoint("a");
            let monitor = LoadMonitorLayer::endpoint(&endpoint);
            let made = calls.len() as u64;
            for (kind, delay, patience) in calls {
                let act = match kind {
                    0 => Act::ok(),
                    1 => Act::status(429),
                    2 => Act::Fail { delay: Duration::ZERO },
                    3 => Act::Hang,
                    4 => Act::PanicInFuture,
                    5 => Act::ok().body(BodyAct::Frames { pause: SECOND, frames: 4 }),
                    _ => Act::ok().body(BodyAct::Cut),
                };
                let service = monitor.layer(Probe::new(act.delay(delay * SECOND)));
                tokio::spawn(tokio::time::timeout(patience * SECOND, async move {
                    if let Ok(response) = service.oneshot(request()).await {
                        let _ = response.into_body().collect().await;
                    }
                }));
            }
            for wait in reads {
                sleep(wait * SECOND / 2).await;
                let total = Snapshot::of([&endpoint]).total;
                assert_eq!(total.attempts, total.in_flight + total.outcomes.values().sum::<u64>());
                assert_eq!(total.in_flight, u64::from(endpoint.figures().in_flight()));
            }
            sleep(100 * SECOND).await;
            let (total, figures) = (Snapshot::of([&endpoint]).total, endpoint.figures());
            assert_eq!((total.in_flight, figures.in_flight()), (0, 0));
            assert_eq!(ends(figures).iter().sum::<u64>(), figures.started());
            assert!(figures.started() <= made);
        });
    }
}

#[test]
fn r079_threads_that_start_and_end_are_all_counted() {
    let endpoint = endpoint("a");
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..5000 {
                    endpoint.figures().start();
                    endpoint.figures().leave();
                    match i % 3 {
                        0 => endpoint.figures().succeed(SECOND, SECOND),
                        1 => endpoint.figures().cancel(SECOND),
                        _ => endpoint.figures().fail(&Fault::new(Cause::Reset, Scope::Egress), SECOND, Instant::now()),
                    }
                }
                done.fetch_add(1, SeqCst);
            });
        }
        while done.load(SeqCst) < 4 {
            let total = Snapshot::of([&endpoint]).total;
            assert_eq!(total.attempts, total.in_flight + total.outcomes.values().sum::<u64>());
        }
    });
    assert_eq!(ends(endpoint.figures()).iter().sum::<u64>(), 20_000);
    assert_eq!(endpoint.figures().in_flight(), 0);
}
