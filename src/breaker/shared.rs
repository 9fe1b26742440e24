//! The breaker that all clones share: the state machine behind one short lock, and a word in front of it.
//!
//! The word says whether everything is let through, and whether a success would change anything. While it stands at "yes" and
//! "no", which is nearly always, neither admission nor report takes the lock.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Arc, OnceLock},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    policy::BreakerPolicy,
    state::{Admit, BreakerSnapshot, BreakerState, Change, Core, Sample, Ticket},
};
use crate::{
    clock,
    endpoint::Endpoint,
    events::{self, Event},
    outcome::Cause,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
        lock,
    },
};

/// Everything is let through.
const FREE: u64 = 1;
/// A success changes nothing.
const CLEAN: u64 = 2;
/// It is open, by itself.
const OPEN: u64 = 4;
const EPOCH_SHIFT: u32 = 3;

#[derive(Debug)]
pub(super) struct Breaker {
    /// The epoch and the flags; written under the lock.
    word: AtomicU64,
    endpoint: OnceLock<Endpoint>,
    policy: Arc<BreakerPolicy>,
    // made when first needed, so that the words of many breakers lie close together
    locked: Mutex<Option<Box<Locked>>>,
}

#[derive(Debug)]
struct Locked {
    core: Core,
    waiters: BTreeMap<u64, Waker>,
    next_waiter: u64,
}

/// The state, under its lock.
struct Guard<'a>(MutexGuard<'a, Option<Box<Locked>>>);

impl Deref for Guard<'_> {
    type Target = Locked;

    fn deref(&self) -> &Locked {
        self.0.as_ref().expect("made as it was locked")
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Locked {
        self.0.as_mut().expect("made as it was locked")
    }
}

impl Breaker {
    pub(super) fn new(policy: impl Into<Arc<BreakerPolicy>>) -> Self {
        let policy = policy.into();
        Self {
            word: AtomicU64::new(word(&Core::new(policy.clone()))),
            endpoint: OnceLock::new(),
            policy,
            locked: Mutex::new(None),
        }
    }

    fn lock(&self) -> Guard<'_> {
        let mut locked = lock(&self.locked);
        locked.get_or_insert_with(|| {
            let core = Core::new(self.policy.clone());
            Box::new(Locked { core, waiters: BTreeMap::new(), next_waiter: 0 })
        });
        Guard(locked)
    }

    /// When an answer counts as slow.
    pub(super) fn slow_after(&self) -> Option<Duration> {
        self.policy.slow.map(|slow| slow.after)
    }

    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.get()
    }

    pub(super) fn set_endpoint(&self, endpoint: &Endpoint) {
        let _ = self.endpoint.set(endpoint.clone());
    }

    /// The ticket of a request that goes without asking, if everything is let through.
    pub(super) fn free(&self) -> Option<Ticket> {
        let word = self.word.load(Ordering::Acquire);
        if word & FREE != 0 {
            return Some(Ticket::free(word >> EPOCH_SHIFT));
        }
        // who would rather use it than too few others learns nothing by it
        (word & OPEN != 0 && self.endpoint().is_some_and(Endpoint::is_forced)).then(Ticket::stray)
    }

    /// Whether a success reported with this ticket would change nothing.
    pub(super) fn ignores_success(&self, ticket: Ticket) -> bool {
        self.word.load(Ordering::Acquire) == (ticket.epoch() << EPOCH_SHIFT | FREE | CLEAN)
    }

    pub(super) fn admit(&self, now: Instant) -> Admit {
        self.step(now, |core| core.admit(now))
    }

    pub(super) fn renew(&self, ticket: Ticket, now: Instant) -> bool {
        self.lock().core.renew(ticket, now)
    }

    /// Takes in a sample; `cause` is that of the fault, if it is one.
    pub(super) fn report(&self, ticket: Ticket, sample: Sample, cause: Option<Cause>, now: Instant) {
        let random = fastrand::f64();
        self.step_for(cause, now, |core| ((), core.report(ticket, sample, now, random)));
    }

    /// If nothing would be let through now: until when, where that is known.
    pub(super) fn shut(&self, now: Instant) -> Option<Option<Instant>> {
        self.lock().core.shut(now)
    }

    /// The same, and has `waker` woken at the next change, under the waiter's number.
    pub(super) fn wait(&self, number: &mut Option<u64>, waker: &Waker, now: Instant) -> Option<Option<Instant>> {
        let mut locked = self.lock();
        let until = locked.core.shut(now)?;
        let number = *number.get_or_insert_with(|| {
            locked.next_waiter += 1;
            locked.next_waiter
        });
        locked.waiters.insert(number, waker.clone());
        Some(until)
    }

    pub(super) fn leave(&self, number: u64) {
        let waker = self.lock().waiters.remove(&number);
        drop(waker);
    }

    pub(super) fn snapshot(&self, now: Instant) -> BreakerSnapshot {
        match &*lock(&self.locked) {
            Some(locked) => locked.core.snapshot(now),
            // to look at a breaker that has seen nothing makes no state of it
            None => Core::new(self.policy.clone()).snapshot(now),
        }
    }

    /// One step of the state machine; whoever waits for a change is woken, outside the lock.
    pub(super) fn step<T>(&self, now: Instant, step: impl FnOnce(&mut Core) -> (T, Option<Change>)) -> T {
        self.step_for(None, now, step)
    }

    fn step_for<T>(
        &self,
        cause: Option<Cause>,
        now: Instant,
        step: impl FnOnce(&mut Core) -> (T, Option<Change>),
    ) -> T {
        let mut locked = self.lock();
        let before = locked.core.standing();
        let (result, change) = step(&mut locked.core);
        self.word.store(word(&locked.core), Ordering::Release);
        let Some(change) = change else { return result };
        let waiters = std::mem::take(&mut locked.waiters);
        if change != Change::Freed
            && let Some(endpoint) = self.endpoint()
        {
            // a slot that is taken is not shown: readiness says that
            let shut = match change {
                Change::HalfOpened => None,
                _ => locked.core.shut(now).map(|until| until.unwrap_or(clock::after(now, clock::FOREVER))),
            };
            endpoint.set_shut_until(shut);
            let after = locked.core.standing();
            // by hand it may be set to what it is
            if std::mem::discriminant(&after) != std::mem::discriminant(&before) {
                endpoint.pool().events().tell(|| Event::of(endpoint, told(after, cause), now));
            }
        }
        drop(locked);
        waiters.into_values().for_each(Waker::wake);
        if let Some(endpoint) = self.endpoint() {
            endpoint.pool().events().wake();
        }
        self.log(change);
        result
    }

    fn log(&self, change: Change) {
        let key = self.endpoint().map(|endpoint| endpoint.key().name());
        match change {
            Change::Opened(span) => warn!(key, for_ms = span.as_millis() as u64, "breaker opened"),
            Change::HalfOpened => info!(key, "breaker half-open"),
            Change::Closed => info!(key, "breaker closed"),
            Change::Set => info!(key, "breaker set by hand"),
            Change::Freed => {}
        }
    }
}

/// The change that led to this state.
fn told(state: BreakerState, cause: Option<Cause>) -> events::Change {
    match state {
        BreakerState::Closed => events::Change::BreakerClosed,
        BreakerState::Open { until } => events::Change::BreakerOpened { until, cause },
        BreakerState::HalfOpen { .. } => events::Change::BreakerHalfOpen,
        BreakerState::Isolated => events::Change::BreakerIsolated,
        BreakerState::Disabled => events::Change::BreakerDisabled,
    }
}

fn word(core: &Core) -> u64 {
    let free = if core.is_free() { FREE } else { 0 };
    let clean = if core.ignores_success() { CLEAN } else { 0 };
    let open = if core.is_open() { OPEN } else { 0 };
    core.epoch() << EPOCH_SHIFT | free | clean | open
}
