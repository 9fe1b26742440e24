//! The handle: what a test or an operator does to a running simulator.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::clock::{Clock, Wall};
use super::faults::FaultState;
use super::scenario::{Fault, Scenario, ScenarioError, SimKey};
use super::stats::{Attempt, Counts, Received};
use super::world::{Cap, World};
use super::{Shared, SimulatorService};

/// Where the calendar starts unless the scenario says so: a Thursday noon, far from every boundary.
const START: &str = "2026-01-15T12:00:00Z";

/// Writes milliseconds since 1970 as the date that [`Scenario::start`] takes, `2026-01-15T12:00:00.000Z`.
pub fn utc_date(millis: i64) -> String {
    Wall::from_millis(millis).to_string()
}

/// Reads such a date.
#[cfg(feature = "lab")]
pub(crate) fn utc_millis(date: &str) -> Option<i64> {
    Wall::parse(date).map(Wall::millis)
}

/// A simulated OpenRouter. Clones share one state.
#[derive(Clone)]
pub struct Simulator {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.shared.lock();
        f.debug_struct("Simulator")
            .field("accounts", &world.accounts.len())
            .field("keys", &world.keys.len())
            .finish_non_exhaustive()
    }
}

/// A key of the simulator, to authenticate with.
#[derive(Clone, PartialEq, Eq)]
pub struct SimulatedKey {
    /// Its name in scenario and statistics.
    pub label: String,
    /// The key itself.
    pub secret: String,
    /// Its account's name.
    pub account: String,
    /// Its `hash`: SHA-256 of the secret, 64 hexadecimal digits.
    pub hash: String,
}

/// Without the secret.
impl fmt::Debug for SimulatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedKey")
            .field("label", &self.label)
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

impl Simulator {
    /// Builds the world of a scenario; its clock starts now.
    ///
    /// # Errors
    ///
    /// When [`Scenario::validate`] finds a mistake.
    pub fn new(scenario: Scenario) -> Result<Self, ScenarioError> {
        scenario.validate()?;
        let start = scenario.start.as_deref().unwrap_or(START);
        let base = Wall::parse(start).ok_or_else(|| ScenarioError::new("start", "is not a UTC date"))?;
        let world = Mutex::new(World::new(&scenario, base)?);
        Ok(Self { shared: Arc::new(Shared { clock: Clock::starting_at(base), scenario, world }) })
    }

    /// A service that answers as `https://openrouter.ai` would. Host and scheme of requests are ignored.
    pub fn service(&self) -> SimulatorService {
        SimulatorService::new(Arc::clone(&self.shared))
    }

    /// All keys that were not deleted, in the scenario's order.
    pub fn keys(&self) -> Vec<SimulatedKey> {
        let world = self.shared.lock();
        let key = |key: &super::world::KeyState| SimulatedKey {
            label: key.label.to_string(),
            secret: key.secret.clone(),
            account: world.accounts[key.account].name.to_string(),
            hash: key.hash.clone(),
        };
        world.keys.iter().filter(|key| !key.deleted).map(key).collect()
    }

    /// Now on the simulator's calendar, milliseconds since 1970.
    pub fn wall_clock_ms(&self) -> i64 {
        self.shared.clock.now().wall.millis()
    }

    /// Disables a key, or enables it again.
    ///
    /// # Errors
    ///
    /// When no key has this label.
    pub fn disable_key(&self, label: &str, disabled: bool) -> Result<(), ScenarioError> {
        self.change_key(label, |world, key, now| {
            let deleted = world.keys[key].deleted;
            world.set_key(key, disabled, deleted, now);
        })
    }

    /// Sets a key's spending cap, USD; none removes it. What was spent stays spent.
    ///
    /// # Errors
    ///
    /// When no key has this label.
    pub fn set_key_cap(&self, label: &str, cap: Option<f64>) -> Result<(), ScenarioError> {
        self.change_key(label, |world, key, now| {
            let reset = world.keys[key].cap.latest().reset;
            world.set_cap(key, Cap { limit: cap, reset }, now);
        })
    }

    fn change_key(&self, label: &str, change: impl FnOnce(&mut World, usize, Wall)) -> Result<(), ScenarioError> {
        let now = self.shared.clock.now().wall;
        let mut world = self.shared.lock();
        let unknown = || ScenarioError::new("label", format!("no key is called {label:?}"));
        let key = world.key_labelled(label).ok_or_else(unknown)?;
        change(&mut world, key, now);
        world.keys[key].updated = Some(now);
        Ok(())
    }

    /// Sets an account's balance, USD, by changing its credits. Counts as a purchase when it rises.
    ///
    /// # Errors
    ///
    /// When no account has this name.
    pub fn set_credits(&self, account: &str, balance: f64) -> Result<(), ScenarioError> {
        let now = self.shared.clock.now().wall;
        let mut world = self.shared.lock();
        let unknown = || ScenarioError::new("account", format!("no account is called {account:?}"));
        let account = world.accounts.iter().position(|a| *a.name == *account).ok_or_else(unknown)?;
        world.set_balance(account, balance, now);
        Ok(())
    }

    /// Adds a key to an account.
    ///
    /// # Errors
    ///
    /// When the label or secret exists, or account or workspace do not.
    pub fn add_key(&self, key: &SimKey) -> Result<SimulatedKey, ScenarioError> {
        let now = self.shared.clock.now().wall;
        let mut world = self.shared.lock();
        let index = world.add_key(self.shared.scenario.seed, key, now)?;
        let state = &world.keys[index];
        Ok(SimulatedKey {
            label: key.label.clone(),
            secret: state.secret.clone(),
            account: key.account.clone(),
            hash: state.hash.clone(),
        })
    }

    /// Adds a fault; its window counts from now. It comes before those already there.
    ///
    /// # Errors
    ///
    /// When its values cannot be simulated.
    pub fn inject(&self, fault: Fault) -> Result<(), ScenarioError> {
        self.shared.scenario.validate_fault("fault", &fault)?;
        let now = self.shared.clock.now().elapsed;
        self.shared.lock().faults.insert(0, FaultState::new(fault, now));
        Ok(())
    }

    /// Removes all faults, the scenario's too.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// What was seen so far.
    pub fn counts(&self) -> Counts {
        let world = self.shared.lock();
        let keys = world.keys.iter().map(|key| &*key.label);
        world.ledger.counts(keys, world.accounts.iter().map(|account| &*account.name))
    }

    /// The last inference requests, oldest first, at most [`Keep::log`](super::Keep::log).
    pub fn log(&self) -> Vec<Attempt> {
        self.shared.lock().ledger.log()
    }

    /// The last requests as they arrived, oldest first, at most [`Keep::requests`](super::Keep::requests).
    pub fn requests(&self) -> Vec<Received> {
        self.shared.lock().ledger.requests()
    }
}
