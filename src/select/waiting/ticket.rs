use std::{
    mem::take,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    task::{Context, Waker},
};

use http::Request;
use tokio::time::Instant;
use tower::{BoxError, Service};

use self::instance::IfPanicking;
use super::{Call, JUST_NOW, REVIEW, Waiter, desk::Desk, kind::Kind, line::Place, spread};
use crate::{
    error::Rejected,
    request::{Priority, RequestContext},
    select::{
        choose::{Found, Later, Outlook, Prospect, Shared},
        filter::{self, Fit},
        lanes::Lane,
        pick::Pick,
    },
};

mod instance;

/// A place in the line; dropping it leaves the line and passes on what was offered.
pub(in crate::select) struct Ticket<S: Send + Sync + 'static, P: Pick> {
    shared: Arc<Shared<S, P>>,
    place: Place,
    kind: Kind,
    class: Priority,
    give_up: Instant,
}

/// What became of a poll of one who waits.
pub(in crate::select) enum Heard<S> {
    /// Nothing yet.
    Nothing,
    Found(Found<S>),
    /// It should look at all endpoints, for its group.
    Look,
    /// Nobody comes back before it gives up.
    Hopeless,
    /// So many others go before it that its turn would come only then.
    TooLong(Instant),
}

impl<S: Send + Sync + 'static, P: Pick> Ticket<S, P> {
    /// Joins the line; `None` when it is full.
    pub(in crate::select) fn take(
        shared: &Arc<Shared<S, P>>,
        request: &RequestContext,
        kind: Option<Kind>,
        give_up: Instant,
        now: Instant,
        waker: &Waker,
    ) -> Option<Self> {
        let mut guard = shared.room.lock();
        let state = &mut *guard;
        if state.waiters.len() >= shared.waiting.max_waiters {
            return None;
        }
        let number = state.next_number;
        state.next_number += 1;
        let (kind, class) = (kind.unwrap_or(Kind::Alone(number)), request.priority());
        let place = Place::new(request.arrived().unwrap_or(now), class, number);
        let (request, waker) = (request.clone(), waker.clone());
        let waiter = Waiter { request, waker, kind, call: None, called: 0, missed: false };
        state.waiters.insert(number, waiter);
        shared.room.standing.store(state.waiters.len(), Ordering::Release);
        state.line.join(kind, now);
        state.epoch += u64::from(state.line.stand(kind, place, give_up));
        drop(guard);
        // from here on whoever gives something back tells us, so what we see when we look next is not missed
        shared.pool.waiters(class).fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Some(Self { shared: shared.clone(), place, kind, class, give_up })
    }

    /// Looks at all endpoints, so that each which fits is in somebody's hand, or is to be looked at when it is back. One that
    /// is ready at once is taken.
    pub(in crate::select) fn look<B>(&self, request: &RequestContext, now: Instant) -> Result<Found<S>, Outlook>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let earlier = request.ledger().current().to_vec();
        let shared = &*self.shared;
        let snapshot = shared.lanes.current(now);
        let mut outlook = Outlook::default();
        for lane in snapshot.lanes() {
            match shared.prospect(&lane.endpoint, &earlier, request, now) {
                Prospect::Never => {}
                Prospect::Full => outlook.is_busy(&lane.endpoint),
                Prospect::Later(mut later) => {
                    outlook.soft |= later.soft;
                    outlook.returns(later.at, &lane.endpoint);
                    // of those that come back together, those it has not met first
                    if later.rest && filter::is_second_choice(&earlier, shared.pool.state().is_warm(), &lane.endpoint) {
                        later.at = spread::first(later.at, now, 1.0);
                    }
                    shared.expect(lane, later, now);
                }
                Prospect::Now => {
                    if shared.take_in_hand(lane) {
                        match self.try_instance(lane, lane.clone_of_prototype(), request) {
                            Ok(Some(found)) => return Ok(found),
                            Ok(None) => {}
                            Err(error) => {
                                outlook.broken = Some(error);
                                continue;
                            }
                        }
                    }
                    outlook.is_busy(&lane.endpoint);
                }
            }
        }
        for lane in &snapshot.out {
            let Some(back) = shared.lanes.out_until(&lane.endpoint, now) else { continue };
            let fit = filter::built_in(shared.pool.book(), &earlier, &lane.endpoint, request, now);
            if fit != Fit::No {
                outlook.returns(back, &lane.endpoint);
                shared.expect(lane, Later { at: back, rest: true, soft: false }, now);
            }
        }
        Err(outlook)
    }

    /// Whether what those in line wait for may go to this one, since it is offered to nobody else and nobody stands before it.
    pub(in crate::select) fn may_have(&self, lane: &Lane<S>, now: Instant) -> bool {
        let id = lane.endpoint.id();
        let others = |desk: &Desk<S>| desk.out || desk.offered.is_some_and(|number| number != self.place.number);
        let taken = self.shared.room.lock().desks.get(&id).is_some_and(others);
        !taken && !self.shared.is_wanted_before(&lane.endpoint, self.place, now)
    }

    /// Notes what a look came to, for all of the group; those for whom it leaves no hope are told.
    pub(in crate::select) fn tell(&self, outlook: &Outlook, now: Instant) {
        let mut told = Vec::new();
        let mut guard = self.shared.room.lock();
        let state = &mut *guard;
        if let Some(group) = state.line.group_mut(self.kind) {
            group.heed(outlook, now);
            let view = &group.view;
            told.extend(group.idle().filter(|(_, give_up)| view.is_hopeless(*give_up)).map(|(place, _)| place));
        }
        told.retain(|place| *place != self.place && state.call(self.kind, *place, Call::Hopeless));
        let wakers: Vec<_> = told.iter().filter_map(|place| state.waker(*place)).collect();
        drop(guard);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes what was offered since the last poll, if it is really there.
    pub(in crate::select) fn poll<B>(&self, request: &RequestContext, cx: &mut Context<'_>) -> Heard<S>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let (lane, service, old) = {
            let mut state = self.shared.room.lock();
            let Some(waiter) = state.waiters.get_mut(&self.place.number) else { return Heard::Nothing };
            let old =
                (!waiter.waker.will_wake(cx.waker())).then(|| std::mem::replace(&mut waiter.waker, cx.waker().clone()));
            let id = match waiter.call.take() {
                None => return Heard::Nothing,
                Some(Call::Offer(id)) => id,
                Some(Call::Look) => {
                    drop(state);
                    return self.back_to_look();
                }
                Some(Call::Hopeless) => return Heard::Hopeless,
                Some(Call::TooLong(start)) => return Heard::TooLong(start),
            };
            let Some(desk) = state.desks.get_mut(&id).filter(|desk| desk.offered == Some(self.place.number)) else {
                drop(state);
                return self.back_to_look();
            };
            (desk.offered, desk.out, desk.fired) = (None, true, false);
            (desk.lane.clone(), desk.service.take(), old)
        };
        drop(old);
        let mut heard = self.take_offer(&lane, service, request);
        self.shared.room.lock().alarms.pause(None);
        // its offer was void, and what came free meanwhile passed it over
        if matches!(heard, Heard::Nothing) && self.has_missed_something() {
            heard = Heard::Look;
        }
        self.shared.tick();
        heard
    }

    fn take_offer<B>(&self, lane: &Arc<Lane<S>>, service: Option<S>, request: &RequestContext) -> Heard<S>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let _lost_by_a_panic = IfPanicking(|| self.shared.give_up(lane));
        let (earlier, now) = (request.ledger().current().to_vec(), Instant::now());
        let fits = self.shared.lanes.out_until(&lane.endpoint, now).is_none()
            && matches!(self.shared.prospect(&lane.endpoint, &earlier, request, now), Prospect::Now);
        if !fits {
            drop(service);
            self.stand();
            self.shared.let_go(lane, None, None);
            return Heard::Nothing;
        }
        if service.is_none() {
            self.shared.explain_wait(request, Some(&lane.endpoint), now);
        }
        let service = service.unwrap_or_else(|| lane.clone_of_prototype());
        match self.try_instance(lane, service, request) {
            Ok(Some(found)) => Heard::Found(found),
            Ok(None) => Heard::Nothing,
            Err(_) => Heard::Look,
        }
    }

    fn back_to_look(&self) -> Heard<S> {
        self.stand();
        self.has_missed_something();
        Heard::Look
    }

    /// Whether something passed it over while it did not stand in line, so that it must look; asking forgets it.
    pub(in crate::select) fn has_missed_something(&self) -> bool {
        let mut state = self.shared.room.lock();
        state.waiters.get_mut(&self.place.number).is_some_and(|waiter| take(&mut waiter.missed))
    }

    fn step_out(&self) {
        let mut state = self.shared.room.lock();
        let passed = state.passed;
        if state.line.step_out(self.kind, self.place)
            && let Some(waiter) = state.waiters.get_mut(&self.place.number)
        {
            waiter.called = passed;
        }
    }

    fn stand(&self) {
        self.shared.room.lock().stand(self.kind, self.place, self.give_up);
    }

    /// Notes that it found what it waited for.
    pub(in crate::select) fn served(&self, now: Instant) {
        let mut state = self.shared.room.lock();
        if let Some(group) = state.line.group_mut(self.kind) {
            group.flow.serve(now);
        }
        state.alarms.review_by(now + REVIEW);
    }

    /// What a look came to that its group made just now: when hundreds give up at once, they need not all look.
    pub(in crate::select) fn outlook(&self, now: Instant) -> Option<Outlook> {
        let state = self.shared.room.lock();
        let view = &state.line.group(self.kind)?.view;
        view.looked.filter(|looked| now.saturating_duration_since(*looked) < JUST_NOW).map(|_| view.outlook())
    }

    /// Why nobody can serve it, by `make` unless somebody of its group has just been told.
    pub(in crate::select) fn refusal(&self, now: Instant, make: impl FnOnce() -> Rejected) -> Rejected {
        if let Some(group) = self.shared.room.lock().line.group(self.kind)
            && let Some(told) = &group.refusal
            && now.saturating_duration_since(told.0) < REVIEW
        {
            let after = told.1.after().map(|after| after.saturating_sub(now - told.0));
            return told.1.clone().retry_after(after);
        }
        let refusal = make();
        if let Some(group) = self.shared.room.lock().line.group_mut(self.kind) {
            group.refusal = Some(Box::new((now, refusal.clone())));
        }
        refusal
    }

    /// For what its timer must be set, besides its own patience, if it keeps the time for all.
    pub(in crate::select) fn keeps_time_until(&self) -> Option<Instant> {
        self.shared.room.lock().alarms.keep(self.place.number)
    }
}

impl<S: Send + Sync + 'static, P: Pick> Drop for Ticket<S, P> {
    fn drop(&mut self) {
        self.shared.pool.waiters(self.class).fetch_sub(1, Ordering::SeqCst);
        let mut guard = self.shared.room.lock();
        let state = &mut *guard;
        let Some(waiter) = state.waiters.remove(&self.place.number) else { return };
        self.shared.room.standing.store(state.waiters.len(), Ordering::Release);
        let mut left = None;
        match waiter.call {
            None => {
                state.line.step_out(self.kind, self.place);
            }
            Some(Call::Offer(id)) => {
                let desk = state.desks.get_mut(&id).filter(|desk| desk.offered == Some(self.place.number));
                left = desk.map(|desk| {
                    desk.offered = None;
                    desk.lane.clone()
                });
                state.alarms.pause(None);
            }
            Some(Call::Look) => {
                if let Some(group) = state.line.group_mut(self.kind) {
                    group.view.doubt = true;
                }
                state.alarms.review_by(Instant::now());
            }
            Some(Call::Hopeless | Call::TooLong(_)) => {}
        }
        state.line.leave(self.kind);
        state.alarms.leave(self.place.number);
        let abandoned = state.waiters.is_empty().then(|| state.close());
        let waker = state.rearm();
        drop(guard);
        // an instance may give back a permit when dropped, and so wake others: no lock may be held
        drop((waiter, abandoned));
        waker.into_iter().for_each(Waker::wake);
        if let Some(lane) = left {
            self.shared.settle(&lane, false, None);
        }
    }
}
