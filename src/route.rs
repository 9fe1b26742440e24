//! Model routing: a stack of its own for each family of models.
//!
//! One pool for everything is simple until the models differ: keys of one account for one vendor, another upstream for
//! embeddings, a shorter queue for what must be quick. [`ModelRouter`] sends each request to the stack whose pattern fits
//! its model, as axum's `Router` does by path. A pattern is a [`ModelPattern`](crate::key::ModelPattern); of several that
//! fit the most specific wins, in whatever order they were given. Patterns see the name as it was sent, a variant such as
//! `:free` included.
//!
//! The model is read from the body once, through [`RequestContext::asks`](crate::RequestContext::asks), so a
//! [`BufferLayer`](crate::BufferLayer) goes above. A request without a model, such as a look-up, or one too large to be kept,
//! goes to the [`fallback`](ModelRouter::fallback); what has no route is refused with
//! [`Why::NoRoute`](crate::error::Why::NoRoute), which [`RespondLayer`](crate::RespondLayer) answers as a 404. Put the router
//! above whole stacks, each with its own retry; [`stack::front`](crate::stack::front) is what goes above the router.
//!
//! # When a model cannot serve
//!
//! OpenRouter itself tries the models of a request's `models` list (`fallbacks` of `/messages`) in order, but only with the
//! key that it was sent with. So a list that belongs to one route is left to it, byte for byte. A list whose models belong to
//! several routes is cut where the route changes: each part goes to its own route, as `model` and the `models` left to
//! upstream, and the next part is tried when the one before it provably was not served:
//!
//! | goes on to the next model | ends here |
//! | --- | --- |
//! | no key of the route can serve: resting, spent, refused, busy, breaker open | what a key can or cannot do about the request: refused, malformed, too large |
//! | the provider pool is full (429), or no provider is there (404, 502, 503, 529) | 500, timeouts, a connection that broke: it may have run, and be billed |
//! | no connection could be made | a deadline that passed; anything after the head of a 200 |
//!
//! The last answer is the one given. Models that no route serves are left out. Where the caller names no other models, those
//! of [`fallback_models`](ModelRouter::fallback_models) are tried, one after the other. Of a body only these members change.
//!
//! A route that waits for its keys delays the next model by as much: with fallback give its stack a short
//! [`max_wait`](crate::stack::BalancerBuilder::max_wait).
//!
//! # Examples
//!
//! Two vendors, each with keys of its own, in an axum app:
//!
//! ```
//! use tower_openrouter::{ApiKey, Balancer, ModelRouter, OpenRouter, select::Pool, stack};
//! # use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! # fn main() -> Result<(), tower::BoxError> {
//! # let transport = Simulator::new(Scenario::default())?.service();
//! let leaf = OpenRouter::new(transport);
//! let anthropic = Balancer::builder(Pool::new([ApiKey::new("sk-or-v1-a")?])?).build(leaf.clone());
//! let others = Balancer::builder(Pool::new([ApiKey::new("sk-or-v1-b")?])?).build(leaf);
//!
//! let router = ModelRouter::new().route("anthropic/*", anthropic).fallback(others).build()?;
//! let app: axum::Router = axum::Router::new().fallback_service(stack::front(router));
//! # let _ = app;
//! # Ok(())
//! # }
//! ```
//!
//! Any service of buffered requests can be a route; here the second serves when the first cannot:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
//! use tower_openrouter::{BufferLayer, ModelRouter, RequestContext, buffer::ReplayBody, error::{Rejected, Why}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let spent = service_fn(async |_: Request<ReplayBody>| Err(Rejected::new(Why::NoKey, "all keys are spent").into()));
//! let spare = service_fn(async |request: Request<ReplayBody>| {
//!     let context = RequestContext::get(request.extensions()).unwrap();
//!     Ok::<_, BoxError>(Response::new(String::from_utf8_lossy(context.body().unwrap()).into_owned()))
//! });
//! let router = ModelRouter::new()
//!     .route("acme/*", BoxCloneSyncService::new(spent))
//!     .route("spare/*", BoxCloneSyncService::new(spare))
//!     .fallback_models(["spare/small"])
//!     .build()?;
//! let service = ServiceBuilder::new().layer(BufferLayer::new()).service(router);
//!
//! let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from(r#"{"model":"acme/swift", "n":1.0}"#))?;
//! assert_eq!(service.oneshot(request).await?.into_body(), r#"{"model":"spare/small", "n":1.0}"#);
//! # Ok(())
//! # }
//! ```

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower::BoxError;
use tower_service::Service;

mod future;
mod policy;
mod table;

pub use future::RoutesFuture;
use table::Table;

use crate::{buffer::ReplayBody, key::KeyError};

/// Sends each request to the stack of its model. See the [module](self).
#[derive(Clone)]
#[must_use]
pub struct ModelRouter<S> {
    routes: Vec<(Vec<Box<str>>, S)>,
    fallback: Option<S>,
    fallback_models: Vec<Box<str>>,
}

impl<S> ModelRouter<S> {
    /// A router without routes.
    pub fn new() -> Self {
        Self { routes: Vec::new(), fallback: None, fallback_models: Vec::new() }
    }

    /// Sends models that match `pattern`, such as `anthropic/*`, to `service`. Box services of different types
    /// (`tower::util::BoxCloneSyncService`); [`Balancer`](crate::Balancer)s are of one type already.
    pub fn route(self, pattern: impl Into<Box<str>>, service: S) -> Self {
        self.routes([pattern], service)
    }

    /// Sends models that match any of `patterns` to `service`: one route, so that a list of models within it is left to
    /// upstream.
    pub fn routes<P: Into<Box<str>>>(mut self, patterns: impl IntoIterator<Item = P>, service: S) -> Self {
        self.routes.push((patterns.into_iter().map(Into::into).collect(), service));
        self
    }

    /// Sends what no route matches, and requests without a model, to `service`; default: they are refused. The last one
    /// given stands.
    pub fn fallback(mut self, service: S) -> Self {
        self.fallback = Some(service);
        self
    }

    /// Sets which models to try, in order, when a request's own cannot serve and the request names no others; default none.
    pub fn fallback_models<M: Into<Box<str>>>(mut self, models: impl IntoIterator<Item = M>) -> Self {
        self.fallback_models = models.into_iter().map(Into::into).collect();
        self
    }

    /// Ends the settings.
    ///
    /// # Errors
    /// When there is nothing to send to, a route has no pattern, a pattern is malformed or given twice, or a fallback model is given twice or has
    /// no route.
    pub fn build(self) -> Result<Routes<S>, RouteError> {
        let Self { routes, fallback, fallback_models } = self;
        let mut table = Table::new(fallback);
        for (patterns, service) in routes {
            table.add(&patterns, service)?;
        }
        table.set_models(fallback_models)?;
        Ok(Routes { table: Arc::new(table) })
    }
}

impl<S> Default for ModelRouter<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for ModelRouter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<_> = self.routes.iter().map(|(patterns, _)| patterns).collect();
        f.debug_struct("ModelRouter")
            .field("routes", &routes)
            .field("fallback", &self.fallback.is_some())
            .field("fallback_models", &self.fallback_models)
            .finish()
    }
}

/// Routes that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// A pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] KeyError),
    /// Two routes have one pattern.
    #[error("the route {0:?} is given twice: a model can go to one of them only")]
    Duplicate(Box<str>),
    /// A route has no pattern.
    #[error("a route has no pattern: name its models, or give its service as the fallback")]
    NoPattern,
    /// There is nowhere to send anything.
    #[error("the router has neither a route nor a fallback: give it at least one")]
    Empty,
    /// A fallback model is given twice.
    #[error("the fallback model {0:?} is given twice: it would fail the same way again")]
    DuplicateModel(Box<str>),
    /// No route serves a fallback model.
    #[error("no route serves the fallback model {0:?}: add one, or a fallback")]
    UnservedModel(Box<str>),
}

/// The service of a [`ModelRouter`]. Always ready: the stack of a request is asked once the request is known. A clone is one
/// `Arc`, and all clones send through clones of the same stacks.
pub struct Routes<S> {
    table: Arc<Table<S>>,
}

impl<S> Routes<S> {
    /// The stack that serves `model`, if any does.
    pub fn stack_of(&self, model: &str) -> Option<&S> {
        self.table.find(Some(model)).map(|at| self.table.stack(at))
    }
}

impl<S> Clone for Routes<S> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone() }
    }
}

impl<S> fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Routes").field(&self.table).finish()
    }
}

impl<S, ResB> Service<Request<ReplayBody>> for Routes<S>
where
    S: Service<Request<ReplayBody>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<ResB>;
    type Error = BoxError;
    type Future = RoutesFuture<S>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody>) -> Self::Future {
        RoutesFuture::new(self.table.clone(), request)
    }
}
