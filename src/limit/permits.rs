//! The permits of one cap: taken at once, queued for, or watched until some come free.
//!
//! tokio's semaphore does not fit: its cap cannot be lowered while permits are out, a queued acquire reserves for a clone
//! that may never use it, and loom cannot look inside. What is needed is small: a count and a queue under one lock that is
//! held for a few instructions, never while a waker is woken or dropped, since both may run foreign code that comes back
//! here.

use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};

use crate::sync::{Arc, Mutex, lock};

/// A cap and who holds or wants its permits; clones share them. Invariant: while anyone queues, every permit is out.
#[derive(Debug, Clone)]
pub(crate) struct Permits(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    cap: usize,
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
        Self(Arc::new(Mutex::new(State {
            cap,
            in_flight: 0,
            queue: VecDeque::new(),
            watchers: Vec::new(),
            next_id: 0,
        })))
    }

    /// Takes a permit, or joins the end of the queue unless `max_waiters` stand in it.
    pub(crate) fn enqueue(&self, max_waiters: usize) -> Enqueued {
        let mut state = lock(&self.0);
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
        let mut state = lock(&self.0);
        state.cap = cap;
        let wake = state.hand_out();
        drop(state);
        wake.all();
    }

    pub(crate) fn cap(&self) -> usize {
        lock(&self.0).cap
    }

    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.0).in_flight
    }

    pub(crate) fn queued(&self) -> usize {
        lock(&self.0).queue.len()
    }

    fn release(&self) {
        let mut state = lock(&self.0);
        state.in_flight = state.in_flight.saturating_sub(1);
        let wake = state.hand_out();
        drop(state);
        wake.all();
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
        self.0.release();
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
        let mut state = lock(&self.permits.0);
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
        let mut state = lock(&self.permits.0);
        match state.position(self.id) {
            Ok(at) => {
                let left = state.queue.remove(at);
                drop(state);
                drop(left);
            }
            Err(_) => {
                drop(state);
                self.permits.release();
            }
        }
    }
}

/// One instance's wish to hear when a permit is free. It reserves nothing, and is forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    permits: Permits,
    id: Option<u64>,
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
        self.poll(cx, |state| state.in_flight < state.cap)
    }

    /// Takes a permit; if none is free, the waker is woken when one may be.
    pub(crate) fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<Permit> {
        self.poll(cx, State::take).map(|()| Permit(self.permits.clone()))
    }

    fn poll(&mut self, cx: &mut Context<'_>, admit: impl FnOnce(&mut State) -> bool) -> Poll<()> {
        let mut state = lock(&self.permits.0);
        let old = self.id.take().and_then(|id| state.remove_watcher(id));
        let admitted = admit(&mut state);
        if !admitted {
            let id = state.id();
            state.watchers.push(Waiter { id, waker: cx.waker().clone() });
            self.id = Some(id);
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
            let gone = lock(&self.permits.0).remove_watcher(id);
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
mod tests {
    use proptest::prelude::*;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    fn ticket(permits: &Permits) -> Ticket {
        match permits.enqueue(usize::MAX) {
            Enqueued::Queued(ticket) => ticket,
            other => panic!("expected a place in the queue, got {other:?}"),
        }
    }

    #[test]
    fn r044_permits_are_handed_out_in_order_of_arrival() {
        let permits = Permits::new(1);
        let running = take(&permits).unwrap();
        let mut tickets: Vec<_> = (0..5).map(|_| task::spawn(ticket(&permits))).collect();
        for ticket in &mut tickets {
            assert_pending!(ticket.enter(|cx, mut ticket| ticket.poll(cx)));
        }
        drop(running);
        for i in 0..5 {
            assert!(take(&permits).is_none(), "nobody overtakes the queue");
            assert!(tickets[i].is_woken());
            assert!(tickets[i + 1..].iter().all(|later| !later.is_woken()));
            drop(assert_ready!(tickets[i].enter(|cx, mut ticket| ticket.poll(cx))));
        }
        assert_eq!((permits.in_flight(), permits.queued()), (0, 0));
    }

    #[test]
    fn r045_a_granted_ticket_that_is_dropped_passes_its_permit_on() {
        let permits = Permits::new(1);
        let running = take(&permits).unwrap();
        let first = ticket(&permits);
        let mut second = task::spawn(ticket(&permits));
        assert_pending!(second.enter(|cx, mut ticket| ticket.poll(cx)));
        drop(running);
        assert!(!second.is_woken());
        drop(first);
        assert!(second.is_woken());
        drop(assert_ready!(second.enter(|cx, mut ticket| ticket.poll(cx))));
        assert_eq!(permits.in_flight(), 0);
    }

    #[test]
    fn a_watch_forgets_itself_when_dropped() {
        let permits = Permits::new(1);
        let running = take(&permits).unwrap();
        let mut watch = task::spawn(Watch::new(permits.clone()));
        for _ in 0..3 {
            assert_pending!(watch.enter(|cx, mut watch| watch.poll_free(cx)));
        }
        assert_eq!(lock(&permits.0).watchers.len(), 1);
        drop(watch);
        assert_eq!(lock(&permits.0).watchers.len(), 0);
        drop(running);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Take,
        Queue,
        Poll(usize),
        LeaveQueue(usize),
        Release(usize),
        SetCap(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Take),
            Just(Op::Queue),
            any::<usize>().prop_map(Op::Poll),
            any::<usize>().prop_map(Op::LeaveQueue),
            any::<usize>().prop_map(Op::Release),
            (1..6usize).prop_map(Op::SetCap),
        ]
    }

    proptest! {
        #[test]
        fn r046_counts_hold_whatever_happens(ops in proptest::collection::vec(op(), 1..200)) {
            let permits = Permits::new(2);
            let (mut held, mut tickets, mut cap) = (Vec::new(), Vec::new(), 2);
            let mut cx = Context::from_waker(Waker::noop());
            for op in ops {
                let before = permits.in_flight();
                match op {
                    Op::Take => held.extend(take(&permits)),
                    Op::Queue => match permits.enqueue(4) {
                        Enqueued::Granted(permit) => held.push(permit),
                        Enqueued::Queued(ticket) => tickets.push(ticket),
                        Enqueued::Full => prop_assert_eq!(permits.queued(), 4),
                    },
                    Op::Poll(i) if !tickets.is_empty() => {
                        let i = i % tickets.len();
                        if let Poll::Ready(permit) = tickets[i].poll(&mut cx) {
                            held.push(permit);
                            tickets.remove(i);
                        }
                    }
                    Op::LeaveQueue(i) if !tickets.is_empty() => drop(tickets.remove(i % tickets.len())),
                    Op::Release(i) if !held.is_empty() => drop(held.swap_remove(i % held.len())),
                    Op::SetCap(to) => {
                        permits.set_cap(to);
                        cap = to;
                    }
                    _ => {}
                }
                let (now, queued) = (permits.in_flight(), permits.queued());
                prop_assert!(now <= before.max(cap), "admitted past the cap");
                prop_assert!(queued == 0 || now >= cap, "somebody waits while a permit is free");
                prop_assert_eq!(now + queued, held.len() + tickets.len());
            }
            drop((held, tickets));
            prop_assert_eq!((permits.in_flight(), permits.queued()), (0, 0));
        }
    }
}

#[cfg(all(test, tower_openrouter_loom))]
mod model;
