//! Tries a failed request again: on another key at once, on any key after a wait, or not at all.
//!
//! Most retries are written around the status code, and get it wrong in three ways. They wait before trying another key
//! although the first key's answer says nothing about the others; they hurry back to a provider that is full for everybody;
//! and they repeat what may have run, and been billed, already. Here the answer's [`Fault`](crate::outcome::Fault) decides:
//!
//! - [`Elsewhere`](crate::outcome::Retry::Elsewhere), such as 401, 402 or a key's own 429: the model did not run, and only
//!   this key, workspace or account is concerned. The next attempt starts at once; selection below sends it outside the
//!   failed scope, or waits or refuses with the earliest time when nobody else can serve. Such a *failover* puts no load on
//!   the model, so it counts neither as an attempt nor against the budget; its own bound is once per distinct scope, and 8.
//!   Without a selector below there is no elsewhere: a limit that passes by itself is waited for as below, the rest given up.
//! - [`Backoff`](crate::outcome::Retry::Backoff), such as a provider's 429, 5xx, no connection: again after a jittered wait
//!   that grows, never before a hinted time, within three attempts and the [budget](RetryBudget). Without a wait where a stage
//!   below has noted in the request's ledger that it will ask for another provider or model then.
//!   [`Once`](crate::outcome::Retry::Once) is the same, a single time.
//! - [`Unclear`](crate::outcome::Retry::Unclear): not repeated unless [asked for](RetryLayer::retry_unclear).
//!
//! Only what is known at the head of a response is tried again, so never anything after the first byte was passed on; a
//! [`CommitGateLayer`](crate::CommitGateLayer) below holds the head until it is known whether there is output behind it.
//!
//! A wait that ends beyond the wait cap or the request's deadline is not begun: the caller gets the original answer at once.
//!
//! The failed response is dropped before the wait, and readiness is obtained anew before each attempt, as [`tower::retry`]
//! does. That itself is not used: its future carries the copy of the request through every layer around it, and its policy
//! must copy all of the request before it knows what failed. Nor are its back-off and budget: they cut jitter to whole
//! seconds, hand the same jitter to everybody, and take a limit of 0.6 for 1.
//!
//! Examples, as it comes and with numbers of one's own, are at [`RetryLayer`].

mod attempts;
mod backoff;
mod budget;
mod future;
mod layer;
mod policy;
mod stats;

pub use backoff::Backoff;
pub use budget::RetryBudget;
pub use future::RetryFuture;
pub use layer::{Retry, RetryLayer};
pub use policy::GiveUp;
pub use stats::{RetryHandle, RetryStats};

/// What is wrong with the configuration of a [`RetryLayer`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The number of attempts is out of range.
    #[error("attempts is {0}: it must be 1 (no retry) to {max}", max = RetryLayer::MOST_ATTEMPTS)]
    Attempts(u32),
    /// The budget's ratio is out of range.
    #[error("the retry budget's ratio is {0}: it must be 0 to 1, retries for each request")]
    Ratio(f64),
    /// The shortest wait is zero or above the longest.
    #[error("the back-off runs from {base:?} to {cap:?}: the first must be above 0 and at most the second")]
    Backoff {
        /// The shortest wait.
        base: std::time::Duration,
        /// The longest wait.
        cap: std::time::Duration,
    },
}
