//! Filters: may this endpoint serve this request?
//!
//! A filter answers for one request and one endpoint: yes, no, or not before an instant. Filters run on what the pick
//! proposes, not on the whole pool, and all of them must agree. Some every selector has: the key's model
//! patterns, the tags that the request demands, what an earlier attempt of it has ruled out, and the rests that depend on
//! the request.

use tokio::time::Instant;

use crate::{endpoint::Endpoint, request::RequestContext};

mod built_in;
mod closure;
mod tags;

pub use closure::{FilterFn, filter_fn};
pub use tags::RequireTags;

pub(super) use built_in::{built_in, is_second_choice};

/// What a filter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The endpoint may serve the request.
    Yes,
    /// It may not, however long one waits.
    No,
    /// It may, from this instant on.
    NotBefore(Instant),
}

/// Says whether an endpoint may serve a request. Small, pure, quick: it runs for each proposal, under no lock of its own.
///
/// ```
/// use tower_openrouter::{Endpoint, RequestContext, select::{Filter, Fit}};
/// use tokio::time::Instant;
///
/// /// Sends long answers to keys of the "batch" account only.
/// struct LongAnswers;
///
/// impl Filter for LongAnswers {
///     fn judge(&self, endpoint: &Endpoint, request: &RequestContext, _now: Instant) -> Fit {
///         let long = request.asks().max_tokens.is_some_and(|tokens| tokens > 10_000);
///         if !long || endpoint.account() == Some("batch") { Fit::Yes } else { Fit::No }
///     }
/// }
/// ```
pub trait Filter: Send + Sync + 'static {
    /// Judges.
    fn judge(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Fit;
}
