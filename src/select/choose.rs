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
    explain::{Findings, Searched},
    filter::{self, Filter, Fit},
    lanes::{Lane, Lanes, Snapshot},
    order::{self, Asked, Turn},
    pick::{Candidates, Pick},
    pool::Pool,
    waiting::Room,
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
    pub(super) room: Room<S>,
    pub(super) waiting: WaitPolicy,
    pub(super) classify: Arc<dyn Classify>,
}

/// What looking for an endpoint came to.
pub(super) enum Choice<S> {
    /// This one, with an instance that said Ready.
    Ready(Endpoint, S),
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
    /// An error by which the stack of an endpoint said that it is finished.
    pub(super) broken: Option<BoxError>,
}

impl Outlook {
    fn returns(&mut self, at: Instant) {
        self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.min(at)));
    }
}

impl<S, P: Pick> Shared<S, P> {
    /// Whether the lane's endpoint may serve the request, whatever its readiness.
    pub(super) fn fits(&self, lane: &Lane<S>, earlier: &[Attempt], request: &RequestContext, now: Instant) -> Fit {
        let endpoint = &lane.endpoint;
        if let Some(resting) = self.pool.book().upstream_out(endpoint, request, now) {
            return Fit::NotBefore(resting.until);
        }
        self.key_fits(endpoint, earlier, request, now)
    }

    /// The same without a look at the upstream behind it.
    fn key_fits(&self, endpoint: &Endpoint, earlier: &[Attempt], request: &RequestContext, now: Instant) -> Fit {
        let built_in = filter::built_in(self.pool.book(), earlier, endpoint, request, now);
        self.filters.iter().fold(built_in, |fit, filter| match fit {
            Fit::No => Fit::No,
            fit => narrower(fit, filter.judge(endpoint, request, now)),
        })
    }

    /// Looks for an endpoint that can serve now. Who is not `patient` tries an upstream that fails rather than none.
    pub(super) fn choose<B>(
        &self,
        request: &RequestContext,
        headers: &HeaderMap,
        now: Instant,
        patient: bool,
    ) -> Choice<S>
    where
        S: Service<http::Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let snapshot = self.lanes.current(now);
        let findings = request.trace().map(|_| Box::default());
        let mut search =
            Search { shared: self, request, earlier: Vec::new(), now, patient, outlook: Outlook::default(), findings };
        {
            let ledger = request.ledger();
            if !ledger.current().is_empty() {
                search.earlier = ledger.current().to_vec();
            }
        }
        let chosen = search.run(&snapshot, headers);
        if let Some(findings) = search.findings.take() {
            let found = chosen.as_ref().map(|(lane, _)| &lane.endpoint);
            self.explain(Searched { request, earlier: &search.earlier, now, patient, found, findings: *findings });
        }
        match chosen {
            Some((lane, service)) => Choice::Ready(lane.endpoint.clone(), service),
            None => {
                search.add_those_out();
                Choice::Nobody(search.outlook)
            }
        }
    }

    /// Whether an endpoint outside `scope` of the latest attempt fits the request, busy or not.
    pub(super) fn has_elsewhere(&self, scope: Scope, request: &RequestContext, now: Instant) -> bool {
        let earlier = request.ledger().current().to_vec();
        let all_out = matches!(scope, Scope::Request | Scope::Pool | Scope::Egress);
        !all_out
            && self.lanes.current(now).lanes.iter().any(|lane| {
                self.fits(lane, &earlier, request, now) == Fit::Yes
                    && earlier.iter().all(|attempt| attempt.endpoint != lane.endpoint)
            })
    }
}

impl<S, P> Shared<S, P> {
    /// The refusal that says why nobody can serve the request, naming no key, and when somebody could serve one like it:
    /// what this request's own attempts have ruled out does not count there.
    pub(super) fn refusal(&self, request: &RequestContext, now: Instant) -> Rejected {
        let pool = self.pool.endpoints();
        let book = self.pool.book();
        let mut reasons = BTreeMap::<&str, usize>::new();
        let mut earliest = None::<Instant>;
        for endpoint in pool.iter() {
            let resting = [
                book.out(endpoint, now),
                book.upstream_out(endpoint, request, now),
                book.out_for(endpoint, request, now),
            ];
            let resting = resting.into_iter().flatten().max_by_key(|resting| resting.until);
            let back = resting.map(|resting| resting.until).max(endpoint.shut_until(now));
            let reason = match resting {
                _ if filter::built_in(book, &[], endpoint, request, now) == Fit::No => "other_models_or_drained",
                Some(resting) => resting.cause.as_str(),
                None if back.is_some() => "breaker_open",
                None => "busy_or_tried",
            };
            *reasons.entry(reason).or_default() += 1;
            if reason != "other_models_or_drained"
                && let Some(back) = back
            {
                earliest = Some(earliest.map_or(back, |earliest| earliest.min(back)));
            }
        }
        let reasons: Vec<_> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let detail = format!("none of the {} keys can serve this request now: {}", pool.len(), reasons.join(", "));
        Rejected::new(Why::NoKey, detail).retry_after(earliest.map(|earliest| earliest - now))
    }
}

fn narrower(one: Fit, other: Fit) -> Fit {
    match (one, other) {
        (Fit::No, _) | (_, Fit::No) => Fit::No,
        (Fit::Yes, fit) | (fit, Fit::Yes) => fit,
        (Fit::NotBefore(one), Fit::NotBefore(other)) => Fit::NotBefore(one.max(other)),
    }
}

struct Search<'a, S, P> {
    shared: &'a Shared<S, P>,
    request: &'a RequestContext,
    earlier: Vec<Attempt>,
    now: Instant,
    patient: bool,
    outlook: Outlook,
    /// Kept when the request is explained.
    findings: Option<Box<Findings>>,
}

impl<S, P: Pick> Search<'_, S, P> {
    fn run<'s, B>(&mut self, snapshot: &'s Snapshot<S>, headers: &HeaderMap) -> Option<(&'s Lane<S>, S)>
    where
        S: Service<http::Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let pick = &*self.shared.pick;
        let prepared = snapshot.prepared.get_or_init(|| pick.prepare(&snapshot.endpoints));
        let candidates = Candidates::new(&snapshot.endpoints, self.request, headers, self.now).with(prepared.as_ref());
        order::find(pick, &candidates, &mut fastrand::Rng::new(), |index, turn| {
            let lane = &snapshot.lanes[index];
            if turn != Turn::Last && self.second_choice(lane) {
                return Asked::Later;
            }
            let Some(service) = self.try_lane(lane) else { return Asked::Refused };
            if let Some(findings) = &mut self.findings {
                findings.by = Some(if turn == Turn::Proposed { By::Pick } else { By::Scan });
            }
            Asked::Found((&**lane, service))
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

    /// An instance of the lane that said Ready, if it may and can serve.
    fn try_lane<B>(&mut self, lane: &Lane<S>) -> Option<S>
    where
        S: Service<http::Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let endpoint = &lane.endpoint;
        let book = self.shared.pool.book();
        if let Some(resting) = book.upstream_out(endpoint, self.request, self.now)
            && (self.patient || book.upstream_closed(endpoint, self.request, self.now))
        {
            self.outlook.returns(resting.until);
            self.outlook.soft |= resting.soft;
            return None;
        }
        match self.shared.key_fits(endpoint, &self.earlier, self.request, self.now) {
            Fit::No => return None,
            Fit::NotBefore(at) => {
                self.outlook.returns(at);
                return None;
            }
            Fit::Yes => {}
        }
        if lane.is_contended() {
            self.outlook.busy = true;
            self.unready(lane, Reason::Busy);
            return None;
        }
        let mut service = lane.service.clone();
        // an instance that is not ready is dropped at once, so nobody need be woken for it
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Some(service),
            Poll::Pending => {
                self.outlook.busy = true;
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
                    Fit::NotBefore(at) => self.outlook.returns(at.max(back)),
                    Fit::Yes => self.outlook.returns(back),
                }
            }
        }
    }
}
