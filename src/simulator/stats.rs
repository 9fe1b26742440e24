//! What the other side saw.
//!
//! A balancer's own counters can be wrong in the same way as its behaviour. These are kept by the
//! simulator, so a test compares two accounts of one story.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

use super::scenario::Keep;

/// Totals since the simulator was made. Attempts are inference requests only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Inference requests that arrived, with whatever outcome.
    pub attempts: u64,
    /// Other requests: `/key`, `/models` and so on.
    pub lookups: u64,
    /// Attempts by the status that was sent.
    pub by_status: BTreeMap<u16, u64>,
    /// Attempts that ended before a status was sent: resets, and callers that left.
    pub unanswered: u64,
    /// Attempts whose body was delivered to its end.
    pub finished: u64,
    /// Attempts whose caller went away first.
    pub abandoned: u64,
    /// Attempts the simulator broke: resets and cut bodies.
    pub broken: u64,
    /// Attempts without credentials, or with ones nobody has.
    pub unknown_credentials: u64,
    /// Attempts running now.
    pub in_flight: u64,
    /// The most attempts that ran at once.
    pub peak_in_flight: u64,
    /// By key label, every key of the scenario included.
    pub keys: BTreeMap<String, Tally>,
    /// By account name.
    pub accounts: BTreeMap<String, Tally>,
}

/// One key's or one account's part of [`Counts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Inference requests.
    pub attempts: u64,
    /// By the status that was sent.
    pub by_status: BTreeMap<u16, u64>,
    /// Running now.
    pub in_flight: u64,
    /// The most that ran at once.
    pub peak_in_flight: u64,
    /// What was charged during the simulation, USD.
    pub cost: f64,
}

impl Tally {
    fn begin(&mut self) {
        self.attempts += 1;
        self.in_flight += 1;
        self.peak_in_flight = self.peak_in_flight.max(self.in_flight);
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Still running.
    Running,
    /// The whole answer was taken.
    Finished,
    /// The caller dropped the future, the body or the connection.
    Abandoned,
    /// The simulator reset or cut it.
    Broken,
}

/// One inference request in [`Simulator::log`](super::Simulator::log).
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// From 0, in order of arrival.
    pub number: u64,
    /// When it arrived, since the simulator was made.
    pub at: Duration,
    /// When its status was sent.
    pub answered: Option<Duration>,
    /// When it ended.
    pub ended: Option<Duration>,
    /// The key's label; none for unknown credentials.
    pub key: Option<Arc<str>>,
    /// The account's name.
    pub account: Option<Arc<str>>,
    /// The first model asked for; none when the body could not be read.
    pub model: Option<String>,
    /// The provider that accepted.
    pub provider: Option<String>,
    /// The status that was sent.
    pub status: Option<u16>,
    /// How it ended.
    pub ending: Ending,
}

/// A request as it arrived, in [`Simulator::requests`](super::Simulator::requests).
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// When, since the simulator was made.
    pub at: Duration,
    /// Method.
    pub method: Method,
    /// Target.
    pub uri: Uri,
    /// Headers; the values of `authorization` and `x-api-key` are replaced by `<key label>` or `<unknown>`.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// The ledger behind [`Counts`].
#[derive(Debug)]
pub(super) struct Ledger {
    keep: Keep,
    counts: Counts,
    keys: Vec<Tally>,
    accounts: Vec<Tally>,
    log: VecDeque<Attempt>,
    requests: VecDeque<Received>,
}

impl Ledger {
    pub(super) fn new(keep: Keep, accounts: usize) -> Self {
        Self {
            keep,
            counts: Counts::default(),
            keys: Vec::new(),
            accounts: vec![Tally::default(); accounts],
            log: VecDeque::new(),
            requests: VecDeque::new(),
        }
    }

    pub(super) fn add_key(&mut self) {
        self.keys.push(Tally::default());
    }

    pub(super) fn keeps_requests(&self) -> bool {
        self.keep.requests > 0
    }

    pub(super) fn received(&mut self, request: Received) {
        push(&mut self.requests, request, self.keep.requests);
    }

    pub(super) fn lookup(&mut self) {
        self.counts.lookups += 1;
    }

    /// Begins an attempt of a key index and an account index; fills in its number.
    pub(super) fn begin(&mut self, owner: Option<(usize, usize)>, entry: impl FnOnce(u64) -> Attempt) -> u64 {
        let number = self.counts.attempts;
        self.counts.attempts += 1;
        self.counts.in_flight += 1;
        self.counts.peak_in_flight = self.counts.peak_in_flight.max(self.counts.in_flight);
        match owner {
            Some((key, account)) => {
                self.keys[key].begin();
                self.accounts[account].begin();
            }
            None => self.counts.unknown_credentials += 1,
        }
        if self.keep.log > 0 {
            push(&mut self.log, entry(number), self.keep.log);
        }
        number
    }

    pub(super) fn answered(&mut self, number: u64, owner: Option<(usize, usize)>, status: u16, at: Duration) {
        *self.counts.by_status.entry(status).or_default() += 1;
        if let Some((key, account)) = owner {
            *self.keys[key].by_status.entry(status).or_default() += 1;
            *self.accounts[account].by_status.entry(status).or_default() += 1;
        }
        if let Some(entry) = self.entry(number) {
            (entry.status, entry.answered) = (Some(status), Some(at));
        }
    }

    pub(super) fn served_by(&mut self, number: u64, provider: &str) {
        if let Some(entry) = self.entry(number) {
            entry.provider = Some(provider.to_owned());
        }
    }

    pub(super) fn end(&mut self, number: u64, owner: Option<(usize, usize)>, how: Ended, at: Duration) {
        self.counts.in_flight -= 1;
        if let Some((key, account)) = owner {
            self.keys[key].in_flight -= 1;
            self.keys[key].cost += how.cost;
            self.accounts[account].in_flight -= 1;
            self.accounts[account].cost += how.cost;
        }
        match how.ending {
            Ending::Finished => self.counts.finished += 1,
            Ending::Abandoned => self.counts.abandoned += 1,
            Ending::Broken | Ending::Running => self.counts.broken += 1,
        }
        if !how.answered {
            self.counts.unanswered += 1;
        }
        if let Some(entry) = self.entry(number) {
            (entry.ending, entry.ended) = (how.ending, Some(at));
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Attempt> {
        let first = self.log.front()?.number;
        let index = usize::try_from(number.checked_sub(first)?).ok()?;
        self.log.get_mut(index)
    }

    pub(super) fn counts<'a>(
        &self,
        keys: impl Iterator<Item = &'a str>,
        accounts: impl Iterator<Item = &'a str>,
    ) -> Counts {
        let named = |(name, tally): (&str, &Tally)| (name.to_owned(), tally.clone());
        Counts {
            keys: keys.zip(&self.keys).map(named).collect(),
            accounts: accounts.zip(&self.accounts).map(named).collect(),
            ..self.counts.clone()
        }
    }

    pub(super) fn log(&self) -> Vec<Attempt> {
        self.log.iter().cloned().collect()
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        self.requests.iter().cloned().collect()
    }
}

/// The end of an attempt, for the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    pub(super) answered: bool,
    pub(super) cost: f64,
}

fn push<T>(queue: &mut VecDeque<T>, item: T, capacity: usize) {
    if queue.len() == capacity {
        queue.pop_front();
    }
    queue.push_back(item);
}
