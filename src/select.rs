//! Key selection: one service in front, many keys behind.
//!
//! tower's balancer picks before it sees the request, is not `Clone`, holds what it has readied, and forgets for ever an
//! endpoint whose readiness fails once. For keys of an LLM API the request decides: which model, which keys have refused it
//! already, whose account is out of credit. So selection happens in the response future, where the request is known. The
//! service is ready always, a clone is one `Arc`, and there is no buffer and no task.
//!
//! For each attempt the [pick](Pick) proposes endpoints from an immutable snapshot, and [filters](Filter), rests and the
//! readiness of the endpoint's own stack judge them. A breaker that is open or a limit that is full is *not ready*, so any
//! third-party layer takes part. When a few proposals were refused everybody is asked, in the pick's order if it has one, so
//! a usable key is found if there is one.
//!
//! Picks that come along: [`RoundRobin`], [`SmoothWeighted`] and [`WeightedRandom`] by the keys' weights, [`LeastInFlight`]
//! and [`PeakEwma`] by their load, [`MostCredit`] and [`Sticky`] by what they may spend, [`Rendezvous`] by the conversation,
//! [`PriorityTiers`] around another pick, and [`pick_fn`]. Filters: [`RequireTags`], [`CreditLimit`], [`CreditFloor`],
//! [`Pacing`], [`AdaptiveLimit`] and [`filter_fn`]; those that every selector has are named [there](KeySelectLayer::filter).
//!
//! When nobody can serve, a request waits in the pool's line, in order of arrival and of its
//! [class](crate::request::Priority), for at most [`max_wait`](KeySelectLayer::max_wait) and its own deadline. If nobody comes
//! back in that time, or so many wait that its turn would come later, it is refused at once with a
//! [`Rejected`](crate::Rejected) that names when.
//!
//! # Examples
//!
//! Keys in turn, each through the same service:
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{BoxError, Layer, ServiceExt, layer::util::Identity, service_fn};
//! use tower_openrouter::{ApiKey, Endpoint, KeySelectLayer, endpoint_fn, select::Pool};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! let pool = Pool::new([ApiKey::new("key-a")?, ApiKey::new("key-b")?])?;
//! let upstream = service_fn(async |_: Request<Full<bytes::Bytes>>| {
//!     Ok::<_, BoxError>(Response::new(Full::new(bytes::Bytes::from("hello"))))
//! });
//! let service = KeySelectLayer::new(pool, endpoint_fn(|_: &Endpoint| Identity::new())).layer(upstream);
//! let response = service.oneshot(Request::new(Full::default())).await?;
//! assert!(response.status().is_success());
//! # Ok(()) }
//! ```
//!
//! The less loaded of two, with a monitor and a limit of each key's own, and no waiting:
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use std::time::Duration;
//! use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
//! use tower_openrouter::{
//!     ApiKey, ConcurrencyLimitLayer, Endpoint, KeySelectLayer, LoadMonitorLayer, endpoint_fn,
//!     select::{LeastInFlight, Pool},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! let pool = Pool::new([ApiKey::new("key-a")?, ApiKey::new("key-b")?])?;
//! let upstream = service_fn(async |_: Request<Full<bytes::Bytes>>| {
//!     Ok::<_, BoxError>(Response::new(Full::new(bytes::Bytes::from("hello"))))
//! });
//! let per_key = endpoint_fn(|endpoint: &Endpoint| {
//!     ServiceBuilder::new()
//!         .layer(LoadMonitorLayer::endpoint(endpoint))
//!         .layer(ConcurrencyLimitLayer::new(8).expect("8 is not 0"))
//!         .into_inner()
//! });
//! let service = KeySelectLayer::new(pool, per_key).pick(LeastInFlight::default()).max_wait(Duration::ZERO).layer(upstream);
//! let response = service.oneshot(Request::new(Full::default())).await?;
//! assert!(response.status().is_success());
//! # Ok(()) }
//! ```

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Layer, Service};

mod choose;
mod claims;
mod cooldown;
mod ejection;
mod explain;
mod filter;
mod future;
mod lanes;
mod order;
mod pick;
mod pool;
mod record;
mod swap;
mod waiting;

pub use cooldown::{Resting, WideRest};
pub use ejection::SelectError;
/// The random numbers a [`Pick`] is given, such as `rng.usize(..n)` and `rng.f64()`.
pub use fastrand::Rng;
pub use filter::{
    AdaptiveLimit, CreditFloor, CreditLimit, Ended, Filter, FilterFn, Fit, Pacing, RequireTags, filter_fn,
};
pub use future::KeySelectFuture;
pub use pick::{
    Candidates, LeastInFlight, MostCredit, PeakEwma, Pick, PickFn, Prepared, PriorityTiers, Rank, Rendezvous,
    RoundRobin, SmoothWeighted, Sticky, WeightedRandom, pick_fn,
};
pub use pool::Pool;
pub(crate) use pool::WeakPool;
pub use record::Record;

use crate::{
    body::Guarded,
    endpoint::Endpoint,
    outcome::{Classify, HttpStatus},
};
use choose::Shared;
use ejection::Ejection;
use lanes::Lanes;

/// Makes the stack of one endpoint around the service they all share.
///
/// A plain `Fn(&Endpoint) -> impl Layer<S>` cannot be written as a bound; [`endpoint_fn`] adapts such a closure.
pub trait EndpointLayer<S> {
    /// The endpoint's stack.
    type Service;

    /// Wraps `inner` for `endpoint`.
    fn layer(&self, endpoint: &Endpoint, inner: S) -> Self::Service;
}

/// An [`EndpointLayer`] from a closure that makes a [`Layer`] for each endpoint.
///
/// Several layers become one with [`ServiceBuilder::into_inner`](tower::ServiceBuilder::into_inner), the outermost first; the
/// parameter's type must be written out, as in `|endpoint: &Endpoint| …`. It is called once for each key, when that is first
/// needed: at the start, or when the key is added.
pub fn endpoint_fn<F, L>(make: F) -> EndpointFn<F>
where
    F: Fn(&Endpoint) -> L,
{
    EndpointFn(make)
}

/// See [`endpoint_fn`].
#[derive(Clone, Copy)]
pub struct EndpointFn<F>(F);

impl<F> fmt::Debug for EndpointFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EndpointFn").field(&std::any::type_name::<F>()).finish()
    }
}

impl<F, L, S> EndpointLayer<S> for EndpointFn<F>
where
    F: Fn(&Endpoint) -> L,
    L: Layer<S>,
{
    type Service = L::Service;

    fn layer(&self, endpoint: &Endpoint, inner: S) -> L::Service {
        self.0(endpoint).layer(inner)
    }
}

/// How long, and how many, may wait.
#[derive(Debug, Clone, Copy)]
struct WaitPolicy {
    max_wait: Duration,
    max_waiters: usize,
}

/// Sends each request through one of many keys. See the [module](self).
#[must_use]
pub struct KeySelectLayer<L, P = RoundRobin> {
    pool: Pool,
    per_key: L,
    pick: Arc<P>,
    filters: Vec<Arc<dyn Filter>>,
    classify: Arc<dyn Classify>,
    waiting: WaitPolicy,
    ejection: Ejection,
}

impl<L> KeySelectLayer<L> {
    /// Selects among `pool`, each endpoint with the stack that `per_key` makes, in turn.
    pub fn new(pool: Pool, per_key: L) -> Self {
        Self {
            pool,
            per_key,
            pick: Arc::default(),
            filters: Vec::new(),
            classify: Arc::new(HttpStatus),
            waiting: WaitPolicy { max_wait: Duration::from_secs(30), max_waiters: 4096 },
            ejection: Ejection::default(),
        }
    }
}

impl<L, P: Pick> KeySelectLayer<L, P> {
    /// Sets the pick; default [`RoundRobin`]. For one of one's own see [`Pick`].
    pub fn pick<Q: Pick>(self, pick: Q) -> KeySelectLayer<L, Q> {
        let Self { pool, per_key, filters, classify, waiting, ejection, .. } = self;
        KeySelectLayer { pool, per_key, pick: Arc::new(pick), filters, classify, waiting, ejection }
    }

    /// Sets the pool, in place of what [`new`](Self::new) was given.
    pub fn pool(mut self, pool: Pool) -> Self {
        self.pool = pool;
        self
    }

    /// Sets what makes each endpoint's stack, in place of what [`new`](Self::new) was given.
    pub fn per_key<M>(self, per_key: M) -> KeySelectLayer<M, P> {
        let Self { pool, pick, filters, classify, waiting, ejection, .. } = self;
        KeySelectLayer { pool, per_key, pick, filters, classify, waiting, ejection }
    }

    /// Adds a filter, asked after the built-in ones: model patterns, tags, earlier attempts, rests.
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.filters.push(Arc::new(filter));
        self
    }

    /// Sets how long a request may wait for a key, besides its own deadline; default 30 s, half of what nginx
    /// waits for an answer by default. Zero never waits.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.waiting.max_wait = max_wait;
        self
    }

    /// Sets how many requests may wait at once; default 4096, so that memory is bounded. Beyond it they are refused with
    /// [`Why::QueueFull`](crate::error::Why::QueueFull). Zero never waits.
    pub fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.waiting.max_waiters = max_waiters;
        self
    }

    /// Caps the share of keys that may be out at once because they fail, that is, whose breaker is open; at least one may be.
    /// Those above the cap are used all the same, the ones that would be back first. Default 1, no cap, since a key that
    /// fails is better left alone while others serve. Keys that rest for a refusal (401, 402, 429) stay out and do not count.
    ///
    /// What is let through an open breaker so says nothing to it, and is counted in [`Pool::panic_picks`]. Layers that are
    /// not ready for reasons of their own stay so, and so does a breaker isolated by hand.
    ///
    /// # Errors
    /// When the share is not within 0 to 1.
    pub fn max_ejected(mut self, share: f64) -> Result<Self, SelectError> {
        self.ejection.max_ejected = ejection::share("max_ejected", share)?;
        Ok(self)
    }

    /// Sets the share of keys that must be in use: with fewer, all that are out only because they fail are used again, on the
    /// ground that so many failures are not the keys' own (Envoy's panic mode, there at 0.5). Default 0, never: then requests
    /// wait, or are refused with the time of the first return. See [`max_ejected`](Self::max_ejected) for what does not count
    /// and what is never let through.
    ///
    /// ```
    /// use tower_openrouter::{ApiKey, Balancer, select::Pool};
    ///
    /// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?])?;
    /// let builder = Balancer::builder(pool).max_ejected(0.5)?.panic_below(0.3)?;
    /// # let _ = builder;
    /// # Ok::<(), tower::BoxError>(())
    /// ```
    ///
    /// # Errors
    /// When the share is not within 0 to 1.
    pub fn panic_below(mut self, share: f64) -> Result<Self, SelectError> {
        self.ejection.panic_below = ejection::share("panic_below", share)?;
        Ok(self)
    }

    /// Sets what answers without an [`OutcomeCell`](crate::outcome::OutcomeCell) mean; default [`HttpStatus`].
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.classify = Arc::new(classify);
        self
    }
}

impl<L: Clone, P> Clone for KeySelectLayer<L, P> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            per_key: self.per_key.clone(),
            pick: self.pick.clone(),
            filters: self.filters.clone(),
            classify: self.classify.clone(),
            waiting: self.waiting,
            ejection: self.ejection,
        }
    }
}

impl<L, P> fmt::Debug for KeySelectLayer<L, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySelectLayer")
            .field("pool", &self.pool)
            .field("waiting", &self.waiting)
            .field("ejection", &self.ejection)
            .finish_non_exhaustive()
    }
}

impl<S, L, P> Layer<S> for KeySelectLayer<L, P>
where
    S: Clone + Send + Sync + 'static,
    L: EndpointLayer<S> + Clone + Send + Sync + 'static,
    L::Service: Send + Sync + 'static,
    P: Pick,
{
    type Service = KeySelect<L::Service, P>;

    fn layer(&self, inner: S) -> Self::Service {
        let per_key = self.per_key.clone();
        let make = Box::new(move |endpoint: &Endpoint| per_key.layer(endpoint, inner.clone()));
        let shared = Arc::new(Shared {
            pool: self.pool.clone(),
            lanes: Lanes::new(self.pool.clone(), make, self.ejection),
            pick: self.pick.clone(),
            reserves: self.filters.iter().any(|filter| filter.reserves()),
            filters: self.filters.clone(),
            room: waiting::Room::default(),
            waiting: self.waiting,
            classify: self.classify.clone(),
        });
        let watcher: std::sync::Weak<Shared<L::Service, P>> = Arc::downgrade(&shared);
        self.pool.watch(watcher);
        KeySelect(shared)
    }
}

/// Service of [`KeySelectLayer`]. Always ready; a clone is one `Arc`.
pub struct KeySelect<S, P = RoundRobin>(Arc<Shared<S, P>>);

impl<S, P> KeySelect<S, P> {
    /// How many requests wait for a key now.
    pub fn waiting(&self) -> usize {
        self.0.room.len()
    }
}

impl<S, P> Clone for KeySelect<S, P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, P> fmt::Debug for KeySelect<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySelect")
            .field("pool", &self.0.pool)
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

impl<S, P, B, ResB> Service<Request<B>> for KeySelect<S, P>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    P: Pick,
    ResB: Body,
{
    type Response = Response<Guarded<ResB, Record>>;
    type Error = BoxError;
    type Future = KeySelectFuture<S, P, B>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        KeySelectFuture::new(self.0.clone(), request)
    }
}
