use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use tokio::{sync::oneshot, time::Instant};

use super::{Running, Turn, Wants};
use crate::simulator::Foresight;

/// Who waits, in order of arrival, and what runs.
pub(super) struct Line {
    waiting: BTreeMap<u64, Waiting>,
    came: u64,
    /// Somebody was called up whom the platform has not counted yet.
    called: bool,
    in_flight: Vec<usize>,
}

/// How one that waits is told that it may send, and with which key.
pub(super) type Call = oneshot::Sender<(Turn, Running)>;

/// One that waits.
pub(super) struct Waiting {
    pub(super) wants: Arc<Wants>,
    /// The keys that failed it.
    pub(super) failed: Vec<usize>,
    pub(super) call: Call,
}

/// What a look at the line found.
pub(super) struct Found {
    /// Whom to call up, with which key.
    pub(super) call: Option<(usize, Call)>,
    /// When to look again, if nothing happens before.
    pub(super) again: Option<Instant>,
}

impl Line {
    pub(super) fn new(keys: usize) -> Self {
        Self { waiting: BTreeMap::new(), came: 0, called: false, in_flight: vec![0; keys] }
    }

    /// The number of one that comes, by which it has its place whenever it waits.
    pub(super) fn number(&mut self) -> u64 {
        self.came += 1;
        self.came
    }

    pub(super) fn join(&mut self, number: u64, waiting: Waiting) {
        self.waiting.insert(number, waiting);
    }

    pub(super) fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    pub(super) fn turn_is_over(&mut self) {
        self.called = false;
    }

    pub(super) fn ended(&mut self, key: usize) {
        self.in_flight[key] -= 1;
    }

    /// Whether somebody was called up whom the platform has not counted yet.
    pub(super) fn has_called(&self) -> bool {
        self.called
    }

    /// How many wait, by model.
    pub(super) fn by_model(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for waiting in self.waiting.values() {
            *counts.entry(waiting.wants.model.clone()).or_default() += 1;
        }
        counts
    }

    /// The first that a key would serve now, and of such keys the one with the most room for the day, so that what is scarce is
    /// kept. One that must wait keeps those of its model waiting, and no others.
    pub(super) fn next(
        &mut self,
        foresee: impl Fn(&Wants, usize) -> Foresight,
        room: impl Fn(&Wants, usize) -> u64,
    ) -> Found {
        let mut found = Found { call: None, again: None };
        if self.called {
            return found;
        }
        let mut stuck: Vec<&str> = Vec::new();
        let mut first = None;
        for (number, Waiting { wants, failed, .. }) in &self.waiting {
            if stuck.contains(&&*wants.model) {
                continue;
            }
            let mut open = Vec::new();
            for key in 0..self.in_flight.len() {
                match foresee(wants, key) {
                    Foresight::Now => open.push(key),
                    Foresight::At(at) => found.again = found.again.into_iter().chain([at]).min(),
                    Foresight::Never => {}
                }
            }
            let order = |key: &usize| (failed.contains(key), Reverse(room(wants, *key)), self.in_flight[*key], *key);
            if let Some(key) = open.into_iter().min_by_key(order) {
                first = Some((*number, key));
                break;
            }
            stuck.push(&wants.model);
        }
        if let Some((number, key)) = first
            && let Some(waiting) = self.waiting.remove(&number)
        {
            self.called = true;
            self.in_flight[key] += 1;
            found.call = Some((key, waiting.call));
        }
        found
    }
}
