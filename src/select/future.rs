use std::{
    fmt,
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
    choose::{Choice, Found, Outlook, Selection, Shared},
    claims::Claims,
    pick::Pick,
    waiting::{Heard, Others, Ticket},
};
use crate::{
    body::{Ending, Guard, Guarded},
    clock,
    endpoint::{Endpoint, Route},
    error::{Rejected, Why, whole_seconds},
    explain::Entry,
    outcome::{Classify, Outcome, OutcomeCell, Rest, Retry, Scope, Verdict},
    request::{Attempting, RequestContext},
};

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
    /// For when it gives up, or sooner if it keeps the time for all.
    timer: Pin<Box<Sleep>>,
    give_up: Instant,
    /// Whether it should look at all endpoints first.
    look: bool,
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
            let waited = waiting.take();
            let Found { lane, mut service, mut claims } = match found {
                Ok(found) => found,
                Err(error) => {
                    if let Some(trace) = context.trace() {
                        trace.reject(Rejected::find(&*error).map(Rejected::why));
                    }
                    return Poll::Ready(Err(error));
                }
            };
            if let Some(waited) = waited {
                waited.ticket.served(Instant::now());
            }
            claims.sent();
            let Some(Looking { request, context, .. }) = looking.take() else { unreachable!("it was there above") };
            let endpoint = lane.endpoint.clone();
            let attempt = Attempting::start(context, &endpoint);
            let context = attempt.context();
            let entry = context.trace().map(|trace| Box::new(trace.send(endpoint.key().name(), Instant::now())));
            if endpoint.is_forced() {
                this.shared.pool.state().count_panic_pick();
            }
            let selection: Arc<dyn Selection> = this.shared.clone();
            let record = Some(Record { selection, endpoint, attempt, cell: None, awaits: false, claims, entry });
            let call = service.call(request);
            lane.keep(service);
            this.state.set(State::Calling { call, record });
        }
        let StateProject::Calling { call, record } = this.state.project() else { unreachable!("set above") };
        match call.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(mut response)) => {
                let record = record.take().expect("a future is not polled after it resolved");
                if response.extensions().get::<OutcomeCell>().is_none() {
                    // whoever judges it further out knows by this which attempt it was
                    response.extensions_mut().insert(record.attempt.id());
                }
                let record = record.answered(&response, &*this.shared.classify);
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

/// Looks for an endpoint; joins the line when there is none yet, or when others wait for the same.
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
    let give_up = || {
        let patience = clock::after(now, shared.waiting.max_wait);
        context.deadline().map_or(patience, |deadline| deadline.min(patience))
    };
    let (mut kind, mut look, mut after) = (None, true, None);
    if shared.room.len() > 0 {
        // what is overdue comes before who comes now
        shared.tick();
        kind = shared.kind(context);
        match kind.map_or(Others::None, |kind| shared.room.others(kind, context, give_up(), now)) {
            Others::TooMany(start) => return Poll::Ready(Err(too_many(start, now).into())),
            Others::Some { known } => look = !known,
            Others::None => kind = None,
        }
    }
    // what is sent beside an attempt that runs is worth no wait, and not the place of one who has none
    let beside = || context.ledger().runs();
    if kind.is_some() {
        if beside() {
            return Poll::Ready(Err(shared.refusal(context, now).into()));
        }
        shared.explain_wait(context, None, now);
    } else {
        let outlook = match shared.choose(context, request.headers(), now, true) {
            Choice::Ready(found) => return Poll::Ready(Ok(found)),
            Choice::Nobody(outlook) => outlook,
        };
        if beside() {
            return Poll::Ready(Err(shared.refusal(context, now).into()));
        }
        if give_up() <= now || outlook.is_hopeless(give_up()) {
            return Poll::Ready(last_resort(shared, request, context, outlook, None, now));
        }
        kind = shared.kind(context);
        after = outlook.earliest.map(|at| at.saturating_duration_since(now));
    }
    let give_up = give_up();
    let Some(ticket) = Ticket::take(shared, context, kind, give_up, now, cx.waker()) else {
        let detail = format!(
            "{} requests wait for a key already: send fewer at once, or raise max_waiters",
            shared.waiting.max_waiters
        );
        return Poll::Ready(Err(Rejected::new(Why::QueueFull, detail).retry_after(after).into()));
    };
    context.ledger().wait();
    let timer = Box::pin(tokio::time::sleep_until(give_up));
    *waiting = Some(Box::new(Waiting { ticket, timer, give_up, look }));
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
        shared.tick();
        let Waiting { ticket, timer, give_up, look } = waiting;
        match ticket.poll(context, cx) {
            Heard::Nothing => {}
            Heard::Found(found) => return Poll::Ready(Ok(found)),
            Heard::Look => *look = true,
            Heard::Hopeless => *give_up = Instant::now(),
            Heard::TooLong(start) => return Poll::Ready(Err(too_many(start, Instant::now()).into())),
        }
        let now = Instant::now();
        if std::mem::take(look) {
            let outlook = match ticket.look(context, now) {
                Ok(found) => return Poll::Ready(Ok(found)),
                Err(outlook) => outlook,
            };
            ticket.tell(&outlook, now);
            *look = ticket.has_missed_something();
            if *look {
                continue;
            }
            if outlook.is_hopeless(*give_up) {
                return Poll::Ready(last_resort(shared, request, context, outlook, Some(ticket), now));
            }
        }
        if *give_up <= now {
            let outlook = match ticket.outlook(now) {
                Some(outlook) => {
                    shared.explain_wait(context, None, now);
                    outlook
                }
                None => match shared.choose(context, request.headers(), now, true) {
                    Choice::Ready(found) => return Poll::Ready(Ok(found)),
                    Choice::Nobody(outlook) => {
                        ticket.tell(&outlook, now);
                        outlook
                    }
                },
            };
            return Poll::Ready(last_resort(shared, request, context, outlook, Some(ticket), now));
        }
        let wake = ticket.keeps_time_until().map_or(*give_up, |at| at.min(*give_up));
        if timer.deadline() != wake {
            timer.as_mut().reset(wake);
        }
        ready!(timer.as_mut().poll(cx));
    }
}

/// For who cannot wait longer. An upstream that only fails may be tried all the same, so that its own answer is the one
/// given; all else is refused.
fn last_resort<S, P, B>(
    shared: &Arc<Shared<S, P>>,
    request: &Request<B>,
    context: &RequestContext,
    outlook: Outlook,
    ticket: Option<&Ticket<S, P>>,
    now: Instant,
) -> Result<Found<S>, BoxError>
where
    S: Service<Request<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    P: Pick,
{
    if outlook.soft
        && context.deadline().is_none_or(|deadline| deadline > now)
        && let Choice::Ready(found) = shared.choose(context, request.headers(), now, false)
    {
        return Ok(found);
    }
    let refusal = || shared.refusal(context, now);
    Err(outlook.broken.unwrap_or_else(|| match ticket {
        Some(ticket) => ticket.refusal(now, refusal).into(),
        None => refusal().into(),
    }))
}

/// The refusal of one before whom too many wait.
fn too_many(start: Instant, now: Instant) -> Rejected {
    let after = start.saturating_duration_since(now);
    let detail = format!(
        "so many requests wait for a key that the turn of this one would come in about {} s, which is more than it can count \
         on: send fewer, or add keys",
        whole_seconds(after)
    );
    Rejected::new(Why::NoKey, detail).retry_after(after)
}

impl Outlook {
    /// Whether nobody comes back, or free, before `give_up`.
    fn is_hopeless(&self, give_up: Instant) -> bool {
        !self.busy && self.earliest.is_none_or(|earliest| earliest > give_up)
    }
}

/// Writes an attempt's outcome into the ledger and the book of rests: at the head, or when the body tells. A failure is
/// written as soon as it is known, so that whoever looks into the body above finds it there.
pub struct Record {
    selection: Arc<dyn Selection>,
    endpoint: Endpoint,
    attempt: Attempting,
    cell: Option<OutcomeCell>,
    /// Whether the outcome is yet to be written.
    awaits: bool,
    claims: Claims,
    /// The attempt in the request's trace, if it is explained.
    entry: Option<Box<Entry>>,
}

impl Record {
    /// Takes in the head; the guard goes on with the body while that may still tell more.
    fn answered<B>(mut self, response: &Response<B>, classify: &dyn Classify) -> Option<Self> {
        if let Some(entry) = &self.entry {
            entry.head(response.status().as_u16());
        }
        let verdict = Verdict::of(response, classify);
        self.cell = response.extensions().get().cloned();
        match verdict {
            Verdict::Known(outcome) => self.known(outcome),
            Verdict::AtCommit(_) => self.awaits = true,
            // what a foreign stream says in its trailers, the breaker and the monitor read; until then it runs
            Verdict::AtEnd => return Some(self),
        }
        (self.awaits || !self.claims.is_empty() || self.entry.is_some()).then_some(self)
    }

    fn learn(&self) {
        let Some(cell) = &self.cell else { return };
        if let Some(account) = cell.account() {
            self.endpoint.learn_account(account);
        }
        if let Some(provider) = cell.provider() {
            self.attempt.blame(provider);
        }
    }

    /// The outcome is known. A fault is the end of it; what a success cost is known when its body is over.
    fn known(&mut self, outcome: Outcome) {
        if outcome.is_success() {
            return self.book(outcome, false);
        }
        let seen_to = self.settle(Some(outcome));
        self.book(outcome, seen_to);
        if let Some(entry) = self.entry.take() {
            entry.judge(outcome, self.cell.as_ref().and_then(OutcomeCell::provider));
        }
    }

    fn settle(&mut self, outcome: Option<Outcome>) -> bool {
        let cell = self.cell.as_ref();
        self.claims.settle(outcome, cell.and_then(OutcomeCell::usage), cell.and_then(OutcomeCell::limit))
    }

    /// Writes the outcome down; a fault that a filter has `seen_to` asks for no rest.
    fn book(&mut self, outcome: Outcome, seen_to: bool) {
        self.learn();
        self.attempt.end(outcome, false);
        let context = self.attempt.context();
        let pool = self.selection.pool();
        match outcome {
            Outcome::Success => {
                pool.state().warm_up();
                let book = pool.book();
                if !book.is_blank() {
                    book.succeed(&self.endpoint, context, Instant::now());
                }
            }
            Outcome::Fault(mut fault) => {
                let (now, scope) = (Instant::now(), fault.scope);
                fault.rest = fault.rest.filter(|_| !seen_to);
                let suspects = self.endpoint.suspects();
                if fault.is_suspect()
                    && fault.rest.is_none()
                    && suspects.watching()
                    && suspects.pool_failing(Route::of(&self.endpoint, Some(context)), now)
                {
                    (fault.scope, fault.rest) = (Scope::Pool, Some(Rest::guessed(FAILING_POOL)));
                }
                pool.record(&self.endpoint, context, &fault, now);
                if fault.retry == Retry::Elsewhere && self.selection.has_elsewhere(scope, context, now) {
                    self.attempt.end(outcome, true);
                }
            }
        }
    }
}

impl Guard for Record {
    fn data(&mut self, chunk: &[u8]) {
        if let Some(entry) = &self.entry {
            entry.speaks();
        }
        let commit = self.cell.as_ref().map(OutcomeCell::at_commit);
        if self.awaits
            && let Some(Some(outcome @ Outcome::Fault(_))) = commit
        {
            self.awaits = false;
            self.known(outcome);
        } else if self.claims.awaits_output() && !chunk.is_empty() && commit != Some(None) {
            self.claims.output(Instant::now());
        }
    }

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

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
