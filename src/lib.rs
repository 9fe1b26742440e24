//! Composable [`tower`] layers that balance LLM requests over many OpenRouter API keys.

#![cfg_attr(docsrs, feature(doc_cfg))]

// what the stages share
pub mod body;
mod clock;
pub mod endpoint;
pub mod error;
pub mod key;
pub mod outcome;
pub mod request;
mod sync;

// the stages, in the order in which a request meets them
pub mod respond;
pub mod deadline;
pub mod buffer;
pub mod retry;
pub mod select;
pub mod monitor;
pub mod breaker;
pub mod limit;
pub mod openrouter;

// all of them together
pub mod stack;

#[cfg(feature = "simulator")]
pub mod simulator;

pub use breaker::CircuitBreakerLayer;
pub use buffer::BufferLayer;
pub use clock::WallClock;
pub use deadline::DeadlineLayer;
pub use endpoint::Endpoint;
pub use error::Rejected;
pub use key::{ApiKey, KeyError};
pub use limit::ConcurrencyLimitLayer;
pub use monitor::{LoadMonitorLayer, Snapshot};
pub use openrouter::OpenRouter;
pub use outcome::{Classify, Outcome};
pub use request::RequestContext;
pub use respond::RespondLayer;
pub use retry::RetryLayer;
pub use select::{EndpointLayer, KeySelect, KeySelectLayer, endpoint_fn};
pub use stack::Balancer;
