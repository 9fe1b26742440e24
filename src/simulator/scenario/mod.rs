//! What the simulated OpenRouter consists of, as data: serde and TOML.
//!
//! Unknown fields are refused, so a misspelt one cannot silently leave a default in place. Values are
//! checked when a [`Simulator`](super::Simulator) is built, by [`Scenario::validate`].

mod catalogue;
mod fault;
mod validate;
mod wire;

pub use catalogue::{Model, Pool, PoolKind, ProviderEndpoint, RetryAfter};
pub use fault::{Fault, InBand, Reason, What};
pub use validate::ScenarioError;
pub use wire::{Keep, Reply, Stale, Wire};

use serde::{Deserialize, Serialize};

/// A whole simulated platform: who has which keys and credit, which models exist, how the wire behaves.
///
/// [`Scenario::default`] is a demonstration with three accounts and five keys; [`Scenario::empty`] has
/// nothing and is the base for tests; [`Scenario::from_toml`] reads a file.
///
/// ```
/// use tower_openrouter::simulator::Scenario;
///
/// let scenario = Scenario::from_toml(
///     r#"
///     accounts = [{ name = "alpha", credits = 5.0 }]
///     keys = [{ label = "one", account = "alpha" }]
///     models = [{ id = "acme/swift" }]
///     endpoints = [{ model = "acme/swift", provider = "DeepInfra", completion_price = 2.0 }]
///     "#,
/// )?;
/// assert_eq!(scenario.keys[0].label, "one");
/// # Ok::<(), tower_openrouter::simulator::ScenarioError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default = "Scenario::empty")]
pub struct Scenario {
    /// Seed of everything random: derived secrets, ids, texts, jitter. Default 1.
    pub seed: u64,
    /// The wall clock when the simulator is made, as `2026-01-15T12:00:00Z`. Default: exactly that
    /// instant, a Thursday, so that nothing depends on the real date. The served simulator uses now.
    pub start: Option<String>,
    /// Owners of credit and of free quotas.
    pub accounts: Vec<Account>,
    /// Groups of keys with budgets of their own. Every account has a `default` workspace without one.
    pub workspaces: Vec<Workspace>,
    /// API keys.
    pub keys: Vec<SimKey>,
    /// The catalogue.
    pub models: Vec<Model>,
    /// Which provider serves which model, at what price and speed.
    pub endpoints: Vec<ProviderEndpoint>,
    /// What the replies contain.
    pub reply: Reply,
    /// Switches for forms of the wire that differ between reports, and for keep-alives.
    pub wire: Wire,
    /// How late the edge notices changes.
    pub stale: Stale,
    /// How much of what happened is kept for [`Simulator::log`](super::Simulator::log) and friends.
    pub keep: Keep,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
}

/// The owner of credits: a user or an organisation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Unique name, used by keys, workspaces and faults.
    pub name: String,
    /// Credits bought so far, USD; the balance is this minus `used`. Default 0.
    #[serde(default)]
    pub credits: f64,
    /// Credits spent before the simulation starts, USD. More than `credits` makes a negative balance.
    #[serde(default)]
    pub used: f64,
    /// Credits ever bought, USD: decides the daily free quota (1000 from 9, else 50). Default `credits`.
    pub ever_purchased: Option<f64>,
    /// `true`: an organisation (`org_…`), else a user (`user_…`). Default false.
    #[serde(default)]
    pub organization: bool,
    /// A limit on the account's requests for any model, beside its free quota; absent: none, as documented.
    pub quota: Option<Quota>,
    /// Requests to `:free` models per minute. Default 20, as documented by OpenRouter.
    #[serde(default = "free_per_minute")]
    pub free_per_minute: u64,
    /// Requests to `:free` models per UTC day, when not derived from `ever_purchased`.
    pub free_per_day: Option<u64>,
    /// Holds for running requests; absent: not enforced, as for old or rich accounts.
    pub in_flight: Option<InFlight>,
    /// When not empty, only these providers may serve the account (404 `Filter by Allowed Providers`).
    #[serde(default)]
    pub allowed_providers: Vec<String>,
    /// Providers the account's privacy settings exclude (404 `Filter by Data Policy`).
    #[serde(default)]
    pub denied_providers: Vec<String>,
}

const fn free_per_minute() -> u64 {
    20
}

/// So many requests of an account per window, whatever the model; more are refused with the 429 of a platform limit.
///
/// OpenRouter documents none for paid models, but answers in this form were seen. All defaults are ours. Refused requests do
/// not count.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Requests per window.
    pub requests: u64,
    /// Length of the window, seconds. Default 60.
    #[serde(default = "minute")]
    pub window_s: f64,
    /// How the window moves. Default fixed.
    #[serde(default)]
    pub kind: PoolKind,
    /// How much of a fixed window has gone by when the simulation starts, seconds. Default 0.
    #[serde(default)]
    pub phase_s: f64,
    /// `true`: the 429 says how many `requests` are allowed and when the next is; else only that none remains. Default true.
    #[serde(default = "yes")]
    pub hints: bool,
}

const fn minute() -> f64 {
    60.0
}

const fn yes() -> bool {
    true
}

/// The in-flight budget: a transient hold on the estimated cost of running paid requests.
///
/// OpenRouter publishes the rules but no number; all defaults are ours.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct InFlight {
    /// Part of the balance that running requests may hold. Default 0.5.
    pub fraction: f64,
    /// The most they may hold, USD. Default 10.
    pub ceiling: f64,
    /// Completion tokens counted at most per request, and when `max_tokens` is unset. Default 4096.
    pub completion_cap: u64,
    /// Enforced only while the balance is below this, USD. Default 100.
    pub below_balance: f64,
    /// How long the actual cost stays held after the end, seconds. Default 2.
    pub settle_s: f64,
    /// The `Retry-After` of the transient 402, seconds. Default 3.
    pub retry_after_s: u64,
}

impl Default for InFlight {
    fn default() -> Self {
        Self {
            fraction: 0.5,
            ceiling: 10.0,
            completion_cap: 4096,
            below_balance: 100.0,
            settle_s: 2.0,
            retry_after_s: 3,
        }
    }
}

/// A group of keys of one account.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Unique name within the account.
    pub name: String,
    /// The owning account.
    pub account: String,
    /// Budgets checked in this order; at or below zero left is a 403.
    #[serde(default)]
    pub budgets: Vec<Budget>,
}

/// What a workspace may spend per period.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// USD.
    pub limit: f64,
    /// When it starts anew. Default never.
    #[serde(default)]
    pub reset: Reset,
}

/// When spending is counted from zero again, always at 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reset {
    /// Never: a total.
    #[default]
    None,
    /// Each day.
    Daily,
    /// Each Monday.
    Weekly,
    /// Each first of a month.
    Monthly,
}

/// An API key.
#[derive(Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SimKey {
    /// Unique name, used by the statistics and by faults.
    pub label: String,
    /// The owning account.
    pub account: String,
    /// The workspace it spends in. Default the account's `default`.
    pub workspace: Option<String>,
    /// The key itself. Default `sk-or-v1-` and 64 hexadecimal digits derived from seed and label.
    pub secret: Option<String>,
    /// The key's own spending cap, USD. Default none.
    pub cap: Option<f64>,
    /// When the cap starts anew. Default never.
    #[serde(default)]
    pub reset: Reset,
    /// Spent before the simulation starts, USD, in the current period too. Default 0.
    #[serde(default)]
    pub used: f64,
    /// Answers 401 from this instant on, as `2026-01-15T12:00:00Z`.
    pub expires: Option<String>,
    /// Answers 401. Default false.
    #[serde(default)]
    pub disabled: bool,
    /// May manage keys and read `/credits`, cannot infer. Default false.
    #[serde(default)]
    pub management: bool,
    /// When not empty, a guardrail allows only these models (404 `Filter by Guardrails`).
    #[serde(default)]
    pub allowed_models: Vec<String>,
}

impl SimKey {
    /// A key without cap in the account's default workspace.
    pub fn new(label: impl Into<String>, account: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            account: account.into(),
            workspace: None,
            secret: None,
            cap: None,
            reset: Reset::None,
            used: 0.0,
            expires: None,
            disabled: false,
            management: false,
            allowed_models: Vec::new(),
        }
    }
}

/// Without the secret, should somebody put a real one into a file.
impl std::fmt::Debug for SimKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimKey")
            .field("label", &self.label)
            .field("account", &self.account)
            .field("workspace", &self.workspace)
            .field("cap", &self.cap)
            .field("reset", &self.reset)
            .field("disabled", &self.disabled)
            .field("management", &self.management)
            .finish_non_exhaustive()
    }
}

impl Scenario {
    /// No account, key, model or endpoint; all settings at their defaults.
    pub fn empty() -> Self {
        Self {
            seed: 1,
            start: None,
            accounts: Vec::new(),
            workspaces: Vec::new(),
            keys: Vec::new(),
            models: Vec::new(),
            endpoints: Vec::new(),
            reply: Reply::default(),
            wire: Wire::default(),
            stale: Stale::default(),
            keep: Keep::default(),
            faults: Vec::new(),
        }
    }

    /// Reads a scenario and validates it.
    ///
    /// # Errors
    ///
    /// When the text is not TOML, has unknown or ill-typed fields, or values that contradict each other.
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(ScenarioError::parse)?;
        scenario.validate()?;
        Ok(scenario)
    }
}

/// The demonstration scenario, `demo.toml` beside this file.
impl Default for Scenario {
    fn default() -> Self {
        Self::from_toml(include_str!("demo.toml")).expect("demo.toml is valid, which a test checks")
    }
}
