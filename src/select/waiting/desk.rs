//! What becomes of an endpoint that somebody in line waits for.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{Call, State, line::Place, spread};
use crate::{
    clock,
    endpoint::{Endpoint, EndpointId},
    select::{
        choose::{Later, Prospect, Shared},
        lanes::Lane,
        pick::Pick,
    },
};

/// How long one who was called may take before others are called for what it may have taken.
const PAUSE: Duration = Duration::from_millis(5);

/// An endpoint that somebody in line waits for.
pub(super) struct Desk<S> {
    pub(super) lane: Arc<Lane<S>>,
    /// An instance that is not ready; its waker comes here.
    pub(super) service: Option<S>,
    /// Whether that waker fired.
    pub(super) fired: bool,
    /// Whether somebody polls an instance now.
    pub(super) out: bool,
    /// Whom it was offered to.
    pub(super) offered: Option<u64>,
    /// When it is to be looked at again, and whether a rest is over then.
    alarm: Option<(Instant, bool)>,
    /// Until when those who take it go one by one, since a rest has ended.
    spread: Option<Instant>,
    /// Whether it waits for its turn.
    queued: bool,
}

impl<S> Desk<S> {
    fn new(lane: &Arc<Lane<S>>) -> Self {
        let lane = lane.clone();
        Self { lane, service: None, fired: false, out: false, offered: None, alarm: None, spread: None, queued: false }
    }

    /// Whether what happens next is somebody else's to see to.
    fn is_in_hand(&mut self, turn: bool) -> bool {
        self.fired |= self.out;
        self.out || self.offered.is_some() || (self.service.is_some() && !self.fired) || (self.queued && !turn)
    }
}

/// Who could use an endpoint.
enum Demand {
    /// This one, at once; nobody in line before it could.
    Now(Place),
    Later(Later),
    Nobody,
}

impl<S> State<S> {
    /// The desk of a lane, and how to look at it anew: nothing is set for it.
    fn clear(&mut self, lane: &Arc<Lane<S>>) -> &mut Desk<S> {
        let id = lane.endpoint.id();
        let desk = self.desks.entry(id).or_insert_with(|| Desk::new(lane));
        if let Some((at, _)) = desk.alarm.take() {
            self.alarms.remove(at, id);
        }
        desk
    }

    /// Keeps newcomers from it, and all others but one.
    fn take_hold(&mut self, lane: &Arc<Lane<S>>) -> &mut Desk<S> {
        let desk = self.clear(lane);
        desk.lane.contend(0);
        desk
    }

    /// Has it looked at again when it is back. Gives out what must be dropped without the lock.
    fn expect(&mut self, lane: &Arc<Lane<S>>, later: Later, now: Instant) -> Option<S> {
        let desk = self.clear(lane);
        let at = if later.rest { spread::first(later.at, now, fastrand::f64()) } else { later.at };
        desk.alarm = Some((at, later.rest));
        desk.fired = false;
        desk.lane.contend(clock::nanos(later.at));
        let service = desk.service.take();
        self.alarms.add(at, lane.endpoint.id());
        service
    }

    /// Has it wait for its turn after a rest.
    fn queue(&mut self, lane: &Arc<Lane<S>>) {
        let desk = self.take_hold(lane);
        if !std::mem::replace(&mut desk.queued, true) {
            self.alarms.queue(lane.endpoint.id());
        }
    }

    /// Those who wait for the end of rests, which are over before their time, go one by one.
    pub(super) fn spread_all(&mut self, now: Instant) {
        let mut rest = false;
        for desk in self.desks.values_mut().filter(|desk| desk.alarm.is_some_and(|(_, rest)| rest)) {
            (desk.spread, rest) = (Some(now + spread::SPREAD), true);
        }
        if rest {
            self.alarms.open(now, self.line.len());
        }
    }

    pub(super) fn forget(&mut self, id: EndpointId) -> Option<Desk<S>> {
        let desk = self.desks.remove(&id)?;
        desk.lane.contend(u64::MAX);
        if let Some((at, _)) = desk.alarm {
            self.alarms.remove(at, id);
        }
        Some(desk)
    }

    /// Whoever hoped for it, and need not any more, has another look made soon.
    fn doubt(&mut self, endpoint: &Endpoint, back: Option<Instant>) {
        for (_, group) in self.line.groups_mut() {
            let helps = group.first().is_none_or(|(_, give_up)| back.is_some_and(|back| back <= give_up));
            if group.view.via.as_ref() == Some(endpoint) && !helps {
                group.view.doubt = true;
                if let Some(at) = group.view.stale_at() {
                    self.alarms.review_by(at);
                }
            }
        }
    }

    /// The waker of whoever must set its timer anew, if somebody must.
    pub(super) fn rearm(&mut self) -> Option<Waker> {
        let Self { alarms, waiters, .. } = self;
        // the newest stays longest, as a rule
        let number = alarms.misses(|| waiters.last_key_value().map(|(number, _)| *number))?;
        waiters.get(&number).map(|waiter| waiter.waker.clone())
    }
}

impl<S: Send + Sync + 'static, P: Pick> Shared<S, P> {
    /// Who in line could use the endpoint. Of those up to `after` nobody is to have it.
    ///
    /// Filters are foreign code, and this may run where another request gives something back. So no lock is held while they
    /// judge, and a panic of one is a no; whoever asked meets it again when it looks for itself.
    fn demand(&self, endpoint: &Endpoint, after: Option<Place>, now: Instant) -> Demand {
        if !endpoint.is_in_service() {
            return Demand::Nobody;
        }
        if let Some(back) = self.lanes.out_until(endpoint, now) {
            return Demand::Later(Later { at: back, rest: true, soft: false });
        }
        let (mut from, mut later) = (None, None::<Later>);
        loop {
            let (place, request) = {
                let state = self.room.lock();
                let Some((place, _)) = state.line.head_after(from) else { break };
                let Some(waiter) = state.waiters.get(&place.number) else { break };
                (place, waiter.request.clone())
            };
            let earlier = request.ledger().current().to_vec();
            let judge = || self.prospect(endpoint, &earlier, &request, now);
            match catch_unwind(AssertUnwindSafe(judge)).unwrap_or(Prospect::Never) {
                Prospect::Now if after.is_none_or(|after| place > after) => return Demand::Now(place),
                Prospect::Later(other) if later.is_none_or(|later| other.at < later.at) => later = Some(other),
                _ => {}
            }
            from = Some(place);
        }
        later.map_or(Demand::Nobody, Demand::Later)
    }

    /// Whether somebody who stands before this place could use the endpoint now.
    pub(super) fn is_wanted_before(&self, endpoint: &Endpoint, place: Place, now: Instant) -> bool {
        matches!(self.demand(endpoint, None, now), Demand::Now(first) if first < place)
    }

    /// Whether somebody in line could use the endpoint now.
    pub(super) fn is_wanted(&self, endpoint: &Endpoint, now: Instant) -> bool {
        matches!(self.demand(endpoint, None, now), Demand::Now(_))
    }

    /// Looks at an endpoint anew: offers it to the first who could use it, else notes when somebody could. Whether somebody
    /// was called.
    pub(super) fn settle(&self, lane: &Arc<Lane<S>>, turn: bool, after: Option<Place>) -> bool {
        let id = lane.endpoint.id();
        loop {
            let now = Instant::now();
            let epoch = {
                let mut state = self.room.lock();
                if state.waiters.is_empty() {
                    return false;
                }
                let desk = state.desks.get_mut(&id);
                if desk.is_some_and(|desk| desk.is_in_hand(turn)) {
                    return false;
                }
                state.epoch
            };
            let demand = self.demand(&lane.endpoint, after, now);
            let mut guard = self.room.lock();
            let state = &mut *guard;
            if state.waiters.is_empty() || state.desks.get_mut(&id).is_some_and(|desk| desk.is_in_hand(turn)) {
                return false;
            }
            let spreads = state.desks.get(&id).and_then(|desk| desk.spread).is_some_and(|until| until > now);
            if epoch != state.epoch {
                continue;
            }
            let gone = match demand {
                Demand::Now(_) if spreads && !turn => {
                    state.queue(lane);
                    None
                }
                Demand::Now(place) => {
                    let Some(kind) = state.waiters.get(&place.number).map(|waiter| waiter.kind) else { continue };
                    if !state.call(kind, place, Call::Offer(id)) {
                        continue;
                    }
                    let waker = state.waker(place);
                    let desk = state.take_hold(lane);
                    desk.offered = Some(place.number);
                    if turn {
                        state.alarms.pass(now, fastrand::f64());
                    }
                    if self.reserves {
                        state.alarms.pause(Some(now + PAUSE));
                    }
                    let other = state.rearm();
                    drop(guard);
                    waker.into_iter().chain(other).for_each(Waker::wake);
                    return true;
                }
                Demand::Later(later) => {
                    let gone = state.expect(lane, later, now);
                    state.doubt(&lane.endpoint, Some(later.at));
                    // dropping an instance runs foreign code, so no lock may be held
                    gone.map(Gone::Instance)
                }
                Demand::Nobody => {
                    state.doubt(&lane.endpoint, None);
                    state.forget(id).map(Gone::Desk)
                }
            };
            state.passed += 1;
            let waker = state.rearm();
            drop(guard);
            drop(gone);
            waker.into_iter().for_each(Waker::wake);
            return false;
        }
    }

    /// The same for all of its account, one after another until somebody is called: what one gave back another may use.
    pub(super) fn settle_account(&self, lane: &Arc<Lane<S>>) {
        if self.settle(lane, false, None) || !self.reserves {
            return;
        }
        let Some(account) = lane.endpoint.account() else { return };
        let snapshot = self.lanes.current(Instant::now());
        for other in snapshot.lanes() {
            if other.endpoint != lane.endpoint
                && other.endpoint.account() == Some(account)
                && self.settle(other, false, None)
            {
                return;
            }
        }
    }

    /// Looks at every endpoint anew, and at who hopes for one that is gone.
    pub(super) fn settle_all(&self, now: Instant) {
        let snapshot = self.lanes.current(now);
        for lane in snapshot.lanes().chain(&snapshot.out) {
            self.settle(lane, false, None);
        }
        let mut state = self.room.lock();
        let mut doubtful = false;
        for (_, group) in state.line.groups_mut() {
            if group.view.via.as_ref().is_none_or(|via| !via.is_in_service()) {
                group.view.doubt = true;
                doubtful = true;
            }
        }
        if doubtful {
            state.alarms.review_by(now);
        }
        let waker = state.rearm();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Notes when an endpoint is back that nobody else sees to, for one who waits for it.
    pub(super) fn expect(&self, lane: &Arc<Lane<S>>, later: Later, now: Instant) {
        let mut state = self.room.lock();
        if let Some(desk) = state.desks.get_mut(&lane.endpoint.id()) {
            let by = if later.rest { later.at + spread::SPREAD } else { later.at };
            let soon_enough = desk.alarm.is_some_and(|(at, _)| at <= by);
            if soon_enough || desk.is_in_hand(false) {
                return;
            }
        }
        let gone = state.expect(lane, later, now);
        let waker = state.rearm();
        drop(state);
        drop(gone);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Takes an endpoint in hand, to poll an instance, unless somebody else sees to it.
    pub(super) fn take_in_hand(&self, lane: &Arc<Lane<S>>) -> bool {
        let mut state = self.room.lock();
        if state.desks.get_mut(&lane.endpoint.id()).is_some_and(|desk| desk.is_in_hand(false)) {
            return false;
        }
        let desk = state.take_hold(lane);
        (desk.out, desk.fired) = (true, false);
        true
    }

    /// Lets go of an endpoint after an instance of it was polled; one that is not ready stays. Who stands up to `after` is
    /// not to have it.
    pub(super) fn let_go(&self, lane: &Arc<Lane<S>>, service: Option<S>, after: Option<Place>) -> bool {
        let mut state = self.room.lock();
        let gone = match state.desks.get_mut(&lane.endpoint.id()) {
            Some(desk) => {
                desk.out = false;
                std::mem::replace(&mut desk.service, service)
            }
            None => service,
        };
        drop(state);
        drop(gone);
        self.settle(lane, false, after)
    }

    /// After an instance was taken: has the next one wait for its turn, if those who take it go one by one.
    pub(super) fn is_spread(&self, lane: &Arc<Lane<S>>, now: Instant) -> bool {
        let mut state = self.room.lock();
        let Some(desk) = state.desks.get_mut(&lane.endpoint.id()) else { return false };
        if desk.spread.is_none_or(|until| until <= now) || desk.service.is_some() {
            return false;
        }
        (desk.out, desk.fired) = (false, false);
        state.queue(lane);
        let waker = state.rearm();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// What an endpoint was waited for is over, or its turn has come.
    pub(super) fn ring(&self, id: EndpointId, turn: bool) {
        let now = Instant::now();
        let lane = {
            let mut state = self.room.lock();
            let waiting = state.line.len();
            let Some(desk) = state.desks.get_mut(&id) else { return };
            let lane = desk.lane.clone();
            desk.queued &= !turn;
            let rested = desk.alarm.take().is_some_and(|(_, rest)| rest);
            if rested {
                desk.spread = Some(now + spread::SPREAD);
                state.alarms.open(now, waiting);
            }
            lane
        };
        // by now newcomers must not pass those who are about to be called
        lane.contend(0);
        self.settle(&lane, turn, None);
    }
}

/// What is dropped once no lock is held.
enum Gone<S> {
    Instance(S),
    Desk(Desk<S>),
}
