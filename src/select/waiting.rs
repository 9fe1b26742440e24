//! The line of those who wait for an endpoint.
//!
//! When every endpoint that fits is busy, a request waits, and the one that has waited longest and can use what comes free
//! must get it. Left to each endpoint's own limiter there would be as many queues as endpoints, and a request can stand in
//! one only; polled by every waiter, each release would wake them all. So the line is the pool's: a waiter is an entry here.
//! While there are waiters, a busy endpoint has one pending instance, polled with a waker of the endpoint's own. When that
//! fires, the first waiter that can use the endpoint is woken and takes the instance itself; if it has left meanwhile, the
//! next is. When nobody is left who could use it the instance is dropped, so an idle line holds nothing. There is no task.

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{Ordering, fence},
    },
    task::{Context, Poll, Wake, Waker},
};

use http::Request;
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::{
    choose::{Found, Shared},
    filter::Fit,
    lanes::Lane,
    pick::Pick,
    pool::Watcher,
};
use crate::{
    endpoint::{Endpoint, EndpointId},
    request::RequestContext,
};

/// The line.
pub(super) struct Room<S> {
    state: Mutex<State<S>>,
}

struct State<S> {
    next_ticket: u64,
    waiters: BTreeMap<u64, Waiter>,
    pending: HashMap<EndpointId, Pending<S>>,
}

struct Waiter {
    request: RequestContext,
    waker: Waker,
    /// The endpoint it was woken for.
    offered: Option<EndpointId>,
    /// Whether it should look at the pool anew.
    look_again: bool,
}

/// The line's instance of an endpoint.
struct Pending<S> {
    lane: Arc<Lane<S>>,
    /// The instance; out while somebody polls it.
    service: Option<S>,
    /// Whether its waker fired while it was out.
    fired: bool,
}

impl<S> Default for Room<S> {
    fn default() -> Self {
        let state = State { next_ticket: 0, waiters: BTreeMap::new(), pending: HashMap::new() };
        Self { state: Mutex::new(state) }
    }
}

impl<S> Room<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiters.len()
    }

    /// Puts an instance that is out back into the line. Says whether its waker fired meanwhile.
    fn put_back(&self, lane: &Lane<S>, service: S) -> bool {
        let mut state = self.lock();
        match state.pending.get_mut(&lane.endpoint.id()) {
            Some(pending) => {
                pending.service = Some(service);
                std::mem::take(&mut pending.fired)
            }
            None => {
                drop(state);
                drop(service);
                false
            }
        }
    }

    /// The lane of an instance that is here to be taken; if it is out, notes that its waker fired.
    fn waits_for_a_taker(&self, id: EndpointId) -> Option<Arc<Lane<S>>> {
        let mut state = self.lock();
        let pending = state.pending.get_mut(&id)?;
        pending.fired |= pending.service.is_none();
        pending.service.is_some().then(|| pending.lane.clone())
    }

    /// Takes the lane out of the line.
    fn forget(&self, lane: &Lane<S>) {
        let pending = {
            let mut state = self.lock();
            lane.contended.store(false, Ordering::Release);
            state.pending.remove(&lane.endpoint.id())
        };
        // dropping an instance runs foreign code, so no lock may be held
        drop(pending);
    }

    /// The same, unless somebody joined the line since its end was `end`: who joins counts on the lane's instance.
    fn forget_at(&self, lane: &Lane<S>, end: u64) -> bool {
        let pending = {
            let mut state = self.lock();
            if state.next_ticket != end {
                return false;
            }
            lane.contended.store(false, Ordering::Release);
            state.pending.remove(&lane.endpoint.id())
        };
        drop(pending);
        true
    }
}

/// A place in the line; dropping it leaves the line and passes on what was offered.
pub(super) struct Ticket<S: Send + Sync + 'static, P: Pick> {
    shared: Arc<Shared<S, P>>,
    number: u64,
}

impl<S: Send + Sync + 'static, P: Pick> Ticket<S, P> {
    /// Joins the end of the line; `None` when it is full.
    pub(super) fn take(shared: &Arc<Shared<S, P>>, request: &RequestContext, waker: &Waker) -> Option<Self> {
        let mut state = shared.room.lock();
        if state.waiters.len() >= shared.waiting.max_waiters {
            return None;
        }
        let number = state.next_ticket;
        state.next_ticket += 1;
        let waiter = Waiter { request: request.clone(), waker: waker.clone(), offered: None, look_again: false };
        state.waiters.insert(number, waiter);
        drop(state);
        // from here on whoever gives something back tells us, so what we see when we look next is not missed
        shared.pool.waiters().fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Some(Self { shared: shared.clone(), number })
    }

    /// Sees to it that every endpoint that fits has an instance in the line. One that is ready at once is taken.
    pub(super) fn line_up<B>(&self, request: &RequestContext, now: Instant) -> Option<Found<S>>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let earlier = request.ledger().current().to_vec();
        let snapshot = self.shared.lanes.current(now);
        for lane in &snapshot.lanes {
            if !lane.is_contended()
                && self.shared.fits(&lane.endpoint, &earlier, request, now) == Fit::Yes
                && !self.shared.is_waited_for(&lane.endpoint, self.number)
                && self.enlist(lane)
                && let Some(service) = self.poll_instance(lane, lane.clone_of_prototype())
            {
                self.replenish(lane);
                let found = self.shared.claim(lane, service, request, now);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// Takes what was offered since the last poll, if it is really there. Else says whether to look at the pool anew.
    pub(super) fn poll<B>(&self, request: &RequestContext, cx: &mut Context<'_>) -> Result<Found<S>, bool>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let (lane, service) = {
            let mut state = self.shared.room.lock();
            let State { waiters, pending, .. } = &mut *state;
            let Some(waiter) = waiters.get_mut(&self.number) else { return Err(true) };
            waiter.waker.clone_from(cx.waker());
            let Some(id) = waiter.offered.take() else { return Err(std::mem::take(&mut waiter.look_again)) };
            match pending.get_mut(&id).and_then(|pending| Some((pending.lane.clone(), pending.service.take()?))) {
                Some(found) => found,
                None => return Err(true),
            }
        };
        if let Some(service) = self.poll_instance(&lane, service) {
            self.replenish(&lane);
            return self.shared.claim(&lane, service, request, Instant::now()).ok_or(true);
        }
        // what came free while this waiter had an offer went to others, or to nobody
        Err(true)
    }

    /// The place in line: lower numbers came earlier.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Reserves the lane's place in the line, unless it has one.
    fn enlist(&self, lane: &Arc<Lane<S>>) -> bool {
        let mut state = self.shared.room.lock();
        if state.pending.contains_key(&lane.endpoint.id()) {
            return false;
        }
        lane.contended.store(true, Ordering::Release);
        let pending = Pending { lane: lane.clone(), service: None, fired: false };
        state.pending.insert(lane.endpoint.id(), pending);
        true
    }

    /// Polls an instance that is out: gives it back if it is ready, else puts it into the line.
    fn poll_instance<B>(&self, lane: &Arc<Lane<S>>, mut service: S) -> Option<S>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let _lost_by_a_panic = IfPanicking(|| self.shared.give_up(lane));
        let waker = Waker::from(Arc::new(LaneWaker { shared: Arc::downgrade(&self.shared), id: lane.endpoint.id() }));
        match service.poll_ready(&mut Context::from_waker(&waker)) {
            Poll::Ready(Ok(())) => Some(service),
            Poll::Pending => {
                if self.shared.room.put_back(lane, service) {
                    offer(&self.shared, lane.endpoint.id());
                }
                None
            }
            Poll::Ready(Err(_)) => {
                self.shared.lanes.rebuild(&lane.endpoint);
                self.shared.give_up(lane);
                None
            }
        }
    }

    /// After an instance was taken: another one in its place, if others still wait for the endpoint.
    fn replenish<B>(&self, lane: &Arc<Lane<S>>)
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        while let Err(end) = first_able(&self.shared, &lane.endpoint, Some(self.number)) {
            if self.shared.room.forget_at(lane, end) {
                return;
            }
        }
        if let Some(service) = self.poll_instance(lane, lane.clone_of_prototype()) {
            // there is room for one more
            self.shared.room.put_back(lane, service);
            offer(&self.shared, lane.endpoint.id());
        }
    }
}

impl<S: Send + Sync + 'static, P: Pick> Shared<S, P> {
    /// Takes a lane whose instance is lost out of the line; whoever waits for it lines up anew.
    fn give_up(&self, lane: &Lane<S>) {
        self.room.forget(lane);
        self.changed();
    }
}

/// Does something when a panic of foreign code comes through here.
struct IfPanicking<F: Fn()>(F);

impl<F: Fn()> Drop for IfPanicking<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

impl<S: Send + Sync + 'static, P: Pick> Drop for Ticket<S, P> {
    fn drop(&mut self) {
        self.shared.pool.waiters().fetch_sub(1, Ordering::SeqCst);
        let (offered, told, abandoned) = {
            let mut state = self.shared.room.lock();
            let waiter = state.waiters.remove(&self.number);
            let told = waiter.as_ref().is_some_and(|waiter| waiter.look_again);
            let offered = waiter.and_then(|waiter| waiter.offered);
            let mut abandoned = HashMap::new();
            if state.waiters.is_empty() {
                abandoned = std::mem::take(&mut state.pending);
                for pending in abandoned.values() {
                    pending.lane.contended.store(false, Ordering::Release);
                }
            }
            (offered, told, abandoned)
        };
        // an instance may give back a permit when dropped, and so wake others: no lock may be held
        drop(abandoned);
        if let Some(id) = offered {
            offer(&self.shared, id);
        }
        // it was told of something that it leaves to others
        if told && self.shared.reserves {
            self.shared.changed();
        }
    }
}

/// The first in line that can use the endpoint and has no other offer, else where the line ended.
///
/// Filters are foreign code, and this may run where another request gives something back. So no lock is held while they
/// judge, and a panic of one is a no; whoever asked meets it again when it looks for itself.
fn first_able<S, P: Pick>(shared: &Shared<S, P>, endpoint: &Endpoint, except: Option<u64>) -> Result<u64, u64> {
    first_of(shared, endpoint, |number, waiter| Some(number) != except && waiter.offered.is_none())
}

/// The first of some in line that can use the endpoint, else where the line ended.
fn first_of<S, P: Pick>(
    shared: &Shared<S, P>,
    endpoint: &Endpoint,
    of: impl Fn(u64, &Waiter) -> bool,
) -> Result<u64, u64> {
    let now = Instant::now();
    let mut from = 0;
    loop {
        let (number, request) = {
            let state = shared.room.lock();
            let mut rest = state.waiters.range(from..);
            match rest.find(|(number, waiter)| of(**number, waiter)) {
                Some((number, waiter)) => (*number, waiter.request.clone()),
                None => return Err(state.next_ticket),
            }
        };
        let earlier = request.ledger().current().to_vec();
        let fits = || shared.fits(endpoint, &earlier, &request, now) == Fit::Yes;
        if catch_unwind(AssertUnwindSafe(fits)).unwrap_or(false) {
            return Ok(number);
        }
        from = number + 1;
    }
}

/// Offers the endpoint's instance to the first in line who can use it; drops it if nobody can.
fn offer<S: Send + Sync + 'static, P: Pick>(shared: &Shared<S, P>, id: EndpointId) {
    loop {
        let Some(lane) = shared.room.waits_for_a_taker(id) else { return };
        match first_able(shared, &lane.endpoint, None) {
            Ok(number) => {
                let waker = {
                    let mut state = shared.room.lock();
                    state.waiters.get_mut(&number).filter(|waiter| waiter.offered.is_none()).map(|waiter| {
                        waiter.offered = Some(id);
                        waiter.waker.clone()
                    })
                };
                // else it left meanwhile, or has another offer
                if let Some(waker) = waker {
                    return waker.wake();
                }
            }
            Err(end) if shared.room.forget_at(&lane, end) => return,
            Err(_) => {}
        }
    }
}

/// The waker of an endpoint's instance in the line.
struct LaneWaker<S, P> {
    shared: Weak<Shared<S, P>>,
    id: EndpointId,
}

impl<S: Send + Sync + 'static, P: Pick> Wake for LaneWaker<S, P> {
    fn wake(self: Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            offer(&shared, self.id);
        }
    }
}

impl<S, P: Pick> Shared<S, P> {
    /// Whether somebody in line before this number could use the endpoint now, of which some is set aside for each, and waits
    /// for no more than to be told. Who finds that out tells.
    pub(super) fn is_waited_for(&self, endpoint: &Endpoint, before: u64) -> bool {
        if !self.reserves || self.pool.waiters().load(Ordering::Relaxed) == 0 {
            return false;
        }
        let first = first_of(self, endpoint, |number, waiter| number < before && waiter.offered.is_none());
        if let Ok(number) = first {
            self.wake(number);
        }
        first.is_ok()
    }

    fn wake(&self, number: u64) {
        let waker = self.room.lock().waiters.get_mut(&number).map(|waiter| {
            waiter.look_again = true;
            waiter.waker.clone()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells the first in line that can use the endpoint, and has not been told yet, to look. When it finds what it needs it
    /// tells the next, so what came free reaches as many as it suffices for and wakes nobody else.
    pub(super) fn pass_on(&self, endpoint: &Endpoint) {
        if let Ok(number) = first_of(self, endpoint, |_, waiter| waiter.offered.is_none() && !waiter.look_again) {
            self.wake(number);
        }
    }
}

impl<S: Send + Sync + 'static, P: Pick> Watcher for Shared<S, P> {
    fn freed(&self, endpoint: &Endpoint) {
        let now = Instant::now();
        if endpoint.is_removed() || self.lanes.back_at(endpoint, now).is_some() {
            // others of its account may have been waited for, and it is no measure for them
            self.changed();
        } else {
            self.pass_on(endpoint);
        }
    }

    fn changed(&self) {
        let wakers: Vec<_> = {
            let mut state = self.room.lock();
            state
                .waiters
                .values_mut()
                .map(|waiter| {
                    waiter.look_again = true;
                    waiter.waker.clone()
                })
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}
