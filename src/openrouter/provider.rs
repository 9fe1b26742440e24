//! Provider routing: which providers may serve, put into requests that do not say.
//!
//! OpenRouter chooses among the providers of a model by preferences that each request carries. An operator has such wishes
//! for all requests, such as "no provider that trains on prompts", and clients in a dozen languages should not have to repeat
//! them. [`ProviderLayer`] merges typed [`ProviderPreferences`], a list of fallback `models` and a [`Variant`] into the body.
//! It goes below the [`BufferLayer`](crate::BufferLayer) and inside the retry, above selection; everywhere else, where the
//! body is not in memory, and for endpoints that take no such preferences, requests pass unchanged.
//!
//! **The caller's own settings win, member by member.** What a request sets stays as it came, byte for byte; a null counts
//! as not set. Where one of ours would contradict it, ours gives way: no `sort`, `order` or sorting variant where the caller
//! says in which order to ask, no provider ignored that the caller asks for, none asked for that the caller ignores. `models`
//! are for who names no others, a variant for a model without one that is no `openrouter/` router.
//!
//! # After a full provider
//!
//! A provider's 429 holds for every key, so by default the [retry](crate::retry) waits for it. [`on_full_pool`] allows what
//! else helps, and the next attempt then starts at once, within the retry's attempts and budget:
//!
//! | [`OnFullPool`] | the next attempt |
//! | --- | --- |
//! | [`Wait`](OnFullPool::Wait) (default) | asks the same, after a wait |
//! | [`IgnoreFailed`](OnFullPool::IgnoreFailed) | ignores the providers that failed, where `order` or `only` names another and `allow_fallbacks` is not false: a model may have no other provider |
//! | [`NextModel`](OnFullPool::NextModel) | asks for the next of these models, without the request's own list, which has failed by then |
//!
//! It reads the request's ledger, which selection writes, and knows nothing else of either.
//!
//! [`on_full_pool`]: ProviderLayer::on_full_pool
//!
//! # Examples
//!
//! Nobody who trains on prompts, for requests that do not allow it themselves:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//! use tower_openrouter::{
//!     BufferLayer, buffer::ReplayBody,
//!     openrouter::{DataCollection, ProviderLayer, ProviderPreferences},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let echo = service_fn(async |request: Request<ReplayBody>| {
//!     Ok::<_, BoxError>(Response::new(request.into_body().collect().await?.to_bytes()))
//! });
//! let private = ProviderPreferences::new().data_collection(DataCollection::Deny).zdr(true);
//! let service = ServiceBuilder::new().layer(BufferLayer::new()).layer(ProviderLayer::new(private)?).service(echo);
//!
//! let body = r#"{"model":"acme/swift", "provider": {"zdr":false}}"#;
//! let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from(body))?;
//! let sent = service.oneshot(request).await?.into_body();
//! assert_eq!(sent, r#"{"model":"acme/swift", "provider": {"zdr":false,"data_collection":"deny"}}"#);
//! # Ok(())
//! # }
//! ```
//!
//! In the default stack: the fastest providers, other models behind, and when their providers are full, a small one:
//!
//! ```
//! use tower_openrouter::{
//!     ApiKey, Balancer, OpenRouter,
//!     openrouter::{OnFullPool, PreferenceError, ProviderLayer, ProviderPreferences, SortBy, Variant},
//!     select::Pool,
//! };
//! # use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! # fn main() -> Result<(), tower::BoxError> {
//! # let transport = Simulator::new(Scenario::default())?.service();
//! let routing = ProviderLayer::new(ProviderPreferences::new().ignore(["azure"]).preferred_max_latency(2.0))?
//!     .variant(Variant::Nitro)?
//!     .models(["acme/deep-2"])?
//!     .on_full_pool(OnFullPool::NextModel(vec!["acme/tiny".into()]))?;
//! let balancer = Balancer::builder(Pool::new([ApiKey::new("sk-or-v1-a")?])?)
//!     .provider(routing.clone())
//!     .build(OpenRouter::new(transport));
//! # let _: Balancer<String> = balancer;
//!
//! // what contradicts itself is refused here, not by upstream
//! let both = ProviderPreferences::new().order(["together"]).sort(SortBy::Price);
//! assert_eq!(ProviderLayer::new(both).unwrap_err(), PreferenceError::TwoOrders("sort", "order"));
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use tower_layer::Layer;

mod check;
mod merge;
mod preferences;
mod service;

pub use check::PreferenceError;
pub use preferences::{
    DataCollection, MaxPrice, Partition, Percentiles, ProviderPreferences, Quantization, Sort, SortBy, Threshold,
    Variant,
};
pub use service::{ProviderFuture, ProviderService};

/// Puts provider preferences into requests that do not set them. See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct ProviderLayer {
    config: Arc<Config>,
}

#[derive(Debug, Clone, Default)]
struct Config {
    preferences: ProviderPreferences,
    /// As they are sent, but for the lists of providers.
    members: Vec<(String, String)>,
    models: Vec<Box<str>>,
    variant: Option<Variant>,
    on_full_pool: OnFullPool,
}

/// What to change when a provider's pool is full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnFullPool {
    /// Nothing: the same is asked again, after a wait.
    #[default]
    Wait,
    /// The provider that failed is ignored.
    IgnoreFailed,
    /// These models are asked for, one after the other.
    NextModel(Vec<Box<str>>),
}

impl ProviderLayer {
    /// Merges `preferences`.
    ///
    /// # Errors
    /// When they contradict each other, or a list or number in them makes no sense.
    pub fn new(preferences: ProviderPreferences) -> Result<Self, PreferenceError> {
        preferences.check()?;
        let members = match serde_json::to_value(&preferences) {
            Ok(serde_json::Value::Object(members)) => members,
            _ => serde_json::Map::new(),
        };
        let lists = ["order", "only", "ignore"];
        let members = members.into_iter().filter(|(name, _)| !lists.contains(&name.as_str()));
        let members = members.map(|(name, value)| (name, value.to_string())).collect();
        Ok(Self { config: Arc::new(Config { preferences, members, ..Config::default() }) })
    }

    /// Sets the models that upstream falls back on, where a request names none itself; default none.
    ///
    /// # Errors
    /// When there is none, one is no name, or one is there twice.
    pub fn models<M: Into<Box<str>>>(mut self, models: impl IntoIterator<Item = M>) -> Result<Self, PreferenceError> {
        let models: Vec<_> = models.into_iter().map(Into::into).collect();
        check::names("models", &models)?;
        self.config_mut().models = models;
        Ok(self)
    }

    /// Sets the variant of models that are asked for without one; default none.
    ///
    /// # Errors
    /// When there is one already, or it sorts providers and the preferences say in which order to ask.
    pub fn variant(mut self, variant: Variant) -> Result<Self, PreferenceError> {
        if let Some(other) = self.config.variant {
            return Err(PreferenceError::TwoVariants(other.as_str(), variant.as_str()));
        }
        self.config.preferences.check_variant(variant)?;
        self.config_mut().variant = Some(variant);
        Ok(self)
    }

    /// Sets what to change after a provider's 429; default [`OnFullPool::Wait`].
    ///
    /// # Errors
    /// When the next models are none, one is no name, or one is there twice.
    pub fn on_full_pool(mut self, change: OnFullPool) -> Result<Self, PreferenceError> {
        if let OnFullPool::NextModel(models) = &change {
            check::names("on_full_pool", models)?;
        }
        self.config_mut().on_full_pool = change;
        Ok(self)
    }

    fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.config)
    }
}

impl Config {
    /// Whether every request passes as it came.
    fn is_idle(&self) -> bool {
        self.preferences == ProviderPreferences::default()
            && self.models.is_empty()
            && self.variant.is_none()
            && self.on_full_pool == OnFullPool::Wait
    }
}

impl<S> Layer<S> for ProviderLayer {
    type Service = ProviderService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ProviderService::new(inner, (!self.config.is_idle()).then(|| self.config.clone()))
    }
}
