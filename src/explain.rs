//! Why this key? What was decided for one request, and on what grounds.
//!
//! A balancer chooses, waits and tries again where nobody looks. When a request was slow, or went to the wrong key, a log
//! line that says where it went is no answer: one needs to know who else there was, what stood against them at that moment,
//! and what the pick compared. Gateways reconstruct that from metrics, if at all. Here a request can carry a [`Trace`], into
//! which selection and retry write as they decide: for each attempt the candidates, who was out and why, the loads compared,
//! the pick, the waits, the outcome, its cost, and what was done about it.
//!
//! [`ExplainLayer`] goes outermost and says which requests are explained: those that ask for it by the header
//! `x-balancer-explain: 1`, or [all](ExplainLayer::all). The trace is told in four ways:
//!
//! - as a typed extension of the response: a [`Trace`], whose [`explanation`](Trace::explanation) is plain data;
//! - in a header of the same name, where the request asked: the [compact form](#the-compact-form), as of the response's head;
//! - as `tracing` events of the target `tower_openrouter::explain`, at level `DEBUG`. Where they are enabled, every request
//!   that passes the layer is explained;
//! - as JSON: a [`Trace`] and an [`Explanation`] implement [`Serialize`](serde::Serialize).
//!
//! It names keys by label, never by secret. Its size is bounded: of 10,000 keys it holds counts by reason and the first few
//! names. A request that is explained costs a look at every key of the pool; one that is not costs a test of a pointer.
//!
//! # Examples
//!
//! For requests that ask:
//!
//! ```
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt};
//! use tower_openrouter::{ApiKey, Balancer, ExplainLayer, OpenRouter, select::{Pool, RoundRobin}};
//! # use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! # let simulator = Simulator::new(Scenario::default())?;
//! # let (a, b) = (simulator.keys()[0].secret.clone(), simulator.keys()[1].secret.clone());
//! # let transport = simulator.service();
//! let pool = Pool::new([ApiKey::new(a)?.label("a"), ApiKey::new(b)?.label("b")])?;
//! pool.endpoints()[0].set_shut_until(Some(tokio::time::Instant::now() + std::time::Duration::from_secs(60)));
//! let balancer = Balancer::builder(pool).pick(RoundRobin::default()).build(OpenRouter::new(transport));
//! let service = ExplainLayer::new().layer(balancer);
//!
//! let request = Request::post("/v1/chat/completions")
//!     .header("x-balancer-explain", "1")
//!     .body(Full::<Bytes>::from(r#"{"model":"acme/swift-1","messages":[{"role":"user","content":"hello"}]}"#))?;
//! let response = service.oneshot(request).await?;
//! assert_eq!(response.headers()["x-balancer-explain"], "1:b=ok out=breaker_open*1");
//! # Ok(()) }
//! ```
//!
//! Every request, by the extension alone, in a stack without our [`RespondLayer`](crate::RespondLayer):
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, layer::util::Identity};
//! use tower_openrouter::{ApiKey, Endpoint, ExplainLayer, KeySelectLayer, endpoint_fn, explain::Trace, select::Pool};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! let pool = Pool::new([ApiKey::new("key-a")?.label("a")])?;
//! let service = ServiceBuilder::new()
//!     .layer(ExplainLayer::new().all().header(false))
//!     .layer(KeySelectLayer::new(pool, endpoint_fn(|_: &Endpoint| Identity::new())))
//!     .service_fn(async |_: Request<String>| Ok::<_, BoxError>(Response::new(Full::<bytes::Bytes>::from("hello"))));
//!
//! let response = service.oneshot(Request::new(String::new())).await?;
//! let trace = response.extensions().get::<Trace>().expect("every request is explained");
//! let explanation = trace.explanation();
//! assert_eq!(explanation.attempts[0].key.as_deref(), Some("a"));
//! println!("{}", serde_json::to_string_pretty(&explanation)?);
//! # Ok(()) }
//! ```
//!
//! # The JSON form
//!
//! Fields are added, and neither renamed nor given another meaning; what is not known, or does not apply, is `null`. Times
//! are milliseconds; `at_ms` counts from when the trace began.
//!
//! ```json
//! {
//!   "attempts": [{
//!     "model": "acme/swift-1",
//!     "at_ms": 0,
//!     "looks": [{
//!       "at_ms": 0,
//!       "pick": "LeastInFlight",
//!       "keys": 3,
//!       "candidates": {"count": 2, "keys": ["b", "c"]},
//!       "refused": [{"reason": "resting", "cause": "key_limit", "count": 1, "keys": ["a"], "back_in_ms": 1500}],
//!       "compared": [{"figure": "load", "key": "b", "value": 0.0}, {"figure": "load", "key": "c", "value": 2.0}]
//!     }],
//!     "looked": 1,
//!     "key": "b",
//!     "by": "pick",
//!     "rejected": null,
//!     "waited_ms": 0,
//!     "status": 200,
//!     "head_ms": 310,
//!     "gate": {"found": "output", "held_ms": 45},
//!     "outcome": {"success": true, "cause": null, "scope": null, "rest_ms": null, "hinted": null},
//!     "provider": null,
//!     "ending": "complete",
//!     "took_ms": 842,
//!     "usage": {"prompt_tokens": 12, "completion_tokens": 80, "cost_usd": 0.00005},
//!     "next": null
//!   }],
//!   "left_out": 0,
//!   "result": {"kind": "answered", "at_ms": 310, "status": 200}
//! }
//! ```
//!
//! What each field means is said at [`Explanation`], [`Attempt`], [`Look`], [`Refused`], [`Compared`], [`Gate`], [`Next`]
//! and [`Finish`].
//!
//! # The compact form
//!
//! ```text
//! 1:a=key_limit(0.2s) next=failover;2:b=200 wait=0.5s out=resting:key_limit*1
//! ```
//!
//! The attempts, separated by `;`, each its number, `:`, the key's label, `=` and what came of it: the cause of its failure,
//! with the rest it asks for; `ok`; the status, while the body has still to tell; the reason, with `-` for a label, when no
//! key could be had; `open` when nothing is known yet. Then, where there is something to tell, separated by a space each:
//! `hedge` that it was sent beside the one before by a [`HedgeLayer`](crate::HedgeLayer), `wait=` how long it waited for a key, `out=` how many keys were out, by reason, `gate=` what a
//! [`CommitGateLayer`](crate::CommitGateLayer) found behind the head other than output, and after how long (`failure(0.3s)`,
//! `time(30s)`, `bytes(0.1s)`), and `next=` what was done about a failure (`failover`, `retry(0.4s)`, `other_model`,
//! `give_up:budget`).
//!
//! It consists of visible ASCII and spaces, 1024 characters at most. Characters of a label that are neither letters, digits
//! nor one of `-_./@+` are percent-encoded, labels longer than 40 characters end in `~`. Attempts for which there is no room
//! are counted at the end, as in `;+3`.

use std::{any::type_name, time::Duration};

mod compact;
mod layer;
mod record;
mod trace;
mod written;

pub use layer::{Explain, ExplainFuture, ExplainLayer, HEADER};
pub use record::{Attempt, By, Compared, Explanation, Finish, Found, Gate, Keys, Look, Next, Reason, Refused};
pub(crate) use trace::Entry;
pub use trace::Trace;

/// The target of the events.
const TARGET: &str = "tower_openrouter::explain";

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The name of a type without its path and parameters.
pub(crate) fn name_of<T: ?Sized>() -> &'static str {
    let name = type_name::<T>();
    let plain = name.split('<').next().unwrap_or(name);
    plain.rsplit("::").next().unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_goes_by_its_own_name() {
        assert_eq!(name_of::<Duration>(), "Duration");
        assert_eq!(name_of::<std::vec::Vec<Duration>>(), "Vec");
        assert_eq!(name_of::<u8>(), "u8");
    }
}
