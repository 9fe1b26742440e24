//! How many requests may run at once, and how many may start per second.
//!
//! Both are layers of their own: for the second see [`RateLimitLayer`]. What follows is about the first.
//!
//! For an LLM a running request is one whose answer is still being generated, so a permit must last until the response
//! *body* ends, fails or is dropped; tower's own limiter gives it back with the head, which limits how many streams start
//! and not how many run. Two more of its traps are avoided: a clone that was refused keeps a place in the semaphore's queue
//! and strands the permit it is later granted, and the limit cannot be changed under load.
//!
//! One [`ConcurrencyLimitLayer`] is one cap over everything it is applied to, clones of the layer included; for a cap per
//! key, make one for each endpoint. What happens when the cap is reached is a choice:
//!
//! - by default the service is *not ready*, which inside a selector means that another key is used. A pending instance
//!   reserves nothing and all of them are woken when a permit comes free, which suits a selector with one pending instance
//!   for each key; where many wait for the same cap, use the next;
//! - [`wait`](ConcurrencyLimitLayer::wait): the response future queues for a permit, first come first served, up to a number
//!   of waiters and a time. Readiness is the inner service's alone;
//! - [`refuse`](ConcurrencyLimitLayer::refuse): the answer is [`Why::LimitReached`](crate::error::Why::LimitReached) at once.
//!
//! Where nobody knows the right cap, [`AdaptiveConcurrencyLimitLayer`] learns it. A cap that several keys share, such as an
//! account's, is a [selection filter](crate::select::AdaptiveLimit) instead.
//!
//! # Examples
//!
//! A cap that makes the service wait to become ready:
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::BodyExt;
//! use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
//! use tower_openrouter::limit::ConcurrencyLimitLayer;
//!
//! async fn hello(_: Request<()>) -> Result<Response<String>, BoxError> {
//!     Ok(Response::new("hello".into()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let limit = ConcurrencyLimitLayer::new(8)?;
//! let handle = limit.handle();
//! let mut service = ServiceBuilder::new().layer(limit).service_fn(hello);
//!
//! let response = service.ready().await?.call(Request::new(())).await?;
//! assert_eq!(handle.in_flight(), 1); // the body is still to come
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
//! assert_eq!(handle.in_flight(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! At most 100 requests queue, each for at most ten seconds, and the cap follows what an operator says:
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{error::{Rejected, Why}, limit::ConcurrencyLimitLayer};
//!
//! async fn hello(_: Request<()>) -> Result<Response<String>, BoxError> {
//!     Ok(Response::new("hello".into()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let limit = ConcurrencyLimitLayer::new(1)?.wait(100, Duration::from_secs(10));
//! let handle = limit.handle();
//! let service = ServiceBuilder::new().layer(limit).service_fn(hello);
//!
//! let first = service.clone().oneshot(Request::new(())).await?;
//! let second = tokio::spawn(service.clone().oneshot(Request::new(())));
//! tokio::task::yield_now().await;
//! assert_eq!((handle.in_flight(), handle.waiting()), (1, 1));
//! handle.set_cap(2)?; // the waiter runs at once
//! second.await??;
//! drop(first);
//!
//! // without a queue the same situation is an error at once
//! let service = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)?.refuse()).service_fn(hello);
//! let first = service.clone().oneshot(Request::new(())).await?;
//! let error = service.oneshot(Request::new(())).await.unwrap_err();
//! assert_eq!(Rejected::find(&*error).unwrap().why(), Why::LimitReached);
//! # drop(first);
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use tower_layer::Layer;

mod adaptive;
mod permits;
mod rate;
mod service;

pub use crate::adaptive::{AdaptiveError, AdaptivePolicy};
pub use adaptive::{AdaptiveConcurrencyLimit, AdaptiveConcurrencyLimitLayer, Metered, MeteredFuture, Sampling};
use permits::Permits;
pub use rate::{RateLimit, RateLimitFuture, RateLimitHandle, RateLimitLayer};
pub use service::{ConcurrencyLimit, LimitFuture, LimitPermit};

/// Limits how many requests run at once, until their bodies end. See the [module](self).
#[derive(Debug, Clone)]
pub struct ConcurrencyLimitLayer {
    permits: Permits,
    when_full: WhenFull,
}

/// What happens to a request when the cap is reached.
#[derive(Debug, Clone, Copy)]
enum WhenFull {
    NotReady,
    Wait { max_waiters: usize, max_wait: Duration },
    Refuse,
}

impl WhenFull {
    /// How many may queue, and how long each.
    fn patience(self) -> (usize, Duration) {
        match self {
            Self::NotReady | Self::Refuse => (0, Duration::ZERO),
            Self::Wait { max_waiters, max_wait } => (max_waiters, max_wait),
        }
    }
}

/// A cap that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// Nothing could ever run.
    #[error("a concurrency limit of 0 would let nothing through: give a cap of at least 1")]
    ZeroCap,
}

impl ConcurrencyLimitLayer {
    /// At most `cap` requests at once over all services this layer, or a clone of it, is applied to.
    ///
    /// # Errors
    ///
    /// [`LimitError::ZeroCap`] when `cap` is 0.
    pub fn new(cap: usize) -> Result<Self, LimitError> {
        Ok(Self { permits: Permits::new(valid(cap)?), when_full: WhenFull::NotReady })
    }

    /// Lets a request queue for its permit inside the response future, in order of arrival: at most `max_waiters` at a time
    /// ([`Why::QueueFull`](crate::error::Why::QueueFull) beyond it), each for at most `max_wait`
    /// ([`Why::LimitReached`](crate::error::Why::LimitReached) after it). A waiter that is dropped leaves the queue.
    ///
    /// A waiting request holds the inner service it found ready.
    #[must_use]
    pub fn wait(mut self, max_waiters: usize, max_wait: Duration) -> Self {
        self.when_full = WhenFull::Wait { max_waiters, max_wait };
        self
    }

    /// Refuses a request at once when the cap is reached, with [`Why::LimitReached`](crate::error::Why::LimitReached).
    #[must_use]
    pub fn refuse(mut self) -> Self {
        self.when_full = WhenFull::Refuse;
        self
    }

    /// A handle to watch and change the cap.
    pub fn handle(&self) -> LimitHandle {
        LimitHandle(self.permits.clone())
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimit::new(inner, self.permits.clone(), self.when_full)
    }
}

/// Watches and changes the cap of a [`ConcurrencyLimitLayer`] while requests run.
#[derive(Debug, Clone)]
pub struct LimitHandle(Permits);

impl LimitHandle {
    /// Changes the cap. Work that runs is kept, even above a lowered cap; new work obeys the new one; a raised cap wakes
    /// waiters at once.
    ///
    /// # Errors
    ///
    /// [`LimitError::ZeroCap`] when `cap` is 0; the cap stays as it was.
    pub fn set_cap(&self, cap: usize) -> Result<(), LimitError> {
        self.0.set_cap(valid(cap)?);
        Ok(())
    }

    /// The cap.
    pub fn cap(&self) -> usize {
        self.0.cap()
    }

    /// Permits that are out: requests from their start to the end of their bodies, and instances that are ready for one.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    /// Requests that queue for a permit.
    pub fn waiting(&self) -> usize {
        self.0.queued()
    }
}

fn valid(cap: usize) -> Result<usize, LimitError> {
    if cap == 0 { Err(LimitError::ZeroCap) } else { Ok(cap) }
}
