//! What an attempt owes: a place in the in-flight counts, a hold, a bill. Paid exactly once.
//!
//! The ticket is carried by the future and then by the body. Whoever drops it early has left, which is a
//! form of ending with a price of its own.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::cache::Miss;
use super::generation::{EndOf, Generation, Served, Settled};
use super::stats::{Attempt, Ended, Ending};

/// One attempt's debts.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    number: u64,
    /// Key and account.
    owner: Option<(usize, usize)>,
    hold: Option<u64>,
    /// At a provider that has neither accepted nor refused.
    asked: Option<Box<Served>>,
    bill: Option<Arc<Served>>,
    /// To be kept in the cache once it is whole.
    miss: Option<Miss>,
    /// When the provider will have written all of it, whoever listens; since the simulator was made.
    written: Duration,
    /// Tokens handed to the caller.
    sent: u64,
    answered: bool,
    closed: bool,
}

impl Ticket {
    /// Counts an attempt in.
    pub(super) fn open(shared: &Arc<Shared>, key: Option<usize>, model: Option<String>) -> Self {
        let now = shared.clock.now();
        let mut world = shared.lock();
        let owner = key.map(|key| (key, world.keys[key].account));
        let names =
            owner.map(|(key, account)| (Arc::clone(&world.keys[key].label), Arc::clone(&world.accounts[account].name)));
        let (label, account) = names.unzip();
        let number = world.ledger.begin(owner, |number| Attempt {
            number,
            at: now.elapsed,
            answered: None,
            ended: None,
            key: label,
            account,
            model,
            provider: None,
            status: None,
            ending: Ending::Running,
        });
        drop(world);
        Self {
            shared: Arc::clone(shared),
            number,
            owner,
            hold: None,
            asked: None,
            bill: None,
            miss: None,
            written: Duration::ZERO,
            sent: 0,
            answered: false,
            closed: false,
        }
    }

    /// Takes over a hold on the in-flight budget.
    pub(super) fn hold(&mut self, number: Option<u64>) {
        self.hold = number;
    }

    /// Gives the hold back at no cost: nobody served.
    pub(super) fn release(&mut self) {
        let (Some(number), Some((_, account))) = (self.hold.take(), self.owner) else {
            return;
        };
        self.shared.lock().accounts[account].holds.retain(|hold| hold.number != number);
    }

    /// A provider is asked. Who leaves now is billed, if it is one that works on.
    pub(super) fn ask(&mut self, served: Served) {
        self.asked = Some(Box::new(served));
    }

    /// The provider has answered.
    pub(super) fn answer(&mut self) -> Option<Box<Served>> {
        self.asked.take()
    }

    /// From here on the end is billed; the provider needs so long to write it.
    pub(super) fn bill(&mut self, served: &Arc<Served>, takes: Duration) {
        self.bill = Some(Arc::clone(served));
        self.written = self.shared.clock.now().elapsed.saturating_add(takes);
        let Some((key, account)) = self.owner else {
            return;
        };
        let started = self.shared.clock.now().elapsed;
        let keep = self.shared.scenario.keep.generations;
        let mut world = self.shared.lock();
        world.ledger.served_by(self.number, &served.provider);
        if keep == 0 {
            return;
        }
        if world.generations.len() == keep {
            world.generations.pop_front();
        }
        let workspace = world.keys[key].workspace;
        let served = Arc::clone(served);
        world.generations.push_back(Generation { served, account, workspace, started, settled: None });
    }

    /// The answer is to be kept once all of it was sent.
    pub(super) fn keep(&mut self, miss: Miss) {
        self.miss = Some(miss);
    }

    pub(super) fn answered(&mut self, status: u16) {
        self.answered = true;
        let now = self.shared.clock.now();
        self.shared.lock().ledger.answered(self.number, self.owner, status, now.elapsed);
    }

    pub(super) fn sent(&mut self, tokens: u64) {
        self.sent += tokens;
    }

    /// The end, as the simulator decided it.
    pub(super) fn close(&mut self, end: EndOf) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if let Some(asked) = self.asked.take().filter(|asked| !asked.stops()) {
            self.bill(&Arc::from(asked), Duration::ZERO);
        }
        let now = self.shared.clock.now();
        let cost = self.bill.as_ref().map_or(0.0, |served| served.charge(end, self.sent));
        let mut world = self.shared.lock();
        if let Some((key, account)) = self.owner {
            if self.bill.is_some() {
                world.charge(key, cost, now.wall);
            }
            if let Some(number) = self.hold.take() {
                let account = &mut world.accounts[account];
                let settle = account.in_flight.as_ref().map_or(0.0, |rule| rule.settle_s);
                let works_on = end == EndOf::Left && self.bill.as_ref().is_some_and(|served| !served.stops());
                let over = if works_on { self.written.max(now.elapsed) } else { now.elapsed };
                for hold in account.holds.iter_mut().filter(|hold| hold.number == number) {
                    hold.amount = cost;
                    hold.until = Some(over.saturating_add(Duration::from_secs_f64(settle)));
                }
            }
        }
        if let (EndOf::Whole, Some(miss), Some(served)) = (end, self.miss.take(), &self.bill) {
            world.cache.keep(miss, Arc::clone(served), now.elapsed);
        }
        if let Some(served) = &self.bill {
            let record = world.generations.iter_mut().rev().find(|g| Arc::ptr_eq(&g.served, served));
            if let Some(record) = record {
                let tokens = if end == EndOf::Whole { served.completion_tokens } else { self.sent };
                record.settled = Some(Settled { at: now.elapsed, end, tokens, cost });
            }
        }
        let ending = match end {
            EndOf::Whole | EndOf::Error => Ending::Finished,
            EndOf::Broken => Ending::Broken,
            EndOf::Left => Ending::Abandoned,
        };
        let ended = Ended { ending, answered: self.answered, cost };
        world.ledger.end(self.number, self.owner, ended, now.elapsed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close(EndOf::Left);
    }
}
