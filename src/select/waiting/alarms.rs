use std::collections::{BTreeSet, VecDeque};

use tokio::time::Instant;

use super::spread::Gate;
use crate::endpoint::EndpointId;

/// What is to be looked at when. One of those who wait keeps the time for all: its timer is set for the next of it.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// Endpoints that come back.
    returns: BTreeSet<(Instant, EndpointId)>,
    /// Endpoints that came back from a rest, each in its turn at the gate.
    back: VecDeque<EndpointId>,
    gate: Option<Gate>,
    /// When what was foretold is to be looked through.
    review: Option<Instant>,
    /// Until when one who was called has time to take what it was called for, before the next are called.
    pause: Option<Instant>,
    keeper: Option<u64>,
    /// What the keeper's timer is set for.
    set_for: Option<Instant>,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// An endpoint is back.
    Return(EndpointId),
    /// It is this one's turn at the gate.
    Turn(EndpointId),
    Review,
}

impl Alarms {
    pub(super) fn add(&mut self, at: Instant, id: EndpointId) {
        self.returns.insert((at, id));
    }

    pub(super) fn remove(&mut self, at: Instant, id: EndpointId) {
        self.returns.remove(&(at, id));
    }

    /// Has an endpoint wait for its turn.
    pub(super) fn queue(&mut self, id: EndpointId) {
        self.back.push_back(id);
    }

    /// Opens the gate, unless it stands open, for so many.
    pub(super) fn open(&mut self, now: Instant, waiting: usize) {
        if self.back.is_empty() && self.gate.as_ref().is_none_or(|gate| gate.opens <= now) {
            self.gate = Some(Gate::new(now, waiting));
        }
    }

    /// One goes through the gate.
    pub(super) fn pass(&mut self, now: Instant, luck: f64) {
        if let Some(gate) = &mut self.gate {
            gate.pass(now, luck);
        }
    }

    /// Asks for a review at `at`, or earlier.
    pub(super) fn review_by(&mut self, at: Instant) {
        self.review = Some(self.review.map_or(at, |review| review.min(at)));
    }

    /// Gives one who was called until `until`; `None`: it is done.
    pub(super) fn pause(&mut self, until: Option<Instant>) {
        self.pause = until;
    }

    fn next(&self) -> Option<Instant> {
        let turn = self.gate.as_ref().filter(|_| !self.back.is_empty()).map(|gate| gate.opens);
        let returns = self.returns.first().map(|(at, _)| *at);
        let due = [turn, returns, self.review].into_iter().flatten().min()?;
        Some(self.pause.map_or(due, |pause| due.max(pause)))
    }

    /// Takes out what is due, one thing at a time.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.next().is_none_or(|next| next > now) {
            return None;
        }
        self.pause = None;
        if let Some((at, id)) = self.returns.first().copied().filter(|(at, _)| *at <= now) {
            self.returns.remove(&(at, id));
            return Some(Due::Return(id));
        }
        if self.gate.as_ref().is_some_and(|gate| gate.opens <= now)
            && let Some(id) = self.back.pop_front()
        {
            return Some(Due::Turn(id));
        }
        self.review = None;
        Some(Due::Review)
    }

    /// For one who waits, at the end of its poll: until when its timer must be set, if it keeps the time.
    pub(super) fn keep(&mut self, number: u64) -> Option<Instant> {
        let next = self.next()?;
        if *self.keeper.get_or_insert(number) != number {
            return None;
        }
        self.set_for = Some(next);
        self.set_for
    }

    /// Who must be woken to set its timer, if what changed makes that necessary: the keeper, else `other`.
    pub(super) fn misses(&mut self, other: impl FnOnce() -> Option<u64>) -> Option<u64> {
        let next = self.next()?;
        if self.keeper.is_some() && self.set_for.is_some_and(|at| at <= next) {
            return None;
        }
        self.keeper = self.keeper.or_else(other);
        // it is on its way
        self.set_for = Some(next);
        self.keeper
    }

    /// One who may have kept the time leaves.
    pub(super) fn leave(&mut self, number: u64) {
        if self.keeper == Some(number) {
            (self.keeper, self.set_for) = (None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{ApiKey, Endpoint};

    fn ids<const N: usize>() -> [EndpointId; N] {
        std::array::from_fn(|_| Endpoint::new(ApiKey::new("key").unwrap()).id())
    }

    #[test]
    fn one_keeps_the_time_and_is_woken_only_for_what_comes_earlier() {
        let (mut alarms, now, [a, b]) = (Alarms::default(), Instant::now(), ids());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!((alarms.keep(1), alarms.misses(|| Some(1))), (None, None));
        alarms.add(at(5), a);
        assert_eq!((alarms.keep(1), alarms.keep(2)), (Some(at(5)), None));
        alarms.add(at(7), b);
        assert_eq!(alarms.misses(|| Some(2)), None);
        alarms.review_by(at(3));
        assert_eq!((alarms.misses(|| Some(2)), alarms.misses(|| Some(2))), (Some(1), None));
        alarms.leave(2);
        assert_eq!(alarms.misses(|| Some(3)), None);
        alarms.leave(1);
        assert_eq!(alarms.misses(|| Some(3)), Some(3));
        assert_eq!(alarms.keep(3), Some(at(3)));
    }

    #[test]
    fn what_is_due_comes_one_by_one_and_not_while_one_was_called() {
        let (mut alarms, now, [a, b, c]) = (Alarms::default(), Instant::now(), ids());
        let at = |millis| now + Duration::from_millis(millis);
        alarms.add(at(10), a);
        alarms.add(at(10), b);
        assert_eq!(alarms.due(at(9)), None);
        assert_eq!(alarms.due(at(10)), Some(Due::Return(a)));
        alarms.pause(Some(at(15)));
        assert_eq!(alarms.due(at(14)), None);
        assert_eq!(alarms.due(at(15)), Some(Due::Return(b)));
        alarms.open(at(20), 10);
        alarms.queue(c);
        alarms.queue(a);
        assert_eq!(alarms.due(at(20)), Some(Due::Turn(c)));
        alarms.pass(at(20), 0.5);
        assert_eq!(alarms.due(at(119)), None);
        assert_eq!(alarms.due(at(120)), Some(Due::Turn(a)));
        assert_eq!(alarms.due(at(1000)), None);
    }
}
