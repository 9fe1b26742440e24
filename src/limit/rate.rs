use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;

mod line;
mod service;

use line::Line;
pub use service::{RateLimit, RateLimitFuture};

use super::WhenFull;
use crate::pace::Rate;

/// Limits how many requests start per second.
///
/// tower's `RateLimit` counts whole windows, so twice the rate can pass around an edge, and cannot be cloned: behind a
/// `Buffer` it compiles, and then limits each connection by itself. Here one layer is one [`Rate`] over everything it is
/// applied to, clones of the layer included; for a rate per key, make one for each endpoint. Limits that keys share belong
/// into the selector instead: see [`Pacing`](crate::select::Pacing).
///
/// What happens to a request for which there is no slot is a choice, as in
/// [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer): by default the service is *not ready* until the next slot begins,
/// which inside a selector means that another key is used; with [`wait`](Self::wait) the response future queues; with
/// [`refuse`](Self::refuse) it is an error at once. A slot is taken when the service becomes ready; an instance dropped
/// without a call gives it back.
///
/// Two requests per second, evenly spaced:
///
/// ```
/// use http::{Request, Response};
/// use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
/// use tower_openrouter::{RateLimitLayer, pace::Rate};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let hello = tower::service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new("hello")));
/// let mut service = ServiceBuilder::new().layer(RateLimitLayer::new(Rate::per_second(2.0)?)).service(hello);
/// let start = tokio::time::Instant::now();
/// for _ in 0..5 {
///     service.ready().await?.call(Request::new(())).await?;
/// }
/// assert_eq!(start.elapsed().as_secs(), 2);
/// # Ok(()) }
/// ```
///
/// Ten at once and one each second on average; up to 100 requests queue, each for at most 20 s, and one that would have to
/// queue longer is told at once when to come back:
///
/// ```
/// use std::time::Duration;
/// use http::{Request, Response};
/// use tower::{BoxError, ServiceBuilder, ServiceExt};
/// use tower_openrouter::{RateLimitLayer, error::{Rejected, Why}, pace::Rate};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let hello = tower::service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new("hello")));
/// let limit = RateLimitLayer::new(Rate::per_second(1.0)?.burst(10)?).wait(100, Duration::from_secs(20));
/// let service = ServiceBuilder::new().layer(limit.clone()).service(hello);
/// let mut running = tokio::task::JoinSet::new();
/// for _ in 0..30 {
///     running.spawn(service.clone().oneshot(Request::new(())));
/// }
/// tokio::task::yield_now().await;
/// let error = service.clone().oneshot(Request::new(())).await.unwrap_err();
/// assert_eq!(Rejected::find(&*error).unwrap().why(), Why::LimitReached);
/// for answer in running.join_all().await {
///     answer?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct RateLimitLayer {
    line: Line,
    when_full: WhenFull,
}

impl RateLimitLayer {
    /// At most so many over all services this layer, or a clone of it, is applied to.
    pub fn new(rate: Rate) -> Self {
        Self { line: Line::new(rate, Instant::now()), when_full: WhenFull::NotReady }
    }

    /// Lets a request queue for its slot inside the response future, in order of arrival: at most `max_waiters` at a time
    /// ([`Why::QueueFull`](crate::error::Why::QueueFull) beyond it), each for at most `max_wait`. Who would have to wait
    /// longer is refused at once, with [`Why::LimitReached`](crate::error::Why::LimitReached) and the time of its slot.
    ///
    /// A waiting request holds the inner service it found ready.
    pub fn wait(mut self, max_waiters: usize, max_wait: Duration) -> Self {
        self.when_full = WhenFull::Wait { max_waiters, max_wait };
        self
    }

    /// Refuses a request at once when there is no slot, with [`Why::LimitReached`](crate::error::Why::LimitReached) and the
    /// time of the next.
    pub fn refuse(mut self) -> Self {
        self.when_full = WhenFull::Refuse;
        self
    }

    /// A handle to watch and change the rate.
    pub fn handle(&self) -> RateLimitHandle {
        RateLimitHandle(self.line.clone())
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.line.clone(), self.when_full)
    }
}

/// Watches and changes the rate of a [`RateLimitLayer`] while requests run.
#[derive(Debug, Clone)]
pub struct RateLimitHandle(Line);

impl RateLimitHandle {
    /// Changes the rate. What was sent beyond it stays owed; who waits is served at the new rate within a second.
    pub fn set_rate(&self, rate: Rate) {
        self.0.set(rate, Instant::now());
    }

    /// Requests that queue for a slot.
    pub fn waiting(&self) -> usize {
        self.0.waiting()
    }
}
