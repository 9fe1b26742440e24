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
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tower::{
    BoxError, Layer, Service, ServiceBuilder,
    util::{BoxCloneSyncService, MapResponseLayer, option_layer},
};

use crate::{
    Endpoint, LoadMonitorLayer, OpenRouter, RespondLayer,
    buffer::{BufferLayer, ReplayBody},
    openrouter::AuthorizeLayer,
    respond::RespondBody,
    route::Routes,
    select::{Pick, Pool, endpoint_fn},
};

mod builder;
mod handle;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "settings")]
pub mod settings;

pub use builder::BalancerBuilder;
pub use handle::BalancerHandle;
pub(crate) use handle::PerKey;

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
    ResB: Body + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    ServiceBuilder::new().layer(RespondLayer::new()).layer(BufferLayer::new()).service(routes)
}

impl<P: Pick> BalancerBuilder<P> {
    /// The stack around `leaf`, its type unnamed but known to the compiler: nothing but the body of an answer is boxed. Take the
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
        let stages = self.stages.clone();
        let per_key = endpoint_fn(move |endpoint: &Endpoint| {
            let PerKey { breaker, limit, .. } = stages.per_key(endpoint);
            ServiceBuilder::new()
                .layer(LoadMonitorLayer::endpoint(endpoint))
                .layer(breaker)
                .layer(limit)
                .layer(AuthorizeLayer::new(endpoint.key()))
                .into_inner()
        });
        ServiceBuilder::new()
            .layer(RespondLayer::new())
            .layer(self.stages.deadline.clone())
            .layer(self.stages.buffer.clone())
            .layer(self.stages.retry.clone())
            .layer(self.stages.provider.clone())
            .layer(option_layer(self.hedging()))
            .layer(self.stages.gate.clone())
            // on its way up an answer is moved by each stage, which would move all that watches its body
            .layer(MapResponseLayer::new(|response: Response<_>| response.map(Box::pin)))
            .layer(self.select.clone().per_key(per_key))
            .layer(self.stages.timeouts.clone())
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
        let erased = MapResponseLayer::new(|response: Response<_>| {
            response.map(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
        });
        let service = BoxCloneSyncService::new(erased.layer(self.service(leaf)));
        Balancer { service, handle: self.handle() }
    }
}
