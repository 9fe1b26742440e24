//! What requests ask for: models, sizes, streams, conversations, urgency.
//!
//! Each request draws from a random source of its own, numbered by its arrival, so that a change to one entry of the mix
//! leaves the other requests of a seed as they are.

use std::time::Duration;

use serde::Deserialize;

use super::{
    Ask, ScenarioError,
    arrivals::{not_negative, part, positive, wrong},
    trace::Record,
};
use crate::{request::Priority, simulator::draw};

/// The longest prompt or reply of a mix, tokens.
const MAX_TOKENS: f64 = 1_000_000.0;

/// One kind of requests, as an entry of `[[mix]]` has it.
///
/// ```toml
/// [[mix]]
/// weight = 3
/// model = "acme/swift-1"
/// prompt_tokens = { kind = "log_normal", median = 400, sigma = 1.0, max = 8000 }
/// reply_tokens = { kind = "uniform", min = 50, max = 300 }
/// stream = 0.8
/// sessions = 40
/// high = 0.1
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// How many of these come, against the weights of the other entries. Default 1.
    #[serde(default = "one")]
    pub weight: f64,
    /// The model they ask for, one of the world's.
    pub model: String,
    /// How long their prompts are.
    pub prompt_tokens: Size,
    /// How long the replies are.
    pub reply_tokens: Size,
    /// The part of them that ask for a stream, 0 to 1. Default 0.
    #[serde(default)]
    pub stream: f64,
    /// Over how many conversations they are spread, at random. Default 0: each stands alone.
    #[serde(default)]
    pub sessions: u64,
    /// The part of them that is urgent, 0 to 1. Default 0.
    #[serde(default)]
    pub high: f64,
    /// The part of them that nobody waits for, 0 to 1. Default 0.
    #[serde(default)]
    pub low: f64,
    /// After how long their clients leave, seconds. Default that of `patience`.
    pub deadline_s: Option<f64>,
}

const fn one() -> f64 {
    1.0
}

/// How long prompts or replies are, tokens; drawn for each, and at least 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Size {
    /// All the same.
    Fixed {
        /// Tokens.
        tokens: f64,
    },
    /// Any length between two, as often as any other.
    Uniform {
        /// The shortest.
        min: f64,
        /// The longest.
        max: f64,
    },
    /// A few are much longer than the others, as prompts of people are.
    LogNormal {
        /// Half are longer.
        median: f64,
        /// The standard deviation of the logarithm: of 1, every twentieth is five times the median.
        sigma: f64,
        /// Longer ones are cut to this. Default 1 000 000.
        #[serde(default = "longest")]
        max: f64,
    },
    /// As measured: between two points of the table, any length as often as any other.
    Quantiles {
        /// Parts of the whole, ascending from 0 to 1.
        parts: Vec<f64>,
        /// So long at most is that part, tokens.
        tokens: Vec<f64>,
    },
}

const fn longest() -> f64 {
    MAX_TOKENS
}

impl Size {
    fn validate(&self, field: &str) -> Result<(), ScenarioError> {
        let at = |name: &str| format!("{field}.{name}");
        let sizes: &[f64] = match self {
            Self::Fixed { tokens } => &[*tokens],
            Self::Uniform { min, max } => &[*min, *max],
            Self::LogNormal { median, sigma, max } => {
                positive(&at("median"), *median)?;
                if !(0.0..=3.0).contains(sigma) {
                    return Err(wrong(&at("sigma"), format!("{sigma} is not between 0 and 3")));
                }
                positive(&at("max"), *max)?;
                &[*max]
            }
            Self::Quantiles { parts, tokens } => {
                let ends = parts.first() == Some(&0.0) && parts.last() == Some(&1.0);
                if !ends || parts.len() != tokens.len() || !parts.is_sorted_by(|a, b| a < b) {
                    return Err(wrong(&at("parts"), "must ascend from 0 to 1, as many as there are tokens"));
                }
                tokens
            }
        };
        if !sizes.is_sorted() || sizes.iter().any(|size| !(0.0..=MAX_TOKENS).contains(size)) {
            return Err(wrong(field, format!("sizes must be from 0 to {MAX_TOKENS} and ascend")));
        }
        Ok(())
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> u64 {
        let tokens = match self {
            Self::Fixed { tokens } => *tokens,
            Self::Uniform { min, max } => min + (max - min) * rng.f64(),
            Self::LogNormal { median, sigma, max } => (median * draw::spread(rng, *sigma)).min(*max),
            Self::Quantiles { parts, tokens } => {
                let part = rng.f64();
                let next = parts.partition_point(|known| *known <= part).clamp(1, parts.len() - 1);
                let inside = (part - parts[next - 1]) / (parts[next] - parts[next - 1]);
                tokens[next - 1] + (tokens[next] - tokens[next - 1]) * inside
            }
        };
        tokens.round().max(1.0) as u64
    }
}

impl Entry {
    pub(super) fn validate(&self, field: &str) -> Result<(), ScenarioError> {
        let at = |name: &str| format!("{field}.{name}");
        positive(&at("weight"), self.weight)?;
        self.prompt_tokens.validate(&at("prompt_tokens"))?;
        self.reply_tokens.validate(&at("reply_tokens"))?;
        part(&at("stream"), self.stream)?;
        part(&at("high"), self.high)?;
        part(&at("low"), self.low)?;
        part(&at("low"), self.high + self.low).map_err(|_| wrong(&at("low"), "must leave room for high"))?;
        not_negative(&at("deadline_s"), self.deadline_s.unwrap_or(0.0))
    }

    /// The request that comes at `at`.
    fn ask(&self, at: Duration, number: u64, rng: &mut fastrand::Rng) -> Ask {
        let prompt_tokens = self.prompt_tokens.draw(rng);
        let reply_tokens = self.reply_tokens.draw(rng);
        let stream = rng.f64() < self.stream;
        let class = rng.f64();
        let priority = match class {
            class if class < self.high => Priority::High,
            class if class < self.high + self.low => Priority::Low,
            _ => Priority::Normal,
        };
        let session = (self.sessions > 0).then(|| format!("{}-{}", number, rng.u64(..self.sessions)));
        let deadline = self.deadline_s.map(Duration::from_secs_f64);
        Ask { at, model: self.model.clone(), prompt_tokens, reply_tokens, stream, session, priority, deadline }
    }
}

/// The requests of a run, one by one.
pub(super) struct Mix<'a> {
    entries: &'a [Entry],
    seed: u64,
    total: f64,
}

impl<'a> Mix<'a> {
    pub(super) fn new(entries: &'a [Entry], seed: u64) -> Self {
        Self { entries, seed, total: entries.iter().map(|entry| entry.weight).sum() }
    }

    /// The request with this number, which comes at `at`. There must be an entry.
    pub(super) fn ask(&self, number: usize, at: Duration) -> Ask {
        let mut rng = draw::rng(self.seed, "mix", number as u64);
        let mut left = rng.f64() * self.total;
        let chosen = self.entries.iter().position(|entry| {
            left -= entry.weight;
            left < 0.0
        });
        let index = chosen.unwrap_or(self.entries.len() - 1);
        self.entries[index].ask(at, index as u64, &mut rng)
    }

    /// The request that was recorded, and what the record does not tell as the mix has it. A model that the world does not
    /// know is one of the mix's instead.
    pub(super) fn replay(&self, number: usize, record: &Record, known: impl Fn(&str) -> bool) -> Ask {
        let drawn = self.ask(number, record.at());
        Ask {
            model: record.model.clone().filter(|model| known(model)).unwrap_or(drawn.model),
            prompt_tokens: record.prompt_tokens.max(1),
            reply_tokens: record.reply().map_or(drawn.reply_tokens, |tokens| tokens.max(1)),
            stream: record.stream.unwrap_or(drawn.stream),
            session: record.session.clone().or(drawn.session),
            priority: record.priority.unwrap_or(drawn.priority),
            ..drawn
        }
    }
}
