use tokio::time::Instant;

use super::{Fit, tags};
use crate::{
    endpoint::{AdminState, Endpoint},
    outcome::{Outcome, Scope},
    request::{Attempt, RequestContext},
    select::cooldown::{AccountId, Book, Resting},
};

/// What every selector asks, before its own filters.
pub(in crate::select) fn built_in(
    book: &Book,
    earlier: &[Attempt],
    endpoint: &Endpoint,
    request: &RequestContext,
    now: Instant,
) -> Fit {
    match bar(book, earlier, endpoint, request, now) {
        None => Fit::Yes,
        Some(Bar::Resting(resting)) => Fit::NotBefore(resting.until),
        Some(Bar::Drained | Bar::Isolated | Bar::OtherModel | Bar::MissingTag | Bar::RuledOut) => Fit::No,
    }
}

/// What stands against an endpoint before filters are asked.
pub(in crate::select) enum Bar {
    /// It takes nothing new.
    Drained,
    /// An operator lets nobody near it.
    Isolated,
    /// Its patterns do not name the model.
    OtherModel,
    /// It lacks a tag that the request demands.
    MissingTag,
    /// An earlier attempt of the request failed for a scope that holds it.
    RuledOut,
    /// It rests for this request.
    Resting(Resting),
}

/// The same as [`built_in`], with the reason.
pub(in crate::select) fn bar(
    book: &Book,
    earlier: &[Attempt],
    endpoint: &Endpoint,
    request: &RequestContext,
    now: Instant,
) -> Option<Bar> {
    // in good times this looks at the endpoint alone, and not at the key
    if !endpoint.serves_all() {
        match endpoint.admin_state() {
            AdminState::Isolated => return Some(Bar::Isolated),
            AdminState::Draining => return Some(Bar::Drained),
            AdminState::InService => {}
        }
        if endpoint.is_removed() || endpoint.key().weight_of() == 0.0 {
            return Some(Bar::Drained);
        }
        if !serves(endpoint, request) {
            return Some(Bar::OtherModel);
        }
    }
    if !tags::has_all(endpoint, request.required()) {
        return Some(Bar::MissingTag);
    }
    if ruled_out(earlier, endpoint) {
        return Some(Bar::RuledOut);
    }
    book.out_for(endpoint, request, now).map(Bar::Resting)
}

fn serves(endpoint: &Endpoint, request: &RequestContext) -> bool {
    let key = endpoint.key();
    // a request whose model is unknown is refused by no pattern: upstream will say
    key.serves_all() || request.asks().model.as_deref().is_none_or(|model| key.serves(model))
}

/// Whether an earlier attempt of this request failed for a scope that holds this endpoint too, or runs on its account.
fn ruled_out(earlier: &[Attempt], endpoint: &Endpoint) -> bool {
    earlier.iter().any(|attempt| {
        // what is sent beside it goes to another account
        if attempt.running {
            return AccountId::of(&attempt.endpoint) == AccountId::of(endpoint);
        }
        let Some(Outcome::Fault(fault)) = attempt.outcome else { return false };
        // it passes in a moment, and until then its rest, or whoever counts what is in flight, holds the account back
        if fault.cause.is_momentary() {
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
    // in this order, since what is in flight lies nearer
    let cold = warm && figures.in_flight() > 0 && !figures.has_history();
    cold || earlier.iter().any(|attempt| attempt.endpoint == *endpoint)
}
