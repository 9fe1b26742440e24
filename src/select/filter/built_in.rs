use tokio::time::Instant;

use super::{Fit, tags};
use crate::{
    endpoint::Endpoint,
    outcome::{Cause, Outcome, Scope},
    request::{Attempt, RequestContext},
    select::cooldown::{AccountId, Book},
};

/// What every selector asks, before its own filters.
pub(in crate::select) fn built_in(
    book: &Book,
    earlier: &[Attempt],
    endpoint: &Endpoint,
    request: &RequestContext,
    now: Instant,
) -> Fit {
    let drained = endpoint.is_removed() || endpoint.key().weight_of() == 0.0;
    let may_serve = serves(endpoint, request) && tags::has_all(endpoint, request.required());
    if drained || !may_serve || ruled_out(earlier, endpoint) {
        return Fit::No;
    }
    match book.out_for(endpoint, request, now) {
        Some(resting) => Fit::NotBefore(resting.until),
        None => Fit::Yes,
    }
}

fn serves(endpoint: &Endpoint, request: &RequestContext) -> bool {
    let key = endpoint.key();
    // a request whose model is unknown is refused by no pattern: upstream will say
    key.serves_all() || request.asks().model.as_deref().is_none_or(|model| key.serves(model))
}

/// Whether an earlier attempt of this request failed for a scope that holds this endpoint too.
fn ruled_out(earlier: &[Attempt], endpoint: &Endpoint) -> bool {
    earlier.iter().any(|attempt| {
        let Some(Outcome::Fault(fault)) = attempt.outcome else { return false };
        // it passes in a moment, and until then its rest, or whoever counts what is in flight, holds the account back
        if fault.cause == Cause::InFlightBudget {
            return false;
        }
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
pub(in crate::select) fn is_second_choice(earlier: &[Attempt], warm: bool, endpoint: &Endpoint) -> bool {
    let figures = endpoint.figures();
    let cold = warm && !figures.has_history() && figures.in_flight() > 0;
    cold || earlier.iter().any(|attempt| attempt.endpoint == *endpoint)
}
