//! What happens in a run: the upstream's world, who asks for what when, and how long they wait.

use std::{fs, path::Path, sync::Arc, time::Duration};

use serde::Deserialize;

use super::{
    arrivals::{Arrivals, Rate, not_negative, positive, wrong},
    mix::{Entry, Mix},
    trace::Trace,
};
use crate::{request::Priority, simulator};

/// A scenario, as a TOML file has it.
///
/// ```
/// use tower_openrouter::lab::Scenario;
///
/// let scenario = Scenario::from_toml(
///     r#"
///     name = "mine"
///     about = "My two keys and twice the requests they may send."
///     length_s = 600
///     warm_up_s = 60
///     patience = { max_wait_s = 20, deadline_s = 60 }
///     arrivals = { rate = { kind = "constant", per_s = 4 } }
///     mix = [
///         { model = "acme/swift-1", prompt_tokens = { kind = "log_normal", median = 400, sigma = 1 },
///           reply_tokens = { kind = "uniform", min = 50, max = 300 }, stream = 0.5 },
///     ]
///     [world]
///     accounts = [
///         { name = "a", credits = 50, quota = { requests = 10, window_s = 10, hints = false } },
///         { name = "b", credits = 50, quota = { requests = 10, window_s = 10, hints = false } },
///     ]
///     keys = [{ label = "a-1", account = "a" }, { label = "b-1", account = "b" }]
///     models = [{ id = "acme/swift-1" }]
///     endpoints = [{ model = "acme/swift-1", provider = "One", first_token_ms = 500, tokens_per_second = 80 }]
///     "#,
/// )?;
/// let asks = scenario.asks(1);
/// assert_eq!(asks, scenario.asks(1));
/// assert!((2_200..2_600).contains(&asks.len()));
/// # Ok::<(), tower_openrouter::lab::ScenarioError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in tables, and by which `--scenario` finds it.
    pub name: String,
    /// What it shows and where its numbers come from, in a sentence or two.
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
    /// When requests come. Default never, for runs with requests of one's own.
    pub arrivals: Option<Arrivals>,
    /// What they ask for, by weight.
    #[serde(default)]
    pub mix: Vec<Entry>,
    /// Accounts, keys, models, providers, and what goes wrong. How long replies are is said by the requests, and history is
    /// kept by the lab: the world's own settings for both (`reply.min_tokens`, `reply.max_tokens`, `keep`) have no effect.
    pub world: simulator::Scenario,
    /// In place of arrivals and sizes.
    #[serde(skip)]
    trace: Option<Arc<Trace>>,
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
    /// After how long its client leaves; by default when the scenario's [`Patience`] is at an end.
    pub deadline: Option<Duration>,
}

/// What is wrong with a scenario, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScenarioError(pub(super) String);

impl Scenario {
    /// Reads a scenario and checks it.
    ///
    /// # Errors
    /// When the text is not TOML, has unknown or ill-typed fields, or values that contradict each other; and when its
    /// requests are those of a trace, which only [`open`](Self::open) finds.
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let scenario = Self::parse(text)?;
        match scenario.trace_file() {
            Some(_) => Err(wrong("arrivals.rate.file", "a trace is only found from a scenario that is a file itself")),
            None => Ok(scenario),
        }
    }

    /// Reads a scenario's file, and the trace it names.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml), with the file's name; and when one of the files cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ScenarioError> {
        let path = path.as_ref();
        let named = |error: &dyn std::fmt::Display| ScenarioError(format!("{}: {error}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| named(&error))?;
        let scenario = Self::parse(&text).map_err(|error| named(&error))?;
        let Some(file) = scenario.trace_file() else { return Ok(scenario) };
        let beside = path.parent().unwrap_or(Path::new("")).join(file);
        let trace = Trace::open(&beside).map_err(|error| named(&wrong("arrivals.rate.file", error)))?;
        scenario.with_trace(trace).map_err(|error| named(&error))
    }

    fn parse(text: &str) -> Result<Self, ScenarioError> {
        let mut scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError(error.to_string().trim_end().to_owned()))?;
        let world = &mut scenario.world;
        // far beyond any model's longest, so that it is the request's maximum that ends a reply
        (world.reply.min_tokens, world.reply.max_tokens) = (u64::MAX, u64::MAX);
        (world.keep.log, world.keep.requests) = (0, 0);
        scenario.validate()?;
        Ok(scenario)
    }

    fn validate(&self) -> Result<(), ScenarioError> {
        self.world.validate().map_err(|error| ScenarioError(format!("world: {error}")))?;
        if self.name.is_empty() || !self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            return Err(wrong("name", "must be letters, digits, '-', '_' and '.'"));
        }
        positive("length_s", self.length_s)?;
        if self.length_s > 366.0 * 86_400.0 {
            return Err(wrong("length_s", "must be a year at most"));
        }
        not_negative("warm_up_s", self.warm_up_s)?;
        if self.warm_up_s >= self.length_s {
            return Err(wrong("warm_up_s", "must be below length_s"));
        }
        positive("patience.max_wait_s", self.patience.max_wait_s)?;
        positive("patience.deadline_s", self.patience.deadline_s)?;
        not_negative("round_trip_ms", self.round_trip_ms)?;
        for (index, entry) in self.mix.iter().enumerate() {
            let field = format!("mix[{index}]");
            entry.validate(&field)?;
            if !self.knows(&entry.model) {
                return Err(wrong(&format!("{field}.model"), format!("{:?} is not in world.models", entry.model)));
            }
        }
        let Some(arrivals) = &self.arrivals else { return Ok(()) };
        if self.mix.is_empty() {
            return Err(wrong("mix", "must say what the requests of arrivals ask for"));
        }
        arrivals.validate(self.length_s)
    }

    fn knows(&self, model: &str) -> bool {
        self.world.models.iter().any(|known| known.id == model)
    }

    fn trace_file(&self) -> Option<&str> {
        match &self.arrivals.as_ref()?.rate {
            Rate::Trace { file } => Some(file),
            _ => None,
        }
    }

    /// The same with the requests of a trace: when they come, how long they are, and what else the trace tells of them. What
    /// it does not tell is as the mix has it, and so is a model that the world does not know. It lasts as long as the trace.
    ///
    /// # Errors
    /// When the scenario has no mix, or is still warming up when the trace ends.
    pub fn with_trace(mut self, trace: Trace) -> Result<Self, ScenarioError> {
        if self.mix.is_empty() {
            return Err(wrong("mix", "must say what a trace does not tell of its requests"));
        }
        // the last request comes within it
        self.length_s = trace.span().as_secs_f64().floor() + 1.0;
        if self.warm_up_s >= self.length_s {
            return Err(wrong("warm_up_s", format!("must be below the {} s of the trace", self.length_s)));
        }
        self.trace = Some(Arc::new(trace));
        Ok(self)
    }

    /// Who asks for what when, in order of arrival. The same seed gives the same requests on any machine.
    pub fn asks(&self, seed: u64) -> Vec<Ask> {
        let mix = Mix::new(&self.mix, seed);
        if let Some(trace) = &self.trace {
            let replay = |(number, record)| mix.replay(number, record, |model| self.knows(model));
            return trace.records().iter().enumerate().map(replay).collect();
        }
        let Some(arrivals) = &self.arrivals else { return Vec::new() };
        let times = arrivals.draw(seed, self.length_s);
        times.into_iter().enumerate().map(|(number, at)| mix.ask(number, at)).collect()
    }
}
