//! What stands behind the API in the end: the upstream, or the simulator in its place.

use std::{
    error::Error,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};
use tower_openrouter::{
    ApiKey, KeyError, OpenRouter,
    buffer::ReplayBody,
    openrouter::BASE_URL,
    simulator::{Scenario, SimulatedKey, Simulator, utc_date},
};

use super::config::{Configuration, Settings, Trouble};

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

/// What carries requests there: connections, or the simulator itself.
pub(crate) trait Transport:
    Service<Request<ReplayBody>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static;
}

impl<T, B> Transport for T
where
    T: Service<Request<ReplayBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    type Body = B;
}

/// The leaf that sends to the configured base URL through `transport`.
pub(crate) fn leaf<T>(settings: &Settings, transport: T) -> Result<OpenRouter<T>, Trouble> {
    let what = |error| format!("{error}; --upstream takes a URL such as {BASE_URL}");
    OpenRouter::builder()
        .base_url(settings.upstream())
        .build(transport)
        .map_err(|error| Trouble::with("upstream", what(error)))
}
