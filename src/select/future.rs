use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Service};

use super::{
    choose::{Choice, Found, Outlook, Shared},
    claims::Claims,
    pick::Pick,
    pool::Pool,
    waiting::Ticket,
};
use crate::{
    body::{Ending, Guard, Guarded},
    clock,
    endpoint::{Endpoint, Route},
    error::{Rejected, Why},
    explain::Entry,
    outcome::{Outcome, OutcomeCell, Rest, Retry, Scope, Verdict},
    request::RequestContext,
};

/// Spread of those who wait for the same rest to end, as a share of the wait, so that they do not come all at once.
const JITTER: f64 = 0.1;
const LEAST_JITTER: Duration = Duration::from_millis(100);
/// First rest of an upstream that fails for most keys; it doubles while that goes on.
const FAILING_POOL: Duration = Duration::from_secs(1);

pin_project! {
    /// Response future of [`KeySelect`](super::KeySelect).
    pub struct KeySelectFuture<S, P, B>
    where
        S: Service<Request<B>>,
        S: Send,
        S: Sync,
        S: 'static,
        P: Pick,
    {
        shared: Arc<Shared<S, P>>,
        #[pin]
        state: State<S, P, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProject]
    enum State<S, P, B, F>
    where
        S: Send,
        S: Sync,
        S: 'static,
        P: Pick,
    {
        Looking {
            looking: Option<Looking<S, P, B>>,
        },
        Calling {
            #[pin]
            call: F,
            record: Option<Record>,
        },
    }
}

/// A request that has no endpoint yet.
struct Looking<S: Send + Sync + 'static, P: Pick, B> {
    request: Request<B>,
    context: RequestContext,
    // boxed, since few wait, and the others should not carry its size
    waiting: Option<Box<Waiting<S, P>>>,
}

/// Someone in the line.
struct Waiting<S: Send + Sync + 'static, P: Pick> {
    ticket: Ticket<S, P>,
    /// When to look at the pool anew, or to give up.
    wake: Pin<Box<Sleep>>,
    give_up: Instant,
    outlook: Outlook,
}

impl<S, P, B> KeySelectFuture<S, P, B>
where
    S: Service<Request<B>> + Send + Sync + 'static,
    P: Pick,
{
    pub(super) fn new(shared: Arc<Shared<S, P>>, mut request: Request<B>) -> Self {
        let context = RequestContext::of(&mut request);
        Self { shared, state: State::Looking { looking: Some(Looking { request, context, waiting: None }) } }
    }
}

impl<S, P, B, ResB> Future for KeySelectFuture<S, P, B>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    P: Pick,
    ResB: Body,
{
    type Output = Result<Response<Guarded<ResB, Record>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let StateProject::Looking { looking } = this.state.as_mut().project() {
            let Looking { request, context, waiting } = looking.as_mut().expect("taken only to be replaced at once");
            let found = match waiting {
                None => find(this.shared, request, context, waiting, cx),
                Some(_) => Poll::Pending,
            };
            let found = match found {
                Poll::Ready(found) => found,
                Poll::Pending => ready!(wait(this.shared, request, context, waiting.as_mut().expect("in line"), cx)),
            };
            let waited = waiting.take().is_some();
            let Found { lane, mut service, mut claims } = match found {
                Ok(found) => found,
                Err(error) => {
                    if let Some(trace) = context.trace() {
                        trace.reject(Rejected::find(&*error).map(Rejected::why));
                    }
                    return Poll::Ready(Err(error));
                }
            };
            if waited && this.shared.reserves {
                this.shared.pass_on(&lane.endpoint);
            }
            claims.sent();
            let Some(Looking { request, context, .. }) = looking.take() else { unreachable!("it was there above") };
            let endpoint = lane.endpoint.clone();
            context.ledger().start(&endpoint);
            let entry = context.trace().map(|trace| Box::new(trace.send(endpoint.key().name(), Instant::now())));
            if endpoint.is_forced() {
                this.shared.pool.state().count_panic_pick();
            }
            let pool = this.shared.pool.clone();
            let record = Some(Record { pool, endpoint, context, cell: None, awaits: false, claims, entry });
            let call = service.call(request);
            lane.keep(service);
            this.state.set(State::Calling { call, record });
        }
        let StateProject::Calling { call, record } = this.state.project() else { unreachable!("set above") };
        match call.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(response)) => {
                let record = record.take().expect("a future is not polled after it resolved");
                let record = record.answered(&response, this.shared);
                Poll::Ready(Ok(response.map(|body| Guarded::new(body, record))))
            }
            Poll::Ready(Err(error)) => {
                let error = error.into();
                let mut record = record.take().expect("a future is not polled after it resolved");
                record.known(this.shared.classify.error(&*error));
                Poll::Ready(Err(error))
            }
        }
    }
}

/// Looks for an endpoint; joins the line when there is none yet.
fn find<S, P, B>(
    shared: &Arc<Shared<S, P>>,
    request: &Request<B>,
    context: &RequestContext,
    waiting: &mut Option<Box<Waiting<S, P>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<Found<S>, BoxError>>
where
    S: Service<Request<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    P: Pick,
{
    let now = Instant::now();
    let outlook = match shared.choose(context, request.headers(), now, true, u64::MAX) {
        Choice::Ready(found) => return Poll::Ready(Ok(found)),
        Choice::Nobody(outlook) => outlook,
    };
    let patience = clock::after(now, shared.waiting.max_wait);
    let give_up = context.deadline().map_or(patience, |deadline| deadline.min(patience));
    if outlook.is_hopeless(give_up) {
        return Poll::Ready(last_resort(shared, request, context, outlook, now));
    }
    let Some(ticket) = Ticket::take(shared, context, cx.waker()) else {
        let detail = format!(
            "{} requests wait for a key already: send fewer at once, or raise max_waiters",
            shared.waiting.max_waiters
        );
        let after = outlook.earliest.map(|at| at - now);
        return Poll::Ready(Err(Rejected::new(Why::QueueFull, detail).retry_after(after).into()));
    };
    if let Some(found) = ticket.line_up(context, now) {
        return Poll::Ready(Ok(found));
    }
    let wake = Box::pin(tokio::time::sleep_until(outlook.look_again_at(now, give_up)));
    *waiting = Some(Box::new(Waiting { ticket, wake, give_up, outlook }));
    Poll::Pending
}

/// Stands in line.
fn wait<S, P, B>(
    shared: &Arc<Shared<S, P>>,
    request: &Request<B>,
    context: &RequestContext,
    waiting: &mut Waiting<S, P>,
    cx: &mut Context<'_>,
) -> Poll<Result<Found<S>, BoxError>>
where
    S: Service<Request<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    P: Pick,
{
    loop {
        let look_again = match waiting.ticket.poll(context, cx) {
            Ok(found) => return Poll::Ready(Ok(found)),
            Err(look_again) => look_again,
        };
        let time_is_up = waiting.wake.as_mut().poll(cx).is_ready();
        if !look_again && !time_is_up {
            return Poll::Pending;
        }
        let now = Instant::now();
        match shared.choose(context, request.headers(), now, true, waiting.ticket.number()) {
            Choice::Ready(found) => return Poll::Ready(Ok(found)),
            Choice::Nobody(outlook) => waiting.outlook = outlook,
        }
        if now >= waiting.give_up || waiting.outlook.is_hopeless(waiting.give_up) {
            let outlook = std::mem::take(&mut waiting.outlook);
            return Poll::Ready(last_resort(shared, request, context, outlook, now));
        }
        if let Some(found) = waiting.ticket.line_up(context, now) {
            return Poll::Ready(Ok(found));
        }
        waiting.wake.as_mut().reset(waiting.outlook.look_again_at(now, waiting.give_up));
    }
}

/// For who cannot wait longer. An upstream that only fails may be tried all the same, so that its own answer is the one
/// given; all else is refused.
fn last_resort<S, P, B>(
    shared: &Arc<Shared<S, P>>,
    request: &Request<B>,
    context: &RequestContext,
    outlook: Outlook,
    now: Instant,
) -> Result<Found<S>, BoxError>
where
    S: Service<Request<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    P: Pick,
{
    if outlook.soft
        && context.deadline().is_none_or(|deadline| deadline > now)
        && let Choice::Ready(found) = shared.choose(context, request.headers(), now, false, u64::MAX)
    {
        return Ok(found);
    }
    Err(outlook.refuse(shared, context, now))
}

impl Outlook {
    /// Whether nobody comes back, or free, before `give_up`.
    fn is_hopeless(&self, give_up: Instant) -> bool {
        !self.busy && self.earliest.is_none_or(|earliest| earliest > give_up)
    }

    fn look_again_at(&self, now: Instant, give_up: Instant) -> Instant {
        let Some(earliest) = self.earliest else { return give_up };
        let spread = earliest.saturating_duration_since(now).mul_f64(JITTER).max(LEAST_JITTER);
        (earliest + spread.mul_f64(fastrand::f64())).min(give_up)
    }

    fn refuse<S, P: Pick>(self, shared: &Shared<S, P>, request: &RequestContext, now: Instant) -> BoxError {
        self.broken.unwrap_or_else(|| shared.refusal(request, now).into())
    }
}

/// Writes an attempt's outcome into the ledger and the book of rests, at the head or when the body tells.
#[derive(Debug)]
pub struct Record {
    pool: Pool,
    endpoint: Endpoint,
    context: RequestContext,
    cell: Option<OutcomeCell>,
    /// Whether the outcome is yet to be written.
    awaits: bool,
    claims: Claims,
    /// The attempt in the request's trace, if it is explained.
    entry: Option<Box<Entry>>,
}

impl Record {
    /// Takes in the head; the guard goes on with the body while that may still tell more.
    fn answered<S, P: Pick, B>(mut self, response: &Response<B>, shared: &Shared<S, P>) -> Option<Self> {
        if let Some(entry) = &self.entry {
            entry.head(response.status().as_u16());
        }
        match Verdict::of(response, &*shared.classify) {
            Verdict::Known(outcome) => {
                self.learn(response);
                self.cell = response.extensions().get().cloned();
                self.known(outcome);
                if let Outcome::Fault(fault) = outcome
                    && fault.retry == Retry::Elsewhere
                    && shared.has_elsewhere(fault.scope, &self.context, Instant::now())
                {
                    self.context.ledger().end(outcome, true);
                }
            }
            Verdict::AtCommit(cell) => (self.cell, self.awaits) = (Some(cell), true),
            // what a foreign stream says in its trailers, the breaker and the monitor read
            Verdict::AtEnd => {}
        }
        (self.awaits || !self.claims.is_empty() || self.entry.is_some()).then_some(self)
    }

    fn learn<B>(&self, response: &Response<B>) {
        let Some(cell) = response.extensions().get::<OutcomeCell>() else { return };
        if let Some(account) = cell.account() {
            self.endpoint.learn_account(account);
        }
        if let Some(provider) = cell.provider() {
            self.context.ledger().blame(provider);
        }
    }

    /// The outcome is known with the head. A fault is the end of it; what a success cost is known when its body is over.
    fn known(&mut self, outcome: Outcome) {
        let seen_to = !outcome.is_success() && self.settle(Some(outcome));
        self.book(outcome, seen_to);
        if !outcome.is_success()
            && let Some(entry) = self.entry.take()
        {
            entry.judge(outcome, self.cell.as_ref().and_then(OutcomeCell::provider));
        }
    }

    fn settle(&mut self, outcome: Option<Outcome>) -> bool {
        let usage = self.cell.as_ref().and_then(OutcomeCell::usage);
        self.claims.settle(outcome, usage)
    }

    /// Writes the outcome down; a fault that a filter has `seen_to` asks for no rest.
    fn book(&self, outcome: Outcome, seen_to: bool) {
        self.context.ledger().end(outcome, false);
        match outcome {
            Outcome::Success => {
                self.pool.state().warm_up();
                let book = self.pool.book();
                if !book.is_blank() {
                    book.succeed(&self.endpoint, &self.context, Instant::now());
                }
            }
            Outcome::Fault(mut fault) => {
                let now = Instant::now();
                fault.rest = fault.rest.filter(|_| !seen_to);
                let suspects = self.endpoint.suspects();
                if fault.is_suspect()
                    && fault.rest.is_none()
                    && suspects.watching()
                    && suspects.pool_failing(Route::of(&self.endpoint, Some(&self.context)), now)
                {
                    (fault.scope, fault.rest) = (Scope::Pool, Some(Rest::guessed(FAILING_POOL)));
                }
                self.pool.record(&self.endpoint, &self.context, &fault, now);
            }
        }
    }
}

impl Guard for Record {
    fn finish(mut self, ending: Ending) {
        let whole = matches!(ending, Ending::Complete | Ending::HeadOnly).then_some(Outcome::Success);
        let (commit, end) = match &self.cell {
            Some(cell) => (cell.at_commit(), cell.at_end()),
            None => (None, whole),
        };
        // what a caller that left early will be billed nobody knows, unless the model never ran
        let seen_to = self.settle(end.or(commit.filter(|outcome| !outcome.is_success())));
        if let Some(outcome) = end.or(commit).filter(|_| self.awaits) {
            self.book(outcome, seen_to);
        }
        if let Some(entry) = self.entry.take() {
            entry.end(ending, end.or(commit), self.cell.as_ref().and_then(OutcomeCell::usage));
        }
    }
}
