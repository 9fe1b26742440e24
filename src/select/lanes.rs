use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use tokio::time::Instant;

use super::pool::Pool;
use crate::{
    clock,
    endpoint::{Endpoint, EndpointId},
};

/// An endpoint with the prototype of its stack, cloned for each attempt.
pub(super) struct Lane<S> {
    pub(super) endpoint: Endpoint,
    pub(super) service: S,
    /// Whether waiters stand in line for it, so that a newcomer must not pass them.
    pub(super) contended: AtomicBool,
}

impl<S> Lane<S> {
    pub(super) fn is_contended(&self) -> bool {
        self.contended.load(Ordering::Acquire)
    }
}

/// The endpoints that nothing holds back for everybody, as of one moment.
pub(super) struct Snapshot<S> {
    pub(super) endpoints: Box<[Endpoint]>,
    pub(super) lanes: Box<[Arc<Lane<S>>]>,
    version: u64,
    /// When somebody who is out comes back.
    next_return: u64,
}

/// The stacks of a pool's endpoints, and the snapshot of those in use.
pub(super) struct Lanes<S> {
    pool: Pool,
    make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>,
    all: Mutex<HashMap<EndpointId, Arc<Lane<S>>>>,
    snapshot: ArcSwap<Snapshot<S>>,
}

impl<S> Lanes<S> {
    pub(super) fn new(pool: Pool, make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>) -> Self {
        let empty = Snapshot { endpoints: Box::default(), lanes: Box::default(), version: u64::MAX, next_return: 0 };
        Self { pool, make, all: Mutex::default(), snapshot: ArcSwap::from_pointee(empty) }
    }

    /// The snapshot, made anew if somebody left or came back since.
    pub(super) fn current(&self, now: Instant) -> Guard<Arc<Snapshot<S>>> {
        let snapshot = self.snapshot.load();
        if snapshot.version == self.pool.state().version() && clock::nanos(now) < snapshot.next_return {
            return snapshot;
        }
        drop(snapshot);
        self.refresh(now);
        self.snapshot.load()
    }

    /// Replaces the stack of an endpoint whose service said that it is finished.
    pub(super) fn rebuild(&self, endpoint: &Endpoint) {
        let lane = self.lane(endpoint);
        let removed = self.lock().insert(endpoint.id(), lane);
        drop(removed);
        endpoint.pool().touch();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<EndpointId, Arc<Lane<S>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, endpoint: &Endpoint) -> Arc<Lane<S>> {
        Arc::new(Lane { endpoint: endpoint.clone(), service: (self.make)(endpoint), contended: AtomicBool::new(false) })
    }

    fn refresh(&self, now: Instant) {
        let mut all = self.lock();
        let version = self.pool.state().version();
        let mut next_return = u64::MAX;
        let pool = self.pool.endpoints();
        let mut lanes = Vec::with_capacity(pool.len());
        for endpoint in pool.iter() {
            let lane = all.entry(endpoint.id()).or_insert_with(|| self.lane(endpoint));
            match self.back_at(endpoint, now) {
                Some(until) => next_return = next_return.min(clock::nanos(until)),
                None => lanes.push(lane.clone()),
            }
        }
        let mut gone = Vec::new();
        if all.len() > pool.len() {
            all.retain(|_, lane| {
                let stays = !lane.endpoint.is_removed();
                if !stays {
                    gone.push(lane.clone());
                }
                stays
            });
        }
        drop(all);
        self.snapshot.store(Arc::new(Snapshot {
            endpoints: lanes.iter().map(|lane| lane.endpoint.clone()).collect(),
            lanes: lanes.into(),
            version,
            next_return,
        }));
        // foreign code runs when a stack is dropped, so no lock may be held
        drop(gone);
    }

    /// Until when an endpoint is out for every request.
    pub(super) fn back_at(&self, endpoint: &Endpoint, now: Instant) -> Option<Instant> {
        let rest = self.pool.book().out(endpoint, now).map(|resting| resting.until);
        rest.max(endpoint.shut_until(now))
    }
}
