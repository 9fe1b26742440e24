//! An upstream that behaves like OpenRouter.
//!
//! Policies for paid, rate-limited traffic cannot be tried on paid, rate-limited traffic. The simulator
//! stands in for the platform: accounts, keys, quotas, budgets, providers with shared pools, the wire format
//! with its five error shapes, and faults on demand. It is a [`tower_service::Service`] for tests and
//! benchmarks in process, and [`serve`]s HTTP for clients in any language.
//!
//! Time comes from `tokio::time`, so under a paused clock a day of quotas passes in milliseconds. Everything
//! random comes from [`Scenario::seed`]: the same requests in the same order get the same bytes.
//!
//! ```
//! use http_body_util::BodyExt;
//! use tower::{Service, ServiceExt};
//! use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let simulator = Simulator::new(Scenario::default())?;
//! let key = &simulator.keys()[0];
//! let request = http::Request::post("https://openrouter.ai/api/v1/chat/completions")
//!     .header("authorization", format!("Bearer {}", key.secret))
//!     .body(r#"{"model":"acme/swift-1","messages":[{"role":"user","content":"Hi"}]}"#.to_owned())?;
//! let response = simulator.service().oneshot(request).await?;
//! assert_eq!(response.status(), 200);
//! response.into_body().collect().await?;
//! assert_eq!(simulator.counts().finished, 1);
//! # Ok(())
//! # }
//! ```
//!
//! A world of one's own, and trouble in it: a provider whose pool is full for half a minute, under a clock that waits for
//! nobody.
//!
//! ```
//! use http_body_util::BodyExt;
//! use std::time::Duration;
//! use tower::ServiceExt;
//! use tower_openrouter::simulator::{Fault, Scenario, Simulator, What};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let simulator = Simulator::new(Scenario::from_toml(
//!     r#"
//!     accounts = [{ name = "alpha", credits = 5.0 }]
//!     keys = [{ label = "one", account = "alpha" }]
//!     models = [{ id = "acme/swift" }]
//!     endpoints = [{ model = "acme/swift", provider = "DeepInfra", completion_price = 2.0 }]
//!     "#,
//! )?)?;
//! simulator.inject(Fault::new(What::PoolFull { retry_after: Some(7) }).window(0.0, 30.0))?;
//!
//! let ask = async || {
//!     let request = http::Request::post("/api/v1/chat/completions")
//!         .header("authorization", format!("Bearer {}", simulator.keys()[0].secret))
//!         .body(r#"{"model":"acme/swift","messages":[{"role":"user","content":"Hi"}]}"#.to_owned())
//!         .unwrap();
//!     simulator.service().oneshot(request).await
//! };
//! let full = ask().await?;
//! assert_eq!((full.status().as_u16(), &full.headers()["retry-after"]), (429, &"7".parse()?));
//!
//! tokio::time::sleep(Duration::from_secs(31)).await;
//! let answer = ask().await?;
//! assert_eq!(answer.status(), 200);
//! answer.into_body().collect().await?;
//! assert_eq!(simulator.counts().keys["one"].attempts, 2);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not do
//!
//! Models do not think: replies are words drawn from the seed. Prompt tokens are bytes divided by four.
//! Changes take effect at once unless [`Stale`] delays them. Providers are asked in a strict order rather than a
//! weighted random one.

mod admission;
mod attempt;
mod body;
mod cache;
mod clock;
mod control;
mod cors;
mod delays;
pub(crate) mod draw;
mod faults;
#[cfg(feature = "lab")]
mod foresight;
mod generation;
mod ids;
mod inference;
mod lookup;
mod money;
mod pool;
mod refusal;
mod reply;
mod request;
mod routing;
mod scenario;
mod serve;
mod service;
mod stale;
mod stats;
mod ticket;
mod trace;
mod world;

pub use body::SimulatorBody;
#[cfg(feature = "lab")]
pub(crate) use control::utc_millis;
pub use control::{SimulatedKey, Simulator, utc_date};
#[cfg(feature = "lab")]
pub(crate) use foresight::Foresight;
pub use scenario::{
    Account, Budget, Fault, InBand, InFlight, Keep, Model, Pool, PoolKind, ProviderEndpoint, Quota, Reason, Reply,
    Reset, RetryAfter, Scenario, ScenarioError, SimKey, Stale, What, Wire, Workspace,
};
pub use serve::serve;
pub use service::{SimulatorFuture, SimulatorService};
pub use stats::{Attempt, Counts, Ending, Received, Tally};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What transport would report: the answer, or its rest, did not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulatorError {
    /// The connection was reset.
    #[error("simulated connection reset")]
    Reset,
    /// The body ended before its end.
    #[error("simulated body cut short")]
    Cut,
    /// The caller's request body failed.
    #[error("the request body could not be read: {0}")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What all handles and services of one simulator share.
#[derive(Debug)]
struct Shared {
    scenario: Scenario,
    clock: clock::Clock,
    world: Mutex<world::World>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, world::World> {
        // A panic elsewhere leaves plain numbers behind, still usable.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
