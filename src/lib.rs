//! Composable [`tower`](https://docs.rs/tower) layers that balance LLM requests over many OpenRouter API keys: key
//! selection, circuit breaking, concurrency limiting, retries and load monitoring around an [`OpenRouter`] service.
//!
//! A key can be revoked, spent, limited by its account, or blamed for a provider's failure, and each of these looks like any
//! other until its answer is read with care. Here the service at the bottom reads it once, and says whom it speaks about; the
//! layers above act on that. Each layer is useful alone. More keys do not add capacity upstream, which OpenRouter governs for
//! all together: this crate spends what each key may spend, and keeps one key's trouble from the rest.
//!
//! ```text
//! caller
//!   │  http::Request
//!   ▼
//! respond       refusals and errors become answers; nothing fails from here out
//! deadline      one instant over waits, attempts and body
//! buffer        the body in memory, so that it can be sent again
//! retry         on another key at once, or after a wait, or not at all
//! provider      which providers may serve, for requests that do not say
//! hedge         where it is asked for: a second attempt beside one that is late
//! commit gate   the head of a 200, held until there is output behind it
//! select        filter the keys, pick one, wait when none can serve
//!   ╎ for each key:
//!   ╎ monitor     in flight, times, tokens, cost, outcomes
//!   ╎ breaker     open is "not ready"
//!   ╎ limit       permits, until the body ends
//!   ╎ authorize   this key, and no other credential
//! timeouts      how long the upstream may be silent, in each attempt
//! openrouter    base URL and headers; says once what each answer means
//! transport     hyper-util, reqwest, the simulator, or any service of http requests
//! ```
//!
//! # Layout
//!
//! The stages, in the order in which a request meets them:
//!
//! - [`respond`]: ends a stack for axum and tonic, whose services cannot fail, and tells readers of a stream that it broke.
//! - [`deadline`]: one instant by which a request must be over, whatever it waits for.
//! - [`stream`]: answers that are streams: when they count as begun, and what is said while they have not.
//! - [`buffer`]: request bodies that can be sent more than once, and read for what they ask.
//! - [`retry`]: which failures to repeat, where, when, and within which budget.
//! - [`hedge`]: a second attempt beside one that is late, where that is worth its price.
//! - [`route`]: a stack of its own for each family of models.
//! - [`openrouter::provider`]: which providers may serve, put into requests that do not say.
//! - [`select`]: the pool of keys, the rests of those that are out, filters, picks, and the line of those who wait.
//! - [`monitor`]: what becomes of every attempt on a key, measured to the end of its body.
//! - [`breaker`]: a circuit breaker whose open state is *not ready*.
//! - [`limit`]: how many requests may run at once.
//! - [`openrouter`]: the key put on ([`AuthorizeLayer`]), the service itself, its table of answers,
//!   and the transports.
//!
//! All together, and in place of the upstream:
//!
//! - [`stack`]: the default [`Balancer`], where the order above is code.
//! - [`poller`]: asks what keys and accounts may still spend, beside the traffic.
//! - [`batch`]: many requests through it, or through any other service, so many at once.
//! - [`simulator`] (feature `simulator`): an upstream that behaves like OpenRouter.
//! - [`lab`] (feature `lab`): whole stacks compared on it, in virtual time.
//!
//! What they share:
//!
//! - [`outcome`]: what became of an attempt, and whom that speaks about.
//! - [`request`]: what belongs to a request rather than to one attempt.
//! - [`endpoint`]: one key of a pool, and what its layers and the pool know of each other.
//! - [`key`]: the credential, never shown.
//! - [`error`]: refusals of our own, and failures on the way up.
//! - [`answer`]: an error as the caller is told it, as a body or as one event of a stream, in the shape of the path.
//! - [`explain`]: why a request went where it did, told to who asks; its layer goes outermost.
//! - [`observe`]: spans and metrics of requests and attempts, with the table of all names; its layer goes above the retries.
//! - [`body`]: guards that are given back when a body is over.
//!
//! # Quick start
//!
//! On the simulator, so that it runs as it stands and costs nothing:
//!
//! ```toml
//! [dependencies]
//! tower-openrouter = { version = "0.1", features = ["simulator"] }
//! bytes = "1"
//! http = "1"
//! http-body-util = "0.1"
//! tokio = { version = "1", features = ["macros", "rt"] }
//! tower = { version = "0.5", features = ["util"] }
//! ```
//!
//! ```
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::{BodyExt, Full};
//! use tower::{BoxError, ServiceExt};
//! use tower_openrouter::{
//!     ApiKey, Balancer, OpenRouter,
//!     select::Pool,
//!     simulator::{Scenario, Simulator},
//! };
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), BoxError> {
//!     let simulator = Simulator::new(Scenario::default())?;
//!     let mut keys = Vec::new();
//!     for key in simulator.keys() {
//!         keys.push(ApiKey::new(key.secret)?.label(key.label));
//!     }
//!     let leaf = OpenRouter::new(simulator.service());
//!     let balancer = Balancer::builder(Pool::new(keys)?).build(leaf);
//!
//!     let body = r#"{"model":"acme/swift-1","messages":[{"role":"user","content":"Hello"}]}"#;
//!     let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from(body))?;
//!     let response = balancer.clone().oneshot(request).await?;
//!     assert_eq!(response.status(), 200);
//!     let answer = response.into_body().collect().await?.to_bytes();
//!     println!("{}", String::from_utf8_lossy(&answer));
//!
//!     // if it met gamma-1 first, whose account has no credit, there were two attempts:
//!     // that shows here, and not in the answer
//!     let total = balancer.handle().snapshot().total;
//!     assert_eq!(total.outcomes["complete"], 1);
//!     println!("{} attempts: {:?}", total.attempts, total.outcomes);
//!     Ok(())
//! }
//! ```
//!
//! For OpenRouter itself, give the pool your own keys, and the service [`HyperTransport::new()`](openrouter::HyperTransport)
//! in place of the simulator's. Any path below `/v1` goes to the same path below OpenRouter's `/api/v1`.
//!
//! # Three ways to use it
//!
//! **A layer in an application one has.** Refusals are errors inside a stack, so [`RespondLayer`] goes above what may refuse:
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, routing::post};
//! use tower::ServiceBuilder;
//! use tower_openrouter::{ConcurrencyLimitLayer, RespondLayer};
//!
//! // at most 64 answers at once, streams to their end; 200 more wait, each for ten seconds
//! let limit = ConcurrencyLimitLayer::new(64)?.wait(200, Duration::from_secs(10));
//! let app: Router = Router::new()
//!     .route("/chat", post(async || "hello"))
//!     .layer(ServiceBuilder::new().layer(RespondLayer::new()).layer(limit));
//! # let _ = app;
//! # Ok::<(), tower_openrouter::limit::LimitError>(())
//! ```
//!
//! Around a tonic service it is [`RespondLayer::grpc`], and layers that judge answers are told so with their `classify`
//! setting and [`outcome::Grpc`].
//!
//! **A pipeline of one's own**: other stages, another order, any third-party layer between or per key, any transport.
//! Here with neither breaker nor deadline:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//! use tower_openrouter::{
//!     ApiKey, BufferLayer, Endpoint, KeySelectLayer, LoadMonitorLayer, OpenRouter,
//!     RespondLayer, RetryLayer, endpoint_fn,
//!     buffer::ReplayBody,
//!     openrouter::AuthorizeLayer,
//!     select::{LeastInFlight, Pool},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let transport = service_fn(async |request: Request<ReplayBody>| {
//!     assert_eq!(request.headers()["authorization"], "Bearer sk-or-v1-a");
//!     Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("{}")))
//! });
//! let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a")])?;
//! let per_key = endpoint_fn(|endpoint: &Endpoint| {
//!     ServiceBuilder::new()
//!         .layer(LoadMonitorLayer::endpoint(endpoint))
//!         .layer(AuthorizeLayer::new(endpoint.key()))
//!         .into_inner()
//! });
//! let stack = ServiceBuilder::new()
//!     .layer(RespondLayer::new())
//!     .layer(BufferLayer::new())
//!     .layer(RetryLayer::new().attempts(2)?)
//!     .layer(KeySelectLayer::new(pool, per_key).pick(LeastInFlight::default()))
//!     .service(OpenRouter::new(transport));
//!
//! let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from("{}"))?;
//! let response = stack.oneshot(request).await?;
//! assert_eq!(response.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! **The whole balancer**: [`Balancer`] as above, which is a service that axum's `route_service` takes, or the binary's
//! `gateway` (feature `cli`), for clients in any language.
//!
//! # What to know
//!
//! - Layers that can refuse have [`BoxError`](tower::BoxError) for their error, as tower's own; [`Rejected::find`] finds the
//!   refusal in it.
//! - What a request holds, such as a permit, is given back when the *body* of its response is over or dropped, and not with
//!   its head: read the body, or drop it.
//! - All time is [`tokio::time`](https://docs.rs/tokio/latest/tokio/time/)'s, so a runtime with time enabled is needed, and a test may pause the clock.
//! - No layer spawns a task, and [`AccountPoller`] is a future that whoever wants it spawns; those that exist are a transport's connections, and the simulator's when it is served.
//!
//! # Where to read on
//!
//! The [`guide`]: [start](guide::start), [the picture of the stack](guide::architecture), [each layer](guide::layers),
//! [choosing policies](guide::choosing), [writing your own](guide::own), [operating the gateway](guide::gateway),
//! [what OpenRouter really limits](guide::limits), and [from common Python recipes to these layers](guide::migrating).
//!
//! Then [`outcome`] for the vocabulary, [`openrouter`](openrouter#the-classification-table) for what each answer of OpenRouter
//! means, [`select`] for filters and picks of one's own, [`breaker::TripPolicy`] for what opens a breaker, [`stack`] for the
//! settings of the default.
//!
//! # Features
//!
//! - `hyper` (default): [`HyperTransport`](openrouter::HyperTransport), with rustls.
//! - `reqwest`: [`ReqwestTransport`](openrouter::ReqwestTransport).
//! - `simulator`: the [`simulator`].
//! - `metrics`: figures for the [`metrics`](https://docs.rs/metrics) facade, as [`observe`] lists them.
//! - `settings`: [`stack::settings`], the stack's policies as they stand in a file.
//! - `lab`: the [`lab`], with `settings` and `simulator`.
//! - `cli`: the binary; of no use to a library. `otel` adds to it the export of spans to an OpenTelemetry collector.

#![cfg_attr(docsrs, feature(doc_cfg))]
// the pages are written for all features, as docs.rs shows them
#![cfg_attr(
    not(all(
        feature = "hyper",
        feature = "lab",
        feature = "metrics",
        feature = "reqwest",
        feature = "settings",
        feature = "simulator"
    )),
    allow(rustdoc::broken_intra_doc_links)
)]

// what the stages share
mod adaptive;
pub mod answer;
pub mod body;
mod clock;
pub mod endpoint;
pub mod error;
pub mod events;
pub mod explain;
mod json;
pub mod key;
pub mod outcome;
pub mod pace;
pub mod request;
mod spans;
mod sync;

// the stages, in the order in which a request meets them
pub mod respond;
pub mod deadline;
pub mod stream;
pub mod buffer;
pub mod retry;
pub mod hedge;
pub mod route;
pub mod select;
pub mod monitor;
pub mod breaker;
pub mod limit;
pub mod openrouter;

// what an operator sees of them
pub mod observe;

// all of them together, and many requests through them
pub mod stack;
pub mod poller;
pub mod batch;

#[cfg(feature = "simulator")]
pub mod simulator;
#[cfg(feature = "lab")]
pub mod lab;

// nothing but pages
#[cfg(any(doc, doctest))]
pub mod guide;

pub use batch::Batch;
pub use breaker::CircuitBreakerLayer;
pub use buffer::BufferLayer;
pub use deadline::DeadlineLayer;
pub use endpoint::Endpoint;
pub use error::Rejected;
pub use explain::ExplainLayer;
pub use hedge::HedgeLayer;
pub use key::{ApiKey, KeyError};
pub use limit::{AdaptiveConcurrencyLimitLayer, ConcurrencyLimitLayer, RateLimitLayer};
pub use monitor::{LoadMonitorLayer, Snapshot};
pub use observe::ObserveLayer;
pub use openrouter::{AuthorizeLayer, OpenRouter};
pub use outcome::{Classify, Outcome};
pub use poller::AccountPoller;
pub use request::RequestContext;
pub use respond::RespondLayer;
pub use retry::RetryLayer;
pub use route::ModelRouter;
pub use select::{EndpointLayer, KeySelect, KeySelectLayer, Pool, endpoint_fn};
pub use stack::Balancer;
pub use stream::{CommitGateLayer, KeepAliveLayer, TimeoutsLayer};

/// The examples of the README, so that they stay true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
