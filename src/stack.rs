//! The default balancer: the one place where the order of the stages is code.
//!
//! Layers in the wrong order are a quiet kind of wrong: a retry below selection tries the same key again, a deadline below the
//! retry holds for one attempt only, a limit above the monitor hides what waits. [`Balancer`] is the order that works, with
//! settings for what each stage does:
//!
//! ```text
//! respond      refusals and errors become answers; cannot fail from here out
//! deadline     one instant over waits, attempts and body
//! buffer       the body in memory, replayable
//! retry        another key at once, or a wait, or give up
//! provider     which providers may serve, for requests that do not say
//! hedge        where it is asked for: a second attempt beside one that is late
//! commit gate  the head of a 200 held until there is output behind it: a failure before that is a failed attempt
//! select       filter the keys, pick one, wait when none can serve
//!   ╎ per key:
//!   monitor    in flight, times, tokens, cost, outcomes
//!   breaker    open = not ready
//!   limit      permits until the body ends
//!   authorize  the key's header
//! timeouts     how long the upstream may be silent, in each attempt
//! openrouter   the leaf: base URL, attribution, and the one place that judges an answer
//! ```
//!
//! Refusals and errors within are answers here, so that axum and tonic can serve it as it is. Whoever wants another order, or
//! other stages, writes it with the layers themselves, as [the front page](crate#three-ways-to-use-it) shows and
//! [`BalancerBuilder::service`] does.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tower::{
    BoxError, Layer, Service, ServiceBuilder,
    util::{BoxCloneSyncService, option_layer},
};

use crate::{
    BufferLayer, CircuitBreakerLayer, CommitGateLayer, ConcurrencyLimitLayer, DeadlineLayer, Endpoint, HedgeLayer,
    KeyError, KeySelectLayer, LoadMonitorLayer, OpenRouter, RespondLayer, RetryLayer, TimeoutsLayer,
    breaker::BreakerPolicy,
    buffer::ReplayBody,
    openrouter::{AuthorizeLayer, ProviderLayer},
    pace::PacePolicy,
    respond::RespondBody,
    route::Routes,
    select::{CreditLimit, Filter, LeastInFlight, MostCredit, Pacing, Pick, Pool, SelectError, endpoint_fn},
};

mod handle;

pub use handle::BalancerHandle;
use handle::{Kept, PerKey};

/// The body of a [`Balancer`]'s answers.
pub type BalancerBody = UnsyncBoxBody<Bytes, BoxError>;

/// The default stack with its type erased: requests with a body `B` in, answers out, never an error.
///
/// `B` is found by the compiler: it is the body of the requests one calls it with. It is always ready; a clone is cheap, and
/// all clones share keys, breakers and figures.
///
/// With the defaults:
///
/// ```
/// use bytes::Bytes;
/// use http::Request;
/// use http_body_util::{BodyExt, Full};
/// use tower::{BoxError, Service, ServiceExt};
/// use tower_openrouter::{ApiKey, Balancer, OpenRouter, select::Pool};
/// # use tower_openrouter::simulator::{Scenario, Simulator};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
/// # let simulator = Simulator::new(Scenario::default())?;
/// # let (first, second) = (simulator.keys()[0].secret.clone(), simulator.keys()[1].secret.clone());
/// # let transport = simulator.service();
/// let pool = Pool::new([ApiKey::new(first)?.label("first"), ApiKey::new(second)?.label("second")])?;
/// let mut balancer = Balancer::builder(pool).build(OpenRouter::new(transport));
///
/// let body = r#"{"model":"acme/swift-1","messages":[{"role":"user","content":"hello"}]}"#;
/// let request = Request::post("/v1/chat/completions")
///     .header("content-type", "application/json")
///     .body(Full::<Bytes>::from(body))?;
/// let response = balancer.ready().await?.call(request).await?;
/// assert!(response.status().is_success());
/// # Ok(()) }
/// ```
///
/// With numbers of one's own, and the handle by which keys come and go while it runs:
///
/// ```
/// use std::time::Duration;
/// use tower::BoxError;
/// use tower_openrouter::{
///     ApiKey, Balancer, DeadlineLayer, OpenRouter, RetryLayer,
///     breaker::{BreakerPolicy, TripPolicy},
///     select::{Pool, RoundRobin},
/// };
/// # use tower_openrouter::simulator::{Scenario, Simulator};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b")])?;
/// let balancer = Balancer::builder(pool)
///     .pick(RoundRobin::default())
///     .max_wait(Duration::from_secs(5))
///     .max_in_flight(16)?
///     .breaker(BreakerPolicy::new(TripPolicy::consecutive(5)?))
///     .retry(RetryLayer::new().attempts(2)?)
///     .deadline(DeadlineLayer::new(Duration::from_secs(120))?)
///     .build(OpenRouter::new(transport));
/// # let _: &Balancer<String> = &balancer;
///
/// balancer.handle().pool().add(ApiKey::new("sk-or-v1-c")?.label("c"));
/// balancer.handle().pool().remove("a");
/// println!("{}", serde_json::to_string(&balancer.handle().snapshot())?);
/// # Ok::<(), BoxError>(())
/// ```
pub struct Balancer<B> {
    service: BoxCloneSyncService<Request<B>, Response<BalancerBody>, Infallible>,
    handle: BalancerHandle,
}

impl Balancer<()> {
    /// Starts from the defaults.
    pub fn builder(pool: Pool) -> BalancerBuilder {
        BalancerBuilder::new(pool)
    }
}

impl<B> Balancer<B> {
    /// What the stack's stages can be asked and told.
    pub fn handle(&self) -> &BalancerHandle {
        &self.handle
    }
}

impl<B> Clone for Balancer<B> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), handle: self.handle.clone() }
    }
}

impl<B> fmt::Debug for Balancer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Balancer<B> {
    type Response = Response<BalancerBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.service.call(request)
    }
}

/// What goes above a [`ModelRouter`](crate::ModelRouter): refusals become answers, and the body is collected, so that its
/// model can be read. Cannot fail, as axum and tonic want it; `B` is the body of the requests one calls it with.
///
/// The buffer is the default one; whoever wants another writes these two layers. Deadlines are those of the routes: the
/// first that a request meets holds for all models that are tried.
pub fn front<S, B, ResB>(
    routes: Routes<S>,
) -> impl Service<Request<B>, Response = Response<RespondBody<ResB>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ use<S, B, ResB>
where
    S: Service<Request<ReplayBody>, Response = Response<ResB>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    ResB: 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    ServiceBuilder::new().layer(RespondLayer::new()).layer(BufferLayer::new()).service(routes)
}

/// Settings of the default stack; [`build`](Self::build) or [`service`](Self::service) ends them.
#[must_use]
pub struct BalancerBuilder<P = LeastInFlight> {
    pool: Pool,
    select: KeySelectLayer<(), P>,
    breaker: BreakerPolicy,
    max_in_flight: usize,
    retry: RetryLayer,
    provider: ProviderLayer,
    hedge: Option<HedgeLayer>,
    gate: CommitGateLayer,
    buffer: BufferLayer,
    deadline: DeadlineLayer,
    timeouts: TimeoutsLayer,
    kept: Kept,
}

impl BalancerBuilder {
    fn new(pool: Pool) -> Self {
        Self {
            select: KeySelectLayer::new(pool.clone(), ()).pick(LeastInFlight::default()),
            pool,
            breaker: BreakerPolicy::default(),
            max_in_flight: usize::MAX,
            retry: RetryLayer::default(),
            provider: ProviderLayer::default(),
            hedge: None,
            gate: CommitGateLayer::default(),
            buffer: BufferLayer::default(),
            deadline: DeadlineLayer::default(),
            timeouts: TimeoutsLayer::default(),
            kept: Kept::default(),
        }
    }
}

impl<P: Pick> BalancerBuilder<P> {
    /// Sets the pick; default [`LeastInFlight`].
    pub fn pick<Q: Pick>(self, pick: Q) -> BalancerBuilder<Q> {
        let Self {
            pool,
            select,
            breaker,
            max_in_flight,
            retry,
            provider,
            hedge,
            gate,
            buffer,
            deadline,
            timeouts,
            kept,
        } = self;
        let select = select.pick(pick);
        BalancerBuilder {
            pool,
            select,
            breaker,
            max_in_flight,
            retry,
            provider,
            hedge,
            gate,
            buffer,
            deadline,
            timeouts,
            kept,
        }
    }

    /// Adds a filter, asked after the built-in ones: model patterns, tags, earlier attempts, rests. All must agree.
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.select = self.select.filter(filter);
        self
    }

    /// Sets the pool, such as a group that [shares](Pool::share) with the one before: an endpoint that is in both has one
    /// breaker and one limit in the stacks of this builder and of its clones.
    pub fn pool(mut self, pool: Pool) -> Self {
        self.select = self.select.pool(pool.clone());
        self.pool = pool;
        self
    }

    /// Takes over the breakers and limits of a stack that runs, for the endpoints that are in this pool too: for a stack that
    /// is to replace it, with the same breaker policy. Caps follow this builder's.
    pub fn keep(self, running: &BalancerHandle) -> Self {
        self.kept.take_over(&running.kept, &self.pool);
        self
    }

    /// Counts money: requests go only where their worst case can be paid, what runs is set aside, an account's cost in flight
    /// is limited as its refusals teach, and the key with the [most credit](MostCredit) is preferred. Off by default; a
    /// [`pick`](Self::pick) set after this one replaces that part of it.
    ///
    /// It knows what answers tell. Run an [`AccountPoller`](crate::AccountPoller) beside it, so that it also knows caps,
    /// balances and prices.
    ///
    /// ```
    /// use tower_openrouter::{AccountPoller, ApiKey, Balancer, OpenRouter, select::{CreditLimit, Pool}};
    /// # use tower_openrouter::simulator::{Scenario, Simulator};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
    /// # let transport = Simulator::new(Scenario::default())?.service();
    /// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?])?;
    /// let leaf = OpenRouter::new(transport);
    /// tokio::spawn(AccountPoller::new(&pool, leaf.clone()).run());
    /// let balancer = Balancer::builder(pool).credit(CreditLimit::new()).build(leaf);
    /// # let _: &Balancer<String> = &balancer;
    /// # Ok(()) }
    /// ```
    pub fn credit(self, limit: CreditLimit) -> BalancerBuilder<MostCredit> {
        self.pick(MostCredit::default()).filter(limit)
    }

    /// Sends no faster than the quotas of keys and accounts admit, given by hand or learned from refusals; see
    /// [`PacePolicy`]. Off by default. To watch or change it while it runs, add a [`Pacing`] as a [`filter`](Self::filter)
    /// instead.
    pub fn pace(self, policy: PacePolicy) -> Self {
        self.filter(Pacing::new(policy))
    }

    /// Sets how long a request may wait for a key, besides its deadline; default 30 s. Zero never waits.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.select = self.select.max_wait(max_wait);
        self
    }

    /// Sets how many requests may wait for a key at once; default 1024. Zero never waits.
    pub fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.select = self.select.max_waiters(max_waiters);
        self
    }

    /// Caps the share of keys that may be out at once because they fail; default 1. See
    /// [`KeySelectLayer::max_ejected`].
    ///
    /// # Errors
    /// When the share is not within 0 to 1.
    pub fn max_ejected(mut self, share: f64) -> Result<Self, SelectError> {
        self.select = self.select.max_ejected(share)?;
        Ok(self)
    }

    /// Sets the share of keys below which those that are out because they fail are used again; default 0, never. See
    /// [`KeySelectLayer::panic_below`].
    ///
    /// # Errors
    /// When the share is not within 0 to 1.
    pub fn panic_below(mut self, share: f64) -> Result<Self, SelectError> {
        self.select = self.select.panic_below(share)?;
        Ok(self)
    }

    /// Sets when a key's breaker opens, and for how long; default 3 failures in 60 s, for 60 s growing to 300 s.
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        self.breaker = policy;
        self
    }

    /// Caps how many requests run on a key at once, where the key itself has no
    /// [`max_in_flight`](crate::ApiKey::max_in_flight); default no cap.
    ///
    /// # Errors
    /// When the cap is 0.
    pub fn max_in_flight(mut self, cap: usize) -> Result<Self, KeyError> {
        if cap == 0 {
            return Err(KeyError::ZeroCap);
        }
        self.max_in_flight = cap;
        Ok(self)
    }

    /// Sets when, and how often, to try again; default [`RetryLayer::new`].
    pub fn retry(mut self, retry: RetryLayer) -> Self {
        self.retry = retry;
        self
    }

    /// Sets what is put into requests that do not say which providers may serve; default nothing.
    pub fn provider(mut self, provider: ProviderLayer) -> Self {
        self.provider = provider;
        self
    }

    /// Sets how long the head of a 200 is held until there is output behind it; default [`CommitGateLayer::new`].
    pub fn commit_gate(mut self, gate: CommitGateLayer) -> Self {
        self.gate = gate;
        self
    }

    /// Sets how large request bodies may be, and how they are kept; default [`BufferLayer::new`].
    pub fn buffer(mut self, buffer: BufferLayer) -> Self {
        self.buffer = buffer;
        self
    }

    /// Sets how long a request may take in all; default 10 minutes.
    pub fn deadline(mut self, deadline: DeadlineLayer) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets how long the upstream may be silent in each attempt, before its head and within its answer; default
    /// [`TimeoutsLayer::default`].
    pub fn timeouts(mut self, timeouts: TimeoutsLayer) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Sends a second attempt beside one that is late, on another account; default never. Each is a retry to the budget of the
    /// retries, and one of the attempts of its request: with a single [attempt](RetryLayer::attempts) there are none.
    pub fn hedge(mut self, hedge: HedgeLayer) -> Self {
        self.hedge = Some(hedge);
        self
    }

    fn hedging(&self) -> Option<HedgeLayer> {
        self.hedge.clone().filter(|_| self.retry.most_attempts() > 1)
    }

    /// What the stages can be asked and told.
    pub fn handle(&self) -> BalancerHandle {
        BalancerHandle {
            pool: self.pool.clone(),
            retry: self.retry.handle(),
            hedge: self.hedging().map(|hedge| hedge.handle()),
            kept: self.kept.clone(),
        }
    }

    /// The stack around `leaf`, its type unnamed but known to the compiler: nothing is boxed. Take the
    /// [`handle`](Self::handle) beside it.
    pub fn service<T, TB, B>(
        &self,
        leaf: OpenRouter<T>,
    ) -> impl Service<
        Request<B>,
        Response = Response<impl Body<Data = Bytes, Error: Into<BoxError> + fmt::Debug> + Send + use<T, TB, B, P>>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + use<T, TB, B, P>
    where
        T: Service<Request<ReplayBody>, Response = Response<TB>> + Clone + Send + Sync + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send,
        TB: Body<Data = Bytes> + Unpin + Send + 'static,
        TB::Error: Into<BoxError> + Send,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let (breaker, max_in_flight, kept) = (Arc::new(self.breaker.clone()), self.max_in_flight, self.kept.clone());
        let per_key = endpoint_fn(move |endpoint: &Endpoint| {
            let cap = endpoint.key().in_flight_cap().unwrap_or(max_in_flight);
            let zero = "keys and builder refuse a cap of 0";
            let make = || PerKey {
                endpoint: endpoint.clone(),
                breaker: CircuitBreakerLayer::new(breaker.clone()).endpoint(endpoint),
                limit: ConcurrencyLimitLayer::new(cap).expect(zero),
            };
            let PerKey { breaker, limit, .. } = kept.of(endpoint, make);
            limit.handle().set_cap(cap).expect(zero);
            ServiceBuilder::new()
                .layer(LoadMonitorLayer::endpoint(endpoint))
                .layer(breaker)
                .layer(limit)
                .layer(AuthorizeLayer::new(endpoint.key()))
                .into_inner()
        });
        let hedge = self.hedging().map(|hedge| hedge.or_budget(self.retry.shared_budget()));
        ServiceBuilder::new()
            .layer(RespondLayer::new())
            .layer(self.deadline.clone())
            .layer(self.buffer.clone())
            .layer(self.retry.clone())
            .layer(self.provider.clone())
            .layer(option_layer(hedge))
            .layer(self.gate.clone())
            .layer(self.select.clone().per_key(per_key))
            .layer(self.timeouts.clone())
            .service(leaf)
    }

    /// The stack around `leaf`, boxed.
    pub fn build<T, TB, B>(self, leaf: OpenRouter<T>) -> Balancer<B>
    where
        T: Service<Request<ReplayBody>, Response = Response<TB>> + Clone + Send + Sync + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send,
        TB: Body<Data = Bytes> + Unpin + Send + 'static,
        TB::Error: Into<BoxError> + Send,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let erased = tower::util::MapResponseLayer::new(|response: Response<_>| {
            response.map(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
        });
        let service = BoxCloneSyncService::new(erased.layer(self.service(leaf)));
        Balancer { service, handle: self.handle() }
    }
}

impl<P> Clone for BalancerBuilder<P> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            select: self.select.clone(),
            breaker: self.breaker.clone(),
            max_in_flight: self.max_in_flight,
            retry: self.retry.clone(),
            provider: self.provider.clone(),
            hedge: self.hedge.clone(),
            gate: self.gate.clone(),
            buffer: self.buffer.clone(),
            deadline: self.deadline.clone(),
            timeouts: self.timeouts.clone(),
            kept: self.kept.clone(),
        }
    }
}

impl<P> fmt::Debug for BalancerBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancerBuilder")
            .field("select", &self.select)
            .field("retry", &self.retry)
            .field("gate", &self.gate)
            .field("buffer", &self.buffer)
            .field("deadline", &self.deadline)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}
