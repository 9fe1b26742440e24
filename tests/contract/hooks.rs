//! R9: what users plug in may panic or take its time; no lock of ours is held meanwhile, and other requests go on.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use tokio::time;
use tower::{Layer, ServiceExt, layer::util::Identity};
use tower_openrouter::{
    ApiKey, CircuitBreakerLayer, Classify, Endpoint, KeySelectLayer, LoadMonitorLayer, Outcome, RequestContext,
    RetryLayer,
    breaker::{BreakerPolicy, BreakerState, Trip, TripPolicy},
    endpoint_fn,
    select::{Candidates, Filter, Fit, Pick, Pool},
};

use crate::{
    stages::{CAP, Payload, Stack, erase, innermost, pool, post},
    storm::silence_scripted_panics,
    support::{Act, BodyAct, Probe},
};

/// A stack with a user's code in one place.
type Case<H> = (&'static str, fn(&Probe, H) -> Stack);

/// A user's code: panics once, when told to.
#[derive(Clone, Default)]
struct Bomb(Arc<AtomicBool>);

impl Bomb {
    fn arm(&self) {
        self.0.store(true, SeqCst);
    }

    fn is_armed(&self) -> bool {
        self.0.load(SeqCst)
    }

    fn tick(&self) {
        if self.0.swap(false, SeqCst) {
            panic!("scripted panic in a hook");
        }
    }
}

impl Filter for Bomb {
    fn judge(&self, _: &Endpoint, _: &RequestContext, _: time::Instant) -> Fit {
        self.tick();
        Fit::Yes
    }
}

impl Pick for Bomb {
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, _: &mut fastrand::Rng) -> usize {
        self.tick();
        turn % candidates.endpoints.len()
    }
}

impl Classify for Bomb {
    fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        self.tick();
        tower_openrouter::outcome::HttpStatus.head(status, headers)
    }
}

impl Trip for Bomb {
    fn success(&mut self, _: time::Instant) {
        self.tick();
    }

    fn failure(&mut self, _: time::Instant) -> bool {
        self.tick();
        true
    }

    fn clear(&mut self) {
        self.tick();
    }
}

fn each_key() -> tower_openrouter::select::EndpointFn<impl Fn(&Endpoint) -> Identity + Clone> {
    endpoint_fn(|_: &Endpoint| Identity::new())
}

async fn call(service: &Stack) -> u16 {
    let answer = service.clone().oneshot(post(Payload::whole())).await.unwrap();
    let status = answer.status().as_u16();
    let _ = answer.into_body().collect().await;
    status
}

#[tokio::test(start_paused = true)]
async fn r009_a_hook_that_panics_fails_its_own_request_only() {
    silence_scripted_panics();
    let hooks: [Case<Bomb>; 7] = [
        ("filter", |probe, bomb| erase(KeySelectLayer::new(pool(), each_key()).filter(bomb).layer(innermost(probe)))),
        ("pick", |probe, bomb| erase(KeySelectLayer::new(pool(), each_key()).pick(bomb).layer(innermost(probe)))),
        ("classify of select", |probe, bomb| {
            erase(KeySelectLayer::new(pool(), each_key()).classify(bomb).layer(innermost(probe)))
        }),
        ("classify of retry", |probe, bomb| erase(RetryLayer::new().classify(bomb).layer(innermost(probe)))),
        ("classify of monitor", |probe, bomb| erase(LoadMonitorLayer::new().classify(bomb).layer(innermost(probe)))),
        ("classify of breaker", |probe, bomb| {
            erase(CircuitBreakerLayer::default().classify(bomb).layer(innermost(probe)))
        }),
        ("trip", |probe, bomb| {
            let policy = BreakerPolicy::new(TripPolicy::custom(move || bomb.clone()));
            erase(CircuitBreakerLayer::new(policy).layer(innermost(probe)))
        }),
    ];
    for (hook, make) in hooks {
        let (probe, bomb) = (Probe::ok(), Bomb::default());
        let service = make(&probe, bomb.clone());
        for _ in 0..100 {
            bomb.arm();
            let doomed = service.clone();
            let result = tokio::spawn(async move { call(&doomed).await }).await;
            assert!(result.is_err_and(|error| error.is_panic()), "{hook}");
            assert!(!bomb.is_armed());
            assert_eq!(call(&service).await, 200, "{hook}");
            assert_eq!((probe.in_flight(), probe.reserved()), (0, 0), "{hook}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r009_a_trip_that_panics_on_a_probe_does_not_wedge_the_breaker() {
    silence_scripted_panics();
    let (probe, bomb) = (Probe::new(Act::status(500)), Bomb::default());
    let trip = bomb.clone();
    let layer = CircuitBreakerLayer::new(BreakerPolicy::new(TripPolicy::custom(move || trip.clone())));
    let handle = layer.handle();
    let service = erase(layer.layer(innermost(&probe)));
    assert_eq!(call(&service).await, 500);
    assert!(matches!(handle.snapshot().state, BreakerState::Open { .. }));
    for status in [200, 500] {
        probe.set(Act::status(status));
        time::sleep(Duration::from_secs(400)).await;
        bomb.arm();
        let doomed = service.clone();
        // the verdict of a failed probe needs no counting, that of a good one clears
        let _ = tokio::spawn(async move { call(&doomed).await }).await;
    }
    bomb.0.store(false, SeqCst);
    probe.set(Act::ok());
    let served = time::timeout(Duration::from_secs(600), call(&service)).await;
    assert_eq!(served, Ok(200));
    assert!(matches!(handle.snapshot().state, BreakerState::Closed));
}

/// A permit given back wakes those who wait, and so runs their filters in the body of another request.
#[tokio::test(start_paused = true)]
async fn r009_a_filter_that_panics_for_those_who_wait_hurts_nobody_else() {
    silence_scripted_panics();
    let (probe, bomb) = (Probe::new(Act::ok().body(BodyAct::Hang)), Bomb::default());
    let pool = Pool::new([ApiKey::new("sk-or-v1-a").unwrap()]).unwrap();
    let per_key = endpoint_fn(|_: &Endpoint| tower_openrouter::ConcurrencyLimitLayer::new(CAP).unwrap());
    let select = KeySelectLayer::new(pool, per_key).filter(bomb.clone()).layer(innermost(&probe));
    let service = erase(select.clone());
    let mut held = Vec::new();
    for _ in 0..CAP {
        held.push(service.clone().oneshot(post(Payload::whole())).await.unwrap());
    }
    probe.set(Act::ok());
    let mut waiters = Vec::new();
    for _ in 0..CAP {
        let waiter = service.clone();
        waiters.push(tokio::spawn(async move { call(&waiter).await }));
        time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(select.waiting(), CAP);
    bomb.arm();
    // not this one's panic
    drop(held.pop());
    assert!(!bomb.is_armed(), "the filter was asked");
    let started = time::Instant::now();
    drop(held);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), 200);
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
}

/// Waits, in whatever it is asked, until somebody else's request is through.
struct Slow {
    is_first: AtomicBool,
    entered: mpsc::Sender<()>,
    goes_on: Mutex<mpsc::Receiver<()>>,
    asked: AtomicUsize,
}

impl Slow {
    fn wait(&self) {
        self.asked.fetch_add(1, SeqCst);
        if self.is_first.swap(false, SeqCst) {
            self.entered.send(()).unwrap();
            let go_on = self.goes_on.lock().unwrap().recv_timeout(Duration::from_secs(10));
            go_on.expect("the others wait for a lock that is held over a hook");
        }
    }
}

#[derive(Clone)]
struct Shared(Arc<Slow>);

impl Filter for Shared {
    fn judge(&self, _: &Endpoint, _: &RequestContext, _: time::Instant) -> Fit {
        self.0.wait();
        Fit::Yes
    }
}

impl Pick for Shared {
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, _: &mut fastrand::Rng) -> usize {
        self.0.wait();
        turn % candidates.endpoints.len()
    }
}

impl Classify for Shared {
    fn head(&self, _: StatusCode, _: &HeaderMap) -> Option<Outcome> {
        self.0.wait();
        Some(Outcome::Success)
    }
}

#[test]
fn r009_no_lock_is_held_while_a_hook_takes_its_time() {
    let hooks: [Case<Shared>; 6] = [
        ("filter", |probe, slow| erase(KeySelectLayer::new(pool(), each_key()).filter(slow).layer(innermost(probe)))),
        ("pick", |probe, slow| erase(KeySelectLayer::new(pool(), each_key()).pick(slow).layer(innermost(probe)))),
        ("classify of select", |probe, slow| {
            erase(KeySelectLayer::new(pool(), each_key()).classify(slow).layer(innermost(probe)))
        }),
        ("classify of retry", |probe, slow| erase(RetryLayer::new().classify(slow).layer(innermost(probe)))),
        ("classify of monitor", |probe, slow| erase(LoadMonitorLayer::new().classify(slow).layer(innermost(probe)))),
        ("classify of breaker", |probe, slow| {
            erase(CircuitBreakerLayer::default().classify(slow).layer(innermost(probe)))
        }),
    ];
    for (hook, make) in hooks {
        let ((entered, was_entered), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
        let slow =
            Slow { is_first: AtomicBool::new(true), entered, goes_on: Mutex::new(goes_on), asked: AtomicUsize::new(0) };
        let service = make(&Probe::ok(), Shared(Arc::new(slow)));
        let one = || {
            let service = service.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                assert_eq!(runtime.block_on(call(&service)), 200);
            })
        };
        let first = one();
        was_entered.recv_timeout(Duration::from_secs(10)).expect(hook);
        for _ in 0..3 {
            one().join().expect(hook);
        }
        go_on.send(()).unwrap();
        first.join().expect(hook);
    }
}

/// A filter may look at the selector it belongs to, even where the line asks it.
#[tokio::test(start_paused = true)]
async fn r009_a_filter_may_ask_the_selector_how_many_wait() {
    type Ask = Arc<OnceLock<Box<dyn Fn() -> usize + Send + Sync>>>;
    struct Curious(Ask);
    impl Filter for Curious {
        fn judge(&self, _: &Endpoint, _: &RequestContext, _: time::Instant) -> Fit {
            if self.0.get().is_some_and(|ask| ask() > 100) { Fit::No } else { Fit::Yes }
        }
    }
    let (probe, ask) = (Probe::ok(), Ask::default());
    probe.block(true);
    let select = KeySelectLayer::new(pool(), each_key()).filter(Curious(ask.clone())).layer(innermost(&probe));
    let line = select.clone();
    assert!(ask.set(Box::new(move || line.waiting())).is_ok());
    let service = erase(select);
    let waiter = tokio::spawn(async move { call(&service).await });
    time::sleep(Duration::from_millis(1)).await;
    probe.block(false);
    assert_eq!(waiter.await.unwrap(), 200);
}
