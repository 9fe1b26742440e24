//! An instance of an endpoint's stack in the hand of one who waits.
//!
//! Whether it can serve, only polling it tells; foreign code runs there, which may pend, end or panic. Whatever comes of it,
//! the endpoint must not stay in a hand that is gone: it is taken, left at its desk, or given up.

use std::{
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
};

use http::Request;
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::Ticket;
use crate::{
    endpoint::EndpointId,
    request::RequestContext,
    select::{
        choose::{Found, Shared},
        lanes::Lane,
        pick::Pick,
    },
};

impl<S: Send + Sync + 'static, P: Pick> Ticket<S, P> {
    /// Polls an instance that is out: takes it if it is ready, else leaves it with the endpoint and stands in line. The error
    /// is that of a stack that is finished, and so is the one made in its place.
    pub(super) fn try_instance<B>(
        &self,
        lane: &Arc<Lane<S>>,
        service: S,
        request: &RequestContext,
    ) -> Result<Option<Found<S>>, BoxError>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let _lost_by_a_panic = IfPanicking(|| self.shared.give_up(lane));
        let (lane, service) = match self.poll_instance(lane, service) {
            Polled::Ready(lane, service) => (lane, service),
            Polled::Pending(lane, service) => {
                self.stand();
                self.shared.let_go(&lane, Some(service), None);
                return Ok(None);
            }
            Polled::Broken(error) => {
                self.stand();
                return Err(error);
            }
        };
        let now = Instant::now();
        self.step_out();
        if self.shared.is_wanted_before(&lane.endpoint, self.place, now) {
            self.stand();
            self.put_down(&lane, service);
            return Ok(None);
        }
        let found = self.shared.claim(&lane, service, request, now);
        if found.is_some() {
            self.replenish(&lane);
        } else {
            self.stand();
            self.shared.let_go(&lane, None, Some(self.place));
        }
        Ok(found)
    }

    fn poll_instance<B>(&self, lane: &Arc<Lane<S>>, mut service: S) -> Polled<S>
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let waker = Waker::from(Arc::new(LaneWaker { shared: Arc::downgrade(&self.shared), id: lane.endpoint.id() }));
        let cx = &mut Context::from_waker(&waker);
        let mut lane = lane.clone();
        let mut result = service.poll_ready(cx);
        if let Poll::Ready(Err(_)) = result {
            // one made in its place may do better
            lane = self.shared.lanes.rebuild(&lane.endpoint);
            self.shared.room.replace(&lane);
            service = lane.clone_of_prototype();
            result = service.poll_ready(cx);
        }
        match result {
            Poll::Ready(Ok(())) => Polled::Ready(lane, service),
            Poll::Pending => Polled::Pending(lane, service),
            Poll::Ready(Err(error)) => {
                self.shared.room.forget(&lane);
                Polled::Broken(error.into())
            }
        }
    }

    /// Leaves an instance that is ready to who may have it.
    fn put_down(&self, lane: &Arc<Lane<S>>, service: S) {
        if let Some(desk) = self.shared.room.lock().desks.get_mut(&lane.endpoint.id()) {
            desk.fired = true;
        }
        self.shared.let_go(lane, Some(service), None);
    }

    /// After an instance was taken: another one in its place, if others wait for the endpoint.
    fn replenish<B>(&self, lane: &Arc<Lane<S>>)
    where
        S: Service<Request<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let now = Instant::now();
        if self.shared.is_spread(lane, now) {
            return;
        }
        if self.shared.is_wanted(&lane.endpoint, now) {
            match self.poll_instance(lane, lane.clone_of_prototype()) {
                // there is room for one more
                Polled::Ready(lane, service) => self.put_down(&lane, service),
                Polled::Pending(lane, service) => {
                    self.shared.let_go(&lane, Some(service), None);
                }
                Polled::Broken(_) => {}
            }
        } else {
            self.shared.let_go(lane, None, None);
        }
        if self.shared.reserves {
            self.shared.settle_account(lane);
        }
    }
}

/// What came of polling an instance, and of which lane it is.
enum Polled<S> {
    Ready(Arc<Lane<S>>, S),
    Pending(Arc<Lane<S>>, S),
    Broken(BoxError),
}

/// Does something when a panic of foreign code comes through here.
pub(super) struct IfPanicking<F: Fn()>(pub(super) F);

impl<F: Fn()> Drop for IfPanicking<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
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
        let Some(shared) = self.shared.upgrade() else { return };
        let lane = {
            let mut state = shared.room.lock();
            let Some(desk) = state.desks.get_mut(&self.id) else { return };
            desk.fired = true;
            desk.lane.clone()
        };
        shared.settle(&lane, false, None);
    }
}
