//! R8: a panic of the inner service, wherever it comes, is over with the call it came in.

use std::sync::atomic::Ordering::SeqCst;

use fastrand::Rng;
use tokio::time;
use tower::{Layer, ServiceExt, layer::util::Identity};
use tower_openrouter::{ApiKey, Endpoint, KeySelectLayer, endpoint_fn, select::Pool};

use crate::{
    stages::{Payload, Stage, Watch, erase, innermost, post, stack, whole},
    storm::{assert_whole, seed, silence_scripted_panics, storm},
    support::{Act, BodyAct, Probe},
};

/// Enough for [`PANICS`].
const CALLS: usize = 45_000;
/// How many there must be in all.
const PANICS: usize = 10_000;

async fn storms(outer: Stage) {
    let mut rng = Rng::with_seed(seed());
    let mut panicked = 0;
    // it refuses half of what comes
    let more = if outer == Stage::RejectingBreaker { 2 } else { 1 };
    for inner in Stage::ALL {
        let probe = Probe::new(Act::ok().body(BodyAct::Whole("{}")));
        let (service, watch) = stack(&[outer, inner], &probe);
        let calls = more * CALLS.div_ceil(Stage::ALL.len() * Stage::ALL.len());
        panicked += storm(&service, &watch, &probe, &mut rng, calls, true).await;
        assert_whole(&service, &watch, &probe, &format!("panics below {:?}", [outer, inner])).await;
    }
    assert!(panicked >= PANICS / Stage::ALL.len(), "{panicked}");
}

macro_rules! storms {
    ($($name:ident: $stage:ident,)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                storms(Stage::$stage).await;
            }
        )*
    };
}

storms! {
    r008_panics_leave_explain_whole: Explain,
    r008_panics_leave_keep_alive_whole: KeepAlive,
    r008_panics_leave_respond_whole: Respond,
    r008_panics_leave_deadline_whole: Deadline,
    r008_panics_leave_buffer_whole: Buffer,
    r008_panics_leave_tee_whole: Tee,
    r008_panics_leave_retry_whole: Retry,
    r008_panics_leave_route_whole: Route,
    r008_panics_leave_provider_whole: Provider,
    r008_panics_leave_the_gate_whole: Gate,
    r008_panics_leave_select_whole: Select,
    r008_panics_leave_monitor_whole: Monitor,
    r008_panics_leave_breaker_whole: Breaker,
    r008_panics_leave_rejecting_breaker_whole: RejectingBreaker,
    r008_panics_leave_limit_whole: Limit,
    r008_panics_leave_waiting_limit_whole: WaitingLimit,
    r008_panics_leave_refusing_limit_whole: RefusingLimit,
    r008_panics_leave_adaptive_limit_whole: AdaptiveLimit,
    r008_panics_leave_rate_whole: Rate,
    r008_panics_leave_waiting_rate_whole: WaitingRate,
    r008_panics_leave_authorize_whole: Authorize,
    r008_panics_leave_the_leaf_whole: Leaf,
}

#[tokio::test(start_paused = true)]
async fn r008_panics_leave_the_default_stack_whole() {
    let mut rng = Rng::with_seed(seed());
    let probe = Probe::new(Act::ok().body(BodyAct::Whole("{}")));
    let (service, watch) = whole(&probe);
    assert!(storm(&service, &watch, &probe, &mut rng, CALLS / 20, true).await > CALLS / 200);
    assert_whole(&service, &watch, &probe, "panics below the default stack").await;
}

/// The line of those who wait has one instance of each busy key; a panic of that one must not lose the key for the others.
#[tokio::test(start_paused = true)]
async fn r008_a_panic_in_readiness_does_not_take_the_key_from_those_who_wait() {
    silence_scripted_panics();
    let probe = Probe::ok();
    probe.block(true);
    let pool = Pool::new([ApiKey::new("sk-or-v1-a").unwrap()]).unwrap();
    let layer = KeySelectLayer::new(pool, endpoint_fn(|_: &Endpoint| Identity::new()));
    let select = layer.layer(innermost(&probe));
    let service = erase(select.clone());
    let call = || tokio::spawn(service.clone().oneshot(post(Payload::whole())));
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(call());
        time::sleep(time::Duration::from_millis(1)).await;
    }
    assert_eq!(select.waiting(), 5);
    probe.seen().panic_in_poll_ready.store(1, SeqCst);
    let started = time::Instant::now();
    probe.block(false);
    let mut panicked = 0;
    for call in calls {
        match call.await {
            Ok(answer) => assert_eq!(answer.unwrap().status(), 200),
            Err(error) => panicked += usize::from(error.is_panic()),
        }
    }
    assert_eq!((panicked, probe.calls()), (1, 4));
    assert_eq!(started.elapsed(), time::Duration::ZERO, "nobody waited for a timer");
    Watch::default().assert_idle(&probe, "select");
}
