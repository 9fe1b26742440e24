use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Service};

use super::{
    choose::{Choice, Found, Outlook, Selection, Shared},
    pick::Pick,
    record::Record,
    waiting::{Heard, Others, Ticket},
};
use crate::{
    body::Guarded,
    clock,
    error::{Rejected, Why, whole_seconds},
    outcome::OutcomeCell,
    request::{Attempting, RequestContext},
};

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
            let record = Some(Record::new(selection, endpoint, attempt, claims, entry));
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
                    response.extensions_mut().insert(record.attempt());
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
        let outlook = match shared.choose(context, request.headers(), now, true, None) {
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
        // who is merely busy may be free long before who rests is back
        after = outlook.earliest.filter(|_| !outlook.busy).map(|at| at.saturating_duration_since(now));
    }
    let give_up = give_up();
    let Some(ticket) = Ticket::take(shared, context, kind, give_up, now, cx.waker()) else {
        let detail = match shared.waiting.max_waiters {
            0 => "all keys are busy, and none may be waited for: send fewer at once, or raise max_waiters".to_owned(),
            most => format!("{most} requests wait for a key already: send fewer at once, or raise max_waiters"),
        };
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
                None => match shared.choose(context, request.headers(), now, true, Some(ticket)) {
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
        && let Choice::Ready(found) = shared.choose(context, request.headers(), now, false, ticket)
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
