//! An endpoint: one key, with what its little stack and the pool know of each other.
//!
//! Picks want to know how loaded a key is, selection wants to know when a tripped breaker lets go, the monitor wants a place
//! to write. Rather than have each stage import the others, they meet here: selection creates an [`Endpoint`] for each key,
//! hands it to whatever builds the key's stack, and reads what that stack writes.

use std::{
    fmt,
    hint::black_box,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use crate::{clock, events::Feed, key::ApiKey};

mod admin;
mod credit;
mod figures;
mod loads;
mod peak;
mod penalty;
mod suspects;
mod tally;

pub use admin::AdminState;
pub use credit::{Budget, Credit, FreeRequests, KeyReport, Money, Price, Prices, Spendable};
pub(crate) use credit::{Fits, Paid};
pub use figures::Figures;
pub(crate) use figures::{Summed, Times};
pub(crate) use loads::Loads;
pub use suspects::{Blame, Route, Suspects};

/// One key in a pool. Cheap to clone; all clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

// in the order of use: with thousands of keys none is in a cache, and what an attempt touches should lie side by side, right
// behind the number of its owners, which each attempt changes; so it must not ask for a line of its own
#[repr(C)]
struct Inner {
    removed: AtomicBool,
    doubted: AtomicBool,
    /// An [`AdminState`].
    admin: AtomicU8,
    /// Whether the key itself may serve every request: it is not drained, and has no model patterns.
    serves_all: bool,
    /// How many snapshots use it although it is shut.
    forced: AtomicU32,
    pool: Arc<PoolState>,
    figures: Figures,
    profile: Box<Profile>,
}

/// What an attempt in good times has no need of, kept apart so that the rest of many keys lies close together.
pub(crate) struct Profile {
    id: EndpointId,
    shut_until: AtomicU64,
    account: OnceLock<Box<str>>,
    // made when first asked for
    credit: OnceLock<Box<Credit>>,
    key: ApiKey,
}

impl Profile {
    pub(crate) fn new(key: ApiKey) -> Box<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Box::new(Self {
            id: EndpointId(NEXT.fetch_add(1, Ordering::Relaxed)),
            shut_until: AtomicU64::new(0),
            account: key.account_name().map_or_else(OnceLock::new, |name| OnceLock::from(Box::<str>::from(name))),
            credit: OnceLock::new(),
            key,
        })
    }

    /// The endpoint, in a pool.
    pub(crate) fn into_endpoint(mut self: Box<Self>, pool: Arc<PoolState>) -> Endpoint {
        pool.live.fetch_add(1, Ordering::Relaxed);
        self.key.renew_header();
        Endpoint(Arc::new(Inner {
            removed: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            admin: AtomicU8::new(AdminState::InService as u8),
            serves_all: self.key.weight_of() != 0.0 && self.key.serves_all(),
            forced: AtomicU32::new(0),
            figures: Figures::at(pool.places.take()),
            pool,
            profile: self,
        }))
    }
}

/// Tells endpoints apart; never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(u64);

impl EndpointId {
    /// As a number, from 1 on.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

/// What all endpoints of a pool share.
#[derive(Debug, Default)]
pub(crate) struct PoolState {
    /// Counts changes of who is out for everybody; selection looks again when it moves.
    version: AtomicU64,
    /// Whether any endpoint has proved itself.
    warm: AtomicBool,
    /// How many endpoints there are that were not removed, in all pools that share this.
    live: AtomicUsize,
    places: loads::Places,
    suspects: Suspects,
    purses: credit::Purses,
    prices: Prices,
    panic_picks: AtomicU64,
    events: Feed,
}

impl PoolState {
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Says that so many endpoints are about to be made.
    pub(crate) fn expect(&self, endpoints: usize) {
        self.places.reserve(endpoints);
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn touch(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn is_warm(&self) -> bool {
        self.warm.load(Ordering::Relaxed)
    }

    pub(crate) fn warm_up(&self) {
        if !self.is_warm() {
            self.warm.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    pub(crate) fn prices(&self) -> &Prices {
        &self.prices
    }

    pub(crate) fn events(&self) -> &Feed {
        &self.events
    }

    pub(crate) fn panic_picks(&self) -> u64 {
        self.panic_picks.load(Ordering::Relaxed)
    }

    pub(crate) fn count_panic_pick(&self) {
        self.panic_picks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// An endpoint of its own, outside any pool: for stacks around a single key.
    pub fn new(key: ApiKey) -> Self {
        Self::in_pool(key, Arc::default())
    }

    pub(crate) fn in_pool(key: ApiKey, pool: Arc<PoolState>) -> Self {
        Profile::new(key).into_endpoint(pool)
    }

    /// The endpoint's id.
    pub fn id(&self) -> EndpointId {
        self.0.profile.id
    }

    /// The key.
    pub fn key(&self) -> &ApiKey {
        &self.0.profile.key
    }

    /// Whether it is in service and its key may serve every request, told without a look at the key.
    pub(crate) fn serves_all(&self) -> bool {
        self.0.serves_all && self.is_in_service()
    }

    /// Has the memory fetched that counts its owners, before anything waits for it.
    pub(crate) fn fetch(&self) {
        black_box(Arc::strong_count(&self.0));
    }

    /// What is measured on it.
    pub fn figures(&self) -> &Figures {
        &self.0.figures
    }

    /// The account the key belongs to: configured, or named by an answer.
    pub fn account(&self) -> Option<&str> {
        self.0.profile.account.get().map(AsRef::as_ref)
    }

    /// Notes the account an answer named; what is known already stays.
    pub fn learn_account(&self, account: &str) {
        if self.0.profile.account.get().is_none() && self.0.profile.account.set(account.into()).is_ok() {
            // picks that go by accounts look again
            self.0.pool.touch();
        }
    }

    /// What the key may spend, as polls and answers tell.
    pub fn credit(&self) -> &Credit {
        let purses = &self.0.pool.purses;
        let credit = self.0.profile.credit.get_or_init(|| Box::new(Credit::new(self.key().workspace_name(), purses)));
        if !credit.has_joined()
            && let Some(account) = self.account()
        {
            credit.join(account, purses);
        }
        credit
    }

    /// The same where anybody has asked for it before: most pools count no money.
    pub(crate) fn counted_credit(&self) -> Option<&Credit> {
        self.0.profile.credit.get().map(|_| self.credit())
    }

    /// What models cost, for all endpoints of the pool.
    pub fn prices(&self) -> &Prices {
        self.0.pool.prices()
    }

    /// Says until when the key's stack lets nothing through, such as an open breaker; `None` opens it again. It is a hint for
    /// selection, which need not ask an endpoint whose answer it knows; readiness still decides.
    pub fn set_shut_until(&self, until: Option<Instant>) {
        let value = until.map_or(0, clock::nanos);
        if self.0.profile.shut_until.swap(value, Ordering::AcqRel) != value {
            self.0.pool.touch();
        }
    }

    /// Until when the stack lets nothing through, if that is later than `now`.
    pub fn shut_until(&self, now: Instant) -> Option<Instant> {
        let until = self.0.profile.shut_until.load(Ordering::Acquire);
        let now_nanos = clock::nanos(now);
        (until > now_nanos).then(|| clock::after(now, std::time::Duration::from_nanos(until - now_nanos)))
    }

    /// Whether it should let requests through although it fails, because too few others are left. Whoever shut it for a time
    /// by [`set_shut_until`](Self::set_shut_until) heeds it.
    pub fn is_forced(&self) -> bool {
        self.0.forced.load(Ordering::Relaxed) > 0
    }

    /// Has it let requests through as long as the guard lives.
    pub(crate) fn force(&self) -> Forced {
        self.0.forced.fetch_add(1, Ordering::Relaxed);
        Forced(self.clone())
    }

    /// Whether it has been taken out of its pool. Requests that run on it are finished.
    pub fn is_removed(&self) -> bool {
        self.0.removed.load(Ordering::Acquire)
    }

    /// What an operator has it do.
    pub fn admin_state(&self) -> AdminState {
        AdminState::of(self.0.admin.load(Ordering::Acquire))
    }

    /// Whether it is in its pool and no operator has taken it out of service; it may be out for other reasons.
    pub fn is_in_service(&self) -> bool {
        !self.is_removed() && self.admin_state() == AdminState::InService
    }

    /// Says what it was before. The caller sees to it that selection looks again.
    pub(crate) fn set_admin_state(&self, state: AdminState) -> AdminState {
        AdminState::of(self.0.admin.swap(state as u8, Ordering::AcqRel))
    }

    /// Forgets what was held against it: penalties, a slow first byte of late, suspect faults.
    pub(crate) fn forgive(&self) {
        self.figures().forgive();
        self.suspects().forget(self.id());
    }

    pub(crate) fn remove(&self) {
        if !self.0.removed.swap(true, Ordering::AcqRel) {
            self.0.pool.live.fetch_sub(1, Ordering::Relaxed);
        }
        self.suspects().forget(self.id());
        self.0.pool.touch();
    }

    /// Marks it as one that an answer has put in doubt, so that whoever asks about keys asks about this one soon. Says
    /// whether that is new.
    pub(crate) fn doubt(&self) -> bool {
        !self.0.doubted.swap(true, Ordering::AcqRel)
    }

    /// Whether it was in doubt; from here on it is not.
    pub(crate) fn take_doubt(&self) -> bool {
        self.0.doubted.load(Ordering::Relaxed) && self.0.doubted.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn pool(&self) -> &Arc<PoolState> {
        &self.0.pool
    }

    /// The pool's memory of suspect faults, by which a breaker tells a bad key from a bad upstream.
    pub fn suspects(&self) -> &Suspects {
        self.0.pool.suspects()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !*self.removed.get_mut() {
            self.pool.live.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Says that an endpoint is used although it is shut; see [`Endpoint::is_forced`].
#[derive(Debug)]
pub(crate) struct Forced(Endpoint);

impl Drop for Forced {
    fn drop(&mut self) {
        self.0.0.forced.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Endpoint {}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id())
            .field("key", &self.key().name())
            .field("account", &self.account())
            .finish_non_exhaustive()
    }
}
