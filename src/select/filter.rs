//! Filters: may this endpoint serve this request?
//!
//! A filter answers for one request and one endpoint: yes, no, or not before an instant. Filters run on what the pick
//! proposes, not on the whole pool, and all of them must agree. The ones every selector has are here: the key's model
//! patterns, what an earlier attempt of the same request has ruled out, and the rests that depend on the request.

use tokio::time::Instant;

use crate::{endpoint::Endpoint, explain::name_of, request::RequestContext};

mod built_in;

pub(super) use built_in::{Bar, bar, built_in, is_second_choice};

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

    /// What it is called where a choice is [explained](crate::explain); default the name of its type.
    fn name(&self) -> &str {
        name_of::<Self>()
    }
}
