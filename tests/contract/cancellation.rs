//! Calls cancelled at any point leave nothing behind, whatever layer stands around whatever other.

use std::time::Duration;

use fastrand::Rng;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::{
    stages::{Payload, Stage, post, stack, whole},
    storm::{Polls, assert_whole, calls, seed, storm},
    support::{Act, BodyAct, Probe},
};

/// Every layer alone and every ordered pair of layers.
const STACKS: usize = Stage::ALL.len() * Stage::ALL.len();

fn answering() -> Probe {
    Probe::new(Act::ok().body(BodyAct::Whole("{}")))
}

async fn around_every_other(outer: Stage) {
    let mut rng = Rng::with_seed(seed());
    for inner in Stage::ALL {
        let both = [outer, inner];
        // a layer around itself is the layer alone
        let stages = if inner == outer { &both[..1] } else { &both[..] };
        let probe = answering();
        let (service, watch) = stack(stages, &probe);
        storm(&service, &watch, &probe, &mut rng, calls().div_ceil(STACKS), false).await;
        assert!(probe.calls() > 0);
        assert_whole(&service, &watch, &probe, &format!("{stages:?}")).await;
    }
}

macro_rules! around_every_other {
    ($($name:ident: $stage:ident,)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                around_every_other(Stage::$stage).await;
            }
        )*
    };
}

around_every_other! {
    r003_r005_cancelled_anywhere_hear_out_leaves_nothing: HearOut,
    r003_r005_cancelled_anywhere_explain_leaves_nothing: Explain,
    r003_r005_cancelled_anywhere_keep_alive_leaves_nothing: KeepAlive,
    r003_r005_cancelled_anywhere_respond_leaves_nothing: Respond,
    r003_r005_cancelled_anywhere_deadline_leaves_nothing: Deadline,
    r003_r005_cancelled_anywhere_buffer_leaves_nothing: Buffer,
    r003_r005_cancelled_anywhere_tee_leaves_nothing: Tee,
    r003_r005_cancelled_anywhere_retry_leaves_nothing: Retry,
    r003_r005_cancelled_anywhere_route_leaves_nothing: Route,
    r003_r005_cancelled_anywhere_provider_leaves_nothing: Provider,
    r003_r005_cancelled_anywhere_the_gate_leaves_nothing: Gate,
    r003_r005_cancelled_anywhere_select_leaves_nothing: Select,
    r003_r005_cancelled_anywhere_monitor_leaves_nothing: Monitor,
    r003_r005_cancelled_anywhere_breaker_leaves_nothing: Breaker,
    r003_r005_cancelled_anywhere_rejecting_breaker_leaves_nothing: RejectingBreaker,
    r003_r005_cancelled_anywhere_limit_leaves_nothing: Limit,
    r003_r005_cancelled_anywhere_waiting_limit_leaves_nothing: WaitingLimit,
    r003_r005_cancelled_anywhere_refusing_limit_leaves_nothing: RefusingLimit,
    r003_r005_cancelled_anywhere_adaptive_limit_leaves_nothing: AdaptiveLimit,
    r003_r005_cancelled_anywhere_rate_leaves_nothing: Rate,
    r003_r005_cancelled_anywhere_waiting_rate_leaves_nothing: WaitingRate,
    r003_r005_cancelled_anywhere_authorize_leaves_nothing: Authorize,
    r003_r005_cancelled_anywhere_timeouts_leaves_nothing: Timeouts,
    r003_r005_cancelled_anywhere_the_leaf_leaves_nothing: Leaf,
}

#[tokio::test(start_paused = true)]
async fn r003_r005_cancelled_anywhere_the_default_stack_leaves_nothing() {
    let mut rng = Rng::with_seed(seed());
    let probe = answering();
    let (service, watch) = whole(&probe);
    storm(&service, &watch, &probe, &mut rng, (calls() / 10).max(100), false).await;
    assert_whole(&service, &watch, &probe, "the default stack").await;
}

/// A streamed request body, two attempts that fail, and a streamed answer, left after the first, second, … poll.
#[tokio::test(start_paused = true)]
async fn r005_left_after_any_poll_the_default_stack_leaves_nothing_and_blames_no_key() {
    let mut left_early = 0;
    for polls in 1.. {
        let probe = answering();
        let pause = Duration::from_millis(1);
        probe.script([
            Act::status(503).delay(pause),
            Act::status(402).delay(pause),
            Act::ok().delay(pause).body(BodyAct::Frames { pause, frames: 3 }),
        ]);
        let (service, watch) = whole(&probe);
        // read by the buffer before the first attempt, so that there are several
        let exchange = async {
            let answer = service.clone().oneshot(post(Payload::coming(3, pause))).await.unwrap();
            answer.into_body().collect().await.unwrap();
        };
        let over = Polls::new(exchange, polls).await.is_some();
        let failed: u64 = watch.monitors.lock().unwrap().iter().map(|monitor| monitor.figures().failed()).sum();
        let calls = probe.calls();
        probe.unscript();
        assert!(failed as usize <= calls.min(2), "after {polls} polls: only what was answered is a failure");
        if !over && calls > 0 {
            let cancelled: u64 =
                watch.monitors.lock().unwrap().iter().map(|monitor| monitor.figures().cancelled()).sum();
            assert_eq!(cancelled + failed, calls as u64, "after {polls} polls");
        }
        assert_whole(&service, &watch, &probe, &format!("left after {polls} polls")).await;
        if over {
            assert!(calls > 2, "{calls} attempts");
            break;
        }
        left_early += 1;
    }
    assert!(left_early >= 10, "{left_early}");
}
