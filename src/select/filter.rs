//! Filters: may this endpoint serve this request?
//!
//! A filter answers for one request and one endpoint: yes, no, or not before an instant. Filters run on what the pick
//! proposes, not on the whole pool, and all of them must agree. The ones every selector has are here: the key's model
//! patterns, what an earlier attempt of the same request has ruled out, and the rests that depend on the request.

use tokio::time::Instant;

use super::cooldown::{AccountId, Book, Resting};
use crate::{
    endpoint::Endpoint,
    explain::name_of,
    outcome::{Outcome, Scope},
    request::{Attempt, RequestContext},
};

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

/// What every selector asks, before its own filters.
pub(super) fn built_in(
    book: &Book,
    earlier: &[Attempt],
    endpoint: &Endpoint,
    request: &RequestContext,
    now: Instant,
) -> Fit {
    match bar(book, earlier, endpoint, request, now) {
        None => Fit::Yes,
        Some(Bar::Resting(resting)) => Fit::NotBefore(resting.until),
        Some(Bar::Drained | Bar::OtherModel | Bar::RuledOut) => Fit::No,
    }
}

/// What stands against an endpoint before filters are asked.
pub(super) enum Bar {
    /// It takes nothing new.
    Drained,
    /// Its patterns do not name the model.
    OtherModel,
    /// An earlier attempt of the request failed for a scope that holds it.
    RuledOut,
    /// It rests for this request.
    Resting(Resting),
}

/// The same as [`built_in`], with the reason.
pub(super) fn bar(
    book: &Book,
    earlier: &[Attempt],
    endpoint: &Endpoint,
    request: &RequestContext,
    now: Instant,
) -> Option<Bar> {
    if endpoint.is_removed() || endpoint.key().weight_of() == 0.0 {
        return Some(Bar::Drained);
    }
    if !serves(endpoint, request) {
        return Some(Bar::OtherModel);
    }
    if ruled_out(earlier, endpoint) {
        return Some(Bar::RuledOut);
    }
    book.out_for(endpoint, request, now).map(Bar::Resting)
}

fn serves(endpoint: &Endpoint, request: &RequestContext) -> bool {
    let key = endpoint.key();
    // a request whose model is unknown is refused by no pattern: upstream will say
    key.model_patterns().is_empty() || request.asks().model.as_deref().is_none_or(|model| key.serves(model))
}

/// Whether an earlier attempt of this request failed for a scope that holds this endpoint too.
fn ruled_out(earlier: &[Attempt], endpoint: &Endpoint) -> bool {
    earlier.iter().any(|attempt| {
        let Some(Outcome::Fault(fault)) = attempt.outcome else { return false };
        match fault.scope {
            Scope::Key => attempt.endpoint == *endpoint,
            Scope::Workspace => match attempt.endpoint.key().workspace_name() {
                Some(name) => endpoint.key().workspace_name() == Some(name),
                None => attempt.endpoint == *endpoint,
            },
            Scope::Account | Scope::FreeTier | Scope::AccountModel => {
                AccountId::of(&attempt.endpoint) == AccountId::of(endpoint)
            }
            Scope::Request | Scope::Pool | Scope::Egress => false,
        }
    })
}

/// Whether another endpoint is to be preferred: this one was tried for the request already, or is new and busy proving
/// itself while others are proven.
pub(super) fn is_second_choice(earlier: &[Attempt], warm: bool, endpoint: &Endpoint) -> bool {
    let figures = endpoint.figures();
    let cold = warm && !figures.has_history() && figures.in_flight() > 0;
    cold || earlier.iter().any(|attempt| attempt.endpoint == *endpoint)
}
