//! Calls of every fate against one stack, each left at a random point.

use std::{
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Once,
    task::{Context, Poll},
    time::Duration,
};

use fastrand::Rng;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::{task::JoinSet, time};
use tower::{BoxError, Service, ServiceExt};

use crate::{
    stages::{Payload, Stack, Watch, post},
    support::{Act, BodyAct, Probe},
};

/// The seed of this run; printed, so that a failing test shows it.
pub fn seed() -> u64 {
    let seed =
        std::env::var("CONTRACT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("CONTRACT_SEED={seed}");
    // what the layers themselves draw
    fastrand::seed(seed);
    seed
}

/// How many calls all storms together make.
pub fn calls() -> usize {
    std::env::var("CONTRACT_CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(100_000)
}

const BURST: usize = 32;
const BURST_EVERY: Duration = Duration::from_millis(1500);

/// When the caller leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    /// Once ready, without a call.
    Ready(Duration),
    /// With the future not polled once.
    Unpolled,
    /// After so many polls of everything: readiness, head, body.
    Polls(usize),
    /// At a time.
    After(Duration),
    /// After so many frames of the body.
    Frames(usize),
    /// When it is over, or hopeless.
    End,
}

impl Leave {
    fn random(rng: &mut Rng) -> Self {
        match rng.u8(..100) {
            0..10 => Self::Ready(millis(rng, 30)),
            10..20 => Self::Unpolled,
            20..40 => Self::Polls(rng.usize(1..8)),
            40..60 => Self::After(millis(rng, 120)),
            60..80 => Self::Frames(rng.usize(..4)),
            _ => Self::End,
        }
    }
}

fn millis(rng: &mut Rng, most: u64) -> Duration {
    Duration::from_millis(rng.u64(..most))
}

fn act(rng: &mut Rng, panics: bool) -> Act {
    let body = match rng.u8(..100) {
        0..20 if panics => BodyAct::Panic,
        0..50 => BodyAct::Whole("data: {}"),
        50..85 => BodyAct::Frames { pause: millis(rng, 20), frames: rng.usize(..20) },
        85..92 => BodyAct::Cut,
        92..97 => BodyAct::Hang,
        _ => BodyAct::Frames { pause: millis(rng, 500), frames: 50 },
    };
    let status = if rng.u8(..3) > 0 { 200 } else { *rng.choice(&[401, 402, 429, 500, 503]).unwrap() };
    match rng.u8(..100) {
        0..5 => Act::Fail { delay: millis(rng, 20) },
        5..8 => Act::Hang,
        8..20 if panics => Act::PanicInCall,
        20..32 if panics => Act::PanicInFuture,
        _ => {
            let act = Act::status(status).delay(millis(rng, 40)).body(body);
            // rests short enough that the next burst finds the keys again
            if status == 200 { act } else { act.header("retry-after", rng.u8(..2)) }
        }
    }
}

/// Scripts so many random answers.
pub fn script(probe: &Probe, rng: &mut Rng, answers: usize, panics: bool) {
    probe.script((0..answers).map(|_| act(rng, panics)));
}

/// Makes so many calls, in bursts, and waits for the last to be gone. Says how many panicked.
pub async fn storm(stack: &Stack, watch: &Watch, probe: &Probe, rng: &mut Rng, calls: usize, panics: bool) -> usize {
    if panics {
        silence_scripted_panics();
    }
    script(probe, rng, calls * 2, panics);
    let mut tasks = JoinSet::new();
    let start = time::Instant::now();
    for number in 0..calls {
        let (service, twist) = (stack.clone(), rng.u8(..6));
        // who leaves early seldom sees a panic
        let leave = if panics && rng.u8(..4) > 0 { Leave::End } else { Leave::random(rng) };
        let payload = match rng.u8(..4) {
            0 => Payload::coming(rng.usize(..4), millis(rng, 5)),
            _ => Payload::whole(),
        };
        let panicky = (panics && rng.u8(..20) == 0).then(|| probe.clone());
        let at = start + BURST_EVERY * (number / BURST) as u32 + millis(rng, 100);
        if number % BURST == 0 {
            // a key refused for minutes on end is given up for dead
            let pools = watch.pools.clone();
            tasks.spawn(async move {
                time::sleep_until(at).await;
                for pool in pools {
                    pool.endpoints().iter().for_each(|endpoint| assert!(pool.reset(endpoint.key().name())));
                }
                false
            });
        }
        tasks.spawn(async move {
            time::sleep_until(at).await;
            if let Some(probe) = panicky {
                probe.seen().panic_in_poll_ready.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            let exchange = AssertUnwindSafe(exchange(service, payload, leave, twist)).catch_unwind();
            let patience = match leave {
                Leave::After(span) => span,
                _ => Duration::from_secs(5),
            };
            let polls = if let Leave::Polls(polls) = leave { polls } else { usize::MAX };
            matches!(time::timeout(patience, Polls::new(exchange, polls)).await, Ok(Some(Err(_))))
        });
    }
    let mut panicked = 0;
    while let Some(task) = tasks.join_next().await {
        panicked += usize::from(task.expect("the storm itself does not panic"));
    }
    probe.unscript();
    probe.seen().panic_in_poll_ready.store(0, std::sync::atomic::Ordering::SeqCst);
    panicked
}

async fn exchange(mut service: Stack, payload: Payload, leave: Leave, twist: u8) -> Result<(), BoxError> {
    service.ready().await?;
    match twist {
        // a clone of a ready instance has to get ready itself
        0 => service = service.clone(),
        1 => drop(service.clone()),
        _ => {}
    }
    service.ready().await?;
    if let Leave::Ready(hold) = leave {
        time::sleep(hold).await;
        return Ok(());
    }
    let answer = service.call(post(payload));
    if matches!(leave, Leave::Unpolled) {
        return Ok(());
    }
    // some callers keep the service, some do not
    let _kept = twist.is_multiple_of(2).then_some(service);
    let mut body = answer.await?.into_body();
    let mut frames = 0;
    while !matches!(leave, Leave::Frames(most) if frames >= most) {
        match body.frame().await {
            Some(frame) => frame?,
            None => break,
        };
        frames += 1;
    }
    Ok(())
}

/// Drops what it polls after so many polls, and then is nothing.
pub struct Polls<F> {
    exchange: Pin<Box<F>>,
    left: usize,
}

impl<F> Polls<F> {
    pub fn new(exchange: F, left: usize) -> Self {
        Self { exchange: Box::pin(exchange), left }
    }
}

impl<F: Future> Future for Polls<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.exchange.as_mut().poll(cx);
        self.left -= 1;
        match polled {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// That nothing is left, and that after the longest rest calls are served again.
pub async fn assert_whole(stack: &Stack, watch: &Watch, probe: &Probe, of: &str) {
    watch.assert_idle(probe, of);
    time::sleep(Duration::from_secs(3600)).await;
    let calls = probe.calls();
    for _ in 0..3 {
        let answer = stack.clone().oneshot(post(Payload::whole()));
        let answer = time::timeout(Duration::from_secs(60), answer).await.unwrap_or_else(|_| panic!("{of}: hangs"));
        let answer = answer.unwrap_or_else(|error| panic!("{of}: {error}"));
        assert_eq!(answer.status(), 200, "{of}: usable afterwards");
        answer.into_body().collect().await.unwrap_or_else(|error| panic!("{of}: {error}"));
    }
    assert_eq!(probe.calls(), calls + 3, "{of}: one attempt each");
    watch.assert_idle(probe, of);
}

/// Polls readiness once.
pub async fn is_ready(service: &mut Stack) -> bool {
    poll_fn(|cx| Poll::Ready(service.poll_ready(cx).map(|ready| ready.is_ok()))).await == Poll::Ready(true)
}

/// Keeps the panics that are part of a test out of its output.
pub fn silence_scripted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            let scripted = message.starts_with("scripted");
            if !scripted {
                loud(panic);
            }
        }));
    });
}
