//! Whether a suspect fault is the key's or the upstream's.
//!
//! A 502, a timeout, a reset may be one key's trouble (a broken regional host, a throttled account) or everybody's. Breakers
//! that count it against the key open all keys at once when a provider fails; breakers that ignore it never open the one bad
//! key. What tells them apart is the luck of the other keys on the same *route*, that is the same model at the same base URL,
//! in the same minute.
//!
//! Memory starts with a route's first suspect fault and ends a minute after its last: while nothing fails, a success costs
//! one atomic load. It is bounded: 64 routes of 128 endpoints each, and a removed endpoint is forgotten.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use self::luck::{Counts, Luck, WINDOW};
use super::{Endpoint, EndpointId};
use crate::{clock, request::RequestContext};

mod luck;

/// Routes remembered; a new one takes the place of the one whose last fault is oldest.
const ROUTES: usize = 64;
/// Endpoints remembered of a route: more evidence than any verdict needs.
const ENDPOINTS: usize = 128;
/// So many faults of a route without a success between them are no chance: with one fault in ten that is one in a hundred
/// thousand, while of a route that is down they are the first.
const IN_A_ROW: u32 = 8;

/// The pool's memory of suspect faults.
#[derive(Debug, Default)]
pub struct Suspects {
    /// When the last fault leaves the window, in nanoseconds; 0 when there is nothing to remember.
    until: AtomicU64,
    routes: Mutex<HashMap<Route, Seen>>,
}

/// Whom a suspect fault is laid to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The endpoint, for this many faults: the present one, and those held back until the peers had spoken.
    Endpoint(u32),
    /// The upstream pool.
    Pool,
    /// Nobody yet: the peers have said too little, or none could take over.
    Nobody,
}

/// The same model at the same base URL: what endpoints must share for the luck of one to say something about another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route(u64);

impl Route {
    /// The route of a request on `endpoint`. Reads the request's body for its model if nobody has yet.
    pub fn of(endpoint: &Endpoint, context: Option<&RequestContext>) -> Self {
        let mut hasher = DefaultHasher::new();
        context.and_then(|context| context.asks().model.as_deref()).hash(&mut hasher);
        endpoint.key().base().hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What was seen on one route.
#[derive(Debug, Default)]
struct Seen {
    endpoints: Vec<Luck>,
    last_fault: u64,
    /// Faults of all endpoints since the last success of any.
    in_a_row: u32,
}

impl Seen {
    fn find(&mut self, endpoint: &Endpoint) -> Option<&mut Luck> {
        self.endpoints.iter_mut().find(|luck| luck.id == endpoint.id())
    }

    /// The endpoint's luck; when there is no room for another, that of the one longest silent is given up.
    fn find_or_add(&mut self, endpoint: &Endpoint) -> &mut Luck {
        let at = self.endpoints.iter().position(|luck| luck.id == endpoint.id()).unwrap_or_else(|| {
            if self.endpoints.len() >= ENDPOINTS {
                let silent = (0..self.endpoints.len()).min_by_key(|&at| self.endpoints[at].newest).unwrap_or(0);
                self.endpoints.swap_remove(silent);
            }
            self.endpoints.push(Luck::new(endpoint));
            self.endpoints.len() - 1
        });
        &mut self.endpoints[at]
    }
}

impl Suspects {
    /// Whether there was a suspect fault lately, so that successes are worth reporting. One atomic load.
    pub fn watching(&self) -> bool {
        self.until.load(Ordering::Acquire) != 0
    }

    /// Notes a suspect fault of `endpoint` and says whom it is laid to.
    ///
    /// *The pool*, when at least two endpoints, and at least half of those with traffic on the route, fail alike: a peer
    /// fails alike when its share of faults is at least half of this endpoint's, so that a peer's stray fault does not
    /// shield a dead key, and a low rate of faults on all keys is not laid to any. (With "half" alone a pool of two keys
    /// could never tell its one bad key: one of two is half.) *The endpoint*, when a peer that could take over succeeded in
    /// the same minute, so that the last usable endpoint is never blamed, and when it has more faults than it had by chance at
    /// the rate of those peers: three faults a minute are nothing where one request in ten fails. *Nobody* otherwise; such
    /// faults are held back, and count as soon as the peers have spoken for long enough.
    pub fn fault(&self, endpoint: &Endpoint, route: Route, now: Instant) -> Blame {
        let mut routes = self.lock();
        if endpoint.is_removed() {
            return Blame::Nobody;
        }
        let nanos = clock::nanos(now);
        self.until.fetch_max(nanos.saturating_add(WINDOW), Ordering::AcqRel);
        if routes.len() >= ROUTES && !routes.contains_key(&route) {
            routes.retain(|_, seen| seen.last_fault.saturating_add(WINDOW) > nanos);
            if routes.len() >= ROUTES
                && let Some((_, oldest)) = routes.iter().map(|(route, seen)| (seen.last_fault, *route)).min()
            {
                routes.remove(&oldest);
            }
        }
        let seen = routes.entry(route).or_default();
        seen.last_fault = seen.last_fault.max(nanos);
        seen.in_a_row = seen.in_a_row.saturating_add(1);
        let own = seen.find_or_add(endpoint);
        let bucket = own.bucket(nanos);
        bucket.faults = bucket.faults.saturating_add(1);
        own.failed_last = true;
        let counts = own.counts(nanos);

        let (mut with_traffic, mut failing, mut spoken, mut replaceable) = (1_usize, 1_usize, false, false);
        let mut peers = Counts::default();
        for peer in seen.endpoints.iter().filter(|peer| peer.id != endpoint.id()) {
            let theirs = peer.counts(nanos);
            with_traffic += usize::from(theirs.any());
            spoken |= theirs.successes > 0;
            replaceable = replaceable || theirs.successes > 0 && peer.is_usable(now);
            if theirs.faults > 0 && theirs.fault_share() * 2.0 >= counts.fault_share() {
                failing += 1;
            } else {
                peers += theirs;
            }
        }
        let blame_pool = failing >= 2 && failing * 2 >= with_traffic;
        let own = seen.find_or_add(endpoint);
        if blame_pool {
            own.held = 0;
            Blame::Pool
        } else if spoken && !replaceable {
            Blame::Nobody
        } else if !spoken || !counts.differ_from(peers) {
            own.held = own.held.saturating_add(1);
            Blame::Nobody
        } else {
            let held = std::mem::take(&mut own.held).min(counts.faults.saturating_sub(1));
            Blame::Endpoint(held.saturating_add(1))
        }
    }

    /// Notes a success of `endpoint`. Worth calling only while [`watching`](Self::watching), which spares the route.
    pub fn success(&self, endpoint: &Endpoint, route: Route, now: Instant) {
        if !self.watching() {
            return;
        }
        let mut routes = self.lock();
        let nanos = clock::nanos(now);
        if self.until.load(Ordering::Acquire) <= nanos {
            routes.clear();
            self.until.store(0, Ordering::Release);
            return;
        }
        let Some(seen) = routes.get_mut(&route) else { return };
        if seen.last_fault.saturating_add(WINDOW) <= nanos {
            routes.remove(&route);
            return;
        }
        seen.in_a_row = 0;
        let has_room = seen.endpoints.len() < ENDPOINTS;
        if endpoint.is_removed() || !has_room && seen.find(endpoint).is_none() {
            return;
        }
        let luck = seen.find_or_add(endpoint);
        let bucket = luck.bucket(nanos);
        bucket.successes = bucket.successes.saturating_add(1);
        luck.failed_last = false;
    }

    /// Whether the pool behind `route` fails now: nothing has succeeded for some faults, and one was the last word of at least
    /// two endpoints, and of at least half of those with traffic in the last minute.
    pub fn pool_failing(&self, route: Route, now: Instant) -> bool {
        if !self.watching() {
            return false;
        }
        let nanos = clock::nanos(now);
        self.lock().get(&route).is_some_and(|seen| {
            let endpoints = seen.endpoints.iter();
            let failing = endpoints.clone().filter(|luck| luck.failed_last && luck.counts(nanos).faults > 0).count();
            seen.in_a_row >= IN_A_ROW
                && failing >= 2
                && failing * 2 >= endpoints.filter(|luck| luck.counts(nanos).any()).count()
        })
    }

    /// Forgets an endpoint.
    pub(super) fn forget(&self, id: EndpointId) {
        if self.watching() {
            self.lock().values_mut().for_each(|seen| seen.endpoints.retain(|luck| luck.id != id));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Route, Seen>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{endpoint::PoolState, key::ApiKey};

    fn pool(size: usize) -> (Vec<Endpoint>, Route, Instant) {
        let pool = Arc::<PoolState>::default();
        let endpoint = |n| Endpoint::in_pool(ApiKey::new(format!("key-{n}")).unwrap(), pool.clone());
        let endpoints: Vec<_> = (0..size).map(endpoint).collect();
        let route = Route::of(&endpoints[0], None);
        (endpoints, route, Instant::now())
    }

    fn fault(endpoint: &Endpoint, route: Route, now: Instant) -> Blame {
        endpoint.suspects().fault(endpoint, route, now)
    }

    fn success(endpoint: &Endpoint, route: Route, now: Instant) {
        endpoint.suspects().success(endpoint, route, now);
    }

    fn successes(endpoint: &Endpoint, route: Route, now: Instant, count: u32) {
        (0..count).for_each(|_| success(endpoint, route, now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_alone_fails_is_blamed_with_what_was_held_back() {
        let (keys, route, now) = pool(2);
        assert_eq!(fault(&keys[0], route, now), Blame::Nobody);
        assert_eq!(fault(&keys[0], route, now), Blame::Nobody);
        successes(&keys[1], route, now, 2);
        assert_eq!(fault(&keys[0], route, now), Blame::Endpoint(3));
        assert_eq!(fault(&keys[0], route, now), Blame::Endpoint(1));
        assert!(!keys[0].suspects().pool_failing(route, now));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_fail_together_are_the_pools_fault() {
        let (keys, route, now) = pool(3);
        assert_eq!(fault(&keys[0], route, now), Blame::Nobody);
        assert!(!keys[0].suspects().pool_failing(route, now));
        assert_eq!(fault(&keys[1], route, now), Blame::Pool);
        success(&keys[2], route, now);
        for _ in 1..IN_A_ROW {
            assert_eq!(fault(&keys[0], route, now), Blame::Pool);
            assert!(!keys[0].suspects().pool_failing(route, now), "so few in a row may be chance");
        }
        fault(&keys[0], route, now);
        assert!(keys[0].suspects().pool_failing(route, now));
        success(&keys[0], route, now);
        assert!(!keys[0].suspects().pool_failing(route, now), "something succeeds");
    }

    #[tokio::test(start_paused = true)]
    async fn one_key_that_fails_often_is_not_the_pool() {
        let (keys, route, now) = pool(3);
        success(&keys[1], route, now);
        (0..100).for_each(|_| _ = fault(&keys[0], route, now));
        assert!(!keys[0].suspects().pool_failing(route, now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_faults_among_few_answers_are_chance_where_the_peers_fail_too() {
        let (keys, route, now) = pool(4);
        for peer in &keys[1..] {
            fault(peer, route, now);
            successes(peer, route, now, 19);
        }
        successes(&keys[0], route, now, 12);
        let blamed = |_| matches!(fault(&keys[0], route, now), Blame::Endpoint(_));
        assert_eq!([1, 2, 3].map(blamed), [false; 3], "3 of 15, where 3 of 60 fail");
        assert_eq!((4..=20).map(blamed).next_back(), Some(true), "20 of 32");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stray_fault_of_a_peer_does_not_shield_a_dead_key() {
        let (keys, route, now) = pool(2);
        fault(&keys[0], route, now);
        fault(&keys[1], route, now);
        successes(&keys[1], route, now, 30);
        assert!((0..3).any(|_| matches!(fault(&keys[0], route, now), Blame::Endpoint(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_low_rate_of_faults_on_all_keys_is_laid_to_none() {
        let (keys, route, now) = pool(5);
        let mut blamed = 0;
        for round in 0..100 {
            for (n, key) in keys.iter().enumerate() {
                if (round * 5 + n) % 26 == 0 {
                    blamed += usize::from(matches!(fault(key, route, now), Blame::Endpoint(_)));
                } else {
                    success(key, route, now);
                }
            }
        }
        assert_eq!(blamed, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_usable_endpoint_is_not_blamed() {
        let (keys, route, now) = pool(2);
        fault(&keys[0], route, now);
        successes(&keys[1], route, now, 20);
        keys[1].set_shut_until(Some(now + Duration::from_secs(5)));
        assert_eq!(fault(&keys[0], route, now), Blame::Nobody);
        keys[1].set_shut_until(None);
        assert!(matches!(fault(&keys[0], route, now), Blame::Endpoint(_)));
        keys[1].remove();
        assert_eq!(fault(&keys[0], route, now), Blame::Nobody);
    }

    #[tokio::test(start_paused = true)]
    async fn other_routes_say_nothing() {
        let (keys, route, now) = pool(2);
        let other = Route(route.0 ^ 1);
        fault(&keys[0], route, now);
        fault(&keys[1], other, now);
        success(&keys[1], other, now);
        assert_eq!(fault(&keys[0], route, now), Blame::Nobody);
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_forgotten_after_a_minute() {
        let (keys, route, now) = pool(2);
        let suspects = keys[0].suspects();
        assert!(!suspects.watching());
        (0..IN_A_ROW).for_each(|n| _ = fault(&keys[n as usize % 2], route, now));
        assert!(suspects.watching() && suspects.pool_failing(route, now));
        let later = now + Duration::from_secs(70);
        assert!(!suspects.pool_failing(route, later));
        success(&keys[1], route, later);
        assert!(!suspects.watching() && suspects.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn r132_memory_is_bounded_and_removed_endpoints_are_forgotten() {
        let (keys, _, now) = pool(300);
        let suspects = keys[0].suspects();
        for n in 0..200 {
            for key in &keys {
                fault(key, Route(n), now);
                success(key, Route(n), now);
            }
        }
        assert!(suspects.lock().len() <= ROUTES);
        assert!(suspects.lock().values().all(|seen| seen.endpoints.len() <= ENDPOINTS));
        keys.iter().for_each(Endpoint::remove);
        fault(&keys[0], Route(199), now);
        success(&keys[0], Route(199), now);
        assert!(suspects.lock().values().all(|seen| seen.endpoints.is_empty()));
    }
}
