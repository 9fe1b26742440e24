//! Everything that changes: balances, quotas, keys, pools. One lock guards it, held for microseconds.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::cache::Cache;
use super::clock::Wall;
use super::faults::FaultState;
use super::generation::Generation;
use super::money::Spend;
use super::pool::{PoolState, QuotaState};
use super::scenario::{Account, Budget, InFlight, Reset, Scenario, ScenarioError, SimKey, Stale};
use super::stale::Delayed;
use super::stats::Ledger;
use super::{draw, ids};

/// One account's state.
#[derive(Debug)]
pub(super) struct AccountState {
    pub(super) name: Arc<str>,
    /// `org_…` or `user_…`, also the `user_id` of errors.
    pub(super) owner: String,
    pub(super) organization: bool,
    pub(super) credits: Delayed<f64>,
    pub(super) ever_purchased: f64,
    pub(super) spend: Spend,
    pub(super) free: FreeQuota,
    pub(super) quota: Option<QuotaState>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) holds: Vec<Hold>,
    pub(super) allowed_providers: Vec<String>,
    pub(super) denied_providers: Vec<String>,
}

impl AccountState {
    fn new(account: &Account, seed: u64, stale: &Stale, now: Wall) -> Self {
        Self {
            name: account.name.as_str().into(),
            owner: ids::owner(seed, &account.name, account.organization),
            organization: account.organization,
            credits: Delayed::new(account.credits),
            ever_purchased: account.ever_purchased.unwrap_or(account.credits),
            spend: Spend::starting_with(account.used, now, stale.counters_ms),
            free: FreeQuota {
                per_minute: account.free_per_minute,
                per_day: account.free_per_day,
                minute: (0, 0),
                day: Delayed::default(),
                lag_ms: stale.counters_ms,
            },
            quota: account.quota.clone().map(QuotaState::new),
            in_flight: account.in_flight.clone(),
            holds: Vec::new(),
            allowed_providers: account.allowed_providers.clone(),
            denied_providers: account.denied_providers.clone(),
        }
    }

    pub(super) fn balance(&self, now: Wall) -> f64 {
        self.credits.seen(now) - self.spend.since(Reset::None, now)
    }

    /// 1000 a day are granted from nine credits ever bought.
    pub(super) fn free_daily_limit(&self) -> u64 {
        let derived = if self.ever_purchased >= 9.0 { 1_000 } else { 50 };
        self.free.per_day.unwrap_or(derived)
    }
}

/// Estimated or settling cost that is held against the in-flight budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    pub(super) number: u64,
    pub(super) amount: f64,
    /// Set once the request ended and its actual cost settles.
    pub(super) until: Option<Duration>,
}

/// The account's `:free` counters: (minute, requests) and (day, requests).
#[derive(Clone, Debug)]
pub(super) struct FreeQuota {
    pub(super) per_minute: u64,
    per_day: Option<u64>,
    minute: (i64, u64),
    day: Delayed<(i64, u64)>,
    lag_ms: f64,
}

/// What the free quota says to one more request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreeVerdict {
    Granted,
    MinuteFull,
    DayFull,
}

impl FreeQuota {
    /// Counts a request. Refused ones count for the day too, so retrying makes it worse.
    pub(super) fn take(&mut self, daily: u64, now: Wall) -> FreeVerdict {
        let before = self.day.latest();
        let asked = if before.0 == now.day() { before.1 + 1 } else { 1 };
        self.day.set((now.day(), asked), now, self.lag_ms);
        if self.minute.0 != now.minute() {
            self.minute = (now.minute(), 0);
        }
        if self.minute.1 >= self.per_minute {
            return FreeVerdict::MinuteFull;
        }
        if asked > daily {
            return FreeVerdict::DayFull;
        }
        self.minute.1 += 1;
        FreeVerdict::Granted
    }

    /// When one more is granted, as far as time alone brings it; none for never.
    #[cfg(feature = "lab")]
    pub(super) fn opens(&self, daily: u64, now: Wall) -> Option<Wall> {
        if self.per_minute == 0 || daily == 0 {
            return None;
        }
        let (day, asked) = self.day.latest();
        let minute_full = self.minute.0 == now.minute() && self.minute.1 >= self.per_minute;
        let day_full = day == now.day() && asked >= daily;
        let minute = if minute_full { now.next_minute() } else { now };
        Some(minute.max(if day_full { now.next_day() } else { now }))
    }

    /// How many more are granted from now to `until`, if they are there as soon as there is room.
    #[cfg(feature = "lab")]
    pub(super) fn room(&self, daily: u64, now: Wall, until: Wall) -> u64 {
        let left = |(period, used): (i64, u64), present, limit: u64| {
            limit.saturating_sub(if period == present { used } else { 0 })
        };
        let periods = |count: i64, limit: u64| count.unsigned_abs().saturating_mul(limit);
        let minutes = periods(until.minute() - now.minute(), self.per_minute);
        let days = periods(until.day() - now.day(), daily);
        let minute = left(self.minute, now.minute(), self.per_minute).saturating_add(minutes);
        minute.min(left(self.day.latest(), now.day(), daily).saturating_add(days))
    }

    /// As the counter shows it.
    pub(super) fn used_today(&self, now: Wall) -> u64 {
        let (day, asked) = self.day.seen(now);
        if day == now.later(-self.lag_ms).day() { asked } else { 0 }
    }
}

/// A group of keys with budgets.
#[derive(Debug)]
pub(super) struct WorkspaceState {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) account: usize,
    pub(super) budgets: Vec<Budget>,
    pub(super) spend: Spend,
}

/// One key's state.
#[derive(Debug)]
pub(super) struct KeyState {
    pub(super) label: Arc<str>,
    /// The `name` of `/keys`, which a PATCH may change; the label stays.
    pub(super) name: String,
    pub(super) secret: String,
    pub(super) hash: String,
    pub(super) account: usize,
    pub(super) workspace: usize,
    pub(super) cap: Delayed<Cap>,
    pub(super) include_byok: bool,
    pub(super) spend: Spend,
    pub(super) expires: Option<Wall>,
    pub(super) disabled: bool,
    pub(super) deleted: bool,
    /// Whether the edge knows it as a key that works.
    pub(super) known: Delayed<bool>,
    pub(super) management: bool,
    pub(super) allowed_models: Vec<String>,
    pub(super) created: Wall,
    pub(super) updated: Option<Wall>,
    pub(super) last_used: Option<Wall>,
}

/// A key's spending cap: USD, and when it starts anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cap {
    pub(super) limit: Option<f64>,
    pub(super) reset: Reset,
}

impl Cap {
    /// What is left of it, by this count of what was spent.
    pub(super) fn left(self, spent: impl FnOnce(Reset) -> f64) -> Option<f64> {
        self.limit.map(|limit| limit - spent(self.reset))
    }
}

impl KeyState {
    /// What is left under the cap the edge knows.
    pub(super) fn remaining(&self, now: Wall) -> Option<f64> {
        self.cap.seen(now).left(|reset| self.spend.since(reset, now))
    }

    pub(super) fn accepted(&self, now: Wall) -> bool {
        self.known.seen(now) && self.expires.is_none_or(|end| now < end)
    }
}

/// A provider endpoint's changing part.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) pool: Option<PoolState>,
    /// Requests on their way to the pool, if there is one.
    pub(super) asked: u64,
    /// Its last failure, which lowers it in the order for a while.
    pub(super) failed: Option<Duration>,
}

/// All changing state.
#[derive(Debug)]
pub(super) struct World {
    pub(super) accounts: Vec<AccountState>,
    pub(super) workspaces: Vec<WorkspaceState>,
    pub(super) keys: Vec<KeyState>,
    by_secret: HashMap<String, usize>,
    pub(super) endpoints: Vec<EndpointState>,
    pub(super) faults: Vec<FaultState>,
    pub(super) generations: VecDeque<Generation>,
    pub(super) cache: Cache,
    pub(super) ledger: Ledger,
    stale: Stale,
    pub(super) rng: fastrand::Rng,
    pub(super) next_generation: u64,
    pub(super) next_answer: u64,
    pub(super) next_hold: u64,
}

impl World {
    pub(super) fn new(scenario: &Scenario, now: Wall) -> Result<Self, ScenarioError> {
        let seed = scenario.seed;
        let accounts: Vec<_> =
            scenario.accounts.iter().map(|a| AccountState::new(a, seed, &scenario.stale, now)).collect();
        let mut world = Self {
            ledger: Ledger::new(scenario.keep.clone(), accounts.len()),
            accounts,
            workspaces: Vec::new(),
            keys: Vec::new(),
            by_secret: HashMap::new(),
            endpoints: scenario
                .endpoints
                .iter()
                .map(|e| EndpointState { pool: e.pool.clone().map(PoolState::new), asked: 0, failed: None })
                .collect(),
            stale: scenario.stale.clone(),
            faults: scenario.faults.iter().map(|f| FaultState::new(f.clone(), Duration::ZERO)).collect(),
            generations: VecDeque::new(),
            cache: Cache::default(),
            rng: draw::rng(seed, "faults", 0),
            next_generation: 0,
            next_answer: 0,
            next_hold: 0,
        };
        for workspace in &scenario.workspaces {
            world.add_workspace(seed, &workspace.account, &workspace.name, workspace.budgets.clone(), now);
        }
        for key in &scenario.keys {
            let index = world.add_key(seed, key, now)?;
            // it was there before the simulation began
            world.keys[index].known = Delayed::new(!key.disabled);
        }
        Ok(world)
    }

    fn add_workspace(&mut self, seed: u64, account: &str, name: &str, budgets: Vec<Budget>, now: Wall) -> usize {
        let index = self.accounts.iter().position(|a| &*a.name == account).unwrap_or_default();
        self.workspaces.push(WorkspaceState {
            name: name.to_owned(),
            id: ids::workspace(seed, account, name),
            account: index,
            budgets,
            spend: Spend::starting_with(0.0, now, self.stale.counters_ms),
        });
        self.workspaces.len() - 1
    }

    /// Adds a key and, when it is the first of its account there, the `default` workspace.
    pub(super) fn add_key(&mut self, seed: u64, key: &SimKey, now: Wall) -> Result<usize, ScenarioError> {
        let unknown = || ScenarioError::new("key.account", format!("{:?} is not in accounts", key.account));
        let account = self.accounts.iter().position(|a| *a.name == *key.account).ok_or_else(unknown)?;
        let secret = key.secret.clone().unwrap_or_else(|| ids::secret(seed, &key.label));
        if self.keys.iter().any(|other| *other.label == *key.label) || self.by_secret.contains_key(&secret) {
            return Err(ScenarioError::new("key.label", format!("{:?} exists already", key.label)));
        }
        let name = key.workspace.as_deref().unwrap_or("default");
        let found = self.workspaces.iter().position(|w| w.account == account && w.name == name);
        let workspace = match found {
            Some(index) => index,
            None if name == "default" => self.add_workspace(seed, &key.account, name, Vec::new(), now),
            None => {
                let problem = format!("{name:?} is no workspace of {:?}", key.account);
                return Err(ScenarioError::new("key.workspace", problem));
            }
        };
        let mut known = Delayed::new(false);
        known.set(!key.disabled, now, self.stale.key_ms);
        self.by_secret.insert(secret.clone(), self.keys.len());
        self.keys.push(KeyState {
            label: key.label.as_str().into(),
            name: key.label.clone(),
            hash: ids::key_hash(&secret),
            secret,
            account,
            workspace,
            cap: Delayed::new(Cap { limit: key.cap, reset: key.reset }),
            include_byok: false,
            spend: Spend::starting_with(key.used, now, self.stale.counters_ms),
            expires: key.expires.as_deref().and_then(Wall::parse),
            disabled: key.disabled,
            deleted: false,
            known,
            management: key.management,
            allowed_models: key.allowed_models.clone(),
            created: now,
            updated: None,
            last_used: None,
        });
        self.ledger.add_key();
        Ok(self.keys.len() - 1)
    }

    pub(super) fn key_of(&self, secret: &str) -> Option<usize> {
        self.by_secret.get(secret).copied()
    }

    pub(super) fn key_labelled(&self, label: &str) -> Option<usize> {
        self.keys.iter().position(|key| *key.label == *label)
    }

    /// Disables a key or enables it, and deletes it for good.
    pub(super) fn set_key(&mut self, index: usize, disabled: bool, deleted: bool, now: Wall) {
        let key = &mut self.keys[index];
        (key.disabled, key.deleted) = (disabled, deleted);
        key.known.set(!disabled && !deleted, now, self.stale.key_ms);
    }

    pub(super) fn set_cap(&mut self, index: usize, cap: Cap, now: Wall) {
        self.keys[index].cap.set(cap, now, self.stale.cap_ms);
    }

    /// Sets an account's balance by changing its credits.
    pub(super) fn set_balance(&mut self, account: usize, balance: f64, now: Wall) {
        let account = &mut self.accounts[account];
        let credits = balance + account.spend.since(Reset::None, now);
        account.ever_purchased += (credits - account.credits.latest()).max(0.0);
        account.credits.set(credits, now, self.stale.credits_ms);
    }

    /// Charges a key, its workspace and its account.
    pub(super) fn charge(&mut self, key: usize, cost: f64, now: Wall) {
        let key = &mut self.keys[key];
        key.spend.add(cost, now);
        key.last_used = Some(now);
        self.workspaces[key.workspace].spend.add(cost, now);
        self.accounts[key.account].spend.add(cost, now);
    }
}
