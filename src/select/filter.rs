//! Filters: may this endpoint serve this request?
//!
//! A filter answers for one request and one endpoint: yes, no, or not before an instant. Filters run on what the pick
//! proposes, not on the whole pool, and all of them must agree. Some every selector has: the key's model
//! patterns, the tags that the request demands, what an earlier attempt of it has ruled out, and the rests that depend on
//! the request.

use tokio::time::Instant;

use crate::{
    endpoint::Endpoint,
    explain::name_of,
    outcome::{Outcome, Usage},
    request::RequestContext,
};

mod adaptive_limit;
mod built_in;
mod closure;
mod credit_floor;
mod credit_limit;
mod pace;
mod tags;

pub use adaptive_limit::AdaptiveLimit;
pub(super) use built_in::{Bar, bar, built_in, is_second_choice};
pub use closure::{FilterFn, filter_fn};
pub use credit_floor::CreditFloor;
pub use credit_limit::CreditLimit;
pub use pace::Pacing;
pub use tags::RequireTags;

/// What a filter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The endpoint may serve the request.
    Yes,
    /// It may not, however long one waits.
    No,
    /// It may, from this instant on. One who waits looks again exactly then, the others once it is served: whoever
    /// [reserves](Filter::reserve) something for each is asked anew, and says when the next may.
    NotBefore(Instant),
    /// It may, once another request gives back what the filter has [reserved](Filter::reserve) for it.
    Full,
}

impl Fit {
    /// What two judges that must both agree come to.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, fit) | (fit, Self::Yes) => fit,
            (Self::NotBefore(one), Self::NotBefore(other)) => Self::NotBefore(one.max(other)),
            (later @ Self::NotBefore(_), Self::Full) | (Self::Full, later @ Self::NotBefore(_)) => later,
            (Self::Full, Self::Full) => Self::Full,
        }
    }
}

/// How a request ended for which a filter had reserved something.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Ended {
    /// When it was reserved.
    pub since: Instant,
    /// The time.
    pub now: Instant,
    /// Whether the request was sent at all.
    pub sent: bool,
    /// When the first real output came, if any did.
    pub first_output: Option<Instant>,
    /// What became of it; `None` when the caller left, or the exchange broke off, before that was known.
    pub outcome: Option<Outcome>,
    /// What it reports to have used.
    pub usage: Option<Usage>,
    /// How many requests the limit admits that it met, where a refusal names it.
    pub limit: Option<u32>,
}

/// Says whether an endpoint may serve a request. Small, pure, quick: it runs for each proposal, under no lock of its own.
///
/// What several endpoints share, or what a request uses up, a filter can also set aside: judging alone would let two requests
/// at once have the same last dollar. It then [reserves](Self::reserves); those that do not cost nothing for it.
///
/// Those who wait stand in groups of the same [kind](Self::kind), and one is judged for all of its group. A filter is asked
/// again for the next in line after each `reserve` and after each `settle`, and at the instant of a [`Fit::NotBefore`]. So
/// one that paces says from when its next slot is free, takes the slot in `reserve`, and need tell nobody anything. What
/// frees it up otherwise, a poll for example, is told to the pool.
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

    /// What of a request its verdicts depend on, as a number: of two requests of the same kind, one is judged for both while
    /// they wait. Coarse is better than exact: 0 for all, where the request says nothing; a step of a scale, where the amount
    /// matters. Default `None`: nobody knows, so each request is judged for itself, and a look at all keys made for each that
    /// waits. The model, the tags demanded and the attempts made need not be in it.
    fn kind(&self, request: &RequestContext) -> Option<u64> {
        let _ = request;
        None
    }

    /// Whether the filter sets anything aside. Asked often, so it should just say so; default no.
    fn reserves(&self) -> bool {
        false
    }

    /// Sets aside what the request needs, in one step with the check that there is enough. Asked once the endpoint has said
    /// that it is ready; `None` passes it by. An amount of 0 need not be given back.
    fn reserve(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<u64> {
        let _ = (endpoint, request, now);
        Some(0)
    }

    /// Takes back an amount, once for each that was reserved: when the request failed, when its body ended, or when it was
    /// dropped. Says whether the filter itself keeps the fault, if it was one, from coming again, so that nobody need rest
    /// for it.
    fn settle(&self, endpoint: &Endpoint, amount: u64, ended: &Ended) -> bool {
        let _ = (endpoint, amount, ended);
        false
    }
}
