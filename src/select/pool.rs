use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

use super::cooldown::{Book, Resting};
use crate::{
    endpoint::{AdminState, Endpoint, PoolState, Prices, Profile},
    events::Change,
    key::{ApiKey, KeyError},
    outcome::{Cause, Fault},
    request::{Priority, RequestContext},
    sync::lock_std,
};

mod changes;

/// The keys a selector chooses from, and the book of their rests. Cheap to clone; keys come and go while requests run.
///
/// Groups of keys, each with a pick of its own, are pools that [share](Self::share) what is known of their keys; so is a new
/// set of keys beside the old one, on which requests still run.
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
    endpoints: ArcSwap<Vec<Endpoint>>,
    known: Arc<Known>,
}

/// What pools that share their keys' fate share.
#[derive(Default)]
struct Known {
    state: Arc<PoolState>,
    book: Book,
    watchers: Mutex<Vec<Weak<dyn Watcher>>>,
    /// How many of each class wait for a key, with any selector.
    waiters: [AtomicUsize; Priority::ALL.len()],
    /// Held while keys come and go and operators act, so that it is told in the order in which it holds.
    acting: Mutex<()>,
    /// For those who keep an eye on the keys without keeping a pool.
    news: watch::Sender<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.known.news.send_replace(());
    }
}

/// A pool that is not kept.
#[derive(Clone)]
pub(crate) struct WeakPool(Weak<Inner>);

impl WeakPool {
    pub(crate) fn upgrade(&self) -> Option<Pool> {
        self.0.upgrade().map(Pool)
    }
}

/// Somebody who must know at once when a key was added, removed, taken out of service or reset.
pub(super) trait Watcher: Send + Sync {
    fn changed(&self);

    /// An upstream that rested for everybody serves again, before its rest was over.
    fn healed(&self);

    /// Something that filters had set aside for a request on `endpoint` was given back.
    fn freed(&self, endpoint: &Endpoint);
}

impl Pool {
    /// A pool of these keys; a key that is there already is left out.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Result<Self, KeyError> {
        Self::of(keys, &[], Arc::default())
    }

    /// Another pool, of these keys, that shares what is known with this one: a key that is here with the same secret and the
    /// same settings is the same endpoint, with its figures and rests, and a rest written in one pool holds in both. Keys
    /// added to, or removed from, either pool later are its own.
    ///
    /// ```
    /// use tower_openrouter::{ApiKey, select::Pool};
    ///
    /// let (a, b) = (ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b"));
    /// let all = Pool::new([a.clone(), b])?;
    /// let group = all.share([a])?;
    /// assert_eq!(group.endpoints()[0], all.endpoints()[0]);
    /// # Ok::<(), tower_openrouter::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// When there is no key.
    pub fn share(&self, keys: impl IntoIterator<Item = ApiKey>) -> Result<Self, KeyError> {
        Self::of(keys, &self.endpoints(), self.0.known.clone())
    }

    fn of(keys: impl IntoIterator<Item = ApiKey>, old: &[Endpoint], known: Arc<Known>) -> Result<Self, KeyError> {
        let old: HashMap<_, _> = old.iter().map(|endpoint| (endpoint.key().hash(), endpoint)).collect();
        let mut seen = HashSet::new();
        let profiles: Vec<_> = keys
            .into_iter()
            .filter(|key| seen.insert(key.hash().to_owned()))
            .map(|key| match old.get(key.hash()) {
                Some(endpoint) if *endpoint.key() == key && !endpoint.is_removed() => Ok((*endpoint).clone()),
                // whoever took it out of service meant the key, whatever its settings are now
                old => Err((Profile::new(key), old.map_or_else(AdminState::default, |old| old.admin_state()))),
            })
            .collect();
        // one right after the other, so that what requests touch of many keys lies close together
        known.state.expect(profiles.iter().filter(|known| known.is_err()).count());
        let endpoint = |(profile, state): (Box<Profile>, AdminState)| {
            let endpoint = profile.into_endpoint(known.state.clone());
            endpoint.set_admin_state(state);
            endpoint
        };
        let fresh: Vec<_> = profiles.iter().map(Result::is_err).collect();
        let endpoints: Vec<_> = profiles.into_iter().map(|known| known.unwrap_or_else(endpoint)).collect();
        if endpoints.is_empty() {
            return Err(KeyError::NoKeys);
        }
        let pool = Self(Arc::new(Inner { endpoints: ArcSwap::from_pointee(endpoints), known }));
        pool.introduce(&fresh);
        Ok(pool)
    }

    /// Adds a key, or finds it if it is there already.
    pub fn add(&self, key: ApiKey) -> Endpoint {
        let acting = self.acting();
        let old = self.endpoints();
        if let Some(endpoint) = old.iter().find(|endpoint| endpoint.key().hash() == key.hash()) {
            return endpoint.clone();
        }
        let endpoint = Endpoint::in_pool(key, self.0.known.state.clone());
        self.0.endpoints.store(Arc::new(old.iter().cloned().chain([endpoint.clone()]).collect()));
        self.note(&endpoint, Change::Added);
        drop(acting);
        self.changed();
        endpoint
    }

    /// Takes the keys of this label out; whether there was one. Requests that run on them are finished, and nothing new
    /// is sent to them.
    pub fn remove(&self, label: &str) -> bool {
        let acting = self.acting();
        let old = self.endpoints();
        let (removed, kept): (Vec<_>, Vec<_>) =
            old.iter().cloned().partition(|endpoint| endpoint.key().name() == label);
        self.0.endpoints.store(Arc::new(kept));
        for endpoint in &removed {
            if !endpoint.is_removed() {
                endpoint.remove();
                self.note(endpoint, Change::Removed);
            }
        }
        drop(acting);
        self.changed();
        !removed.is_empty()
    }

    /// Takes the keys of this label out of service, in every pool that shares them, until they are [reset](Self::reset);
    /// whether there is such a key. Nothing new is sent to them, be it a request, its retry or its hedge; what runs on them
    /// ends by itself, and [`in_flight`](crate::endpoint::Figures::in_flight) says how much that is. An
    /// [`AccountPoller`](crate::AccountPoller) goes on asking about them. It outlives a [new set of keys](Self::share) with the
    /// same secret in it.
    ///
    /// ```
    /// use tower_openrouter::{ApiKey, endpoint::AdminState, select::Pool};
    ///
    /// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b")])?;
    /// pool.drain("a");
    /// assert_eq!(pool.endpoints()[0].admin_state(), AdminState::Draining);
    /// pool.reset("a");
    /// assert!(pool.endpoints()[0].is_in_service());
    /// # Ok::<(), tower_openrouter::KeyError>(())
    /// ```
    pub fn drain(&self, label: &str) -> bool {
        self.put(label, AdminState::Draining)
    }

    /// The same as [`drain`](Self::drain), and nobody asks about the keys either: for a key that must not be used at all, such
    /// as one that may have leaked.
    pub fn isolate(&self, label: &str) -> bool {
        self.put(label, AdminState::Isolated)
    }

    fn put(&self, label: &str, state: AdminState) -> bool {
        self.each(label, |endpoint| self.order(endpoint, state))
    }

    /// Puts the keys of this label back into service: ends their rests and those of their accounts and workspaces, forgets
    /// penalties and suspect faults, and undoes [`drain`](Self::drain) and [`isolate`](Self::isolate); whether there is such a
    /// key. The way back for a key given up for dead. Who waits for a key is told, and an
    /// [`AccountPoller`](crate::AccountPoller) asks soon what they may spend.
    ///
    /// Breakers are not the pool's: [`BalancerHandle::reset`](crate::stack::BalancerHandle::reset) resets both. What was learned
    /// of quotas and limits stays.
    pub fn reset(&self, label: &str) -> bool {
        self.each(label, |endpoint| {
            self.0.known.book.reset(endpoint, Instant::now());
            endpoint.forgive();
            self.order(endpoint, AdminState::InService);
            endpoint.doubt();
        })
    }

    /// Changes the keys of this label; whether there is one.
    fn each(&self, label: &str, change: impl Fn(&Endpoint)) -> bool {
        let endpoints = self.endpoints();
        let labelled = || endpoints.iter().filter(|endpoint| endpoint.key().name() == label);
        let acting = self.acting();
        labelled().for_each(change);
        drop(acting);
        self.changed();
        labelled().next().is_some()
    }

    /// The keys now in the pool.
    pub fn endpoints(&self) -> Arc<Vec<Endpoint>> {
        self.0.endpoints.load_full()
    }

    /// What rest holds the endpoint back from every request.
    pub fn resting(&self, endpoint: &Endpoint) -> Option<Resting> {
        self.0.known.book.out(endpoint, Instant::now())
    }

    /// What models cost, for all endpoints of the pool; empty until somebody fills it.
    pub fn prices(&self) -> &Prices {
        self.0.known.state.prices()
    }

    /// How many requests went to a key that was out because it fails, by [`panic_below`](super::KeySelectLayer::panic_below)
    /// or [`max_ejected`](super::KeySelectLayer::max_ejected).
    pub fn panic_picks(&self) -> u64 {
        self.state().panic_picks()
    }

    pub(super) fn book(&self) -> &Book {
        &self.0.known.book
    }

    pub(super) fn state(&self) -> &PoolState {
        &self.0.known.state
    }

    pub(super) fn record(&self, endpoint: &Endpoint, request: &RequestContext, fault: &Fault, now: Instant) {
        let live = self.0.known.state.live();
        if self.0.known.book.record(endpoint, request, fault, live, now) {
            self.0.known.state.touch();
        }
        if is_worth_asking_about(fault.cause) && endpoint.doubt() {
            self.0.known.news.send_replace(());
        }
    }

    /// Notes a success of what was sent at `sent`; `None` is when nothing rested yet.
    pub(super) fn succeed(&self, endpoint: &Endpoint, request: &RequestContext, sent: Option<Instant>, now: Instant) {
        if self.0.known.book.succeed(endpoint, request, sent, now) {
            self.tell(|watcher| watcher.healed());
        }
    }

    /// Notes that upstream, asked about the key at `asked`, accepts it: a rest for a 401 before that ends.
    pub(crate) fn vouch(&self, endpoint: &Endpoint, asked: Instant) {
        if self.0.known.book.vouch(endpoint, asked, Instant::now()) {
            self.changed();
        }
    }

    pub(crate) fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.0))
    }

    /// Changes when the set of keys does, when one of them is put in doubt, and when a pool that shares them is gone.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.0.known.news.subscribe()
    }

    pub(super) fn watch(&self, watcher: Weak<dyn Watcher>) {
        let mut watchers = lock_std(&self.0.known.watchers);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
    }

    fn acting(&self) -> MutexGuard<'_, ()> {
        lock_std(&self.0.known.acting)
    }

    fn changed(&self) {
        self.state().events().wake();
        self.0.known.state.touch();
        self.tell(|watcher| watcher.changed());
        self.0.known.news.send_replace(());
    }

    /// How many requests of each class wait for a key of this pool, or of those that share with it; the highest class first.
    pub fn waiting(&self) -> [(Priority, usize); Priority::ALL.len()] {
        Priority::ALL.map(|class| (class, self.waiters(class).load(Ordering::Relaxed)))
    }

    /// Counts who waits for a key; before they look whether there is one.
    pub(super) fn waiters(&self, class: Priority) -> &AtomicUsize {
        &self.0.known.waiters[class as usize]
    }

    /// There may be more to spend with `endpoint`, or with others of its account, than there was: who waits for it is told.
    pub(crate) fn freed(&self, endpoint: &Endpoint) {
        if self.0.known.waiters.iter().any(|waiters| waiters.load(Ordering::SeqCst) > 0) {
            self.tell(|watcher| watcher.freed(endpoint));
        }
    }

    fn tell(&self, what: impl Fn(&dyn Watcher)) {
        let watchers = lock_std(&self.0.known.watchers).clone();
        watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| what(&*watcher));
    }
}

/// Whether `GET /key` or `GET /credits` can tell more about it (rows 7 and 11 to 14).
fn is_worth_asking_about(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::InvalidKey
            | Cause::TooDearForKey
            | Cause::NoCredit
            | Cause::KeyLimit
            | Cause::WorkspaceBudget
            | Cause::GuardrailBudget
    )
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
