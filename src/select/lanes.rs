use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::{ejection::Ejection, pick::Prepared, pool::Pool, swap::Swap};
use crate::{
    clock,
    endpoint::{Endpoint, EndpointId, Forced},
    sync::Loaded,
};

/// An endpoint with the prototype of its stack, and an instance of it.
// in the order of use, so that an attempt touches no more of it than it must
#[repr(C)]
pub(super) struct Lane<S> {
    pub(super) endpoint: Endpoint,
    /// The instance that was called last. It holds nothing of that call, so the next attempt takes it: with thousands of keys
    /// a clone of the prototype has to fetch a line of memory for each part that counts its owners.
    spare: Mutex<Option<S>>,
    /// From when on it is for those who stand in line, so that a newcomer must not pass them; in nanoseconds, 0 for now. It
    /// is read before the instance, and so has both ends of that fetched.
    contended: AtomicU64,
    // boxed, and so apart, since few need it
    service: Box<S>,
}

impl<S> Lane<S> {
    pub(super) fn is_contended(&self, now: Instant) -> bool {
        let from = self.contended.load(Ordering::Acquire);
        from != u64::MAX && from <= clock::nanos(now)
    }

    /// Keeps newcomers off from an instant on, or lets them in by the largest number.
    pub(super) fn contend(&self, from: u64) {
        self.contended.store(from, Ordering::Release);
    }

    /// Keeps an instance that was called for the next attempt.
    pub(super) fn keep(&self, called: S) {
        // dropped after the lock, since that runs foreign code; when another keeps or takes one just now, this one goes
        let _old = match self.spare.try_lock() {
            Ok(mut spare) => spare.replace(called),
            Err(_) => Some(called),
        };
    }
}

impl<S: Clone> Lane<S> {
    /// An instance that holds nothing yet.
    pub(super) fn instance(&self) -> S {
        let spare = self.spare.try_lock().ok().and_then(|mut spare| spare.take());
        spare.unwrap_or_else(|| self.clone_of_prototype())
    }

    /// A clone of the prototype.
    pub(super) fn clone_of_prototype(&self) -> S {
        (*self.service).clone()
    }
}

/// The endpoints that nothing holds back for everybody, as of one moment.
pub(super) struct Snapshot<S> {
    pub(super) endpoints: Box<[Endpoint]>,
    pub(super) listed: Box<[Listed<S>]>,
    /// Those that something holds back.
    pub(super) out: Box<[Arc<Lane<S>>]>,
    /// What the pick made of the endpoints, by the first who asked it: outside the lock, since a pick is foreign code.
    pub(super) prepared: OnceLock<Option<Prepared>>,
    /// Those of them that are shut and used all the same.
    _forced: Box<[Forced]>,
    version: u64,
    /// When the first of those who are out comes back.
    next_return: u64,
}

/// An endpoint in use: the two pointers that an attempt follows side by side, so that it need not look for the one behind the
/// other, nor in two places.
pub(super) struct Listed<S> {
    pub(super) endpoint: Endpoint,
    pub(super) lane: Arc<Lane<S>>,
}

impl<S> Snapshot<S> {
    /// Of the endpoints, in their order.
    pub(super) fn lanes(&self) -> impl Iterator<Item = &Arc<Lane<S>>> {
        self.listed.iter().map(|listed| &listed.lane)
    }
}

/// The stacks of a pool's endpoints, and the snapshot of those in use.
pub(super) struct Lanes<S> {
    pool: Pool,
    make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>,
    ejection: Ejection,
    snapshot: Swap<Snapshot<S>, HashMap<EndpointId, Arc<Lane<S>>>>,
}

impl<S> Lanes<S> {
    pub(super) fn new(pool: Pool, make: Box<dyn Fn(&Endpoint) -> S + Send + Sync>, ejection: Ejection) -> Self {
        let stale = Snapshot {
            endpoints: Box::default(),
            listed: Box::default(),
            out: Box::default(),
            prepared: OnceLock::new(),
            _forced: Box::default(),
            version: u64::MAX,
            next_return: 0,
        };
        Self { pool, make, ejection, snapshot: Swap::new(stale, HashMap::new()) }
    }

    /// The snapshot, made anew if somebody left or came back since.
    pub(super) fn current(&self, now: Instant) -> Loaded<Snapshot<S>> {
        let mut gone = Vec::new();
        let snapshot = self.snapshot.current(
            |snapshot| {
                snapshot.version == self.pool.state().version()
                    && (snapshot.next_return == u64::MAX || clock::nanos(now) < snapshot.next_return)
            },
            |all| self.look(all, &mut gone, now),
        );
        // foreign code runs when a stack is dropped, so no lock may be held
        drop(gone);
        snapshot
    }

    /// Replaces the stack of an endpoint whose service said that it is finished.
    pub(super) fn rebuild(&self, endpoint: &Endpoint) -> Arc<Lane<S>> {
        let lane = lane(endpoint, (self.make)(endpoint).into());
        let finished = self.snapshot.change(|all| all.insert(endpoint.id(), lane.clone()));
        drop(finished);
        endpoint.pool().touch();
        lane
    }

    /// The lane of an endpoint, if it has been used.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Option<Arc<Lane<S>>> {
        self.snapshot.change(|all| all.get(&endpoint.id()).cloned())
    }

    /// Until when an endpoint takes nothing, unless too few others are left.
    pub(super) fn out_until(&self, endpoint: &Endpoint, now: Instant) -> Option<Instant> {
        let rest = self.pool.book().out(endpoint, now).map(|resting| resting.until);
        rest.max(endpoint.shut_until(now).filter(|_| !endpoint.is_forced()))
    }

    /// Until when an endpoint is out for every request.
    pub(super) fn back_at(&self, endpoint: &Endpoint, now: Instant) -> Option<Instant> {
        let rest = self.pool.book().out(endpoint, now).map(|resting| resting.until);
        rest.max(endpoint.shut_until(now))
    }

    fn look(
        &self,
        all: &mut HashMap<EndpointId, Arc<Lane<S>>>,
        gone: &mut Vec<Arc<Lane<S>>>,
        now: Instant,
    ) -> Snapshot<S> {
        // read before the endpoints: a change in between makes this snapshot stale, not wrong
        let version = self.pool.state().version();
        let pool = self.pool.endpoints();
        // each kind of thing by itself, so that what requests touch of many keys lies close together
        let new = || pool.iter().filter(|endpoint| !all.contains_key(&endpoint.id()));
        let made: Vec<_> = new().map(|endpoint| (endpoint.clone(), (self.make)(endpoint))).collect();
        let made: Vec<_> = made.into_iter().map(|(endpoint, service)| (endpoint, Box::new(service))).collect();
        all.extend(made.into_iter().map(|(endpoint, service)| (endpoint.id(), lane(&endpoint, service))));
        let mut next_return = u64::MAX;
        let (mut lanes, mut out) = (Vec::with_capacity(pool.len()), Vec::new());
        let (mut ejected, mut usable, mut resting) = (Vec::new(), 0, 0);
        // what an operator has taken out counts as little as what is removed
        for endpoint in pool.iter().filter(|endpoint| endpoint.is_in_service()) {
            let lane = &all[&endpoint.id()];
            let counts = usize::from(endpoint.key().weight_of() > 0.0);
            let (rest, shut) = (self.pool.book().out(endpoint, now), endpoint.shut_until(now));
            if let Some(until) = shut.max(rest.map(|resting| resting.until)) {
                next_return = next_return.min(clock::nanos(until));
                // what is shut by hand has no end
                if rest.is_none() && counts > 0 && until < clock::after(now, clock::FOREVER / 2) {
                    ejected.push((until, lane.clone()));
                } else {
                    resting += counts;
                    out.push(lane.clone());
                }
            } else {
                usable += counts;
                lanes.push(lane.clone());
            }
        }
        let readmitted = self.ejection.readmitted(usable, ejected.len(), resting);
        ejected.sort_by_key(|(until, _)| *until);
        out.extend(ejected.drain(readmitted.min(ejected.len())..).map(|(_, lane)| lane));
        let forced = ejected.iter().map(|(_, lane)| lane.endpoint.force()).collect();
        lanes.extend(ejected.into_iter().map(|(_, lane)| lane));
        if all.len() > pool.len() {
            all.retain(|_, lane| {
                let stays = !lane.endpoint.is_removed();
                if !stays {
                    gone.push(lane.clone());
                }
                stays
            });
            // what is dropped first may wake somebody first
            gone.sort_unstable_by_key(|lane| lane.endpoint.id());
        }
        let endpoints = lanes.iter().map(|lane| lane.endpoint.clone()).collect();
        let listed = lanes.into_iter().map(|lane| Listed { endpoint: lane.endpoint.clone(), lane }).collect();
        let (out, prepared) = (out.into(), OnceLock::new());
        Snapshot { endpoints, listed, out, prepared, _forced: forced, version, next_return }
    }
}

fn lane<S>(endpoint: &Endpoint, service: Box<S>) -> Arc<Lane<S>> {
    let (spare, contended) = (Mutex::new(None), AtomicU64::new(u64::MAX));
    Arc::new(Lane { endpoint: endpoint.clone(), spare, contended, service })
}
