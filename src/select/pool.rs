use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::cooldown::{Book, Resting};
use crate::{
    endpoint::{Endpoint, PoolState, Prices},
    key::{ApiKey, KeyError},
    outcome::Fault,
    request::RequestContext,
};

/// The keys a selector chooses from, and the book of their rests. Cheap to clone; keys come and go while requests run.
///
/// ```
/// use tower_openrouter::{ApiKey, select::Pool};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b")])?;
/// pool.add(ApiKey::new("sk-or-v1-c")?.label("c"));
/// assert!(pool.remove("a"));
/// assert_eq!(pool.endpoints().len(), 2);
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    state: Arc<PoolState>,
    endpoints: ArcSwap<Vec<Endpoint>>,
    book: Book,
    watchers: Mutex<Vec<Weak<dyn Watcher>>>,
}

/// Somebody who must know at once when a key was added, removed or reset.
pub(super) trait Watcher: Send + Sync {
    fn changed(&self);
}

impl Pool {
    /// A pool of these keys; a key that is there already is left out.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Result<Self, KeyError> {
        let state = Arc::<PoolState>::default();
        let mut seen = HashSet::new();
        let endpoints: Vec<_> = keys
            .into_iter()
            .filter(|key| seen.insert(key.hash().to_owned()))
            .map(|key| Endpoint::in_pool(key, state.clone()))
            .collect();
        if endpoints.is_empty() {
            return Err(KeyError::NoKeys);
        }
        Ok(Self(Arc::new(Inner {
            state,
            endpoints: ArcSwap::from_pointee(endpoints),
            book: Book::default(),
            watchers: Mutex::default(),
        })))
    }

    /// Adds a key, or finds it if it is there already.
    pub fn add(&self, key: ApiKey) -> Endpoint {
        let mut found = None;
        self.0.endpoints.rcu(|old| {
            let endpoint = match old.iter().find(|endpoint| endpoint.key().hash() == key.hash()) {
                Some(endpoint) => endpoint.clone(),
                None => {
                    let endpoint = Endpoint::in_pool(key.clone(), self.0.state.clone());
                    let all = old.iter().cloned().chain([endpoint.clone()]).collect();
                    found = Some(endpoint);
                    return Arc::new(all);
                }
            };
            found = Some(endpoint);
            old.clone()
        });
        self.changed();
        found.expect("rcu runs its closure at least once")
    }

    /// Takes the keys of this label out; whether there was one. Requests that run on them are finished, and nothing new
    /// is sent to them.
    pub fn remove(&self, label: &str) -> bool {
        let old = self
            .0
            .endpoints
            .rcu(|old| old.iter().filter(|endpoint| endpoint.key().name() != label).cloned().collect::<Vec<_>>());
        let removed: Vec<_> = old.iter().filter(|endpoint| endpoint.key().name() == label).collect();
        for endpoint in &removed {
            endpoint.remove();
        }
        self.changed();
        !removed.is_empty()
    }

    /// Ends the rests of the keys of this label, and of their accounts and workspaces; whether there is such a key. The way
    /// back for a key given up for dead.
    pub fn reset(&self, label: &str) -> bool {
        let endpoints = self.endpoints();
        let mut found = false;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.key().name() == label) {
            self.0.book.reset(endpoint, Instant::now());
            found = true;
        }
        self.changed();
        found
    }

    /// The keys now in the pool.
    pub fn endpoints(&self) -> Arc<Vec<Endpoint>> {
        self.0.endpoints.load_full()
    }

    /// What rest holds the endpoint back from every request.
    pub fn resting(&self, endpoint: &Endpoint) -> Option<Resting> {
        self.0.book.out(endpoint, Instant::now())
    }

    /// What models cost, for all endpoints of the pool; empty until somebody fills it.
    pub fn prices(&self) -> &Prices {
        self.0.state.prices()
    }

    pub(super) fn book(&self) -> &Book {
        &self.0.book
    }

    pub(super) fn state(&self) -> &PoolState {
        &self.0.state
    }

    pub(super) fn record(&self, endpoint: &Endpoint, request: &RequestContext, fault: &Fault, now: Instant) {
        let live = self.0.endpoints.load().len();
        if self.0.book.record(endpoint, request, fault, live, now) {
            self.0.state.touch();
        }
    }

    pub(super) fn watch(&self, watcher: Weak<dyn Watcher>) {
        let mut watchers = self.0.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
    }

    fn changed(&self) {
        self.0.state.touch();
        let watchers = self.0.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| watcher.changed());
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &str) -> ApiKey {
        ApiKey::new(secret).unwrap().label(secret)
    }

    #[test]
    fn r024_an_empty_set_is_an_error_and_duplicates_are_one() {
        assert_eq!(Pool::new([]).unwrap_err(), KeyError::NoKeys);
        let pool = Pool::new([key("a"), key("a").label("again"), key("b")]).unwrap();
        assert_eq!(pool.endpoints().len(), 2);
        let known = pool.endpoints()[0].clone();
        assert_eq!(pool.add(key("a")), known, "one key, one state");
    }

    #[test]
    fn a_removed_key_says_so() {
        let pool = Pool::new([key("a"), key("b")]).unwrap();
        let gone = pool.endpoints()[0].clone();
        assert!(pool.remove("a") && gone.is_removed());
        assert!(!pool.remove("a"));
        assert_eq!(pool.endpoints().len(), 1);
    }
}
