//! What stands behind the API: the upstream, and the library's default stack in front of it.

use std::{
    error::Error,
    time::{SystemTime, UNIX_EPOCH},
};

use tower_openrouter::{
    ApiKey, Balancer, BufferLayer, DeadlineLayer, KeyError, OpenRouter, RetryLayer,
    breaker::{BreakerPolicy, TripPolicy},
    openrouter::BASE_URL,
    retry::{Backoff, RetryBudget},
    select::{LeastInFlight, Pick, Pool, RoundRobin},
    simulator::{Scenario, SimulatedKey, Simulator, utc_date},
    stack::{BalancerBuilder, BalancerHandle},
};

use super::config::{Breaker, Configuration, PickName, Retry, Settings, Trouble};

/// Who answers in the end.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// OpenRouter, or something like it, at the base URL that is configured.
    Real,
    /// The simulator in this process, and a model it has.
    Simulated(Simulator, String),
}

impl Upstream {
    /// Without any key it is the simulator, whose keys are then used.
    pub(crate) fn choose(configuration: &mut Configuration) -> Result<Self, Box<dyn Error>> {
        if !configuration.keys.is_empty() {
            return Ok(Self::Real);
        }
        if configuration.settings.upstream.is_some() {
            let what = "there is no key for it (--upstream): set OPENROUTER_API_KEY or [[keys]] in --config, or leave it out \
                        to try the simulator";
            return Err(configuration.tell(&Trouble::with("upstream", what)).into());
        }
        let (upstream, keys) = Self::simulated()?;
        configuration.keys = keys;
        Ok(upstream)
    }

    fn simulated() -> Result<(Self, Vec<ApiKey>), Box<dyn Error>> {
        let today = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let start = Some(utc_date(i64::try_from(today.as_millis())?));
        let scenario = Scenario { start, ..Scenario::default() };
        let model = scenario.models.first().ok_or("the simulator has no model")?.id.clone();
        let simulator = Simulator::new(scenario)?;
        let key = |key: SimulatedKey| Ok(ApiKey::new(key.secret)?.label(key.label).account(key.account));
        let keys = simulator.keys().into_iter().map(key).collect::<Result<_, KeyError>>()?;
        Ok((Self::Simulated(simulator, model), keys))
    }
}

/// The leaf that sends to the configured base URL through `transport`.
pub(crate) fn leaf<T>(settings: &Settings, transport: T) -> Result<OpenRouter<T>, Trouble> {
    let what = |error| format!("{error}; --upstream takes a URL such as {BASE_URL}");
    OpenRouter::builder()
        .base_url(settings.upstream())
        .build(transport)
        .map_err(|error| Trouble::with("upstream", what(error)))
}

/// The stack of one configuration, to be put before the upstream, and what the next configuration may take over from it.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) builder: BalancerBuilder<Box<dyn Pick>>,
    pool: Pool,
    retry: RetryLayer,
    buffer: BufferLayer,
}

impl Stack {
    /// Over `keys`. What has not changed since `before` is taken over with all it knows: keys with their figures, rests and
    /// breakers, the budget of retries, the memory of bodies.
    pub(crate) fn build(
        configuration: &Configuration,
        before: Option<(&Self, &Configuration)>,
    ) -> Result<Self, Trouble> {
        let Configuration { settings, keys, .. } = configuration;
        // at another upstream they are not the same keys
        let before = before.map(|(before, old)| (before, &old.settings));
        let before = before.filter(|(_, old)| old.upstream() == settings.upstream());
        let pool = match before {
            None => Pool::new(keys.iter().cloned()),
            Some((before, _)) => before.pool.share(keys.iter().cloned()),
        };
        let pool = pool.map_err(|error| Trouble::from(error.to_string()))?;
        let retry = match before {
            Some((before, old)) if old.retry == settings.retry => before.retry.clone(),
            _ => retry(&settings.retry)?,
        };
        let limits = &settings.limits;
        let buffer = match before {
            Some((before, old)) if old.limits == *limits => before.buffer.clone(),
            _ => BufferLayer::new()
                .body_limit(limits.body_limit.0)
                .replay_cap(limits.replay_cap.0)
                .budget(limits.memory.0),
        };
        let deadline = DeadlineLayer::new(settings.deadline.get()).map_err(|error| Trouble::with("deadline", error))?;
        let mut builder = Balancer::builder(pool.clone())
            .pick(pick(settings.select.pick))
            .max_wait(settings.select.max_wait.0)
            .max_waiters(settings.select.max_waiters)
            .breaker(breaker(&settings.breaker)?)
            .retry(retry.clone())
            .buffer(buffer.clone())
            .deadline(deadline);
        if let Some(cap) = limits.max_in_flight {
            builder = builder.max_in_flight(cap.get()).map_err(|error| Trouble::with("limits.max_in_flight", error))?;
        }
        if let Some((before, old)) = before
            && old.breaker == settings.breaker
        {
            builder = builder.keep(&before.handle());
        }
        Ok(Self { builder, pool, retry, buffer })
    }

    /// What its stages can be asked and told.
    pub(crate) fn handle(&self) -> BalancerHandle {
        self.builder.handle()
    }
}

fn breaker(settings: &Breaker) -> Result<BreakerPolicy, Trouble> {
    let trouble = |error| Trouble::with("breaker", error);
    let trip = TripPolicy::failures(settings.failures.get(), settings.window.get()).map_err(trouble)?;
    BreakerPolicy::new(trip).cooldown(settings.cooldown.get(), settings.longest().get()).map_err(trouble)
}

fn retry(settings: &Retry) -> Result<RetryLayer, Trouble> {
    let trouble = |error| Trouble::with("retry", error);
    let backoff = Backoff::new(settings.min_backoff.get(), settings.max_backoff.get()).map_err(trouble)?;
    let budget = RetryBudget::new(settings.budget_ratio, settings.budget_per_second).map_err(trouble)?;
    let layer = RetryLayer::new().attempts(settings.attempts).map_err(trouble)?;
    Ok(layer.backoff(backoff).budget(budget).wait_cap(settings.longest_hint.0).retry_unclear(settings.unclear))
}

fn pick(name: PickName) -> Box<dyn Pick> {
    match name {
        PickName::LeastInFlight => Box::new(LeastInFlight::default()),
        PickName::RoundRobin => Box::new(RoundRobin::default()),
    }
}
