//! A second attempt beside one that is late, on another account; the first to say something wins.
//!
//! A key can be sound and its answer late all the same: a slow replica, a cold cache, a queue at the provider. Waiting it out
//! makes the slowest requests of a service, and a timeout throws away what has been waited for. Sending one more attempt once
//! an answer is later than nearly all others, and taking whichever speaks first, cuts that tail for a few per cent more
//! requests (Dean and Barroso, *The Tail at Scale*, 2013). But for an LLM each attempt costs money, so this is off unless
//! asked for, and bounded four times over:
//!
//! - a request is late when it has said nothing by the [percentile](HedgeLayer::percentile) of the time to the first output
//!   of its kind, which is its model and whether it asks for a stream; of a kind that is hardly known nothing is late;
//! - second attempts are at most a [share](HedgeLayer::share) of the requests, so when all of them become late, few are
//!   doubled;
//! - each is a retry to the [budget](HedgeLayer::budget) of the retries, where it is given one, and counts as one of the
//!   attempts that a [`RetryLayer`](crate::RetryLayer) above may make;
//! - what costs more than a [maximum](HedgeLayer::max_cost) is not sent twice.
//!
//! It goes inside of [`RetryLayer`](crate::RetryLayer) and around [`CommitGateLayer`](crate::CommitGateLayer), which lets a
//! response through once there is output behind it: without that gate the first head would win, which says little. Below,
//! [`KeySelectLayer`](crate::KeySelectLayer) sends the second attempt to another account than that of the one that runs, or
//! nowhere: it never waits for a key.
//!
//! A request has one second attempt at most, and none after it was tried again. The one that loses is dropped, with its
//! exchange: that is nobody's failure, and it is charged as any request whose caller left. When one of the two fails, the
//! other is the attempt; retry above hears only of the last. A failure of the request itself is passed on at once.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::time::Instant;
use tower::{BoxError, retry::budget::Budget};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    outcome::{Classify, HttpStatus},
    request::{Replay, RequestContext, copy},
    sync::lock_std,
};

mod future;
mod policy;
mod stats;

pub use future::HedgeFuture;
use future::Plan;
use policy::{Limits, Seen};
use stats::Counts;
pub use stats::{HedgeHandle, HedgeStats, Skip};

/// Sends a second attempt beside one that is late; see the [module](self).
///
/// As it comes: beyond the 95th percentile, for 5 % of the requests, in its usual place:
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{BoxError, ServiceBuilder, ServiceExt};
/// use tower_openrouter::{CommitGateLayer, HedgeLayer, RetryLayer};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let retry = RetryLayer::new();
/// let hedge = HedgeLayer::new().budget(retry.shared_budget());
/// let handle = hedge.handle();
/// let service = ServiceBuilder::new()
///     .layer(retry)
///     .layer(hedge)
///     .layer(CommitGateLayer::new())
///     .service_fn(async |_: Request<Full<Bytes>>| Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("hello"))));
/// service.oneshot(Request::new(Full::default())).await?;
/// assert_eq!(handle.stats().hedges, 0);
/// # Ok(())
/// # }
/// ```
///
/// In the default stack, for the slowest percent of requests that cost five cents at most:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, HedgeLayer, OpenRouter, select::Pool};
/// # use tower_openrouter::{simulator::{Scenario, Simulator}, stack::Balancer as B};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let keys = [ApiKey::new("key-a")?.account("acme"), ApiKey::new("key-b")?.account("other")];
/// let hedge = HedgeLayer::new().percentile(0.99)?.share(0.01)?.max_cost(0.05)?;
/// let balancer = Balancer::builder(Pool::new(keys)?).hedge(hedge).build(OpenRouter::new(transport));
/// # let _: &B<String> = &balancer;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
///
/// All services made from one layer, and all its clones, share what they have seen.
#[derive(Clone)]
#[must_use]
pub struct HedgeLayer {
    shared: Arc<Shared>,
}

/// What all services of a layer share.
#[derive(Clone)]
struct Shared {
    limits: Limits,
    budget: Option<Arc<dyn Budget + Send + Sync>>,
    classify: Arc<dyn Classify>,
    seen: Arc<Mutex<Seen>>,
    counts: Arc<Counts>,
}

impl HedgeLayer {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                limits: Limits::default(),
                budget: None,
                classify: Arc::new(HttpStatus),
                seen: Arc::default(),
                counts: Arc::default(),
            }),
        }
    }

    /// Sets the share of the requests of a kind that are in time; default 0.95, as in *The Tail at Scale*. Those of the last
    /// five to ten minutes count, from 20 on.
    ///
    /// # Errors
    /// When it is not within 0.5 and below 1.
    pub fn percentile(mut self, percentile: f64) -> Result<Self, HedgeError> {
        let shared = self.shared_mut();
        shared.limits = shared.limits.percentile(percentile)?;
        Ok(self)
    }

    /// Sets how many second attempts there may be for each request; default 0.05. Up to 10 can be saved up.
    ///
    /// # Errors
    /// When it is not above 0 and at most 1.
    pub fn share(mut self, share: f64) -> Result<Self, HedgeError> {
        let shared = self.shared_mut();
        shared.limits = shared.limits.share(share)?;
        Ok(self)
    }

    /// Sets the most a request may cost that is sent twice, in US dollars; default any. It counts with its worst case at the
    /// [prices](crate::endpoint::Prices) of the pool, without a bound of its own with 16,384 tokens of answer; one of unknown
    /// price is not sent twice.
    ///
    /// # Errors
    /// When it is negative or no number.
    pub fn max_cost(mut self, usd: f64) -> Result<Self, HedgeError> {
        let shared = self.shared_mut();
        shared.limits = shared.limits.max_cost(usd)?;
        Ok(self)
    }

    /// Sets a budget that each second attempt is taken out of, besides the share; default none. Give it that of the retries
    /// ([`RetryLayer::shared_budget`](crate::RetryLayer::shared_budget)), which counts the requests; this layer only draws.
    pub fn budget(mut self, budget: impl Budget + Send + Sync + 'static) -> Self {
        self.shared_mut().budget = Some(Arc::new(budget));
        self
    }

    /// Sets who judges answers that carry no outcome, and errors; default [`HttpStatus`].
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.shared_mut().classify = Arc::new(classify);
        self
    }

    /// Watches what the layer does.
    pub fn handle(&self) -> HedgeHandle {
        HedgeHandle(self.shared.counts.clone())
    }

    /// The same with `budget`, unless one was set.
    pub(crate) fn or_budget(mut self, budget: impl Budget + Send + Sync + 'static) -> Self {
        self.shared_mut().budget.get_or_insert_with(|| Arc::new(budget));
        self
    }

    fn shared_mut(&mut self) -> &mut Shared {
        Arc::make_mut(&mut self.shared)
    }
}

impl Default for HedgeLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for HedgeLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

/// What is wrong with the configuration of a [`HedgeLayer`].
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HedgeError {
    /// The percentile is none, or most requests would be late.
    #[error(
        "the percentile beyond which a request is hedged is {0}: it must be at least 0.5 and below 1, such as 0.95"
    )]
    Percentile(f64),
    /// The share is none.
    #[error("the share of requests that may be hedged is {0}: it must be above 0 and at most 1, such as 0.05")]
    Share(f64),
    /// The cost is none.
    #[error("max_cost, the most a hedged request may cost, is {0}: it must be a number of dollars, 0 or more")]
    Cost(f64),
}

impl<S> Layer<S> for HedgeLayer {
    type Service = Hedge<S>;

    fn layer(&self, inner: S) -> Hedge<S> {
        Hedge { shared: self.shared.clone(), inner }
    }
}

/// The service of [`HedgeLayer`].
///
/// The request's body must be able to [`Replay`]; one that cannot is sent once. The inner service is cloned for each request
/// that may be sent twice.
#[derive(Clone)]
pub struct Hedge<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S, B, ResB> Service<Request<B>> for Hedge<S>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    B: Replay,
{
    type Response = Response<ResB>;
    type Error = BoxError;
    type Future = HedgeFuture<S, B, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let context = RequestContext::of(&mut request);
        let (now, kind) = (Instant::now(), kind_of(&context));
        let late = lock_std(&self.shared.seen).request(&self.shared.limits, kind, now);
        self.shared.counts.request();
        let plan = late.and_then(|late| {
            let mut again = copy(&request)?;
            again.extensions_mut().insert(context.clone());
            Some(Plan::new(late, again, self.inner.clone(), now))
        });
        HedgeFuture::new(self.inner.call(request), plan, self.shared.clone(), context, kind, now)
    }
}

/// Which requests are alike in how soon they say something.
fn kind_of(context: &RequestContext) -> u64 {
    let asks = context.asks();
    let mut hasher = DefaultHasher::new();
    (&asks.model, asks.stream).hash(&mut hasher);
    hasher.finish()
}

impl<S: fmt::Debug> fmt::Debug for Hedge<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge").field("limits", &self.shared.limits).field("inner", &self.inner).finish()
    }
}
