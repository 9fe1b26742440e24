//! A circuit breaker whose open state is *not ready*.
//!
//! A key that is dead, or whose regional host is down, must not be offered requests; nor must a provider's outage, which
//! fails every key alike, take all keys away. Breakers known in the field go wrong in four ways, each of which this one is
//! built against:
//!
//! - **They wedge.** A probe that is cancelled, hangs, or proves nothing keeps the only slot, and the breaker stays half-open
//!   for ever. Here a slot is a guard that goes through future and body, and that has a lease.
//! - **They believe stragglers.** An answer to a request sent before the breaker opened closes it, or opens it again. Here
//!   every admission carries the epoch it was made in, and a report from another epoch changes nothing.
//! - **They judge at the head.** A stream that dies before its first output passes for a success. Here the verdict is that at
//!   commit: the first real output, or a failure before it; a healthy stream is counted when it starts, not when it ends.
//! - **They blame the key for everything.** A status is not a verdict. What counts is what the [`Outcome`] says: a fault of
//!   the key that asks for no rest counts against it. A fault that asks for a rest is the cooldowns' business, and only
//!   keeps a half-open breaker shut. A *suspect* fault (5xx, timeout, reset) counts where the pool's other endpoints
//!   fare better on the same route, and by more than chance; see [`Suspects`](crate::endpoint::Suspects). Anything else, a
//!   cancelled request above all, says nothing.
//!
//! An open breaker is `Pending`, which is what any balancer understands, and wakes whoever waits when it lets go. It needs no
//! task and polls nothing meanwhile. Outside a balancer, where waiting a minute is no answer,
//! [`reject`](CircuitBreakerLayer::reject) refuses at once. Waiting needs a tokio runtime with time enabled.
//!
//! # Examples
//!
//! By default: opened by 3 failures in 60 s, for 60 s, growing to 300 s.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Empty;
//! use bytes::Bytes;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//! use tower_openrouter::breaker::{BreakerState, CircuitBreakerLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let breaker = CircuitBreakerLayer::default();
//! let handle = breaker.handle();
//! let service = ServiceBuilder::new().layer(breaker).service(service_fn(|_: Request<()>| async {
//!     let mut response = Response::new(Empty::<Bytes>::new());
//!     *response.status_mut() = http::StatusCode::BAD_GATEWAY;
//!     Ok::<_, BoxError>(response)
//! }));
//! for _ in 0..3 {
//!     service.clone().oneshot(Request::new(())).await?;
//! }
//! assert!(matches!(handle.snapshot().state, BreakerState::Open { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! In front of an axum router or a single client, refusing instead of waiting, by the share of failures:
//!
//! ```
//! use std::time::Duration;
//!
//! use http::{Request, Response};
//! use http_body_util::Empty;
//! use bytes::Bytes;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//! use tower_openrouter::{Rejected, breaker::{BreakerPolicy, CircuitBreakerLayer, TripPolicy}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let half_of_twenty = TripPolicy::share(0.5, Duration::from_secs(30), 20)?;
//! let policy = BreakerPolicy::new(half_of_twenty).cooldown(Duration::from_secs(5), Duration::from_secs(60))?;
//! let breaker = CircuitBreakerLayer::new(policy).reject();
//! let handle = breaker.handle();
//! let service = ServiceBuilder::new().layer(breaker).service(service_fn(|_: Request<()>| async {
//!     Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()))
//! }));
//! handle.isolate();
//! let error = service.clone().oneshot(Request::new(())).await.unwrap_err();
//! assert!(Rejected::find(&*error).is_some());
//! handle.reset();
//! service.oneshot(Request::new(())).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Outcome`]: crate::Outcome

mod admission;
mod handle;
mod layer;
#[cfg(all(test, tower_openrouter_loom))]
mod model;
mod policy;
mod service;
mod shared;
mod state;
mod trip;

pub use admission::Admission;
pub use handle::BreakerHandle;
pub use layer::CircuitBreakerLayer;
pub use policy::{BreakerPolicy, PolicyError};
pub use service::{CircuitBreaker, CircuitBreakerFuture};
pub use state::{BreakerSnapshot, BreakerState};
pub use trip::{Trip, TripPolicy};
