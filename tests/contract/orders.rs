//! R10: whatever the order of the generic layers, the cap, the retry budget and the number of probes hold.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use fastrand::Rng;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::BodyExt;
use tokio::{task::JoinSet, time};
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_openrouter::{
    CircuitBreakerLayer, RetryLayer,
    breaker::{BreakerHandle, BreakerPolicy, BreakerState, TripPolicy},
    retry::RetryBudget,
};

use crate::{
    stages::{Answer, CAP, Payload, Stack, Stage, Watch, erase, innermost, post, quick},
    storm::{script, seed},
    support::Probe,
};

const LAYERS: [Stage; 5] = [Stage::Monitor, Stage::Breaker, Stage::Limit, Stage::Retry, Stage::Select];
const CALLS: u64 = 80;
const RATIO: f64 = 0.2;

fn orders(rest: &[Stage]) -> Vec<Vec<Stage>> {
    if rest.is_empty() {
        return vec![vec![]];
    }
    let first_of = |first: Stage| {
        let others: Vec<_> = rest.iter().copied().filter(|other| *other != first).collect();
        orders(&others).into_iter().map(move |others| [vec![first], others].concat())
    };
    rest.iter().copied().flat_map(first_of).collect()
}

/// Stands directly below a breaker and counts who comes through while it is half-open, until their verdict.
#[derive(Clone)]
struct Doorman {
    inner: Stack,
    breaker: BreakerHandle,
    /// By trip: how many are inside, and the most there were.
    inside: Arc<Mutex<HashMap<u64, (usize, usize)>>>,
}

struct Inside(Doorman, u64);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.lock().unwrap().get_mut(&self.1).unwrap().0 -= 1;
    }
}

impl Service<Request<Payload>> for Doorman {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        let seen = self.breaker.snapshot();
        assert!(!matches!(seen.state, BreakerState::Open { .. }), "called while open");
        let inside = matches!(seen.state, BreakerState::HalfOpen { .. }).then(|| {
            let mut all = self.inside.lock().unwrap();
            let (now, most) = all.entry(seen.trips).or_default();
            *now += 1;
            *most = *now.max(most);
            Inside(self.clone(), seen.trips)
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(inside);
            answer
        })
    }
}

#[tokio::test(start_paused = true)]
async fn r010_in_every_order_cap_budget_and_probes_hold() {
    let mut rng = Rng::with_seed(seed());
    let (mut trips, mut retries) = (0, 0);
    for order in orders(&LAYERS) {
        let probe = Probe::ok();
        let mut watch = Watch::default();
        let inside = Arc::<Mutex<HashMap<u64, (usize, usize)>>>::default();
        let budget = RetryBudget::new(RATIO, 0).unwrap();
        let stack = order.iter().rev().fold(innermost(&probe), |inner, stage| match stage {
            Stage::Breaker => {
                let trip = TripPolicy::failures(2, Duration::from_secs(2)).unwrap();
                let policy = BreakerPolicy::new(trip).cooldown(Duration::from_millis(50), Duration::from_millis(100));
                let layer = CircuitBreakerLayer::new(policy.unwrap());
                watch.breakers.lock().unwrap().push(layer.handle());
                erase(layer.layer(erase(Doorman { inner, breaker: layer.handle(), inside: inside.clone() })))
            }
            Stage::Retry => {
                let layer = RetryLayer::new().backoff(quick()).retry_unclear(true).budget(budget.clone());
                watch.retries.push(layer.handle());
                erase(layer.layer(inner))
            }
            stage => stage.around(inner, &mut watch),
        });
        script(&probe, &mut rng, CALLS as usize * 2, false);
        let mut tasks = JoinSet::new();
        for _ in 0..CALLS {
            let service = stack.clone();
            let (at, patience) = (rng.u64(..3000), rng.u64(1..4000));
            tasks.spawn(async move {
                time::sleep(Duration::from_millis(at)).await;
                let call = async {
                    if let Ok(answer) = service.oneshot(post(Payload::whole())).await {
                        let _ = answer.into_body().collect().await;
                    }
                };
                let _ = time::timeout(Duration::from_millis(patience), call).await;
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap_or_else(|error| panic!("{order:?}: {error}"));
        }
        let peak = probe.seen().peak.load(std::sync::atomic::Ordering::SeqCst);
        assert!(peak <= CAP, "{order:?}: {peak} at once");
        let stats = watch.retries[0].stats();
        let retried: u64 = stats.retries.values().sum();
        // all within one window of the budget
        assert!(retried as f64 <= stats.requests as f64 * RATIO, "{order:?}: {stats:?}");
        let failed_over: u64 = stats.failovers.values().sum();
        assert_eq!(stats.attempts + stats.refused, stats.requests + retried + failed_over, "{order:?}");
        for (now, most) in inside.lock().unwrap().values() {
            assert!((*now, *most) <= (0, 1), "{order:?}: {most} probes at once");
        }
        watch.assert_idle(&probe, &format!("{order:?}"));
        trips += watch.breakers.lock().unwrap()[0].snapshot().trips;
        retries += retried;
    }
    assert!(trips > 120 && retries > 120, "the outcomes are rough enough: {trips} trips, {retries} retries");
}
