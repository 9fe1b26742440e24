//! What happens in a run: the upstream's world, who asks for what when, and how long they wait.

use std::time::Duration;

use serde::Deserialize;

use crate::{request::Priority, simulator};

/// A scenario, as a TOML file has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in tables, and by which `--scenario` finds it.
    pub name: String,
    /// What it shows, in a sentence or two.
    #[serde(default)]
    pub about: String,
    /// For how long requests arrive, seconds of virtual time.
    pub length_s: f64,
    /// How long nothing is counted, seconds from the start. Default 0.
    #[serde(default)]
    pub warm_up_s: f64,
    /// How long clients wait.
    #[serde(default)]
    pub patience: Patience,
    /// How long a request and its answer are under way between caller and platform, ms, before anything is looked at. Default
    /// 40.
    #[serde(default = "round_trip_ms")]
    pub round_trip_ms: f64,
    /// Accounts, keys, models, providers, and what goes wrong.
    pub world: simulator::Scenario,
}

fn round_trip_ms() -> f64 {
    40.0
}

/// How long clients wait, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patience {
    /// How long a request may wait for a key. Default 30.
    pub max_wait_s: f64,
    /// After how long a client that has no whole answer leaves. Default 60.
    pub deadline_s: f64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { max_wait_s: 30.0, deadline_s: 60.0 }
    }
}

/// One request of a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// When it comes, since the start.
    pub at: Duration,
    /// The model.
    pub model: String,
    /// The length of the prompt, tokens.
    pub prompt_tokens: u64,
    /// The length of the reply, tokens: the request's `max_tokens`, which the simulator writes to the full.
    pub reply_tokens: u64,
    /// Whether the reply is a stream.
    pub stream: bool,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// Its class in a waiting line.
    pub priority: Priority,
}

/// What is wrong with a scenario, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScenarioError(pub(super) String);

impl Scenario {
    /// Reads a scenario and checks it.
    ///
    /// # Errors
    /// When the text is not TOML, has unknown or ill-typed fields, or values that contradict each other.
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|error| ScenarioError(error.to_string()))?;
        scenario.world.validate().map_err(|error| ScenarioError(format!("world: {error}")))?;
        if !(0.0..=60_000.0).contains(&scenario.round_trip_ms) {
            return Err(ScenarioError(format!("round_trip_ms: {} is not within 0 to 60000", scenario.round_trip_ms)));
        }
        Ok(scenario)
    }

    /// Who asks for what when, in order of arrival.
    pub fn asks(&self, _seed: u64) -> Vec<Ask> {
        Vec::new()
    }
}
