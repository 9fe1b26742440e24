//! The slots of one rate, and those who queue for them in order of arrival.

use std::{
    collections::VecDeque,
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    pace::{Gcra, Rate},
    sync::{Arc, Mutex, lock},
};

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    gcra: Gcra,
    /// In order of arrival, so ids rise.
    queue: VecDeque<(u64, Waker)>,
    next_id: u64,
}

/// What became of one who came.
#[derive(Debug)]
pub(super) enum Came {
    /// It has a slot.
    Served(Slot),
    /// It waits for one.
    Waits(Ticket),
    /// Too many wait already.
    Full,
    /// Its slot would begin too late: so much from now.
    TooLate(Duration),
}

impl Line {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { gcra: Gcra::new(rate, now), queue: VecDeque::new(), next_id: 0 })))
    }

    /// Takes a slot that is free now and wanted by nobody who queues, else says when one may be.
    pub(super) fn take(&self, now: Instant) -> Result<Slot, Instant> {
        let mut state = lock(&self.0);
        let next = state.gcra.next(1);
        if next > now {
            return Err(next);
        }
        state.gcra.take(1, now);
        Ok(Slot(Some(self.clone())))
    }

    /// When the next slot begins.
    pub(super) fn next(&self) -> Instant {
        lock(&self.0).gcra.next(1)
    }

    /// Takes a slot, or joins the line.
    pub(super) fn come(&self, max_waiters: usize, max_wait: Duration, now: Instant, waker: &Waker) -> Came {
        let mut state = lock(&self.0);
        let start = state.gcra.start(state.queue.len() as u64 + 1);
        let wait = start.saturating_duration_since(now);
        if wait.is_zero() && state.queue.is_empty() {
            state.gcra.take(1, now);
            return Came::Served(Slot(Some(self.clone())));
        }
        if wait > max_wait {
            return Came::TooLate(wait);
        }
        if state.queue.len() >= max_waiters {
            return Came::Full;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.queue.push_back((id, waker.clone()));
        Came::Waits(Ticket { line: self.clone(), id, left: false })
    }

    pub(super) fn set(&self, rate: Rate, now: Instant) {
        lock(&self.0).gcra.set(rate, now);
    }

    pub(super) fn waiting(&self) -> usize {
        lock(&self.0).queue.len()
    }
}

/// A slot that was taken; given back when dropped, unless it was used.
#[derive(Debug)]
pub(super) struct Slot(Option<Line>);

impl Slot {
    /// The request is sent.
    pub(super) fn use_up(mut self) {
        self.0 = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            lock(&line.0).gcra.give_back(1);
        }
    }
}

/// A place in the line; left when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    line: Line,
    id: u64,
    left: bool,
}

impl Ticket {
    /// Takes a slot if it is this one's turn. Else says when the next begins, if it is the first in line.
    pub(super) fn poll(&mut self, now: Instant, cx: &Context<'_>) -> Result<Slot, Option<Instant>> {
        let mut state = lock(&self.line.0);
        let Ok(index) = state.queue.binary_search_by_key(&self.id, |(id, _)| *id) else {
            return Err(None);
        };
        if index > 0 {
            state.queue[index].1.clone_from(cx.waker());
            return Err(None);
        }
        let next = state.gcra.next(1);
        if next > now {
            state.queue[0].1.clone_from(cx.waker());
            return Err(Some(next));
        }
        state.gcra.take(1, now);
        self.left = true;
        let _ = state.queue.pop_front();
        let first = state.queue.front().map(|(_, waker)| waker.clone());
        drop(state);
        if let Some(waker) = first {
            waker.wake();
        }
        Ok(Slot(Some(self.line.clone())))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let mut state = lock(&self.line.0);
        let Ok(index) = state.queue.binary_search_by_key(&self.id, |(id, _)| *id) else { return };
        let gone = state.queue.remove(index);
        let first = state.queue.front().filter(|_| index == 0).map(|(_, waker)| waker.clone());
        drop(state);
        // wakers are foreign code, so no lock is held
        drop(gone);
        if let Some(waker) = first {
            waker.wake();
        }
    }
}
