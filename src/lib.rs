//! Composable [`tower`] layers that balance LLM requests over many OpenRouter API keys.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;

pub mod body;
pub mod buffer;
pub mod deadline;
pub mod endpoint;
pub mod error;
pub mod key;
pub mod limit;
pub mod openrouter;
pub mod outcome;
pub mod request;
pub mod respond;
#[cfg(feature = "simulator")]
pub mod simulator;
mod sync;

pub use buffer::BufferLayer;
pub use clock::WallClock;
pub use deadline::DeadlineLayer;
pub use endpoint::Endpoint;
pub use error::Rejected;
pub use key::{ApiKey, KeyError};
pub use limit::ConcurrencyLimitLayer;
pub use openrouter::OpenRouter;
pub use outcome::{Classify, Outcome};
pub use request::RequestContext;
pub use respond::RespondLayer;
