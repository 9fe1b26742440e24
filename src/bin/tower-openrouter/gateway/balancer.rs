//! What stands behind the API: the upstream, and the library's default stack in front of it.

use std::{
    error::Error,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tower_openrouter::{
    ApiKey, Balancer, DeadlineLayer, KeyError, OpenRouter, RetryLayer,
    breaker::{BreakerPolicy, TripPolicy},
    openrouter::{BASE_URL, HyperTransport},
    select::Pool,
    simulator::{Scenario, SimulatedKey, Simulator, utc_date},
    stack::BalancerBuilder,
};

use super::config::Settings;

/// The longest a breaker stays open, unless its first time is longer.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

/// Who answers in the end.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// OpenRouter, or something like it, at this base URL.
    Real(String),
    /// The simulator in this process, and a model it has.
    Simulated(Simulator, String),
}

impl Upstream {
    /// Without any key it is the simulator, whose keys are then used.
    pub(crate) fn choose(settings: &Settings, keys: Vec<ApiKey>) -> Result<(Self, Vec<ApiKey>), Box<dyn Error>> {
        match (&settings.upstream, keys.is_empty()) {
            (upstream, false) => Ok((Self::Real(upstream.as_deref().unwrap_or(BASE_URL).to_owned()), keys)),
            (Some(_), true) => {
                Err("an upstream is set (--upstream) but there is no key for it: set OPENROUTER_API_KEY or \
                                    [[keys]] in --config, or leave --upstream out to try the simulator"
                    .into())
            }
            (None, true) => Self::simulated(),
        }
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

    /// The leaf that sends to a real one.
    pub(crate) fn leaf<B>(url: &str) -> Result<OpenRouter<HyperTransport<B>>, String>
    where
        B: http_body::Body + Send,
        B::Data: Send,
    {
        OpenRouter::builder()
            .base_url(url)
            .build(HyperTransport::new())
            .map_err(|error| format!("--upstream {url}: {error}"))
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Real(url) => url,
            Self::Simulated(..) => "simulator",
        }
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.simulated_model().is_some()
    }

    pub(crate) fn simulated_model(&self) -> Option<&str> {
        match self {
            Self::Real(_) => None,
            Self::Simulated(_, model) => Some(model),
        }
    }
}

/// The stack over `keys`, to be put before the upstream.
pub(crate) fn builder(settings: &Settings, keys: Vec<ApiKey>) -> Result<BalancerBuilder, Box<dyn Error>> {
    let pool = Pool::new(keys)?;
    let trip = TripPolicy::failures(settings.breaker_failures, settings.breaker_window)?;
    let cooldown = settings.breaker_cooldown;
    let mut builder = Balancer::builder(pool)
        .deadline(DeadlineLayer::new(settings.deadline)?)
        .retry(RetryLayer::new().attempts(settings.attempts).map_err(|error| format!("attempts: {error}"))?)
        .max_wait(settings.max_wait)
        .breaker(BreakerPolicy::new(trip).cooldown(cooldown, cooldown.max(LONGEST_COOLDOWN))?);
    if let Some(cap) = settings.max_in_flight {
        builder = builder.max_in_flight(cap)?;
    }
    Ok(builder)
}
