use std::{fmt, sync::Arc, time::Duration};

use super::{BalancerHandle, PerKey, handle::Kept};
use crate::{
    BufferLayer, CircuitBreakerLayer, CommitGateLayer, ConcurrencyLimitLayer, DeadlineLayer, Endpoint, HedgeLayer,
    KeyError, KeySelectLayer, RetryLayer, TimeoutsLayer,
    breaker::BreakerPolicy,
    openrouter::ProviderLayer,
    pace::PacePolicy,
    select::{CreditLimit, Filter, LeastInFlight, MostCredit, Pacing, Pick, Pool, SelectError},
};

/// Settings of the default stack; [`build`](Self::build) or [`service`](Self::service) ends them.
#[must_use]
pub struct BalancerBuilder<P = LeastInFlight> {
    pub(crate) select: KeySelectLayer<(), P>,
    pub(crate) stages: Stages,
}

/// What is set beside the pick.
#[derive(Clone)]
pub(crate) struct Stages {
    pub(super) pool: Pool,
    breaker: Arc<BreakerPolicy>,
    max_in_flight: usize,
    pub(crate) retry: RetryLayer,
    pub(crate) provider: ProviderLayer,
    pub(crate) hedge: Option<HedgeLayer>,
    pub(crate) gate: CommitGateLayer,
    pub(crate) buffer: BufferLayer,
    pub(crate) deadline: DeadlineLayer,
    pub(crate) timeouts: TimeoutsLayer,
    pub(super) kept: Kept,
}

impl Stages {
    /// The breaker and the limit of an endpoint, which all its stacks share.
    pub(crate) fn per_key(&self, endpoint: &Endpoint) -> PerKey {
        let cap = endpoint.key().in_flight_cap().unwrap_or(self.max_in_flight);
        let zero = "keys and builder refuse a cap of 0";
        let kept = self.kept.of(endpoint, || PerKey {
            endpoint: endpoint.clone(),
            breaker: CircuitBreakerLayer::new(self.breaker.clone()).endpoint(endpoint),
            limit: ConcurrencyLimitLayer::new(cap).expect(zero),
        });
        kept.limit.handle().set_cap(cap).expect(zero);
        kept
    }
}

impl BalancerBuilder {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            select: KeySelectLayer::new(pool.clone(), ()).pick(LeastInFlight::default()),
            stages: Stages {
                pool,
                breaker: Arc::default(),
                max_in_flight: usize::MAX,
                retry: RetryLayer::default(),
                provider: ProviderLayer::default(),
                hedge: None,
                gate: CommitGateLayer::default(),
                buffer: BufferLayer::default(),
                deadline: DeadlineLayer::default(),
                timeouts: TimeoutsLayer::default(),
                kept: Kept::default(),
            },
        }
    }
}

impl<P: Pick> BalancerBuilder<P> {
    /// Sets the pick; default [`LeastInFlight`].
    pub fn pick<Q: Pick>(self, pick: Q) -> BalancerBuilder<Q> {
        BalancerBuilder { select: self.select.pick(pick), stages: self.stages }
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
        self.stages.pool = pool;
        self
    }

    /// Takes over the breakers and limits of a stack that runs, for the endpoints that are in this pool too: for a stack that
    /// is to replace it, with the same breaker policy. Caps follow this builder's.
    pub fn keep(self, running: &BalancerHandle) -> Self {
        self.stages.kept.take_over(&running.kept, &self.stages.pool);
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

    /// Sets how many requests may wait for a key at once; default 4096. Zero never waits.
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
        self.stages.breaker = Arc::new(policy);
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
        self.stages.max_in_flight = cap;
        Ok(self)
    }

    /// Sets when, and how often, to try again; default [`RetryLayer::new`].
    pub fn retry(mut self, retry: RetryLayer) -> Self {
        self.stages.retry = retry;
        self
    }

    /// Sets what is put into requests that do not say which providers may serve; default nothing.
    pub fn provider(mut self, provider: ProviderLayer) -> Self {
        self.stages.provider = provider;
        self
    }

    /// Sets how long the head of a 200 is held until there is output behind it; default [`CommitGateLayer::new`].
    pub fn commit_gate(mut self, gate: CommitGateLayer) -> Self {
        self.stages.gate = gate;
        self
    }

    /// Sets how large request bodies may be, and how they are kept; default [`BufferLayer::new`].
    pub fn buffer(mut self, buffer: BufferLayer) -> Self {
        self.stages.buffer = buffer;
        self
    }

    /// Sets how long a request may take in all; default 10 minutes.
    pub fn deadline(mut self, deadline: DeadlineLayer) -> Self {
        self.stages.deadline = deadline;
        self
    }

    /// Sets how long the upstream may be silent in each attempt, before its head and within its answer; default
    /// [`TimeoutsLayer::default`].
    pub fn timeouts(mut self, timeouts: TimeoutsLayer) -> Self {
        self.stages.timeouts = timeouts;
        self
    }

    /// Sends a second attempt beside one that is late, on another account; default never. Each is a retry to the budget of the
    /// retries, and one of the attempts of its request: with a single [attempt](RetryLayer::attempts) there are none.
    pub fn hedge(mut self, hedge: HedgeLayer) -> Self {
        self.stages.hedge = Some(hedge);
        self
    }

    pub(crate) fn hedging(&self) -> Option<HedgeLayer> {
        let hedge = self.stages.hedge.clone().filter(|_| self.stages.retry.most_attempts() > 1)?;
        Some(hedge.or_budget(self.stages.retry.shared_budget()))
    }

    /// What the stages can be asked and told.
    pub fn handle(&self) -> BalancerHandle {
        BalancerHandle {
            pool: self.stages.pool.clone(),
            retry: self.stages.retry.handle(),
            hedge: self.hedging().map(|hedge| hedge.handle()),
            kept: self.stages.kept.clone(),
        }
    }
}

impl<P> Clone for BalancerBuilder<P> {
    fn clone(&self) -> Self {
        Self { select: self.select.clone(), stages: self.stages.clone() }
    }
}

impl<P> fmt::Debug for BalancerBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancerBuilder")
            .field("select", &self.select)
            .field("retry", &self.stages.retry)
            .field("gate", &self.stages.gate)
            .field("buffer", &self.stages.buffer)
            .field("deadline", &self.stages.deadline)
            .field("timeouts", &self.stages.timeouts)
            .finish_non_exhaustive()
    }
}
