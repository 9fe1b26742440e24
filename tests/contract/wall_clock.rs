//! R47: the wall clock is read once, to turn a date into a span; how it moves afterwards changes nothing.

use std::{
    cell::Cell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http_body_util::BodyExt;
use tokio::time::{self, Instant};
use tower::{Layer, ServiceExt};
use tower_openrouter::{
    CircuitBreakerLayer, ConcurrencyLimitLayer, DeadlineLayer, Endpoint, KeySelectLayer, LoadMonitorLayer, OpenRouter,
    RetryLayer, endpoint_fn,
};

use crate::{
    stages::{Payload, brief, innermost, pool, post},
    support::{Act, BodyAct, Probe},
};

thread_local! {
    static WALL: Cell<SystemTime> = const { Cell::new(UNIX_EPOCH) };
}

const START: Duration = Duration::from_secs(1_795_248_000);
const HOUR: Duration = Duration::from_secs(3600);

/// What happens to calls, one each 250 ms for two minutes, while the wall clock steps every second from the first on.
async fn course(step: impl Fn(usize, SystemTime) -> SystemTime) -> Vec<(Duration, u16, Duration)> {
    fastrand::seed(7);
    WALL.set(UNIX_EPOCH + START);
    let probe = Probe::new(Act::ok().body(BodyAct::Whole("{}")));
    let reset = (START + Duration::from_secs(20)).as_millis();
    // a rest of 20 s by an instant of the wall clock, then failures for breakers and back-off
    probe.script([
        Act::status(401).header("x-ratelimit-reset", reset),
        Act::status(429).header("x-ratelimit-reset", reset),
    ]);
    probe.script([500, 200, 503, 503, 503, 503, 200, 401, 500, 500, 500, 500, 500, 200].map(Act::status));
    let leaf = OpenRouter::builder().wall_clock(|| WALL.get()).build(innermost(&probe)).unwrap();
    let per_key = endpoint_fn(|endpoint: &Endpoint| {
        tower::ServiceBuilder::new()
            .layer(LoadMonitorLayer::endpoint(endpoint))
            .layer(CircuitBreakerLayer::new(brief()).endpoint(endpoint))
            .layer(ConcurrencyLimitLayer::new(2).unwrap())
            .into_inner()
    });
    let select = KeySelectLayer::new(pool(), per_key).layer(leaf);
    let service = DeadlineLayer::new(Duration::from_secs(25)).unwrap().layer(RetryLayer::new().layer(select));
    let (start, mut course) = (Instant::now(), Vec::new());
    for turn in 0..480 {
        if turn >= 4 && turn % 4 == 0 {
            WALL.set(step(turn / 4, WALL.get()));
        }
        let began = start.elapsed();
        let status = match service.clone().oneshot(post(Payload::whole())).await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                answer.into_body().collect().await.unwrap();
                status
            }
            Err(_) => 0,
        };
        course.push((began, status, start.elapsed() - began));
        time::sleep(Duration::from_millis(250)).await;
    }
    course
}

#[tokio::test(start_paused = true)]
async fn r047_a_stepping_wall_clock_changes_nothing_after_classification() {
    let steady = course(|_, now| now).await;
    let waited = steady.iter().map(|(_, _, took)| *took).max().unwrap();
    assert!(waited >= Duration::from_secs(19), "the rests were felt: {waited:?}");
    assert_eq!(steady, course(|_, now| now + HOUR).await);
    assert_eq!(steady, course(|_, now| now - HOUR).await);
    assert_eq!(steady, course(|turn, now| if turn % 2 == 0 { now + HOUR } else { now - HOUR }).await);
}
