//! What `RetryLayer` repeats, where, when, and how often at most.

mod support;

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use support::{Act, BodyAct, Probe, ProbeBody};
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Endpoint, LoadMonitorLayer, Rejected, RequestContext, RetryLayer,
    error::{UpstreamError, UpstreamErrorKind, Why},
    outcome::{Cause, Classify, Fault, HttpStatus, Outcome, OutcomeCell, Scope},
    request::Replay,
    retry::{Backoff, RetryBudget, RetryError},
};

const SECOND: Duration = Duration::from_secs(1);

fn request() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

/// Stands in for selection: the attempts of a request go to `endpoints` in turn, and the ledger says so.
#[derive(Clone)]
struct Selecting<S> {
    inner: S,
    endpoints: Arc<[Endpoint]>,
    elsewhere: bool,
}

impl<S> Selecting<S> {
    fn among(keys: usize, inner: S) -> Self {
        let endpoints = (0..keys).map(|i| Endpoint::new(ApiKey::new(format!("key-{i}")).unwrap())).collect();
        Self { inner, endpoints, elsewhere: true }
    }
}

impl<S, B> Service<Request<B>> for Selecting<S>
where
    S: Service<Request<B>, Response = Response<ProbeBody>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<ProbeBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let context = RequestContext::get(request.extensions()).expect("retry gives every request a context").clone();
        let made = context.ledger().attempts().len();
        let attempt = context.ledger().start(&self.endpoints[made % self.endpoints.len()]);
        let (future, elsewhere) = (self.inner.call(request), self.elsewhere);
        Box::pin(async move {
            let result = future.await;
            let outcome = match &result {
                Ok(response) => HttpStatus.head(response.status(), response.headers()).unwrap(),
                Err(error) => HttpStatus.error(&**error),
            };
            context.ledger().end(attempt, outcome, elsewhere);
            result
        })
    }
}

#[tokio::test(start_paused = true)]
async fn r001_every_attempt_runs_on_an_instance_that_said_ready() {
    let probe = Probe::ok();
    probe.script([Act::status(503), Act::status(429), Act::status(503)]);
    let response = RetryLayer::new().layer(Selecting::among(3, probe.clone())).oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((probe.calls(), probe.unready_calls()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn r002_polling_ready_ten_times_costs_nothing() {
    let probe = Probe::ok();
    let retry = RetryLayer::new();
    let mut service = retry.layer(probe.clone());
    for _ in 0..10 {
        ServiceExt::<Request<Full<Bytes>>>::ready(&mut service).await.unwrap();
    }
    service.call(request()).await.unwrap();
    assert_eq!((probe.calls(), retry.handle().stats().requests), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn r004_an_attempt_waits_for_readiness_without_polling_in_a_loop() {
    let probe = Probe::ok();
    probe.script([Act::status(503)]);
    let mut service = RetryLayer::new().layer(probe.clone());
    let mut call = task::spawn(ServiceExt::<Request<Full<Bytes>>>::ready(&mut service).await.unwrap().call(request()));
    assert_pending!(call.poll());
    probe.block(true);
    tokio::time::advance(2 * SECOND).await;
    assert!(call.is_woken());
    let polls = probe.seen().polls.load(SeqCst);
    assert_pending!(call.poll());
    assert!(!call.is_woken());
    probe.block(false);
    assert!(call.is_woken());
    assert_ready!(call.poll()).unwrap();
    assert_eq!(probe.seen().polls.load(SeqCst) - polls, 2);
    assert_eq!(probe.unready_calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn r005_a_call_dropped_after_any_poll_leaves_nothing() {
    for k in 0..12 {
        let probe = Probe::new(Act::status(503).delay(SECOND));
        let budget = RetryBudget::new(1.0, 0).unwrap();
        let retry = RetryLayer::new().budget(budget.clone());
        let mut call = Box::pin(retry.layer(probe.clone()).oneshot(request()));
        for _ in 0..k {
            if futures_util::poll!(&mut call).is_ready() {
                break;
            }
            tokio::time::advance(Duration::from_millis(300)).await;
        }
        drop(call);
        assert_eq!(probe.in_flight(), 0, "after {k} polls");
        // whatever was not sent is still in the budget: requests and retries balance
        let stats = retry.handle().stats();
        let left =
            std::iter::repeat_with(|| tower::retry::budget::Budget::withdraw(&budget)).take_while(|ok| *ok).count();
        assert_eq!(stats.retries.values().sum::<u64>() + left as u64, stats.requests, "after {k} polls");
        assert_eq!(stats.attempts, probe.calls() as u64, "after {k} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn r006_a_service_is_usable_after_ten_thousand_refusals() {
    let inner = service_fn(|_: Request<Full<Bytes>>| async {
        Err::<Response<Full<Bytes>>, _>(Rejected::new(Why::NoKey, "no key can serve"))
    });
    let retry = RetryLayer::new();
    let mut service = retry.layer(inner);
    for _ in 0..10_000 {
        let error = service.ready().await.unwrap().call(request()).await.unwrap_err();
        assert!(Rejected::find(&*error).is_some());
    }
    let stats = retry.handle().stats();
    assert_eq!((stats.refused, stats.attempts), (10_000, 0), "not tried again, and nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn r008_a_panic_below_leaves_the_service_usable() {
    let probe = Probe::ok();
    let service = RetryLayer::new().layer(probe.clone());
    for act in [Act::PanicInCall, Act::PanicInFuture] {
        probe.script([Act::status(503), act]);
        assert!(AssertUnwindSafe(service.clone().oneshot(request())).catch_unwind().await.is_err());
    }
    assert_eq!(service.oneshot(request()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(probe.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn r050_amplification_stays_within_the_budget_in_every_window() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let service = RetryLayer::new().layer(service_fn(move |_: Request<Full<Bytes>>| {
        seen.lock().unwrap().push(Instant::now());
        async { Err::<Response<Full<Bytes>>, _>(UpstreamError::new(UpstreamErrorKind::Connect, None)) }
    }));
    let (start, rate, seconds) = (Instant::now(), 500, 60);
    let mut running = Vec::new();
    for i in 0..rate * seconds {
        tokio::time::sleep_until(start + SECOND / rate * i).await;
        running.push(tokio::spawn(service.clone().oneshot(request())));
    }
    join_all(running).await;
    let attempts = attempts.lock().unwrap();
    for from in (0..=seconds - 10).map(|second| start + SECOND * second) {
        let inside = attempts.iter().filter(|at| **at >= from && **at < from + 10 * SECOND).count();
        // a retry runs up to 2 s after it was granted, so a window may hold a few grants of the one before
        let most = (10 * rate) as f64 * 1.2 + 100.0;
        assert!((inside as f64) < most * 1.02, "{inside} attempts within 10 s, {most} allowed");
    }
    let all = attempts.len() as f64 / f64::from(rate * seconds);
    assert!(all > 1.15 && all < 1.23, "{all} attempts a request");
}

#[tokio::test(start_paused = true)]
async fn r051_attempts_are_three_and_never_more_than_five() {
    for (layer, calls) in [(RetryLayer::new(), 3), (RetryLayer::new().attempts(5).unwrap(), 5)] {
        let probe = Probe::new(Act::status(503));
        let response = layer.layer(probe.clone()).oneshot(request()).await.unwrap();
        assert_eq!((response.status(), probe.calls()), (StatusCode::SERVICE_UNAVAILABLE, calls));
    }
    for attempts in [0, 6] {
        assert_eq!(RetryLayer::new().attempts(attempts).unwrap_err(), RetryError::Attempts(attempts));
    }
}

#[tokio::test(start_paused = true)]
async fn r051_failovers_are_eight_and_once_per_scope() {
    for (keys, calls) in [(20, 9), (3, 4)] {
        let probe = Probe::new(Act::status(401));
        let response = RetryLayer::new().layer(Selecting::among(keys, probe.clone())).oneshot(request()).await.unwrap();
        assert_eq!((response.status(), probe.calls()), (StatusCode::UNAUTHORIZED, calls), "{keys} keys");
    }
}

#[tokio::test(start_paused = true)]
async fn r052_services_of_one_layer_and_their_clones_share_one_budget() {
    let probe = Probe::new(Act::status(503));
    let retry = RetryLayer::new().budget(RetryBudget::new(0.0, 1).unwrap());
    let (one, other) = (retry.layer(probe.clone()), retry.clone().layer(probe.clone()));
    join_all((0..20).flat_map(|_| [one.clone().oneshot(request()), other.clone().oneshot(request())])).await;
    let stats = retry.handle().stats();
    assert_eq!(probe.calls(), 40 + 10);
    assert_eq!(stats.attempts, 50);
    assert_eq!(stats.budget_refusals, 40);
}

#[tokio::test(start_paused = true)]
async fn r056_a_hint_above_the_cap_is_passed_on_at_once() {
    let probe = Probe::new(Act::status(503).header("retry-after", 121));
    let start = Instant::now();
    let response = RetryLayer::new().layer(probe.clone()).oneshot(request()).await.unwrap();
    assert_eq!(
        (response.status(), response.headers()["retry-after"].as_bytes()),
        (StatusCode::SERVICE_UNAVAILABLE, &b"121"[..])
    );
    assert_eq!((probe.calls(), start.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn r057_a_hint_beyond_the_deadline_is_passed_on_at_once() {
    let probe = Probe::new(Act::status(503).header("retry-after", 10));
    let mut request = request();
    RequestContext::of(&mut request).limit(Instant::now() + 9 * SECOND);
    let start = Instant::now();
    let retry = RetryLayer::new();
    retry.layer(probe.clone()).oneshot(request).await.unwrap();
    assert_eq!((probe.calls(), start.elapsed()), (1, Duration::ZERO));
    assert_eq!(retry.handle().stats().give_ups["deadline"], 1);
}

#[tokio::test(start_paused = true)]
async fn r059_a_hint_is_the_least_wait() {
    let probe = Probe::ok();
    probe.script([Act::status(503).header("retry-after", 10)]);
    let start = Instant::now();
    RetryLayer::new().layer(probe.clone()).oneshot(request()).await.unwrap();
    assert!(start.elapsed() >= 10 * SECOND && start.elapsed() <= 11 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn r059_experiment_06_requests_that_fail_together_do_not_come_back_together() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let service = RetryLayer::new().attempts(2).unwrap().layer(service_fn(move |_: Request<Full<Bytes>>| {
        seen.lock().unwrap().push(Instant::now());
        async { Err::<Response<Full<Bytes>>, _>(UpstreamError::new(UpstreamErrorKind::Connect, None)) }
    }));
    join_all((0..50).map(|_| service.clone().oneshot(request()))).await;
    // the timer works in milliseconds, so a few may share one
    let distinct: std::collections::HashSet<_> = times.lock().unwrap()[50..].iter().copied().collect();
    assert!(distinct.len() > 40, "{} of 50", distinct.len());
}

#[tokio::test(start_paused = true)]
async fn r060_a_fault_of_the_key_moves_on_without_sleeping_and_outside_attempts_and_budget() {
    let probe = Probe::ok();
    probe.script([Act::status(401), Act::status(402), Act::status(429).header("retry-after", 60), Act::status(429)]);
    let retry = RetryLayer::new().attempts(1).unwrap().budget(RetryBudget::new(0.0, 0).unwrap());
    let start = Instant::now();
    let response = retry.layer(Selecting::among(9, probe.clone())).oneshot(request()).await.unwrap();
    assert_eq!((response.status(), start.elapsed()), (StatusCode::OK, Duration::ZERO));
    let stats = retry.handle().stats();
    assert_eq!(stats.failovers.values().sum::<u64>(), 4);
    assert!(stats.retries.is_empty());
}

#[tokio::test(start_paused = true)]
async fn r060_a_request_too_dear_for_every_key_gets_its_answer_back() {
    struct TooDear;
    impl Classify for TooDear {
        fn head(&self, _: StatusCode, _: &http::HeaderMap) -> Option<Outcome> {
            let fault = Fault::new(Cause::TooDearForAccount, Scope::Account);
            Some(fault.retry(tower_openrouter::outcome::Retry::Elsewhere).into())
        }
    }
    for (elsewhere, calls) in [(false, 1), (true, 4)] {
        let probe = Probe::new(Act::status(402));
        let selecting = Selecting { elsewhere, ..Selecting::among(3, probe.clone()) };
        let response = RetryLayer::new().classify(TooDear).layer(selecting).oneshot(request()).await.unwrap();
        assert_eq!((response.status(), probe.calls()), (StatusCode::PAYMENT_REQUIRED, calls));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_selector_a_limit_is_waited_for_and_a_dead_key_given_up() {
    for (act, calls, least) in
        [(Act::status(429).header("retry-after", 7), 3, 14 * SECOND), (Act::status(401), 1, Duration::ZERO)]
    {
        let probe = Probe::new(act);
        let start = Instant::now();
        RetryLayer::new().layer(probe.clone()).oneshot(request()).await.unwrap();
        assert_eq!(probe.calls(), calls);
        assert!(start.elapsed() >= least);
    }
}

#[tokio::test(start_paused = true)]
async fn r061_what_is_the_requests_own_is_sent_once() {
    for status in [200, 301, 400, 403, 404, 405, 409, 410, 412, 413, 422, 451] {
        let probe = Probe::new(Act::status(status));
        let response = RetryLayer::new().layer(probe.clone()).oneshot(request()).await.unwrap();
        assert_eq!((response.status().as_u16(), probe.calls()), (status, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn r061_nothing_is_retried_after_the_first_byte() {
    let probe = Probe::new(Act::ok().body(BodyAct::Cut));
    let response = RetryLayer::new().layer(probe.clone()).oneshot(request()).await.unwrap();
    response.into_body().collect().await.unwrap_err();
    assert_eq!(probe.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_not_committed_is_passed_on() {
    let cell = OutcomeCell::new();
    let given = cell.clone();
    let inner = service_fn(move |_: Request<Full<Bytes>>| {
        let mut response = Response::new(Full::<Bytes>::default());
        response.extensions_mut().insert(given.clone());
        async { Ok::<_, BoxError>(response) }
    });
    let retry = RetryLayer::new();
    retry.layer(inner.clone()).oneshot(request()).await.unwrap();
    assert_eq!(retry.handle().stats().attempts, 1);
    cell.commit(Fault::new(Cause::ServerError, Scope::Pool).retry(tower_openrouter::outcome::Retry::Backoff).into());
    retry.layer(inner).oneshot(request()).await.unwrap();
    assert_eq!(retry.handle().stats().attempts, 4, "a cell that failed before the head came up is tried again");
}

#[tokio::test(start_paused = true)]
async fn the_failed_response_is_dropped_before_the_wait() {
    let probe = Probe::new(Act::status(503).body(BodyAct::Hang));
    let mut call = task::spawn(RetryLayer::new().layer(probe.clone()).oneshot(request()));
    assert_pending!(call.poll());
    assert_eq!((probe.calls(), probe.in_flight()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn r064_a_caller_that_leaves_during_the_wait_sends_nothing_and_uses_no_budget() {
    let probe = Probe::new(Act::status(503));
    let budget = RetryBudget::new(1.0, 0).unwrap();
    let retry = RetryLayer::new().budget(budget.clone());
    let mut call = task::spawn(retry.layer(probe.clone()).oneshot(request()));
    assert_pending!(call.poll());
    assert!(!tower::retry::budget::Budget::withdraw(&budget), "the one retry is taken while the wait runs");
    drop(call);
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(probe.calls(), 1);
    assert!(tower::retry::budget::Budget::withdraw(&budget));
    assert!(retry.handle().stats().retries.is_empty());
}

#[tokio::test(start_paused = true)]
async fn r065_what_may_have_run_is_repeated_only_when_asked_for() {
    for (opted, calls) in [(false, 1), (true, 3)] {
        let probe = Probe::new(Act::Fail { delay: Duration::ZERO });
        let retry = RetryLayer::new().retry_unclear(opted);
        retry.layer(probe.clone()).oneshot(request()).await.unwrap_err();
        assert_eq!(probe.calls(), calls);
        assert_eq!(retry.handle().stats().unclear, calls as u64 - 1);
    }
}

#[tokio::test(start_paused = true)]
async fn r063_every_attempt_carries_the_same_request() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let inner = service_fn(move |request: Request<Full<Bytes>>| {
        let log = log.clone();
        async move {
            let context = RequestContext::get(request.extensions()).unwrap();
            context.ledger().start(&Endpoint::new(ApiKey::new("k").unwrap()));
            let attempts = context.ledger().attempts().len();
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let same =
                (parts.method, parts.uri, parts.version, parts.headers, parts.extensions.get::<u8>().copied(), body);
            log.lock().unwrap().push((same, attempts));
            Err::<Response<Full<Bytes>>, _>(UpstreamError::new(UpstreamErrorKind::Connect, None))
        }
    });
    let request = Request::post("http://host/path?q")
        .version(http::Version::HTTP_2)
        .header("a", "1")
        .header("a", "2")
        .extension(7u8)
        .body(Full::from("body"))
        .unwrap();
    RetryLayer::new().layer(inner).oneshot(request).await.unwrap_err();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(_, attempts)| *attempts).collect::<Vec<_>>(), [1, 2, 3], "one ledger for all");
    assert!(seen.iter().all(|(request, _)| *request == seen[0].0));
    assert_eq!(seen[0].0.5, "body");
}

#[tokio::test(start_paused = true)]
async fn r062_a_body_that_cannot_be_replayed_is_sent_once() {
    #[derive(Debug)]
    struct Once;
    impl Replay for Once {
        fn replay(&self) -> Option<Self> {
            None
        }
    }
    let probe = Probe::new(Act::status(503));
    let retry = RetryLayer::new();
    let response = retry.layer(probe.clone()).oneshot(Request::new(Once)).await.unwrap();
    assert_eq!((response.status(), probe.calls()), (StatusCode::SERVICE_UNAVAILABLE, 1));
    assert_eq!(retry.handle().stats().unreplayable, 1);
}

#[tokio::test(start_paused = true)]
async fn r080_the_counts_match_the_upstreams_own() {
    let probe = Probe::ok();
    let retry = RetryLayer::new().backoff(Backoff::new(SECOND, SECOND).unwrap());
    let service = retry.layer(Selecting::among(9, probe.clone()));
    let exchanges: [&[u16]; 4] = [&[503, 200], &[401, 503, 503, 429, 504], &[504, 400], &[503, 503, 503]];
    for acts in exchanges {
        probe.script(acts.iter().copied().map(Act::status));
        let response = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.status().as_u16(), *acts.last().unwrap());
    }
    let stats = retry.handle().stats();
    assert_eq!((stats.requests, stats.attempts), (4, probe.calls() as u64));
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!(json["failovers"], serde_json::json!({ "invalid_key": 1, "platform_limit": 1 }));
    assert_eq!(json["retries"], serde_json::json!({ "provider_unavailable": 5, "upstream_timeout": 1 }));
    assert_eq!(json["give_ups"], serde_json::json!({ "attempts": 2, "final": 1 }));
}

#[tokio::test(start_paused = true)]
async fn services_are_send_and_sync_and_calls_can_be_spawned_whatever_the_error() {
    fn assert<T: Clone + Send + Sync + 'static>(_: &T) {}
    let monitor = LoadMonitorLayer::new();
    let service = RetryLayer::new().layer(monitor.layer(service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
    })));
    assert(&RetryLayer::new());
    assert(&monitor);
    assert(&service);
    let call = tokio::spawn(async move { service.oneshot(request()).await.map(|response| response.status()) });
    assert_eq!(call.await.unwrap().unwrap(), StatusCode::OK);
}
