use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use crate::{
    CircuitBreakerLayer, ConcurrencyLimitLayer, Endpoint, Snapshot,
    breaker::BreakerHandle,
    endpoint::EndpointId,
    hedge::HedgeHandle,
    retry::{RetryHandle, RetryStats},
    select::Pool,
    sync::{Mutex, lock},
};

/// What a balancer's stages can be asked and told, while it runs.
#[derive(Clone)]
pub struct BalancerHandle {
    pub(super) pool: Pool,
    pub(super) retry: RetryHandle,
    pub(super) hedge: Option<HedgeHandle>,
    pub(super) kept: Kept,
}

impl BalancerHandle {
    /// The keys: to add, remove and reset them.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What every key did, what was tried again and, where that is on, what was sent twice, how many of each class wait for a
    /// key, and what rests that [no single key has](Pool::rests).
    pub fn snapshot(&self) -> Snapshot {
        let waiting: BTreeMap<_, _> =
            self.pool.waiting().into_iter().map(|(class, count)| (class.as_str(), count)).collect();
        let snapshot =
            Snapshot::of(self.pool.endpoints().iter()).with("retry", self.retry.stats()).with("waiting", waiting);
        let snapshot = snapshot.with("rests", self.pool.rests());
        match &self.hedge {
            Some(hedge) => snapshot.with("hedge", hedge.stats()),
            None => snapshot,
        }
    }

    /// Has the keys of this label take nothing new; see [`Pool::drain`]. Whether there is such a key.
    pub fn drain(&self, label: &str) -> bool {
        self.pool.drain(label)
    }

    /// Has the keys of this label left alone altogether; see [`Pool::isolate`]. Whether there is such a key.
    pub fn isolate(&self, label: &str) -> bool {
        self.pool.isolate(label)
    }

    /// Puts the keys of this label back into service as if nothing had happened: closes their breakers and [resets](Pool::reset)
    /// them in the pool. Whether there is such a key.
    ///
    /// ```
    /// use tower_openrouter::{ApiKey, Balancer, OpenRouter, select::Pool};
    /// # use tower_openrouter::simulator::{Scenario, Simulator};
    /// # let transport = Simulator::new(Scenario::default())?.service();
    ///
    /// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b")])?;
    /// let balancer = Balancer::builder(pool).build(OpenRouter::new(transport));
    /// # let _: &Balancer<String> = &balancer;
    /// balancer.handle().isolate("a");
    /// assert!(!balancer.handle().pool().endpoints()[0].is_in_service());
    /// balancer.handle().reset("a");
    /// assert!(balancer.handle().pool().endpoints()[0].is_in_service());
    /// # Ok::<(), tower::BoxError>(())
    /// ```
    pub fn reset(&self, label: &str) -> bool {
        // before the pool, which wakes those who wait
        for endpoint in self.pool.endpoints().iter().filter(|endpoint| endpoint.key().name() == label) {
            if let Some(breaker) = self.breaker(endpoint) {
                breaker.reset();
            }
        }
        self.pool.reset(label)
    }

    /// What was tried again, and why not.
    pub fn retry_stats(&self) -> RetryStats {
        self.retry.stats()
    }

    /// The breaker of an endpoint: to watch, isolate and reset it. `None` before the first request could have used it.
    pub fn breaker(&self, endpoint: &Endpoint) -> Option<BreakerHandle> {
        self.kept.get(endpoint).map(|kept| kept.breaker.handle())
    }
}

impl fmt::Debug for BalancerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancerHandle").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// What is kept of each endpoint's stack, so that all stacks of one endpoint share it.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<HashMap<EndpointId, PerKey>>>);

#[derive(Clone)]
pub(crate) struct PerKey {
    pub(super) endpoint: Endpoint,
    pub(crate) breaker: CircuitBreakerLayer,
    pub(crate) limit: ConcurrencyLimitLayer,
}

impl Kept {
    /// What is kept of `endpoint`, made if it is new.
    pub(super) fn of(&self, endpoint: &Endpoint, make: impl FnOnce() -> PerKey) -> PerKey {
        let mut kept = lock(&self.0);
        if let Some(per_key) = kept.get(&endpoint.id()) {
            return per_key.clone();
        }
        // before it would grow, so that keys that are gone cost no room, and looking for them next to no time
        if kept.len() == kept.capacity() {
            kept.retain(|_, per_key| !per_key.endpoint.is_removed());
        }
        kept.entry(endpoint.id()).or_insert(make()).clone()
    }

    fn get(&self, endpoint: &Endpoint) -> Option<PerKey> {
        lock(&self.0).get(&endpoint.id()).filter(|per_key| !per_key.endpoint.is_removed()).cloned()
    }

    /// Copies what another keeps of the endpoints of `pool`.
    pub(super) fn take_over(&self, other: &Self, pool: &Pool) {
        let ids: HashSet<_> = pool.endpoints().iter().map(Endpoint::id).collect();
        let mut kept = lock(&other.0).clone();
        kept.retain(|id, _| ids.contains(id));
        lock(&self.0).extend(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApiKey, breaker::BreakerPolicy};

    #[test]
    fn r132_keys_that_are_gone_take_no_room() {
        let (pool, kept) = (Pool::new([ApiKey::new("stays").unwrap()]).unwrap(), Kept::default());
        let keep = |endpoint: &Endpoint| {
            kept.of(endpoint, || PerKey {
                endpoint: endpoint.clone(),
                breaker: CircuitBreakerLayer::new(BreakerPolicy::default()).endpoint(endpoint),
                limit: ConcurrencyLimitLayer::new(1).unwrap(),
            })
        };
        let stays = pool.endpoints()[0].clone();
        keep(&stays);
        for number in 0..1_000 {
            let endpoint = pool.add(ApiKey::new(format!("key-{number}")).unwrap());
            keep(&endpoint);
            pool.remove(endpoint.key().name());
        }
        assert!(lock(&kept.0).len() < 10);
        assert!(kept.get(&stays).is_some());
    }
}
