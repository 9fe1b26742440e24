//! What is measured, by name.

use tower::{Layer, ServiceBuilder};
use tower_openrouter::{
    BufferLayer, CircuitBreakerLayer, ConcurrencyLimitLayer, DeadlineLayer, ExplainLayer, LoadMonitorLayer, OpenRouter,
    RespondLayer, RetryLayer, breaker::BreakerPolicy, openrouter::AuthorizeLayer,
};

use crate::{
    exchange::Leaf,
    measure::{Subject, subject},
    resilience, stacks,
};

pub(crate) const BARE: &str = "bare call";
pub(crate) const WHOLE: &str = "whole stack, 3 keys";
pub(crate) const MANY: &str = "whole stack, 10,000 keys";
pub(crate) const FEW_BOXES: &str = "3 boxed services in turn";
pub(crate) const MANY_BOXES: &str = "10,000 boxed services in turn";
pub(crate) const TOWERS: &str = "tower: retry + buffer + p2c of 3 + limit";

/// All of them, the bare call first.
pub(crate) fn subjects() -> Vec<Box<dyn Subject>> {
    let (key, endpoint) = stacks::endpoint();
    let authorize = AuthorizeLayer::new(&key);
    let bare_authorize = authorize.clone();
    let limit = ConcurrencyLimitLayer::new(1 << 20).expect("the cap is not 0");
    let breaker = CircuitBreakerLayer::new(BreakerPolicy::default()).endpoint(&endpoint);
    vec![
        subject(BARE, |_| Leaf::new()),
        subject(TOWERS, |_| stacks::towers()),
        subject("tower-resilience: retry + bulkhead + breaker, no choice", |_| resilience::stack()),
        subject(WHOLE, |_| stacks::ours(3)),
        subject(MANY, |_| stacks::ours(10_000)),
        subject(FEW_BOXES, |_| stacks::in_turn(3)),
        subject(MANY_BOXES, |_| stacks::in_turn(10_000)),
        subject("whole stack, boxed, 3 keys", |_| stacks::boxed(3)),
        subject("whole stack, 3 keys, explain off", |_| ExplainLayer::new().layer(stacks::ours(3))),
        subject("whole stack, 3 keys, explained", |_| ExplainLayer::new().all().layer(stacks::ours(3))),
        subject("respond", |leaf| RespondLayer::new().layer(leaf)),
        subject("deadline", |leaf| DeadlineLayer::default().layer(leaf)),
        subject("buffer", |leaf| BufferLayer::new().layer(leaf)),
        subject("retry", |leaf| RetryLayer::new().layer(leaf)),
        subject("tower-resilience's retry", resilience::retry),
        subject("select, 3 keys", |_| stacks::select(3)),
        subject("monitor", move |leaf| LoadMonitorLayer::endpoint(&endpoint).layer(leaf)),
        subject("breaker", move |leaf| breaker.layer(leaf)),
        subject("tower-resilience's circuit breaker", resilience::breaker),
        subject("limit", move |leaf| limit.layer(leaf)),
        subject("tower-resilience's bulkhead", resilience::bulkhead),
        subject("authorize", move |leaf| bare_authorize.layer(leaf)),
        subject("openrouter", OpenRouter::new),
        subject("openrouter behind authorize", move |leaf| {
            ServiceBuilder::new().layer(authorize).service(OpenRouter::new(leaf))
        }),
    ]
}
