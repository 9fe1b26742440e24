//! What a trace is told of a look at the pool: against whom what stood.
//!
//! Selection stops at the first endpoint that can serve, so it does not judge most of them. For a request that is explained
//! all are judged, at the same instant and by the same filters; only what no filter knows, that an endpoint was not ready, is
//! remembered from the search itself.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{
    choose::Shared,
    filter::{self, Bar, Fit},
    pick::Pick,
};
use crate::{
    endpoint::{Endpoint, EndpointId},
    explain::{By, Look, Reason},
    request::{Attempt, RequestContext},
};

/// What a search remembers for the trace.
#[derive(Default)]
pub(super) struct Findings {
    /// Who could not serve though nothing stood against it.
    pub(super) unready: HashMap<EndpointId, Reason>,
    /// How the endpoint was found, if one was.
    pub(super) by: Option<By>,
}

/// The search that is to be explained.
pub(super) struct Searched<'a> {
    pub(super) request: &'a RequestContext,
    pub(super) earlier: &'a [Attempt],
    pub(super) now: Instant,
    pub(super) patient: bool,
    pub(super) found: Option<&'a Endpoint>,
    pub(super) findings: Findings,
}

impl<S, P: Pick> Shared<S, P> {
    /// The same for one who joins others that wait for the same, or is called for an endpoint that is back: without a search.
    pub(super) fn explain_wait(&self, request: &RequestContext, found: Option<&Endpoint>, now: Instant) {
        if request.trace().is_some() {
            let earlier = request.ledger().current().to_vec();
            let findings = Findings::default();
            self.explain(Searched { request, earlier: &earlier, now, patient: true, found, findings });
        }
    }

    /// Writes a look at the pool into the request's trace.
    #[cold]
    pub(super) fn explain(&self, searched: Searched<'_>) {
        let Searched { request, now, found, .. } = searched;
        let Some(trace) = request.trace() else { return };
        let endpoints = self.pool.endpoints();
        let mut look = Look { pick: self.pick.name().into(), keys: endpoints.len(), ..Look::default() };
        for endpoint in endpoints.iter() {
            let label = endpoint.key().name();
            match self.against(endpoint, &searched) {
                Some((reason, until)) if found != Some(endpoint) => look.refuse(reason, label, until, now),
                _ => look.candidate(label),
            }
        }
        trace.look(look, request.asks().model.as_deref(), searched.findings.by, now);
    }

    /// What stood against an endpoint, and until when where that is known.
    fn against(&self, endpoint: &Endpoint, searched: &Searched<'_>) -> Option<(Reason, Option<Instant>)> {
        let Searched { request, earlier, now, patient, found, findings } = searched;
        let (book, now) = (self.pool.book(), *now);
        let mut request_rests = None;
        match filter::bar(book, earlier, endpoint, request, now) {
            Some(Bar::Drained) => return Some((Reason::Drained, None)),
            Some(Bar::Isolated) => return Some((Reason::Isolated, None)),
            Some(Bar::OtherModel) => return Some((Reason::OtherModel, None)),
            Some(Bar::MissingTag) => return Some((Reason::MissingTag, None)),
            Some(Bar::RuledOut) => return Some((Reason::RuledOut, None)),
            Some(Bar::Resting(resting)) => request_rests = Some(resting),
            None => {}
        }
        if let Some(resting) = book.out(endpoint, now).or(request_rests) {
            return Some((Reason::Resting { cause: resting.cause }, Some(resting.until)));
        }
        if let Some(until) = endpoint.shut_until(now)
            && !endpoint.is_forced()
        {
            return Some((Reason::BreakerOpen, Some(until)));
        }
        if let Some(resting) = book.upstream_out(endpoint, request, now)
            && (*patient || book.upstream_closed(endpoint, request, now))
        {
            return Some((Reason::UpstreamResting { cause: resting.cause }, Some(resting.until)));
        }
        for filter in &self.filters {
            let reason = || Reason::Filtered { filter: filter.name().into() };
            match filter.judge(endpoint, request, now) {
                Fit::Yes => {}
                Fit::No | Fit::Full => return Some((reason(), None)),
                Fit::NotBefore(until) => return Some((reason(), Some(until))),
            }
        }
        if let Some(reason) = findings.unready.get(&endpoint.id()) {
            return Some((reason.clone(), None));
        }
        let second_choice = |endpoint| filter::is_second_choice(earlier, self.pool.state().is_warm(), endpoint);
        if second_choice(endpoint) && found.is_some_and(|found| !second_choice(found)) {
            let tried = earlier.iter().any(|attempt| attempt.endpoint == *endpoint);
            return Some((if tried { Reason::Tried } else { Reason::Proving }, None));
        }
        None
    }
}
