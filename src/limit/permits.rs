//! The permits of one cap: taken at once, queued for, or watched until some come free.
//!
//! tokio's semaphore does not fit: its cap cannot be lowered while permits are out, a queued acquire reserves for a clone
//! that may never use it, and loom cannot look inside. What is needed is small: a count and a queue under one lock that is
//! held for a few instructions, never while a waker is woken or dropped, since both may run foreign code that comes back
//! here. While nobody queues or watches, which is nearly always, the count is a word of its own and no lock is taken.

use std::{
    collections::VecDeque,
    mem,
    num::NonZeroU64,
    ops::{Deref, DerefMut},
    task::{Context, Poll, Waker},
};

use crate::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
    lock,
};

/// A cap and who holds or wants its permits; clones share them. Invariant: while anyone queues, every permit is out.
#[derive(Debug, Clone)]
pub(crate) struct Permits(Arc<Core>);

#[derive(Debug)]
struct Core {
    /// Permits that are out, times two; odd while they are the lock's to count.
    word: AtomicUsize,
    /// Written under the lock.
    cap: AtomicUsize,
    state: Mutex<State>,
}

/// Set in the word while someone holds the lock, queues or watches.
const LOCKED: usize = 1;
const ONE: usize = 2;

impl Core {
    /// Takes the lock, and with it the count.
    fn lock(&self) -> Locked<'_> {
        let mut state = lock(&self.state);
        state.in_flight = self.word.fetch_or(LOCKED, Ordering::AcqRel) / ONE;
        Locked { core: self, state }
    }

    /// Takes a permit without the lock; `None` when that needs the lock.
    fn take(&self) -> Option<()> {
        let mut word = self.word.load(Ordering::Acquire);
        while word & LOCKED == 0 && word / ONE < self.cap.load(Ordering::Relaxed) {
            match self.word.compare_exchange_weak(word, word + ONE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(()),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Whether a permit is free; when in doubt, no.
    fn is_free(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        word & LOCKED == 0 && word / ONE < self.cap.load(Ordering::Relaxed)
    }

    /// Gives a permit back, without the lock if nobody wants to hear of it.
    fn release(&self) {
        let mut word = self.word.load(Ordering::Acquire);
        while word & LOCKED == 0 && word >= ONE {
            match self.word.compare_exchange_weak(word, word - ONE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        let wake = state.hand_out();
        drop(state);
        wake.all();
    }
}

/// The state under the lock. Whoever takes or gives back a permit meanwhile sees the word odd and comes here.
struct Locked<'a> {
    core: &'a Core,
    state: MutexGuard<'a, State>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let State { in_flight, queue, watchers, .. } = &*self.state;
        let wanted = if queue.is_empty() && watchers.is_empty() { 0 } else { LOCKED };
        self.core.cap.store(self.state.cap, Ordering::Relaxed);
        self.core.word.store((in_flight * ONE) | wanted, Ordering::Release);
    }
}

#[derive(Debug)]
struct State {
    cap: usize,
    /// As of when the lock was taken; kept in the word meanwhile.
    in_flight: usize,
    /// In order of arrival, so ids rise. Whoever left the queue without cancelling was granted a permit.
    queue: VecDeque<Waiter>,
    /// Those who want to hear when a permit is free, and reserve nothing.
    watchers: Vec<Waiter>,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    waker: Waker,
}

impl State {
    fn take(&mut self) -> bool {
        let free = self.in_flight < self.cap;
        self.in_flight += usize::from(free);
        free
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Hands free permits to the queue; what is left is told to all watchers. Returns whom to wake once unlocked.
    fn hand_out(&mut self) -> Wake {
        let mut wake = Wake::default();
        while !self.queue.is_empty() && self.take() {
            let granted = self.queue.pop_front();
            match wake.first {
                None => wake.first = granted,
                Some(_) => wake.others.extend(granted),
            }
        }
        if self.in_flight < self.cap {
            wake.others.append(&mut self.watchers);
        }
        wake
    }

    fn remove_watcher(&mut self, id: u64) -> Option<Waiter> {
        let at = self.watchers.iter().position(|watcher| watcher.id == id)?;
        Some(self.watchers.swap_remove(at))
    }

    /// Where `id` stands in the queue; `Err` once it was granted a permit.
    fn position(&self, id: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&id, |waiter| waiter.id)
    }
}

/// Wakers collected under the lock. One release grants one waiter, which needs no allocation.
#[derive(Default)]
struct Wake {
    first: Option<Waiter>,
    others: Vec<Waiter>,
}

impl Wake {
    fn all(self) {
        self.first.into_iter().chain(self.others).for_each(|waiter| waiter.waker.wake());
    }
}

impl Permits {
    pub(crate) fn new(cap: usize) -> Self {
        let state = State { cap, in_flight: 0, queue: VecDeque::new(), watchers: Vec::new(), next_id: 0 };
        Self(Arc::new(Core { word: AtomicUsize::new(0), cap: AtomicUsize::new(cap), state: Mutex::new(state) }))
    }

    /// Takes a permit, or joins the end of the queue unless `max_waiters` stand in it.
    pub(crate) fn enqueue(&self, max_waiters: usize) -> Enqueued {
        if self.0.take().is_some() {
            return Enqueued::Granted(Permit(self.clone()));
        }
        let mut state = self.0.lock();
        if state.take() {
            drop(state);
            return Enqueued::Granted(Permit(self.clone()));
        }
        if state.queue.len() >= max_waiters {
            return Enqueued::Full;
        }
        let id = state.id();
        state.queue.push_back(Waiter { id, waker: Waker::noop().clone() });
        drop(state);
        Enqueued::Queued(Ticket { permits: self.clone(), id, over: false })
    }

    /// Changes the cap. Running work keeps its permits; a raised cap is handed out at once.
    pub(crate) fn set_cap(&self, cap: usize) {
        let mut state = self.0.lock();
        state.cap = cap;
        let wake = state.hand_out();
        drop(state);
        wake.all();
    }

    pub(crate) fn cap(&self) -> usize {
        self.0.cap.load(Ordering::Acquire)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.0.word.load(Ordering::Acquire) / ONE
    }

    pub(crate) fn queued(&self) -> usize {
        self.0.lock().queue.len()
    }
}

/// What became of joining the queue.
#[derive(Debug)]
pub(crate) enum Enqueued {
    /// A permit was free.
    Granted(Permit),
    /// A place in the queue.
    Queued(Ticket),
    /// The queue has no place left.
    Full,
}

/// One unit of the cap, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Permits);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.release();
    }
}

/// A place in the queue. Dropped early it leaves the queue, and passes on a permit it was granted meanwhile.
#[derive(Debug)]
pub(crate) struct Ticket {
    permits: Permits,
    id: u64,
    over: bool,
}

impl Ticket {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Permit> {
        let mut state = self.permits.0.lock();
        match state.position(self.id) {
            Ok(at) => {
                let waker = &mut state.queue[at].waker;
                let old = (!waker.will_wake(cx.waker())).then(|| mem::replace(waker, cx.waker().clone()));
                drop(state);
                drop(old);
                Poll::Pending
            }
            Err(_) => {
                drop(state);
                self.over = true;
                Poll::Ready(Permit(self.permits.clone()))
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.permits.0.lock();
        match state.position(self.id) {
            Ok(at) => {
                let left = state.queue.remove(at);
                drop(state);
                drop(left);
            }
            Err(_) => {
                drop(state);
                self.permits.0.release();
            }
        }
    }
}

/// One instance's wish to hear when a permit is free. It reserves nothing, and is forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    permits: Permits,
    /// Small, since every instance carries one.
    id: Option<NonZeroU64>,
}

impl Watch {
    pub(crate) fn new(permits: Permits) -> Self {
        Self { permits, id: None }
    }

    pub(crate) fn permits(&self) -> &Permits {
        &self.permits
    }

    /// Whether a permit is free now; if not, the waker is woken when one may be.
    pub(crate) fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.id.is_none() && self.permits.0.is_free() {
            return Poll::Ready(());
        }
        self.poll(cx, |state| state.in_flight < state.cap)
    }

    /// Takes a permit; if none is free, the waker is woken when one may be.
    pub(crate) fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<Permit> {
        if self.id.is_none() && self.permits.0.take().is_some() {
            return Poll::Ready(Permit(self.permits.clone()));
        }
        self.poll(cx, State::take).map(|()| Permit(self.permits.clone()))
    }

    fn poll(&mut self, cx: &mut Context<'_>, admit: impl FnOnce(&mut State) -> bool) -> Poll<()> {
        let mut state = self.permits.0.lock();
        let old = self.id.take().and_then(|id| state.remove_watcher(id.get()));
        let admitted = admit(&mut state);
        if !admitted {
            let id = state.id();
            state.watchers.push(Waiter { id, waker: cx.waker().clone() });
            self.id = NonZeroU64::new(id);
        }
        drop(state);
        drop(old);
        if admitted { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Clone for Watch {
    /// The clone watches the same permits, and waits for nothing yet.
    fn clone(&self) -> Self {
        Self::new(self.permits.clone())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let gone = self.permits.0.lock().remove_watcher(id.get());
            drop(gone);
        }
    }
}

#[cfg(test)]
fn take(permits: &Permits) -> Option<Permit> {
    match permits.enqueue(0) {
        Enqueued::Granted(permit) => Some(permit),
        _ => None,
    }
}

#[cfg(all(test, not(tower_openrouter_loom)))]
mod tests;
#[cfg(all(test, tower_openrouter_loom))]
mod model;
