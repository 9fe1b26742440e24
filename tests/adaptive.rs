//! What the learned concurrency limit promises, against upstreams whose limits it does not know.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::{
    task::JoinSet,
    time::{self, sleep},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, Classify, OpenRouter, Outcome, Rejected,
    limit::{AdaptiveConcurrencyLimitLayer, AdaptivePolicy, LimitHandle},
    outcome::{Cause, Fault, Scope},
    select::{AdaptiveLimit, Pool},
};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// An upstream that bears so many streams at once, account by account.
#[derive(Default)]
struct Upstream {
    caps: Mutex<HashMap<String, usize>>,
    running: Mutex<HashMap<String, usize>>,
    served: AtomicUsize,
    refused: AtomicUsize,
    /// Beyond so many at once, the first output is late by a second for each.
    queues_beyond: Option<usize>,
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

struct Running(Arc<Upstream>, String);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

impl Upstream {
    fn with(cap: usize) -> Arc<Self> {
        let upstream = Arc::new(Self::default());
        upstream.set_cap("", cap);
        upstream
    }

    fn set_cap(&self, account: &str, cap: usize) {
        self.caps.lock().unwrap().insert(account.into(), cap);
    }

    fn seen(&self) -> (usize, usize) {
        (self.served.load(SeqCst), self.refused.load(SeqCst))
    }

    /// Streams for 1 to 4 s, the first output after some 200 ms.
    async fn answer(self: Arc<Self>, account: String) -> Result<Answer, BoxError> {
        let (running, late) = {
            let mut all = self.running.lock().unwrap();
            let running = all.entry(account.clone()).or_default();
            if *running >= self.caps.lock().unwrap()[&account] {
                self.refused.fetch_add(1, SeqCst);
                let mut answer = Response::new(Full::default().map_err(Into::into).boxed_unsync());
                *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                return Ok(answer);
            }
            *running += 1;
            let late = self.queues_beyond.map_or(0, |cap| running.saturating_sub(cap));
            (Running(self.clone(), account), late as u32)
        };
        sleep(150 * MILLI + 100 * MILLI.mul_f64(fastrand::f64()) + late * SECOND).await;
        self.served.fetch_add(1, SeqCst);
        let pause = 100 * MILLI + 300 * MILLI.mul_f64(fastrand::f64());
        let frames = stream::unfold((running, 10_u32), move |(running, left)| async move {
            if left < 10 {
                sleep(pause).await;
            }
            let left = left.checked_sub(1)?;
            Some((Ok(Frame::data(Bytes::from_static(b"word "))), (running, left)))
        });
        Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
    }

    fn service<B: Send + 'static>(
        self: &Arc<Self>,
    ) -> impl Service<Request<B>, Response = Answer, Error = BoxError, Future: Send> + Clone + use<B> {
        let upstream = self.clone();
        service_fn(move |request: Request<B>| {
            let account = account_of(request.headers());
            upstream.clone().answer(account)
        })
    }
}

/// `sk-or-v1-acme-2` is a key of the account acme.
fn account_of(headers: &HeaderMap) -> String {
    let key = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    key.trim_start_matches("Bearer sk-or-v1-").split('-').next().unwrap_or_default().into()
}

/// So many callers, each of which asks again when its answer is over, until the returned set is dropped.
fn callers<S>(count: usize, service: S) -> JoinSet<()>
where
    S: Service<Request<()>, Response: Into<Response<UnsyncBoxBody<Bytes, BoxError>>>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let mut callers = JoinSet::new();
    for _ in 0..count {
        let service = service.clone();
        callers.spawn(async move {
            loop {
                match service.clone().oneshot(Request::new(())).await.map(Into::into) {
                    Ok(answer) if answer.status().is_success() => drop(answer.into_body().collect().await),
                    // a refusal, ours or theirs: the caller comes again
                    _ => sleep(100 * MILLI).await,
                }
            }
        });
    }
    callers
}

fn limited(
    policy: AdaptivePolicy,
    upstream: &Arc<Upstream>,
) -> (impl Service<Request<()>, Response = Answer, Error = BoxError, Future: Send> + Clone + Send + 'static, LimitHandle)
{
    let layer = AdaptiveConcurrencyLimitLayer::new(policy).wait(10_000, Duration::MAX);
    let handle = layer.handle();
    let erase = |answer: Response<_>| answer.map(BodyExt::boxed_unsync);
    (layer.layer(upstream.service()).map_response(erase), handle)
}

#[tokio::test(start_paused = true)]
async fn a_hidden_cap_is_found_and_held_with_few_refusals() {
    for (start, hidden) in [(20, 30), (1, 40), (200, 5), (20, 1)] {
        for policy in [AdaptivePolicy::aimd(), AdaptivePolicy::gradient()] {
            let upstream = Upstream::with(hidden);
            let (service, handle) = limited(policy.start(start).unwrap(), &upstream);
            let _callers = callers(2 * hidden + 20, service);
            time::sleep(60 * SECOND).await;
            let found = handle.cap();
            assert!(found * 10 >= hidden * 7 && found <= hidden, "from {start} to {hidden}: {found} after a minute");
            let before = upstream.seen();
            time::sleep(300 * SECOND).await;
            let (served, refused) = (upstream.seen().0 - before.0, upstream.seen().1 - before.1);
            // each stream takes 2.5 s in the mean
            let ideal = hidden * 300 * 10 / 25;
            // two a minute, and some luck
            assert!(refused <= 12, "{hidden}: {refused} refused, {served} served");
            assert!(served * 100 >= ideal * 80, "{hidden}: {served} served of {ideal}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_brown_out_shrinks_it_and_it_recovers() {
    let upstream = Upstream::with(40);
    let (service, handle) = limited(AdaptivePolicy::aimd(), &upstream);
    let _callers = callers(100, service);
    time::sleep(120 * SECOND).await;
    assert!(handle.cap() >= 34, "{}", handle.cap());
    upstream.set_cap("", 8);
    time::sleep(60 * SECOND).await;
    assert!(handle.cap() <= 8, "{}", handle.cap());
    upstream.set_cap("", 40);
    time::sleep(180 * SECOND).await;
    assert!(handle.cap() >= 34, "{}", handle.cap());
}

#[tokio::test(start_paused = true)]
async fn the_gradient_minds_an_upstream_that_queues_and_never_refuses() {
    let mut caps = Vec::new();
    for policy in [AdaptivePolicy::aimd(), AdaptivePolicy::gradient()] {
        let upstream = Arc::new(Upstream { queues_beyond: Some(30), ..Upstream::default() });
        upstream.set_cap("", usize::MAX);
        let (service, handle) = limited(policy, &upstream);
        let _callers = callers(150, service);
        time::sleep(600 * SECOND).await;
        caps.push(handle.cap());
    }
    assert!(caps[0] > 120 && caps[1] < 60 && caps[1] >= 15, "{caps:?}");
}

#[tokio::test(start_paused = true)]
async fn r049_neither_who_leaves_nor_how_long_a_stream_goes_on_is_a_sample() {
    let upstream = Upstream::with(usize::MAX);
    let (service, handle) = limited(AdaptivePolicy::gradient(), &upstream);
    let mut rng = Rng::with_seed(7);
    for _ in 0..2_000 {
        let call = service.clone().oneshot(Request::new(()));
        let _ = time::timeout(MILLI * rng.u32(1..140), call).await;
    }
    assert_eq!((handle.cap(), handle.in_flight()), (20, 0), "left before any output");
    // all permits are held by streams that have begun, and nothing ends
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut body = service.clone().oneshot(Request::new(())).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        held.push(body);
    }
    assert!(handle.cap() > 20);
    let cap = handle.cap();
    time::sleep(3_600 * SECOND).await;
    drop(held);
    assert_eq!((handle.cap(), handle.in_flight()), (cap, 0));
}

#[tokio::test(start_paused = true)]
async fn r046_a_cap_that_shrinks_keeps_what_runs_and_one_that_grows_wakes_who_waits() {
    let upstream = Upstream::with(20);
    let (service, handle) = limited(AdaptivePolicy::aimd(), &upstream);
    let _callers = callers(30, service);
    time::sleep(MILLI).await;
    assert_eq!((handle.in_flight(), handle.waiting()), (20, 10));
    upstream.set_cap("", 4);
    let mut above = 0;
    for _ in 0..1_000 {
        time::sleep(10 * MILLI).await;
        assert!(handle.in_flight() + handle.waiting() <= 30);
        above += usize::from(handle.in_flight() > handle.cap());
    }
    assert!(above > 50 && handle.cap() <= 4, "{above} times more ran than the cap, {}", handle.cap());
    upstream.set_cap("", usize::MAX);
    time::sleep(400 * SECOND).await;
    assert_eq!((handle.in_flight(), handle.waiting()), (30, 0));
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_it_refuses_where_that_is_asked_for() {
    let upstream = Upstream::with(9);
    let layer = AdaptiveConcurrencyLimitLayer::new(AdaptivePolicy::aimd().start(2).unwrap()).refuse();
    let service = layer.layer(upstream.service());
    let _held = [service.clone().oneshot(Request::new(())).await, service.clone().oneshot(Request::new(())).await];
    let error = service.oneshot(Request::new(())).await.unwrap_err();
    assert!(Rejected::find(&*error).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_foreign_stack_says_by_its_own_classify_what_too_much_is() {
    struct Teapot;
    impl Classify for Teapot {
        fn head(&self, status: StatusCode, _: &HeaderMap) -> Option<Outcome> {
            let busy = Fault::new(Cause::PlatformLimit, Scope::Key);
            Some(if status == StatusCode::IM_A_TEAPOT { busy.into() } else { Outcome::Success })
        }
    }
    for (status, caps) in [(418, 1..=10), (429, 21..=40)] {
        let layer = AdaptiveConcurrencyLimitLayer::new(AdaptivePolicy::aimd()).classify(Teapot).refuse();
        let service = layer.layer(service_fn(move |_: Request<()>| async move {
            let mut answer = Response::new(Full::<Bytes>::from("x"));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok::<_, BoxError>(answer)
        }));
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.extend(service.clone().oneshot(Request::new(())).await);
        }
        for answer in answers {
            answer.into_body().collect().await.unwrap();
        }
        assert!(caps.contains(&layer.handle().cap()), "{status}: {}", layer.handle().cap());
    }
}

/// Two accounts with limits of their own, one of them with two keys, behind the default stack.
#[tokio::test(start_paused = true)]
async fn the_filter_learns_the_limit_of_each_account_over_all_its_keys() {
    let upstream = Arc::new(Upstream::default());
    upstream.set_cap("acme", 12);
    upstream.set_cap("other", 30);
    let keys = [("acme-1", "acme"), ("acme-2", "acme"), ("other-1", "other")];
    let keys = keys.map(|(key, account)| ApiKey::new(format!("sk-or-v1-{key}")).unwrap().label(key).account(account));
    let pool = Pool::new(keys).unwrap();
    let limit = AdaptiveLimit::new(AdaptivePolicy::aimd()).by_model();
    let balancer = Balancer::builder(pool.clone()).filter(limit.clone()).build(OpenRouter::new(upstream.service()));
    // more than both accounts bear: what never meets its limit need not be learned
    let mut callers = JoinSet::new();
    for _ in 0..60 {
        let balancer = balancer.clone();
        callers.spawn(async move {
            loop {
                let body = Full::<Bytes>::from(r#"{"model":"m","stream":true}"#);
                let request = Request::post("/v1/chat/completions").body(body).unwrap();
                let Ok(answer) = balancer.clone().oneshot(request).await;
                if !answer.status().is_success() {
                    sleep(100 * MILLI).await;
                }
                drop(answer.into_body().collect().await);
            }
        });
    }
    time::sleep(120 * SECOND).await;
    let before = upstream.seen();
    time::sleep(600 * SECOND).await;
    let endpoints = pool.endpoints();
    let caps: Vec<_> = endpoints.iter().map(|endpoint| limit.cap(endpoint, Some("m"))).collect();
    let (served, refused) = (upstream.seen().0 - before.0, upstream.seen().1 - before.1);
    assert!(caps[0] == caps[1] && (8..=13).contains(&caps[0]), "{caps:?}");
    assert!((21..=31).contains(&caps[2]), "{caps:?}");
    assert!(refused * 50 <= served, "{refused} refused, {served} served");
}
