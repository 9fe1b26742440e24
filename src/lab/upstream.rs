//! The upstream of a run: the simulator, with a list of what was sent to it.
//!
//! A balancer's own count of attempts can be wrong in the same way as its behaviour, so the lab counts on the other side.
//! Which client's request an attempt belongs to is told by a header that every stack passes on. And no refusal is heard in the
//! instant it is provoked: what was sent meanwhile is on its way.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http::{HeaderName, Request, Response, header::AUTHORIZATION};
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep};
use tower::{BoxError, Service};

use crate::simulator::{Simulator, SimulatorBody, SimulatorError, SimulatorFuture, SimulatorService};

/// Carries the number of the client's request.
pub(super) static REQUEST: HeaderName = HeaderName::from_static("x-lab-request");

/// One attempt, as the upstream saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The number of the client's request, from 0; `None` for what no client asked for.
    pub request: Option<usize>,
    /// The index of its key in the scenario; `None` for a credential nobody has.
    pub key: Option<usize>,
    /// When it came, since the start of the run.
    pub at: Duration,
    /// When its status was sent, since the start; `None` if the caller left first, or the connection broke.
    pub answered: Option<Duration>,
    /// The status that was sent.
    pub status: Option<u16>,
}

/// The simulator as the lab's transport. Clones share one list.
#[derive(Clone)]
pub struct Upstream {
    service: SimulatorService,
    start: Instant,
    round_trip: Duration,
    keys: Arc<HashMap<String, usize>>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Upstream {
    pub(super) fn new(simulator: &Simulator, round_trip: Duration) -> Self {
        let keys =
            simulator.keys().into_iter().enumerate().map(|(index, key)| (format!("Bearer {}", key.secret), index));
        Self {
            service: simulator.service(),
            start: Instant::now(),
            round_trip,
            keys: Arc::new(keys.collect()),
            sent: Arc::default(),
        }
    }

    /// The same without the way there, and how long that takes.
    pub(super) fn at_the_door(&self) -> (Self, Duration) {
        (Self { round_trip: Duration::ZERO, ..self.clone() }, self.round_trip)
    }

    fn list(&self) -> MutexGuard<'_, Vec<Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was sent, in order of arrival.
    pub(super) fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut self.list())
    }
}

/// Without the keys.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("sent", &self.list().len()).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Upstream
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<SimulatorBody>;
    type Error = SimulatorError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SimulatorError>> {
        Service::<Request<B>>::poll_ready(&mut self.service, cx)
    }

    fn call(&mut self, request: Request<B>) -> UpstreamFuture {
        let number = request.headers().get(&REQUEST).and_then(|value| value.to_str().ok()?.parse().ok());
        let key = request.headers().get(AUTHORIZATION).and_then(|value| self.keys.get(value.to_str().ok()?)).copied();
        let sent = Sent { request: number, key, at: Duration::ZERO, answered: None, status: None };
        let way = State::OnItsWay(Box::pin(sleep(self.round_trip)), sent);
        // nothing is done before the first poll
        UpstreamFuture { answer: self.service.call(request), upstream: self.clone(), state: way }
    }
}

/// The answer of an [`Upstream`] on its way.
#[derive(Debug)]
pub struct UpstreamFuture {
    answer: SimulatorFuture,
    upstream: Upstream,
    state: State,
}

#[derive(Debug)]
enum State {
    OnItsWay(Pin<Box<Sleep>>, Sent),
    /// It has this place in the list.
    Received(usize),
}

impl Future for UpstreamFuture {
    type Output = Result<Response<SimulatorBody>, SimulatorError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let place = match &mut this.state {
            State::Received(place) => *place,
            State::OnItsWay(way, sent) => {
                // a timer of nothing would ring a moment later
                if !this.upstream.round_trip.is_zero() {
                    ready!(way.as_mut().poll(cx));
                }
                let sent = Sent { at: this.upstream.start.elapsed(), ..sent.clone() };
                let mut list = this.upstream.list();
                list.push(sent);
                let place = list.len() - 1;
                drop(list);
                this.state = State::Received(place);
                place
            }
        };
        let answer = ready!(Pin::new(&mut this.answer).poll(cx));
        let now = this.upstream.start.elapsed();
        if let Ok(response) = &answer
            && let Some(sent) = this.upstream.list().get_mut(place)
        {
            (sent.answered, sent.status) = (Some(now), Some(response.status().as_u16()));
        }
        Poll::Ready(answer)
    }
}
