//! R11: one deadline over the request's body, the queue, the attempts, the waits between them, and the answer's body.

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;
use http::Request;
use http_body_util::BodyExt;
use tokio::time::{self, Instant};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_openrouter::{
    BufferLayer, ConcurrencyLimitLayer, DeadlineLayer, Endpoint, KeySelectLayer, OpenRouter, Rejected, RetryLayer,
    buffer::ReplayBody, deadline::Deadline, endpoint_fn, error::Why,
};

use crate::{
    stages::{Payload, innermost, pool, post, quick},
    storm::seed,
    support::{Act, BodyAct, Probe},
};

fn some_millis(rng: &mut Rng, most: u64) -> Duration {
    Duration::from_millis(rng.u64(..most))
}

#[tokio::test(start_paused = true)]
async fn r011_one_deadline_ends_every_phase_to_the_millisecond() {
    let mut rng = Rng::with_seed(seed());
    let mut phases = BTreeSet::new();
    for _ in 0..1000 {
        let probe = Probe::new(Act::Hang);
        // attempts that fail one after another, then perhaps an answer whose body never ends
        probe.script((0..rng.usize(..3)).map(|_| {
            let body = if rng.bool() { BodyAct::Hang } else { BodyAct::Whole("{}") };
            Act::status(503).delay(some_millis(&mut rng, 300)).body(body)
        }));
        if rng.bool() {
            let body = BodyAct::Frames { pause: Duration::from_millis(rng.u64(1..50)), frames: usize::MAX };
            probe.script([Act::ok().delay(some_millis(&mut rng, 300)).body(body)]);
        }
        let per_key = endpoint_fn(|_: &Endpoint| ConcurrencyLimitLayer::new(1).unwrap());
        let select = KeySelectLayer::new(pool(), per_key).layer(OpenRouter::new(innermost(&probe)));
        probe.block(true);
        let service = ServiceBuilder::new()
            .layer(DeadlineLayer::default())
            .layer(BufferLayer::new())
            .map_request(|request: Request<ReplayBody>| request.map(Payload::Kept))
            .layer(RetryLayer::new().backoff(quick()))
            .service(select.clone());

        let limit = Duration::from_millis(rng.u64(1..1000));
        let mut request = post(Payload::coming(rng.usize(1..4), some_millis(&mut rng, 100)));
        request.extensions_mut().insert(Deadline::within(limit));
        let (frees, blocked) = (probe.clone(), some_millis(&mut rng, 400));
        let freed = tokio::spawn(async move {
            time::sleep(blocked).await;
            frees.block(false);
        });
        let started = Instant::now();
        let answer = service.oneshot(request).await;
        let (phase, error) = match answer {
            Err(error) if probe.calls() == 0 && started.elapsed() < blocked => ("queue or body", Some(error)),
            Err(error) => (if probe.in_flight() == 0 { "attempt or wait" } else { "held" }, Some(error)),
            // the wait would have ended too late: the failure itself is passed on
            Ok(answer) if answer.status() == 503 => ("given up", answer.into_body().collect().await.err()),
            Ok(answer) => ("answer's body", answer.into_body().collect().await.err()),
        };
        if phase == "given up" && error.is_none() {
            assert!(started.elapsed() <= limit + Duration::from_millis(1), "{phase}: too late");
            phases.insert(phase);
            freed.abort();
            continue;
        }
        let error = error.unwrap_or_else(|| panic!("{phase}: nothing here ends by itself"));
        let why = Rejected::find(&*error).map(Rejected::why);
        assert!(matches!(why, Some(Why::Deadline | Why::NoKey)), "{phase}: {error}");
        let late = started.elapsed().saturating_sub(limit);
        assert!(late <= Duration::from_millis(1), "{phase}: {late:?} late");
        if why == Some(Why::Deadline) {
            assert!(started.elapsed() >= limit, "{phase}: too early");
        }
        phases.insert(phase);
        freed.abort();
        assert_eq!((probe.in_flight(), select.waiting()), (0, 0), "what was below is gone");
    }
    assert_eq!(phases, BTreeSet::from(["answer's body", "attempt or wait", "given up", "queue or body"]));
}
