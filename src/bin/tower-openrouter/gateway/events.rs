//! `/events`: what the page shows, told once a second to those who look at it, as server-sent events.
//!
//! What happened is [remembered](history) always, since the page is opened after something went wrong. The picture is drawn
//! only while somebody looks, once for all of them: who is too slow for it misses some, and is then told the whole anew. It
//! takes no more than so many listeners, and sends them away when the gateway stops.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{body::Body, extract::State};
use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    admin::{Admin, refuse},
    live::Live,
};

mod history;
mod picture;

use history::History;

/// How many may listen at once.
const LISTENERS: usize = 16;
/// How many requests a second are explained for those who look, besides those that ask.
const EXPLAINED: u32 = 10;

/// What listeners are told. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    history: Mutex<History>,
    latest: watch::Sender<Latest>,
    places: Arc<Semaphore>,
}

/// The latest event, and which it is.
#[derive(Debug, Clone, Default)]
struct Latest {
    tick: u64,
    event: Bytes,
}

impl Events {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            history: Mutex::default(),
            latest: watch::Sender::new(Latest::default()),
            places: Arc::new(Semaphore::new(LISTENERS)),
        }))
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when nobody listens any more: who does is sent away when the gateway stops.
    pub(super) async fn left(&self) {
        self.0.latest.closed().await;
    }

    /// Keeps the history, and draws the picture for those who look; for ever.
    pub(super) async fn run(self, admin: Live<Admin>) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            let admin = admin.now();
            let pool = admin.balancer.pool();
            let waiting = pool.waiting().iter().map(|(_, count)| count).sum();
            let mut history = self.history();
            history.tick(&pool.endpoints(), waiting);
            if self.0.latest.receiver_count() == 0 {
                admin.traces.want(0);
                continue;
            }
            admin.traces.want(EXPLAINED);
            self.0.latest.send_modify(|latest| {
                latest.tick += 1;
                latest.event = event(&picture::write(&admin, &history, latest.tick, false));
            });
        }
    }
}

fn event(data: &str) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// One who listens.
struct Listener {
    admin: Live<Admin>,
    latest: watch::Receiver<Latest>,
    draining: watch::Receiver<bool>,
    /// The tick it was told last; `None` before the first.
    told: Option<u64>,
    stopped: bool,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.stopped {
            return None;
        }
        let (draining, latest, is_new) = (&mut self.draining, &mut self.latest, self.told.is_none());
        self.stopped = tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => true,
            // who was told nothing need not wait
            changed = latest.changed(), if !is_new => changed.is_err(),
            () = ready(()), if is_new => false,
        };
        if self.stopped {
            return Some((Ok(Bytes::from_static(b"event: stopping\ndata: {}\n\n")), self));
        }
        let Latest { tick, event } = self.latest.borrow_and_update().clone();
        let follows = self.told.is_some_and(|told| told + 1 == tick);
        self.told = Some(tick);
        let event = if follows { event } else { self.full(tick) };
        Some((Ok(event), self))
    }

    fn full(&self, tick: u64) -> Bytes {
        let admin = self.admin.now();
        let text = picture::write(&admin, &admin.events.history(), tick, true);
        event(&text)
    }
}

/// An endless answer, until the gateway stops.
pub(super) async fn listen(State(live): State<Live<Admin>>, headers: HeaderMap) -> Response<Body> {
    let admin = live.now();
    if !admin.access.allows(&headers) {
        return refuse(StatusCode::UNAUTHORIZED, "Missing or wrong admin token");
    }
    if admin.drain.is_draining() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "The gateway is stopping");
    }
    let Ok(place) = admin.events.0.places.clone().try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "So many listen already: close another page, or come back");
    };
    let listener = Listener {
        latest: admin.events.0.latest.subscribe(),
        draining: admin.drain.watch(),
        told: None,
        stopped: false,
        _place: place,
        admin: live,
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(listener, Listener::next)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
