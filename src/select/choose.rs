//! How an endpoint is found: the pick proposes, filters and readiness judge, and a look at everybody has the last word, so
//! that a usable endpoint is found if there is one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use http::HeaderMap;
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::{
    WaitPolicy,
    claims::Claims,
    explain::{Findings, Searched},
    filter::{self, Filter, Fit},
    lanes::{Lane, Lanes, Listed, Snapshot},
    order::{self, Asked, Turn},
    pick::{Candidates, Pick},
    pool::Pool,
    waiting::{Room, Ticket},
};
use crate::{
    endpoint::Endpoint,
    error::{Rejected, Why},
    explain::{By, Reason},
    outcome::{Classify, Scope},
    request::{Attempt, RequestContext},
};

/// What a selector's clones share.
pub(super) struct Shared<S, P> {
    pub(super) pool: Pool,
    pub(super) lanes: Lanes<S>,
    pub(super) pick: Arc<P>,
    pub(super) filters: Vec<Arc<dyn Filter>>,
    /// Whether any of the filters sets something aside.
    pub(super) reserves: bool,
    pub(super) room: Room<S>,
    pub(super) waiting: WaitPolicy,
    pub(super) classify: Arc<dyn Classify>,
}

/// A selector, as the attempts it sent know it.
pub(super) trait Selection: Send + Sync {
    /// The pool.
    fn pool(&self) -> &Pool;

    /// Who judges answers that carry no outcome.
    fn classify(&self) -> &dyn Classify;

    /// Whether an endpoint outside `scope` of the latest attempt fits the request, busy or not.
    fn has_elsewhere(&self, scope: Scope, request: &RequestContext, now: Instant) -> bool;
}

impl<S: Send + Sync, P: Pick> Selection for Shared<S, P> {
    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn classify(&self) -> &dyn Classify {
        &*self.classify
    }

    fn has_elsewhere(&self, scope: Scope, request: &RequestContext, now: Instant) -> bool {
        let earlier = request.ledger().current().to_vec();
        let all_out = matches!(scope, Scope::Request | Scope::Pool | Scope::Egress);
        !all_out
            && self.lanes.current(now).lanes().any(|lane| {
                matches!(self.prospect(&lane.endpoint, &earlier, request, now), Prospect::Now)
                    && earlier.iter().all(|attempt| attempt.endpoint != lane.endpoint)
            })
    }
}

/// An endpoint for a request.
pub(super) struct Found<S> {
    pub(super) lane: Arc<Lane<S>>,
    /// An instance that said Ready.
    pub(super) service: S,
    /// What filters have set aside for it.
    pub(super) claims: Claims,
}

/// What looking for an endpoint came to.
pub(super) enum Choice<S> {
    /// This one.
    Ready(Found<S>),
    /// Nobody now.
    Nobody(Outlook),
}

/// When somebody may be able to serve.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// The earliest instant at which somebody who is out comes back.
    pub(super) earliest: Option<Instant>,
    /// Whether somebody fits and is merely busy.
    pub(super) busy: bool,
    /// Whether what rests only spares an upstream that fails.
    pub(super) soft: bool,
    /// Whose return, or release, is hoped for.
    pub(super) via: Option<Endpoint>,
    /// An error by which the stack of an endpoint said that it is finished.
    pub(super) broken: Option<BoxError>,
}

impl Outlook {
    pub(super) fn returns(&mut self, at: Instant, endpoint: &Endpoint) {
        if self.earliest.is_none_or(|earliest| at < earliest) {
            self.earliest = Some(at);
            if !self.busy {
                self.via = Some(endpoint.clone());
            }
        }
    }

    pub(super) fn is_busy(&mut self, endpoint: &Endpoint) {
        if !std::mem::replace(&mut self.busy, true) {
            self.via = Some(endpoint.clone());
        }
    }
}

/// Whether an endpoint may serve a request, whatever its readiness.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prospect {
    Now,
    Later(Later),
    /// Once somebody gives back what a filter has set aside.
    Full,
    Never,
}

/// When an endpoint may.
#[derive(Debug, Clone, Copy)]
pub(super) struct Later {
    pub(super) at: Instant,
    /// Whether a rest ends then, for everybody at once, rather than one slot of a filter coming free.
    pub(super) rest: bool,
    /// Whether it only spares an upstream that fails.
    pub(super) soft: bool,
}

impl<S, P: Pick> Shared<S, P> {
    /// Whether an endpoint may serve the request, for one who waits.
    pub(super) fn prospect(
        &self,
        endpoint: &Endpoint,
        earlier: &[Attempt],
        request: &RequestContext,
        now: Instant,
    ) -> Prospect {
        if let Some(resting) = self.pool.book().upstream_out(endpoint, request, now) {
            return Prospect::Later(Later { at: resting.until, rest: true, soft: resting.soft });
        }
        let built_in = filter::built_in(self.pool.book(), earlier, endpoint, request, now);
        match self.filtered(built_in, endpoint, request, now) {
            Fit::Yes => Prospect::Now,
            Fit::No => Prospect::Never,
            Fit::Full => Prospect::Full,
            Fit::NotBefore(at) => Prospect::Later(Later { at, rest: built_in == Fit::NotBefore(at), soft: false }),
        }
    }

    /// The same without a look at the upstream behind it.
    fn key_fits(&self, endpoint: &Endpoint, earlier: &[Attempt], request: &RequestContext, now: Instant) -> Fit {
        self.filtered(filter::built_in(self.pool.book(), earlier, endpoint, request, now), endpoint, request, now)
    }

    fn filtered(&self, built_in: Fit, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Fit {
        self.filters.iter().fold(built_in, |fit, filter| match fit {
            Fit::No => Fit::No,
            fit => fit.and(filter.judge(endpoint, request, now)),
        })
    }

    /// Looks for an endpoint that can serve now. Who is not `patient` tries an upstream that fails rather than none; what
    /// those in line wait for is theirs, unless one of them asks.
    pub(super) fn choose<B>(
        &self,
        request: &RequestContext,
        headers: &HeaderMap,
        now: Instant,
        patient: bool,
        ticket: Option<&Ticket<S, P>>,
    ) -> Choice<S>
    where
        S: Service<http::Request<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
    {
        let snapshot = self.lanes.current(now);
        let mut search = Search {
            shared: self,
            request,
            earlier: Vec::new(),
            now,
            patient,
            ticket,
            outlook: Outlook::default(),
            findings: request.trace().map(|_| Box::default()),
        };
        {
            let ledger = request.ledger();
            if !ledger.current().is_empty() {
                search.earlier = ledger.current().to_vec();
            }
        }
        let found = search.run(&snapshot, headers);
        if let Some(findings) = search.findings.take() {
            let found = found.as_ref().map(|found| &found.lane.endpoint);
            self.explain(Searched { request, earlier: &search.earlier, now, patient, found, findings: *findings });
        }
        match found {
            Some(found) => Choice::Ready(found),
            None => {
                search.add_those_out();
                Choice::Nobody(search.outlook)
            }
        }
    }

    /// Has filters set aside what the request needs. If there is not enough, the readied instance is dropped.
    pub(super) fn claim(
        &self,
        lane: &Arc<Lane<S>>,
        service: S,
        request: &RequestContext,
        now: Instant,
    ) -> Option<Found<S>> {
        let claims = match self.reserves {
            true => Claims::take(&self.filters, &self.pool, &lane.endpoint, request, now)?,
            false => Claims::default(),
        };
        Some(Found { lane: lane.clone(), service, claims })
    }
}

impl<S, P> Shared<S, P> {
    /// The refusal that says why nobody can serve the request, naming no key, and when somebody could serve one like it:
    /// what this request's own attempts have ruled out does not count there.
    pub(super) fn refusal(&self, request: &RequestContext, now: Instant) -> Rejected {
        let pool = self.pool.endpoints();
        let book = self.pool.book();
        let mut reasons = BTreeMap::<&str, usize>::new();
        let (mut earliest, mut busy) = (None::<Instant>, false);
        let tried = request.ledger().current().to_vec();
        for endpoint in pool.iter() {
            let resting = [
                book.out(endpoint, now),
                book.upstream_out(endpoint, request, now),
                book.out_for(endpoint, request, now),
            ];
            let resting = resting.into_iter().flatten().max_by_key(|resting| resting.until);
            let mut back = resting.map(|resting| resting.until).max(endpoint.shut_until(now));
            let filtered =
                self.filters.iter().map(|filter| filter.judge(endpoint, request, now)).fold(Fit::Yes, Fit::and);
            if let Fit::NotBefore(at) = filtered {
                back = back.max(Some(at));
            }
            let reason = match resting {
                _ if !endpoint.is_in_service() => "taken_out_of_service",
                _ if filter::built_in(book, &[], endpoint, request, now) == Fit::No => "other_models_tags_or_drained",
                Some(resting) => resting.cause.as_str(),
                None if filtered != Fit::Yes => "kept_back_by_a_filter",
                None if back.is_some() => "breaker_open",
                None => {
                    busy |= tried.iter().all(|attempt| attempt.endpoint != *endpoint);
                    "busy_or_tried"
                }
            };
            *reasons.entry(reason).or_default() += 1;
            if endpoint.is_in_service()
                && reason != "other_models_tags_or_drained"
                && filtered != Fit::No
                && let Some(back) = back
            {
                earliest = Some(earliest.map_or(back, |earliest| earliest.min(back)));
            }
        }
        let reasons: Vec<_> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let detail = format!("none of the {} keys can serve this request now: {}", pool.len(), reasons.join(", "));
        // who is merely busy may be free long before who rests is back
        Rejected::new(Why::NoKey, detail).retry_after(earliest.filter(|_| !busy).map(|earliest| earliest - now))
    }
}

struct Search<'a, S: Send + Sync + 'static, P: Pick> {
    shared: &'a Shared<S, P>,
    request: &'a RequestContext,
    earlier: Vec<Attempt>,
    now: Instant,
    patient: bool,
    ticket: Option<&'a Ticket<S, P>>,
    outlook: Outlook,
    /// Kept when the request is explained.
    findings: Option<Box<Findings>>,
}

impl<S: Send + Sync + 'static, P: Pick> Search<'_, S, P> {
    fn run<B>(&mut self, snapshot: &Snapshot<S>, headers: &HeaderMap) -> Option<Found<S>>
    where
        S: Service<http::Request<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
    {
        let pick = &*self.shared.pick;
        let prepared = snapshot.prepared.get_or_init(|| pick.prepare(&snapshot.endpoints));
        let candidates = Candidates::new(&snapshot.endpoints, self.request, headers, self.now).with(prepared.as_ref());
        order::find(pick, &candidates, &mut fastrand::Rng::new(), |index, turn| {
            let Listed { endpoint, lane } = &snapshot.listed[index];
            endpoint.fetch();
            if turn != Turn::Last && self.second_choice(lane) {
                return Asked::Later;
            }
            let Some(found) = self.try_lane(lane) else { return Asked::Refused };
            if let Some(findings) = &mut self.findings {
                findings.by = Some(if turn == Turn::Proposed { By::Pick } else { By::Scan });
            }
            Asked::Found(found)
        })
    }

    /// Notes that the lane's endpoint could not serve though nothing stood against it.
    fn unready(&mut self, lane: &Lane<S>, reason: Reason) {
        if let Some(findings) = &mut self.findings {
            findings.unready.insert(lane.endpoint.id(), reason);
        }
    }

    fn second_choice(&self, lane: &Lane<S>) -> bool {
        filter::is_second_choice(&self.earlier, self.shared.pool.state().is_warm(), &lane.endpoint)
    }

    /// The lane's endpoint, if it may and can serve.
    fn try_lane<B>(&mut self, lane: &Arc<Lane<S>>) -> Option<Found<S>>
    where
        S: Service<http::Request<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
    {
        let endpoint = &lane.endpoint;
        let book = self.shared.pool.book();
        if let Some(resting) = book.upstream_out(endpoint, self.request, self.now)
            && (self.patient || book.upstream_closed(endpoint, self.request, self.now))
        {
            self.outlook.returns(resting.until, endpoint);
            self.outlook.soft |= resting.soft;
            return None;
        }
        match self.shared.key_fits(endpoint, &self.earlier, self.request, self.now) {
            Fit::No => return None,
            Fit::NotBefore(at) => {
                self.outlook.returns(at, endpoint);
                return None;
            }
            Fit::Full => {
                self.outlook.is_busy(endpoint);
                return None;
            }
            Fit::Yes => {}
        }
        if lane.is_contended(self.now) && self.ticket.is_none_or(|ticket| !ticket.may_have(lane, self.now)) {
            self.outlook.is_busy(endpoint);
            self.unready(lane, Reason::Busy);
            return None;
        }
        let mut service = lane.instance();
        // an instance that is not ready is dropped at once, so nobody need be woken for it
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                let found = self.shared.claim(lane, service, self.request, self.now);
                if found.is_none() {
                    self.outlook.is_busy(endpoint);
                    self.unready(lane, Reason::Busy);
                }
                found
            }
            Poll::Pending => {
                self.outlook.is_busy(endpoint);
                self.unready(lane, Reason::Busy);
                None
            }
            Poll::Ready(Err(error)) => {
                self.shared.lanes.rebuild(&lane.endpoint);
                self.outlook.broken = Some(error.into());
                self.unready(lane, Reason::Broken);
                None
            }
        }
    }

    /// Counts in the endpoints that are out for everybody.
    fn add_those_out(&mut self) {
        let pool = self.shared.pool.endpoints();
        for endpoint in pool.iter() {
            if let Some(back) = self.shared.lanes.back_at(endpoint, self.now) {
                let fit = filter::built_in(self.shared.pool.book(), &self.earlier, endpoint, self.request, self.now);
                match fit {
                    Fit::No => {}
                    Fit::NotBefore(at) => self.outlook.returns(at.max(back), endpoint),
                    Fit::Yes | Fit::Full => self.outlook.returns(back, endpoint),
                }
            }
        }
    }
}
