//! The breaker's state machine. Pure: time and chance are arguments.
//!
//! Every change of state begins a new *epoch*, and what is admitted carries the epoch it was admitted in. A report from
//! another epoch changes nothing: an answer that was under way when the breaker opened can neither close it nor open it
//! again. A probe also carries its slot, which ends with its lease; so whatever becomes of probes, one is let through again.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    policy::BreakerPolicy,
    trip::{Counter, ShareWindow},
};
use crate::clock;

/// What an attempt says about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sample {
    /// It went well; `slow` when its first output took too long.
    Success { slow: bool },
    /// It failed by the endpoint's fault, and so did earlier ones that were held back; so many in all.
    Failure(u32),
    /// The endpoint, or its account, asked for a rest: no failure, but no proof of health either. The time, if it named one.
    Rest(Option<Duration>),
    /// Nothing.
    Neutral,
}

/// What is admitted carries this and reports with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    epoch: u64,
    slot: Option<u64>,
}

impl Ticket {
    /// Of a request admitted in `epoch` while the breaker was closed.
    pub(super) fn free(epoch: u64) -> Self {
        Self { epoch, slot: None }
    }

    /// Of a request whose verdict counts nowhere.
    pub(super) fn stray() -> Self {
        Self::free(u64::MAX)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn is_probe(&self) -> bool {
        self.slot.is_some()
    }
}

/// Whether a request may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admit {
    /// It may.
    Pass(Ticket),
    /// Not before this instant, or not until something happens.
    Shut(Option<Instant>),
}

/// What a step did to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Opened(Duration),
    Closed,
    HalfOpened,
    /// A slot became free.
    Freed,
    /// By hand.
    Set,
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { slots: SmallVec<[Slot; 2]> },
    Isolated,
    Disabled,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    until: Instant,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Traffic flows.
    Closed,
    /// Nothing is let through until then.
    Open {
        /// When probes begin.
        until: Instant,
    },
    /// A few requests try whether things are well again.
    HalfOpen {
        /// How many do so now.
        probes: usize,
    },
    /// Nothing is let through: an operator said so.
    Isolated,
    /// All is let through and nothing counted: an operator said so.
    Disabled,
}

/// What a breaker has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// Where it stands.
    pub state: BreakerState,
    /// Failures laid to the endpoint while the breaker was closed or half-open.
    pub failures: u64,
    /// How often it opened.
    pub trips: u64,
    /// How often it opened since it was last closed; the next cooldown grows with it.
    pub trips_in_a_row: u32,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Core {
    policy: Arc<BreakerPolicy>,
    counter: Counter,
    slow: Option<ShareWindow>,
    state: State,
    epoch: u64,
    next_slot: u64,
    failures: u64,
    trips: u64,
    in_a_row: u32,
}

impl Core {
    pub(super) fn new(policy: impl Into<Arc<BreakerPolicy>>) -> Self {
        let policy = policy.into();
        Self {
            counter: policy.trip.counter(),
            slow: policy.slow.map(|slow| ShareWindow::new(slow.share, slow.within, slow.least)),
            policy,
            state: State::Closed,
            epoch: 0,
            next_slot: 0,
            failures: 0,
            trips: 0,
            in_a_row: 0,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether everything is let through.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Closed | State::Disabled)
    }

    /// Whether it lets nothing through, by its own decision.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Whether a success would change nothing.
    pub(super) fn ignores_success(&self) -> bool {
        match self.state {
            State::Closed => self.slow.is_none() && self.counter.ignores_success(),
            _ => matches!(self.state, State::Disabled),
        }
    }

    /// If nothing would be let through now: until when, where that is known.
    pub(super) fn shut(&self, now: Instant) -> Option<Option<Instant>> {
        match &self.state {
            State::Closed | State::Disabled => None,
            State::Isolated => Some(None),
            State::Open { until } => (now < *until).then_some(Some(*until)),
            State::HalfOpen { slots } => {
                let taken = slots.iter().filter(|slot| now < slot.until);
                (taken.clone().count() >= self.policy.probes as usize).then(|| taken.map(|slot| slot.until).min())
            }
        }
    }

    /// Lets a request through, as a probe if need be.
    pub(super) fn admit(&mut self, now: Instant) -> (Admit, Option<Change>) {
        if let Some(until) = self.shut(now) {
            return (Admit::Shut(until), None);
        }
        let mut change = None;
        if matches!(self.state, State::Open { .. }) {
            self.enter(State::HalfOpen { slots: SmallVec::new() });
            change = Some(Change::HalfOpened);
        }
        let slot = match &mut self.state {
            State::HalfOpen { slots } => {
                slots.retain(|slot| now < slot.until);
                let id = self.next_slot;
                self.next_slot = id.wrapping_add(1);
                slots.push(Slot { id, until: clock::after(now, self.policy.lease) });
                Some(id)
            }
            _ => None,
        };
        (Admit::Pass(Ticket { epoch: self.epoch, slot }), change)
    }

    /// Starts a probe's lease anew; false when its slot is gone.
    pub(super) fn renew(&mut self, ticket: Ticket, now: Instant) -> bool {
        match (&mut self.state, ticket.slot) {
            (State::HalfOpen { slots }, Some(id)) if ticket.epoch == self.epoch => {
                match slots.iter_mut().find(|slot| slot.id == id && now < slot.until) {
                    Some(slot) => {
                        slot.until = clock::after(now, self.policy.lease);
                        true
                    }
                    None => false,
                }
            }
            _ => false,
        }
    }

    /// Takes in what became of an admitted request. `random` in 0..1 is the jitter's.
    pub(super) fn report(&mut self, ticket: Ticket, sample: Sample, now: Instant, random: f64) -> Option<Change> {
        if ticket.epoch != self.epoch {
            return None;
        }
        match &mut self.state {
            State::Closed => self.count(sample, now).then(|| self.open(None, now, random)),
            State::HalfOpen { slots } => {
                let at = slots.iter().position(|slot| Some(slot.id) == ticket.slot)?;
                let slot = slots.swap_remove(at);
                if now >= slot.until {
                    return Some(Change::Freed);
                }
                Some(match sample {
                    Sample::Success { .. } => self.close(Change::Closed),
                    Sample::Failure(count) => {
                        self.failures = self.failures.saturating_add(u64::from(count));
                        self.open(None, now, random)
                    }
                    Sample::Rest(hint) => self.open(hint, now, random),
                    Sample::Neutral => Change::Freed,
                })
            }
            State::Open { .. } | State::Isolated | State::Disabled => None,
        }
    }

    /// Counts a sample while closed; says whether to open.
    fn count(&mut self, sample: Sample, now: Instant) -> bool {
        match sample {
            Sample::Success { slow } => {
                self.counter.success(now);
                self.slow.as_mut().is_some_and(|window| window.record(slow, now))
            }
            Sample::Failure(count) => {
                self.failures = self.failures.saturating_add(u64::from(count));
                // a policy that needs more than these at once has long lost the first of them
                (0..count.min(1000)).any(|_| self.counter.failure(now))
            }
            Sample::Rest(_) | Sample::Neutral => false,
        }
    }

    fn open(&mut self, hint: Option<Duration>, now: Instant, random: f64) -> Change {
        let span = hint.unwrap_or_else(|| {
            let span = cooldown(&self.policy, self.in_a_row, random);
            self.in_a_row = self.in_a_row.saturating_add(1);
            span
        });
        self.trips = self.trips.saturating_add(1);
        self.enter(State::Open { until: clock::after(now, span) });
        Change::Opened(span)
    }

    fn close(&mut self, change: Change) -> Change {
        self.in_a_row = 0;
        self.enter(State::Closed);
        change
    }

    fn enter(&mut self, state: State) {
        self.epoch += 1;
        self.state = state;
        self.counter.clear();
        if let Some(window) = &mut self.slow {
            window.clear();
        }
    }

    pub(super) fn isolate(&mut self) -> Change {
        self.enter(State::Isolated);
        Change::Set
    }

    pub(super) fn reset(&mut self) -> Change {
        self.close(Change::Set)
    }

    pub(super) fn disable(&mut self) -> Change {
        self.in_a_row = 0;
        self.enter(State::Disabled);
        Change::Set
    }

    pub(super) fn enable(&mut self) -> Option<Change> {
        matches!(self.state, State::Disabled).then(|| self.close(Change::Set))
    }

    /// Where it stands, whatever time it is.
    pub(super) fn standing(&self) -> BreakerState {
        match &self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } => BreakerState::Open { until: *until },
            State::HalfOpen { slots } => BreakerState::HalfOpen { probes: slots.len() },
            State::Isolated => BreakerState::Isolated,
            State::Disabled => BreakerState::Disabled,
        }
    }

    pub(super) fn snapshot(&self, now: Instant) -> BreakerSnapshot {
        let state = match &self.state {
            State::Open { until } if now >= *until => BreakerState::HalfOpen { probes: 0 },
            State::HalfOpen { slots } => {
                BreakerState::HalfOpen { probes: slots.iter().filter(|slot| now < slot.until).count() }
            }
            _ => self.standing(),
        };
        BreakerSnapshot { state, failures: self.failures, trips: self.trips, trips_in_a_row: self.in_a_row }
    }
}

/// The time of the `before + 1`th opening in a row: the base doubled each time, and up to a quarter more, within the most.
///
/// The jitter comes on top so that nobody comes back before the base; under the cap it is drawn from the last fifth, so that
/// keys that opened together do not come back together even then.
fn cooldown(policy: &BreakerPolicy, before: u32, random: f64) -> Duration {
    let most = policy.max_cooldown.min(clock::FOREVER);
    let least = policy.cooldown.min(most);
    let step = least.saturating_mul(1 << before.min(31)).min(most);
    let high = step.saturating_add(step / 4).min(most);
    let low = (high - high / 5).max(least).min(high);
    low + (high - low).mul_f64(if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.0 })
}

#[cfg(test)]
mod tests;
