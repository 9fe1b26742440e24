//! What is compared: a stack, built anew for each run in front of that run's upstream.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tokio::time::Instant;
use tower::{BoxError, Service, ServiceExt, util::BoxCloneSyncService};

use super::{Patience, Scenario, Upstream};
use crate::{ApiKey, OpenRouter, clock, key::KeyError, select::Pool, simulator::Simulator, stack::BalancerHandle};

/// A response's body, with its type erased.
pub type LabBody = UnsyncBoxBody<Bytes, BoxError>;

/// A stack as the lab drives it, with its type erased.
pub type LabService = BoxCloneSyncService<Request<Full<Bytes>>, Response<LabBody>, BoxError>;

/// A stack to be compared with others. Each run builds one of its own.
pub trait Stack: Send + Sync {
    /// Its name in tables, and by which `--stack` finds it.
    fn name(&self) -> &str;

    /// What it does, in a sentence.
    fn about(&self) -> &str {
        ""
    }

    /// Puts it before the upstream of a run.
    ///
    /// # Errors
    /// When its settings contradict each other, or the world.
    fn build(&self, world: &World) -> Result<Built, BoxError>;
}

/// A [`Stack`] from a name and a closure; see [`StackFn`].
///
/// ```
/// use tower::BoxError;
/// use tower_openrouter::{
///     Balancer,
///     lab::{self, Built, Stack, World},
///     select::RoundRobin,
/// };
///
/// let in_turn = lab::stack_fn("in-turn", |world: &World| {
///     let balancer = Balancer::builder(world.pool()?).pick(RoundRobin::default()).build(world.leaf());
///     let handle = balancer.handle().clone();
///     Ok(Built::new(balancer).watch(handle))
/// });
/// assert_eq!(in_turn.name(), "in-turn");
/// ```
pub fn stack_fn<F>(name: impl Into<String>, build: F) -> StackFn<F>
where
    F: Fn(&World) -> Result<Built, BoxError> + Send + Sync,
{
    StackFn { name: name.into(), build }
}

/// The [`Stack`] of [`stack_fn`].
#[derive(Clone)]
pub struct StackFn<F> {
    name: String,
    build: F,
}

impl<F> fmt::Debug for StackFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackFn").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<F> Stack for StackFn<F>
where
    F: Fn(&World) -> Result<Built, BoxError> + Send + Sync,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        (self.build)(world)
    }
}

/// A stack that was built.
#[derive(Debug)]
pub struct Built {
    pub(super) service: LabService,
    pub(super) handle: Option<BalancerHandle>,
}

impl Built {
    /// Around any service of requests whose body is in memory.
    pub fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self { service: erase(service), handle: None }
    }

    /// Has the run look at keys, breakers, rests and those who wait as time goes by.
    #[must_use]
    pub fn watch(mut self, handle: BalancerHandle) -> Self {
        self.handle = Some(handle);
        self
    }
}

/// Forgets what it is.
pub(super) fn erase<S, Q, B>(service: S) -> BoxCloneSyncService<Request<Q>, Response<LabBody>, BoxError>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    Q: 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service
        .map_response(|response: Response<B>| response.map(|body| body.map_err(Into::into).boxed_unsync()))
        .map_err(Into::into);
    BoxCloneSyncService::new(service)
}

/// What a stack is put before: the keys it may use, and the upstream of its run.
#[derive(Debug, Clone)]
pub struct World {
    simulator: Simulator,
    upstream: Upstream,
    keys: Vec<ApiKey>,
    patience: Patience,
    seed: u64,
}

impl World {
    pub(super) fn new(scenario: &Scenario, seed: u64) -> Result<Self, BoxError> {
        let mut world = scenario.world.clone();
        world.seed = seed;
        let simulator = Simulator::new(world)?;
        // what reads dates reads them by the simulator's calendar, in whatever stack it stands
        let calendar = Duration::from_millis(simulator.wall_clock_ms().unsigned_abs());
        clock::begin_run(Instant::now(), UNIX_EPOCH + calendar);
        let upstream = Upstream::new(&simulator, Duration::try_from_secs_f64(scenario.round_trip_ms / 1e3)?);
        let keys = simulator
            .keys()
            .into_iter()
            .map(|key| ApiKey::new(&key.secret).map(|made| made.label(key.label.clone()).account(key.account.clone())));
        let keys = keys.collect::<Result<_, KeyError>>()?;
        Ok(Self { simulator, upstream, keys, patience: scenario.patience, seed })
    }

    /// The keys, with label and account, in the scenario's order.
    pub fn keys(&self) -> &[ApiKey] {
        &self.keys
    }

    /// A pool of all keys.
    ///
    /// # Errors
    /// When the scenario has no key.
    pub fn pool(&self) -> Result<Pool, KeyError> {
        Pool::new(self.keys.iter().cloned())
    }

    /// The upstream as a bare transport: no base URL, no outcome.
    pub fn upstream(&self) -> Upstream {
        self.upstream.clone()
    }

    /// The leaf: OpenRouter over that transport.
    pub fn leaf(&self) -> OpenRouter<Upstream> {
        OpenRouter::new(self.upstream())
    }

    /// How long requests may wait and last, so that all stacks have the same patience.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// The seed of the run, for stacks that draw lots.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The other side, for who knows more than a stack can.
    pub(super) fn simulator(&self) -> &Simulator {
        &self.simulator
    }
}
