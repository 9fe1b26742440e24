//! Models, and the providers that serve them.

use serde::{Deserialize, Serialize};

/// A catalogue entry. Free are ids that end in `:free`, and the router `openrouter/free`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// `author/slug`, with the variant suffix where it is an entry of its own.
    pub id: String,
    /// Tokens of prompt and reply together. Default 128 000.
    #[serde(default = "context_length")]
    pub context_length: u64,
    /// Tokens of a reply at most; also what affordability assumes when `max_tokens` is unset.
    /// Default 16 384.
    #[serde(default = "max_output")]
    pub max_output: u64,
}

impl Model {
    /// Whether requests for this id draw on the account's free quota.
    pub fn is_free(id: &str) -> bool {
        id.ends_with(":free") || id == "openrouter/free"
    }
}

const fn context_length() -> u64 {
    128_000
}

const fn max_output() -> u64 {
    16_384
}

/// One provider serving one model, with a pool shared by every customer of the platform.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderEndpoint {
    /// A model of the catalogue.
    pub model: String,
    /// Provider name. Strict clients know OpenRouter's own, such as `DeepInfra` or `Together`.
    pub provider: String,
    /// USD per million prompt tokens. Default 0, and 0 is required for free models.
    #[serde(default)]
    pub prompt_price: f64,
    /// USD per million completion tokens. Default 0.
    #[serde(default)]
    pub completion_price: f64,
    /// Until the provider accepts or refuses, which is when the status is sent; ms. Default 0.
    #[serde(default)]
    pub accept_ms: f64,
    /// From acceptance to the first token, ms; the median, where it varies. Default 0.
    #[serde(default)]
    pub first_token_ms: f64,
    /// How much the time to the first token varies between requests: it is log-normal, and this the standard deviation of
    /// its logarithm, 0 to 3. Of 0.5 every twentieth request takes 2.3 times the median, of 1 five times. Default 0: never.
    #[serde(default)]
    pub first_token_sigma: f64,
    /// Tokens per second after the first. Default 0, which means all at once.
    #[serde(default)]
    pub tokens_per_second: f64,
    /// Each request's delays are multiplied by a number drawn from 1 ± this. Default 0, below 1.
    #[serde(default)]
    pub jitter: f64,
    /// The shared pool. Default unlimited.
    pub pool: Option<Pool>,
    /// Whether closing a stream stops work and billing. Default true. An answer that is not streamed is never stopped, from
    /// when the provider is asked: it is written, and billed, to its end, and its hold lasts as long.
    #[serde(default = "yes")]
    pub cancel: bool,
}

const fn yes() -> bool {
    true
}

/// How many requests a provider takes for a model, from all accounts together.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Requests per window.
    pub requests: u64,
    /// Length of the window, seconds. Default 60.
    #[serde(default = "minute")]
    pub window_s: f64,
    /// How the window moves. Default fixed.
    #[serde(default)]
    pub kind: PoolKind,
    /// What the 429 says about when to come back. Default the true wait.
    #[serde(default)]
    pub retry_after: RetryAfter,
}

const fn minute() -> f64 {
    60.0
}

/// How a pool's allowance comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// All at once, at multiples of the window counted from the simulator's start.
    #[default]
    Fixed,
    /// Evenly: one request per `window / requests`, up to a full window saved.
    Bucket,
}

/// A provider's `Retry-After` habit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// The seconds until it will take a request again, rounded up.
    #[default]
    Honest,
    /// No hint.
    Never,
    /// This many seconds, true or not.
    Seconds(u64),
}
