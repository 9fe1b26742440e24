//! Answers that are streams: when they count as begun, what is said while they have not, and how they fail.
//!
//! OpenRouter sends 200 as soon as a provider accepts, before any token, and reasoning models may then think for minutes. So
//! the head of a stream says little: an error may be its first event, silence may be thought or the end of a connection, and
//! what fails after the first word cannot be taken back. Each answer to that is a layer of its own:
//!
//! - [`CommitGateLayer`], inside of retry, holds the head until there is output behind it, so that a failure before that is
//!   a failed attempt like any other;
//! - [`TimeoutsLayer`], around the leaf, tells thought from death by how long an upstream is silent, and where;
//! - [`KeepAliveLayer`], outside of everything that waits, opens a stream that has nothing to say yet, and keeps it open with
//!   comments;
//! - [`HearOutLayer`], outermost and only where it is asked for, reads on when the caller has left, to learn the cost.

mod gate;
pub mod hear_out;
mod keep_alive;
pub mod timeouts;

pub use gate::{CommitGate, CommitGateBody, CommitGateFuture, CommitGateLayer};
pub use hear_out::HearOutLayer;
pub use keep_alive::{KeepAlive, KeepAliveBody, KeepAliveFuture, KeepAliveLayer, Later};
pub use timeouts::TimeoutsLayer;

/// What is wrong with the configuration of a layer of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Comments would follow one another without a pause.
    #[error("an interval of 0 between comments would send nothing else: give more")]
    ZeroInterval,
}
