//! The balancer behind the API: which upstream, and the stack in front of it.

use std::{
    convert::Infallible,
    error::Error,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxCloneSyncService};
use tower_openrouter::{
    ApiKey, Endpoint, KeySelectLayer, OpenRouter, Rejected, endpoint_fn,
    openrouter::{AuthorizeLayer, BASE_URL, HyperTransport},
    select::Pool,
    simulator::{Scenario, Simulator, utc_date},
};

use super::{config::Settings, refusal::Dialect};

/// Who answers in the end.
#[derive(Debug)]
pub(super) enum Upstream {
    /// OpenRouter, or something like it, at this base URL.
    Real(String),
    /// The simulator in this process, and a model it has.
    Simulated(Simulator, String),
}

impl Upstream {
    /// Without any key it is the simulator, whose keys are then used.
    pub(super) fn choose(settings: &Settings, keys: Vec<ApiKey>) -> Result<(Self, Vec<ApiKey>), Box<dyn Error>> {
        match (&settings.upstream, keys.is_empty()) {
            (upstream, false) => Ok((Self::Real(upstream.as_deref().unwrap_or(BASE_URL).to_owned()), keys)),
            (Some(_), true) => {
                Err("an upstream is set (--upstream) but there is no key for it: set OPENROUTER_API_KEY or \
                                    [[keys]] in --config, or leave --upstream out to try the simulator"
                    .into())
            }
            (None, true) => {
                let today = SystemTime::now().duration_since(UNIX_EPOCH)?;
                let mut scenario = Scenario::default();
                scenario.start = Some(utc_date(i64::try_from(today.as_millis())?));
                let model = scenario.models.first().map_or_else(String::new, |model| model.id.clone());
                let simulator = Simulator::new(scenario)?;
                let key = |key: tower_openrouter::simulator::SimulatedKey| {
                    Ok(ApiKey::new(key.secret)?.label(key.label).account(key.account))
                };
                let keys = simulator.keys().into_iter().map(key).collect::<Result<_, tower_openrouter::KeyError>>()?;
                Ok((Self::Simulated(simulator, model), keys))
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Real(url) => url,
            Self::Simulated(..) => "simulator",
        }
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.simulated_model().is_some()
    }

    pub(super) fn simulated_model(&self) -> Option<&str> {
        match self {
            Self::Real(_) => None,
            Self::Simulated(_, model) => Some(model),
        }
    }
}

/// The stack, and what the admin side shows of it.
pub(super) struct Balancer {
    pub(super) service: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>,
    pub(super) pool: Pool,
    pub(super) stats: Arc<dyn Fn() -> Value + Send + Sync>,
}

impl Balancer {
    pub(super) fn new(settings: &Settings, upstream: &Upstream, keys: Vec<ApiKey>) -> Result<Self, Box<dyn Error>> {
        let pool = Pool::new(keys)?;
        let service = match upstream {
            Upstream::Real(url) => {
                let leaf = OpenRouter::builder().base_url(url.as_str()).build(HyperTransport::<Body>::new());
                stack(settings, &pool, leaf.map_err(|error| format!("--upstream {url}: {error}"))?)
            }
            Upstream::Simulated(simulator, _) => stack(settings, &pool, OpenRouter::new(simulator.service())),
        };
        let stats = {
            let pool = pool.clone();
            Arc::new(move || {
                let keys: Vec<_> = pool.endpoints().iter().map(|key| json!({"label": key.key().name()})).collect();
                json!({"keys": keys})
            })
        };
        Ok(Self { service, pool, stats })
    }
}

fn stack<L, B>(
    settings: &Settings,
    pool: &Pool,
    leaf: L,
) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>
where
    L: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Clone + Send + Sync + 'static,
    L::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let per_key = endpoint_fn(|endpoint: &Endpoint| AuthorizeLayer::new(endpoint.key()));
    let select = KeySelectLayer::new(pool.clone(), per_key).max_wait(settings.max_wait).layer(leaf);
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let answer = select.clone().oneshot(request);
        async {
            Ok(match answer.await {
                Ok(response) => response.map(Body::new),
                Err(error) if Rejected::find(&*error).is_some() => {
                    Dialect::OpenRouter.refuse(StatusCode::TOO_MANY_REQUESTS, &error.to_string())
                }
                Err(error) => Dialect::OpenRouter.refuse(StatusCode::BAD_GATEWAY, &error.to_string()),
            })
        }
    }))
}
