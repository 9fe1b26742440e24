//! A cap on what runs at once that is learned from what comes back: the arithmetic, for whoever counts.
//!
//! The limiter of one service and the selection filter of an account each have their own way of counting and of giving
//! back. What they share is here: [which answers](is_busy) say that too much runs, and [how the cap follows](Learned).

mod policy;
mod state;

pub use policy::{AdaptiveError, AdaptivePolicy};
pub(crate) use state::{Learned, Sample};

use crate::outcome::{Cause, Fault};

/// Whether a fault says that too much runs at once for whoever is asked.
///
/// Quotas by time, such as those of free models, are none: fewer at once would not help. Nor is a provider that is full for
/// everybody: its pool rests.
pub(crate) fn is_busy(fault: &Fault) -> bool {
    matches!(
        fault.cause,
        Cause::InFlightBudget
            | Cause::PlatformLimit
            | Cause::ByokLimit
            | Cause::UnknownLimit
            | Cause::ProviderUnavailable
            | Cause::UpstreamTimeout
            | Cause::Timeout
    )
}
