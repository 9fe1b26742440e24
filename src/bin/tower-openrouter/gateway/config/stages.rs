//! What can be set of each stage: a section of the file each.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
};

use serde::{Deserialize, Deserializer, de};
use tower_openrouter::{RetryLayer, openrouter::Variant};

use super::values::{Dollars, Share, Size, Span, Time};

/// `[timeouts]`: how long the upstream may be silent, and how long it is heard out for a client that left.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Timeouts {
    pub(crate) headers: Time,
    pub(crate) first_output: Time,
    pub(crate) gap: Time,
    pub(crate) total: Time,
    /// Zero: not at all.
    pub(crate) hear_out: Span,
    pub(crate) hear_out_bytes: Size,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            headers: Time::seconds(300),
            first_output: Time::seconds(300),
            gap: Time::seconds(120),
            total: Time::seconds(1800),
            hear_out: Span::seconds(0),
            hear_out_bytes: Size::mib(1),
        }
    }
}

/// `[stream]`: what is done before an answer has begun.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Stream {
    /// Zero: not at all.
    pub(crate) hold: Span,
    pub(crate) hold_bytes: Size,
    /// Zero: never.
    pub(crate) keep_alive_after: Span,
    pub(crate) keep_alive_interval: Time,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            hold: Span::seconds(30),
            hold_bytes: Size::kib(64),
            keep_alive_after: Span::seconds(10),
            keep_alive_interval: Time::seconds(15),
        }
    }
}

/// `[select]`: which key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Select {
    pub(crate) pick: PickName,
    pub(crate) sessions: bool,
    pub(crate) sticky_floor: Dollars,
    /// `None`: twice the floor.
    pub(crate) sticky_back: Option<Dollars>,
    pub(crate) max_ejected: Share,
    pub(crate) panic_below: Share,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            pick: PickName::default(),
            sessions: false,
            sticky_floor: Dollars(1.0),
            sticky_back: None,
            max_ejected: Share(1.0),
            panic_below: Share(0.0),
        }
    }
}

/// `[waiting]`: how long to wait for a key, and how many may.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Waiting {
    pub(crate) max_wait: Span,
    pub(crate) max_waiters: usize,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { max_wait: Span::seconds(30), max_waiters: 1024 }
    }
}

/// How a key is picked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PickName {
    #[default]
    LeastInFlight,
    PeakEwma,
    RoundRobin,
    Weighted,
    WeightedRandom,
    MostCredit,
    Sticky,
}

impl fmt::Display for PickName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeastInFlight => "least-in-flight",
            Self::PeakEwma => "peak-ewma",
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::WeightedRandom => "weighted-random",
            Self::MostCredit => "most-credit",
            Self::Sticky => "sticky",
        })
    }
}

/// `[models]`: what becomes of models that no route, or no key, serves, and what requests that do not say ask for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Models {
    pub(crate) unrouted: Unrouted,
    pub(crate) fallback: Vec<String>,
    pub(crate) upstream_fallback: Vec<String>,
    pub(crate) variant: Option<Variant>,
}

/// What becomes of a model that has no route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unrouted {
    #[default]
    AllKeys,
    Refuse,
}

/// `[credit]`: what is known of money, and what is made of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Credit {
    /// Zero: never.
    pub(crate) poll_interval: Span,
    pub(crate) limit: bool,
    pub(crate) max_tokens_unsaid: u64,
    /// Zero: none.
    pub(crate) floor: Dollars,
}

impl Default for Credit {
    fn default() -> Self {
        Self { poll_interval: Span::seconds(60), limit: false, max_tokens_unsaid: 16_384, floor: Dollars(0.0) }
    }
}

/// `[breaker]`: when a key is left alone.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Breaker {
    pub(crate) failures: NonZeroU32,
    pub(crate) window: Time,
    pub(crate) cooldown: Time,
    /// `None`: 5 minutes, or the cooldown where that is longer.
    pub(crate) max_cooldown: Option<Time>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: const { NonZeroU32::new(3).unwrap() },
            window: Time::seconds(60),
            cooldown: Time::seconds(60),
            max_cooldown: None,
        }
    }
}

impl Breaker {
    /// The longest it stays open.
    pub(crate) fn longest(&self) -> Time {
        self.max_cooldown.unwrap_or_else(|| self.cooldown.max(Time::seconds(300)))
    }
}

/// `[retry]`: what is tried again.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retry {
    #[serde(deserialize_with = "attempts")]
    pub(crate) attempts: u32,
    pub(crate) min_backoff: Time,
    pub(crate) max_backoff: Time,
    pub(crate) longest_hint: Span,
    pub(crate) budget_ratio: Share,
    pub(crate) budget_per_second: u32,
    pub(crate) unclear: bool,
    pub(crate) when_provider_full: WhenFull,
    pub(crate) next_models: Vec<String>,
}

/// What is tried when a provider has no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WhenFull {
    #[default]
    Wait,
    IgnoreProvider,
    NextModel,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            min_backoff: Time::millis(500),
            max_backoff: Time::seconds(30),
            longest_hint: Span::seconds(120),
            budget_ratio: Share(0.2),
            budget_per_second: 10,
            unclear: false,
            when_provider_full: WhenFull::Wait,
            next_models: Vec::new(),
        }
    }
}

fn attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let attempts = u32::deserialize(deserializer)?;
    RetryLayer::new().attempts(attempts).map_err(de::Error::custom)?;
    Ok(attempts)
}

/// `[hedge]`: what is sent a second time when it is late.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Hedge {
    pub(crate) enabled: bool,
    pub(crate) percentile: Share,
    pub(crate) share: Share,
    /// `None`: any.
    pub(crate) max_cost: Option<Dollars>,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { enabled: false, percentile: Share(0.95), share: Share(0.05), max_cost: None }
    }
}

/// `[limits]`: how much at once.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// On one key, unless it has its own; `None`: any number.
    pub(crate) max_in_flight: Option<NonZeroUsize>,
    pub(crate) adaptive: Adaptive,
    pub(crate) adaptive_per: AdaptivePer,
    pub(crate) adaptive_min: usize,
    pub(crate) adaptive_max: usize,
    pub(crate) body_limit: Size,
    pub(crate) replay_cap: Size,
    pub(crate) memory: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_in_flight: None,
            adaptive: Adaptive::Off,
            adaptive_per: AdaptivePer::Account,
            adaptive_min: 1,
            adaptive_max: 200,
            body_limit: Size::mib(64),
            replay_cap: Size::mib(16),
            memory: Size::mib(1024),
        }
    }
}

/// How a learned limit moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Adaptive {
    #[default]
    Off,
    Aimd,
    Gradient,
}

/// What has a learned limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AdaptivePer {
    #[default]
    Account,
    Model,
}

/// `[pace]`: how fast.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Pace {
    pub(crate) learn: bool,
    pub(crate) requests_per_minute: Option<NonZeroU32>,
    pub(crate) burst: NonZeroU32,
    pub(crate) tokens_per_minute: Option<NonZeroU32>,
    pub(crate) requests_per_day: Option<NonZeroU32>,
    pub(crate) scope: PaceScopeName,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            learn: true,
            requests_per_minute: None,
            burst: const { NonZeroU32::new(1).unwrap() },
            tokens_per_minute: None,
            requests_per_day: None,
            scope: PaceScopeName::Account,
        }
    }
}

/// Whose the given limits are.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PaceScopeName {
    Key,
    Account,
    Pool,
}

impl fmt::Display for PaceScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "each key",
            Self::Account => "each account",
            Self::Pool => "all keys together",
        })
    }
}
