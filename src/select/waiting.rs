//! The line of those who wait for an endpoint.
//!
//! When every endpoint that fits is busy, a request waits, and the one that has waited longest and can use what comes free
//! must get it. Left to each endpoint's own limiter there would be as many queues as endpoints, and a request can stand in
//! one only; polled by every waiter, each release would wake them all; and ten thousand that look at a thousand keys each are
//! ten million looks. So the line is the pool's, and what is looked at is an endpoint that came free, not a waiter:
//!
//! - Who waits for the same (model, tags demanded, keys tried, what filters read) stands in one **group**. The first of it is
//!   judged for all, and who joins a group that stands need not look at the keys at all. Groups hold up nobody but themselves.
//! - In a group, and among the first of all groups, order is by **place**: when a request came, and its
//!   [class](crate::request::Priority), a lower one counting as if it had come 10 s later. The order is fixed, nobody starves.
//! - An endpoint that somebody waits for has a **desk**: an instance that is not ready, polled with a waker of the desk's own;
//!   or an instant at which it is back; or an offer to the one who was called. An event (a permit, a reservation given back, a
//!   rest over, a slot of a pacing filter, a key added) looks at the desk, calls the first in line who could use it, and that
//!   one takes it, polls the next instance in its place and goes. If it has left meanwhile the next is called. Newcomers
//!   keep off an endpoint that is somebody's at that moment, and no other.
//! - Instants have one **timer** for all: that of the latest who came, as he stays longest. After a rest those who come back
//!   are [spread](spread); an instant that a filter gave is used at once, by one.
//! - Who would [not be served in time](predict) is refused at once, and when that turns out later, then. Somebody looks
//!   through the line for that once a second, as long as it moves.
//!
//! A release wakes the one it is for, and the timer's keeper where that must be set anew. There is no task.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{choose::Shared, lanes::Lane, pick::Pick, pool::Watcher};
use crate::{
    endpoint::{Endpoint, EndpointId},
    request::RequestContext,
};

mod alarms;
mod desk;
mod kind;
mod line;
mod predict;
mod spread;
mod ticket;

use alarms::{Alarms, Due};
use desk::Desk;
use kind::{Kind, Kinds};
use line::{Line, Place};
pub(super) use ticket::{Heard, Ticket};

/// How often somebody looks through a line that moves, for those whose turn will come too late.
const REVIEW: Duration = Duration::from_secs(1);
/// A look of so long ago is as good as one now for those who give up.
const JUST_NOW: Duration = Duration::from_millis(10);

/// The line.
pub(super) struct Room<S> {
    /// How many wait, for those who come.
    standing: AtomicUsize,
    kinds: Kinds,
    state: Mutex<State<S>>,
}

struct State<S> {
    next_number: u64,
    /// Counts how often somebody became the first of a group.
    epoch: u64,
    /// Counts endpoints for which nobody was called.
    passed: u64,
    /// Whether every endpoint must be looked at anew.
    all_changed: bool,
    waiters: BTreeMap<u64, Waiter>,
    line: Line,
    desks: BTreeMap<EndpointId, Desk<S>>,
    alarms: Alarms,
}

struct Waiter {
    request: RequestContext,
    waker: Waker,
    kind: Kind,
    /// What it was woken for; it does not stand in line then.
    call: Option<Call>,
    /// What [`State::passed`] was then.
    called: u64,
    /// Whether something passed it over while it did not stand in line.
    missed: bool,
}

/// What one who waits is woken for.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// This endpoint is for it.
    Offer(EndpointId),
    /// It should look at all endpoints, for its group.
    Look,
    /// Nobody comes back before it gives up.
    Hopeless,
    /// Its turn will come only then.
    TooLong(Instant),
}

/// Those who wait for the same as one who comes.
pub(super) enum Others {
    /// There are none, or it could not wait with them.
    None,
    /// There are some, and what they wait for is known, or somebody must look.
    Some { known: bool },
    /// There are so many that its turn would come only then, which is too late.
    TooMany(Instant),
}

impl<S> Default for Room<S> {
    fn default() -> Self {
        let state = State {
            next_number: 0,
            epoch: 0,
            passed: 0,
            all_changed: false,
            waiters: BTreeMap::new(),
            line: Line::default(),
            desks: BTreeMap::new(),
            alarms: Alarms::default(),
        };
        Self { standing: AtomicUsize::new(0), kinds: Kinds::default(), state: Mutex::new(state) }
    }
}

impl<S> Room<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.standing.load(Ordering::Acquire)
    }

    /// Who waits for the same as one who comes, and will wait until `give_up`.
    pub(super) fn others(&self, kind: Kind, request: &RequestContext, give_up: Instant, now: Instant) -> Others {
        let state = self.lock();
        let Some(group) = state.line.group(kind).filter(|group| group.len() > 0) else { return Others::None };
        let known = group.view.is_fresh(now);
        if known && group.view.is_hopeless(give_up) {
            // looks for itself, and hears why
            return Others::None;
        }
        let place = Place::new(request.arrived().unwrap_or(now), request.priority(), u64::MAX);
        if let Some(rate) = group.rate(now) {
            let start = predict::start(now, group.view.returns(), group.ahead(place), rate);
            if predict::is_hopeless(start, give_up, now) {
                return Others::TooMany(start);
            }
        }
        Others::Some { known }
    }

    /// Puts a new lane in the place of one whose stack is finished.
    fn replace(&self, lane: &Arc<Lane<S>>) {
        let old = self.lock().desks.get_mut(&lane.endpoint.id()).map(|desk| {
            lane.contend(0);
            std::mem::replace(&mut desk.lane, lane.clone())
        });
        drop(old);
    }

    /// Takes the lane out of the line.
    fn forget(&self, lane: &Lane<S>) {
        let gone = self.lock().forget(lane.endpoint.id());
        // dropping an instance runs foreign code, so no lock may be held
        drop(gone);
    }
}

impl<S> State<S> {
    /// Has one stand in line, unless it does, or has been called.
    fn stand(&mut self, kind: Kind, place: Place, give_up: Instant) {
        let Some(waiter) = self.waiters.get_mut(&place.number).filter(|waiter| waiter.call.is_none()) else { return };
        if !self.line.stands(kind, place) {
            waiter.missed = waiter.called != self.passed;
            self.epoch += u64::from(self.line.stand(kind, place, give_up));
        }
    }

    /// Calls one who stands in line; whether it does. The caller wakes it.
    fn call(&mut self, kind: Kind, place: Place, call: Call) -> bool {
        let stands = self.line.step_out(kind, place);
        if stands && let Some(waiter) = self.waiters.get_mut(&place.number) {
            (waiter.call, waiter.called) = (Some(call), self.passed);
        }
        stands
    }

    fn waker(&self, place: Place) -> Option<Waker> {
        self.waiters.get(&place.number).map(|waiter| waiter.waker.clone())
    }

    /// When nobody waits any more: gives out what is left, to be dropped without the lock.
    fn close(&mut self) -> BTreeMap<EndpointId, Desk<S>> {
        self.alarms = Alarms::default();
        self.all_changed = false;
        let desks = std::mem::take(&mut self.desks);
        for desk in desks.values() {
            desk.lane.contend(u64::MAX);
        }
        desks
    }

    /// Calls those who hope for nothing, or for too much. When to do so again.
    fn review(&mut self, now: Instant) -> Vec<(Kind, Place, Call)> {
        let (mut calls, mut again) = (Vec::new(), None::<Instant>);
        let mut by = |at: Instant| again = Some(again.map_or(at, |again| again.min(at)));
        for (kind, group) in self.line.groups_mut() {
            let Some((first, _)) = group.first() else { continue };
            if group.view.doubt {
                match group.view.stale_at().filter(|at| *at > now) {
                    Some(at) => by(at),
                    None => {
                        (group.view.doubt, group.view.looked) = (false, Some(now));
                        calls.push((kind, first, Call::Look));
                    }
                }
            }
            if !group.flow.is_idle(now) {
                by(now + REVIEW);
            }
            let Some(rate) = group.rate(now) else { continue };
            for (ahead, (place, give_up)) in group.idle().enumerate() {
                let start = predict::start(now, group.view.returns(), ahead, rate);
                if predict::is_too_late(start, give_up, now) {
                    calls.push((kind, place, Call::TooLong(start)));
                }
            }
        }
        if let Some(again) = again {
            self.alarms.review_by(again);
        }
        // groups come in no order, and who is woken first may go first
        calls.sort_unstable_by_key(|(_, place, _)| *place);
        calls
    }
}

impl<S, P: Pick> Shared<S, P> {
    /// The kind of a request.
    pub(super) fn kind(&self, request: &RequestContext) -> Option<Kind> {
        self.room.kinds.of(request, self.filters.iter().map(|filter| &**filter))
    }
}

impl<S: Send + Sync + 'static, P: Pick> Shared<S, P> {
    /// Sees to what is due. Whoever passes by does it, so nothing hangs on one timer.
    pub(super) fn tick(&self) {
        loop {
            let now = Instant::now();
            let (all, due) = {
                let mut state = self.room.lock();
                let all = std::mem::take(&mut state.all_changed);
                let due = if all { None } else { state.alarms.due(now) };
                (all, due)
            };
            match due {
                _ if all => self.settle_all(now),
                Some(Due::Return(id)) => self.ring(id, false),
                Some(Due::Turn(id)) => self.ring(id, true),
                Some(Due::Review) => self.review(now),
                None => return,
            }
        }
    }

    fn review(&self, now: Instant) {
        let mut state = self.room.lock();
        let mut calls = state.review(now);
        calls.retain(|(kind, place, call)| state.call(*kind, *place, *call));
        let wakers: Vec<_> = calls.iter().filter_map(|(_, place, _)| state.waker(*place)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes a lane whose instance is lost out of the line; whoever waits for it is called anew.
    fn give_up(&self, lane: &Lane<S>) {
        self.room.forget(lane);
        self.changed();
    }
}

impl<S: Send + Sync + 'static, P: Pick> Watcher for Shared<S, P> {
    fn freed(&self, endpoint: &Endpoint) {
        if self.room.len() > 0
            && let Some(lane) = self.lanes.of(endpoint)
        {
            self.settle_account(&lane);
        }
    }

    fn healed(&self) {
        self.room.lock().spread_all(Instant::now());
        self.changed();
    }

    fn changed(&self) {
        let waker = {
            let mut state = self.room.lock();
            state.all_changed = true;
            // stacks of new keys are made by who waits for one, not here; and whoever passes by first sees to it
            let first = state.line.head_after(None).map(|(place, _)| place.number);
            let number = first.or_else(|| state.waiters.keys().next().copied());
            number.and_then(|number| state.waiters.get(&number)).map(|waiter| waiter.waker.clone())
        };
        waker.into_iter().for_each(Waker::wake);
    }
}
