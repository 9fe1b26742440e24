//! What observers of a pool are told while breakers change on many threads, and what they cost those who make requests.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use support::{Act, Probe};
use tokio::{
    runtime::Builder,
    time::{Instant, advance},
};
use tower::{Layer, ServiceExt};
use tower_openrouter::{
    ApiKey, Classify, Endpoint, KeySelectLayer, Outcome, Pool,
    breaker::{BreakerPolicy, BreakerState, CircuitBreakerLayer, TripPolicy},
    endpoint_fn,
    events::{self, Change, Events},
    outcome::{Cause, Fault, HttpStatus, Scope},
};

const SECOND: Duration = Duration::from_secs(1);

fn pool(keys: &[&str]) -> Pool {
    Pool::new(keys.iter().map(|key| ApiKey::new(*key).unwrap().label(*key))).unwrap()
}

/// Opened by one failure, for about so long.
fn fragile(cooldown: Duration) -> BreakerPolicy {
    BreakerPolicy::new(TripPolicy::consecutive(1).unwrap()).cooldown(cooldown, cooldown).unwrap()
}

fn told(events: &mut Events) -> Vec<Change> {
    std::iter::from_fn(|| events.try_recv()).map(|event| event.change).collect()
}

#[tokio::test(start_paused = true)]
async fn r081_a_breaker_that_opens_is_tried_and_closes_tells_each_of_it_once() {
    let pool = pool(&["a"]);
    let (mut events, endpoint) = (pool.events(), pool.endpoints()[0].clone());
    let (probe, layer) = (Probe::ok(), CircuitBreakerLayer::new(fragile(60 * SECOND)).endpoint(&endpoint));
    let (service, handle) = (layer.clone().classify(Accusing).layer(probe.clone()), layer.handle());
    let ask = async |status| {
        probe.script([Act::status(status)]);
        service.clone().oneshot(Request::new(())).await.unwrap().into_body().collect().await.unwrap();
    };
    ask(200).await;
    assert_eq!(told(&mut events), []);
    ask(502).await;
    let BreakerState::Open { until } = handle.snapshot().state else { panic!("it is open") };
    assert_eq!(told(&mut events), [Change::BreakerOpened { until, cause: Some(Cause::ServerError) }]);
    advance(until - Instant::now()).await;
    assert_eq!(told(&mut events), [], "that time passes is no event");
    ask(429).await;
    let BreakerState::Open { until } = handle.snapshot().state else { panic!("it is open") };
    let opened = Change::BreakerOpened { until, cause: Some(Cause::PlatformLimit) };
    assert_eq!(told(&mut events), [Change::BreakerHalfOpen, opened], "for what the probe met");
    advance(until - Instant::now()).await;
    ask(200).await;
    assert_eq!(told(&mut events), [Change::BreakerHalfOpen, Change::BreakerClosed]);
    for (act, change) in [
        (Box::new(|| handle.reset()) as Box<dyn Fn()>, None),
        (Box::new(|| handle.isolate()), Some(Change::BreakerIsolated)),
        (Box::new(|| handle.isolate()), None),
        (Box::new(|| handle.disable()), Some(Change::BreakerDisabled)),
        (Box::new(|| handle.enable()), Some(Change::BreakerClosed)),
        (Box::new(|| handle.enable()), None),
    ] {
        act();
        assert_eq!(told(&mut events), Vec::from_iter(change));
    }
}

/// Two runtimes' threads make requests that fail and succeed, and switch the breaker by hand, as fast as they can; a third
/// reads.
#[test]
fn r081_of_a_breaker_that_many_threads_change_every_change_is_told_once_and_in_order() {
    let pool = pool(&["a"]);
    let (mut events, endpoint) = (pool.events(), pool.endpoints()[0].clone());
    let layer = CircuitBreakerLayer::new(fragile(Duration::from_micros(50))).endpoint(&endpoint).reject();
    let handle = layer.handle();
    // every other answer accuses the key itself
    let service = layer.classify(Flapping::default()).layer(Probe::ok());
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let over = over.clone();
        thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                let last = over.load(SeqCst);
                all.extend(told(&mut events));
                if last {
                    return (all, events.lost());
                }
            }
        })
    };
    let threads: Vec<_> = (0..2)
        .map(|number| {
            let (service, handle) = (service.clone(), handle.clone());
            thread::spawn(move || {
                Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
                    for turn in 0..20_000 {
                        // a breaker that is open refuses
                        let _ = service.clone().oneshot(Request::new(())).await;
                        match (turn + number * 50) % 100 {
                            10 => handle.isolate(),
                            20 => handle.reset(),
                            30 => handle.disable(),
                            40 => handle.enable(),
                            _ => {}
                        }
                    }
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    over.store(true, SeqCst);
    let (changes, lost) = reader.join().unwrap();

    assert_eq!(lost, 0);
    assert!(changes.len() > 1_000, "{}", changes.len());
    let opened = changes.iter().filter(|change| matches!(change, Change::BreakerOpened { .. })).count();
    assert_eq!(opened as u64, handle.snapshot().trips, "the breaker's own count");
    let mut before = Change::BreakerClosed;
    for change in &changes {
        assert_ne!(before.as_str(), change.as_str(), "a change is told once");
        let follows = match change {
            Change::BreakerHalfOpen => matches!(before, Change::BreakerOpened { .. }),
            Change::BreakerOpened { cause, .. } => {
                assert_eq!(*cause, Some(Cause::InvalidKey));
                matches!(before, Change::BreakerClosed | Change::BreakerHalfOpen)
            }
            _ => true,
        };
        assert!(follows, "{before:?}, then {change:?}");
        before = *change;
    }
    let stands = match handle.snapshot().state {
        BreakerState::Closed => "breaker_closed",
        BreakerState::Isolated => "breaker_isolated",
        BreakerState::Disabled => "breaker_disabled",
        // open, and the time is over
        BreakerState::HalfOpen { .. } if matches!(before, Change::BreakerOpened { .. }) => "breaker_opened",
        BreakerState::HalfOpen { .. } => "breaker_half_open",
        _ => "breaker_opened",
    };
    assert_eq!(before.as_str(), stands, "the last is how it stands");
}

/// Lays a failure to the key itself, so that nobody else need be asked.
#[derive(Debug)]
struct Accusing;

impl Classify for Accusing {
    fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        match status {
            StatusCode::BAD_GATEWAY => Some(Fault::new(Cause::ServerError, Scope::Key).into()),
            _ => HttpStatus.head(status, headers),
        }
    }
}

/// Judges every second answer to be a refusal of the key.
#[derive(Debug, Default)]
struct Flapping(AtomicBool);

impl Classify for Flapping {
    fn head(&self, _: StatusCode, _: &HeaderMap) -> Option<Outcome> {
        let refused = !self.0.fetch_xor(true, SeqCst);
        Some(if refused { Fault::new(Cause::InvalidKey, Scope::Key).into() } else { Outcome::Success })
    }
}

#[tokio::test(start_paused = true)]
async fn r081_an_observer_that_never_reads_delays_no_request_and_loses_what_is_counted() {
    const CHANGES: u64 = 100_000;
    let (pool, probe) = (pool(&["a", "b"]), Probe::new(Act::ok().delay(SECOND)));
    let (mut stuck, mut late) = (pool.events(), pool.events());
    let layer = KeySelectLayer::new(
        pool.clone(),
        endpoint_fn(|endpoint: &Endpoint| CircuitBreakerLayer::default().endpoint(endpoint)),
    );
    let service = layer.layer(probe.clone());
    for round in 0..CHANGES / 1000 {
        // of the key that the next request could have used as well
        for _ in 0..500 {
            assert!(pool.drain("b") && pool.reset("b"));
        }
        let start = Instant::now();
        let response = service.clone().oneshot(Request::new(Full::<Bytes>::default())).await.unwrap();
        assert_eq!((response.status().as_u16(), start.elapsed()), (200, SECOND), "round {round}");
    }
    assert_eq!(probe.calls() as u64, CHANGES / 1000);
    for events in [&mut stuck, &mut late] {
        assert_eq!(events.lost(), CHANGES - events::MOST as u64);
    }
    let newest = [Change::Drained, Change::Reset].repeat(events::MOST / 2);
    assert_eq!(told(&mut stuck), newest);
    assert!(pool.drain("a"));
    let changes: Vec<_> = late.take(events::MOST).map(|event| event.change).collect().await;
    assert_eq!(changes[..], [&newest[1..], &[Change::Drained]].concat(), "as a stream, too");
}
