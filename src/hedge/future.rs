use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::BoxError;
use tower_service::Service;

use super::{Shared, Skip};
use crate::{
    Rejected, clock,
    outcome::{Outcome, Retry, Scope, Verdict},
    request::{Replay, RequestContext},
    sync::lock_std,
};

/// What a request counts with that sets no bound for its answer, in tokens; as the credit limit has it.
const UNSAID: u64 = 16_384;

/// The future of [`Hedge`](super::Hedge).
pub struct HedgeFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
{
    // boxed, since it holds two exchanges and a request
    run: Pin<Box<RunOf<S, B, ResB>>>,
}

type RunOf<S, B, ResB> = Run<S, B, <S as Service<Request<B>>>::Future, ResB>;

/// A second attempt that may come.
pub(super) struct Plan<S, B> {
    late: Duration,
    request: Request<B>,
    service: S,
    /// From when the timer runs.
    since: Instant,
    timer: Pin<Box<Sleep>>,
    /// Whether it is late already, and waits for the service to be ready.
    is_late: bool,
}

impl<S, B> Plan<S, B> {
    pub(super) fn new(late: Duration, request: Request<B>, service: S, now: Instant) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(clock::after(now, late)));
        Self { late, request, service, since: now, timer, is_late: false }
    }
}

pin_project! {
    struct Run<S, B, F, ResB> {
        #[pin]
        first: Option<F>,
        #[pin]
        second: Option<F>,
        plan: Option<Plan<S, B>>,
        // the first's failure, for when the second turns out not to have been sent
        failed: Option<Result<Response<ResB>, BoxError>>,
        watch: Watch,
    }
}

/// What is known of the request.
struct Watch {
    shared: Arc<Shared>,
    context: RequestContext,
    kind: u64,
    /// When the first attempt was sent, or when it came while it stands in line for a key.
    sent: Instant,
    stands: bool,
}

impl<S, B, ResB> HedgeFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
{
    pub(super) fn new(
        first: S::Future,
        plan: Option<Plan<S, B>>,
        shared: Arc<Shared>,
        context: RequestContext,
        kind: u64,
        now: Instant,
    ) -> Self {
        let watch = Watch { shared, context, kind, sent: now, stands: false };
        Self { run: Box::pin(Run { first: Some(first), second: None, plan, failed: None, watch }) }
    }
}

/// What an attempt has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Output,
    /// It failed, and so would any other.
    Final,
    Failure,
    /// A layer of ours refused it: nothing was sent.
    Refused,
}

impl Watch {
    /// Sees whether the first attempt was sent: its time runs from then.
    fn look(&mut self) {
        let stands = self.context.ledger().waits();
        if self.stands && !stands {
            self.sent = Instant::now();
        }
        self.stands = stands;
    }

    fn judge<ResB>(&self, result: &Result<Response<ResB>, BoxError>) -> Said {
        let fault = match result {
            Ok(response) => match Verdict::of(response, &*self.shared.classify) {
                Verdict::Known(Outcome::Fault(fault)) => fault,
                // what the gate below has let go is taken, output or not
                Verdict::Known(Outcome::Success) | Verdict::AtCommit(_) | Verdict::AtEnd => return Said::Output,
            },
            Err(error) if Rejected::find(&**error).is_some() => return Said::Refused,
            Err(error) => match self.shared.classify.error(&**error) {
                Outcome::Fault(fault) => fault,
                Outcome::Success => return Said::Failure,
            },
        };
        if fault.scope == Scope::Request && fault.retry == Retry::Never { Said::Final } else { Said::Failure }
    }

    /// The first attempt has said something, or had not by the time the second did.
    fn learn(&self) {
        let now = Instant::now();
        lock_std(&self.shared.seen).first_output(self.kind, now.saturating_duration_since(self.sent), now);
    }

    /// Whether the request may be sent once more, which is then counted.
    fn take<B: Replay>(&self, request: &Request<B>) -> Result<(), Skip> {
        if !request.body().is_replayable() {
            return Err(Skip::Unreplayable);
        }
        if self.shared.limits.max_cost.is_some_and(|most| self.cost().is_none_or(|cost| cost > most)) {
            return Err(Skip::Cost);
        }
        if !self.context.ledger().hedge() {
            return Err(Skip::Tried);
        }
        let share = lock_std(&self.shared.seen).take();
        if let Err(why) = share {
            self.context.ledger().unhedge();
            return Err(why);
        }
        if self.shared.budget.as_ref().is_some_and(|budget| !budget.withdraw()) {
            self.give_back();
            return Err(Skip::Budget);
        }
        Ok(())
    }

    fn give_back(&self) {
        lock_std(&self.shared.seen).give_back();
        self.context.ledger().unhedge();
    }

    /// What the request may cost at worst, in US dollars, where its price is known.
    fn cost(&self) -> Option<f64> {
        let asks = self.context.asks();
        let bytes = self.context.body()?.len() as u64;
        let ledger = self.context.ledger();
        let prices = ledger.latest()?.endpoint.prices();
        let models = asks.model.iter().chain(&asks.models);
        let costs = models.map(|model| Some(prices.get(model)?.worst_case(bytes, asks.max_tokens, UNSAID).usd()));
        costs.collect::<Option<Vec<_>>>()?.into_iter().reduce(f64::max)
    }
}

impl<S, B, ResB> Future for HedgeFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    B: Replay,
{
    type Output = Result<Response<ResB>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.run.as_mut().project();
        if let Some(first) = this.first.as_mut().as_pin_mut() {
            if let Poll::Ready(result) = first.poll(cx) {
                let result = result.map_err(Into::into);
                let said = this.watch.judge(&result);
                if said == Said::Output {
                    this.watch.learn();
                }
                this.first.set(None);
                *this.plan = None;
                if this.second.is_none() || matches!(said, Said::Output | Said::Final) {
                    // gone before the answer is passed on
                    this.second.set(None);
                    return Poll::Ready(result);
                }
                // the second is the attempt now
                *this.failed = Some(result);
            } else {
                this.watch.look();
            }
        }
        if let Some(plan) = this.plan
            && let Poll::Ready(is_ready) = plan.poll(this.watch, cx)
        {
            let plan = this.plan.take().expect("it was there above");
            if let Some(second) = is_ready.then(|| plan.send(this.watch)).flatten() {
                this.watch.shared.counts.hedge();
                this.second.set(Some(second));
            }
        }
        let Some(second) = this.second.as_mut().as_pin_mut() else { return Poll::Pending };
        let Poll::Ready(result) = second.poll(cx) else { return Poll::Pending };
        let result = result.map_err(Into::into);
        this.second.set(None);
        let said = this.watch.judge(&result);
        match said {
            Said::Output => {
                this.watch.shared.counts.won();
                if this.first.is_some() {
                    // it would have taken longer, and so it counts as late
                    this.watch.learn();
                }
            }
            Said::Failure | Said::Final => this.watch.shared.counts.failed(),
            Said::Refused => {
                this.watch.shared.counts.nobody();
                this.watch.give_back();
                if let Some(failed) = this.failed.take() {
                    return Poll::Ready(failed);
                }
            }
        }
        if this.first.is_none() || matches!(said, Said::Output | Said::Final) {
            this.first.set(None);
            return Poll::Ready(result);
        }
        Poll::Pending
    }
}

impl<S, B> Plan<S, B> {
    /// Ready once the first attempt is late and the service ready; whether it is.
    fn poll<ResB>(&mut self, watch: &Watch, cx: &mut Context<'_>) -> Poll<bool>
    where
        S: Service<Request<B>, Response = Response<ResB>>,
    {
        if !self.is_late {
            // in line for a key nothing is late yet
            if watch.stands {
                return Poll::Pending;
            }
            if self.since != watch.sent {
                self.since = watch.sent;
                self.timer.as_mut().reset(clock::after(self.since, self.late));
            }
            ready!(self.timer.as_mut().poll(cx));
            self.is_late = true;
        }
        // the error of one that fails to get ready is the next request's to find
        self.service.poll_ready(cx).map(|ready| ready.is_ok())
    }

    /// Sends the second attempt, if that is worth it.
    fn send<ResB>(mut self, watch: &Watch) -> Option<S::Future>
    where
        S: Service<Request<B>, Response = Response<ResB>>,
        B: Replay,
    {
        if let Err(why) = watch.take(&self.request) {
            tracing::debug!(why = why.as_str(), "late, and not hedged");
            watch.shared.counts.skip(why);
            return None;
        }
        tracing::debug!(late = ?self.late, "hedging");
        if let Some(trace) = watch.context.trace() {
            trace.hedge();
        }
        Some(self.service.call(self.request))
    }
}

impl<S, B, ResB> fmt::Debug for HedgeFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeFuture").finish_non_exhaustive()
    }
}
