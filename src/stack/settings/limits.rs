//! How much a key is given: nothing while it fails, so much at once, and so fast.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
};

use serde::Deserialize;

use super::{SettingError, Size, Time};
use crate::{
    BufferLayer,
    breaker::{BreakerPolicy, TripPolicy},
    limit::AdaptivePolicy,
    pace::{PacePolicy, PaceScope, Rate},
    select::{AdaptiveLimit, Pacing},
};

/// `[breaker]`: when a key is left alone.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// How many failures within the window open a key's breaker; default 3.
    pub failures: NonZeroU32,
    /// The window in which they count; default 60 s.
    pub window: Time,
    /// How long it stays open at first, and twice as long each time in a row; default 60 s.
    pub cooldown: Time,
    /// The longest it stays open; default 5 minutes, or the cooldown where that is longer.
    pub max_cooldown: Option<Time>,
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
    pub fn longest(&self) -> Time {
        self.max_cooldown.unwrap_or_else(|| self.cooldown.max(Time::seconds(300)))
    }

    pub(super) fn check(&self) -> Result<(), SettingError> {
        if self.longest() < self.cooldown {
            let what = format_args!(
                "{} is shorter than the first cooldown, {}: make it at least that",
                self.longest(),
                self.cooldown
            );
            return Err(SettingError::new("breaker.max_cooldown", what));
        }
        Ok(())
    }

    /// When a key's breaker opens, and for how long.
    ///
    /// # Errors
    /// When the longest cooldown is shorter than the first.
    pub fn policy(&self) -> Result<BreakerPolicy, SettingError> {
        let trouble = |error| SettingError::new("breaker", error);
        let trip = TripPolicy::failures(self.failures.get(), self.window.get()).map_err(trouble)?;
        BreakerPolicy::new(trip).cooldown(self.cooldown.get(), self.longest().get()).map_err(trouble)
    }
}

/// `[limits]`: how much at once.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests at once on one key that has no limit of its own; default any number.
    pub max_in_flight: Option<NonZeroUsize>,
    /// Whether a limit is learned, and how; default [`Adaptive::Off`].
    pub adaptive: Adaptive,
    /// What has a learned limit; default [`AdaptivePer::Account`].
    pub adaptive_per: AdaptivePer,
    /// The least it may be; default 1.
    pub adaptive_min: usize,
    /// The most it may be; default 200.
    pub adaptive_max: usize,
    /// The largest request body; default 64 MiB.
    pub body_limit: Size,
    /// The largest that is kept to be sent again; default 16 MiB.
    pub replay_cap: Size,
    /// What all bodies together may take of the memory; default 1 GiB.
    pub memory: Size,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adaptive {
    /// There is none.
    #[default]
    Off,
    /// Down when the upstream refuses, and up else.
    Aimd,
    /// Down also while streams begin much later than usual.
    Gradient,
}

/// What has a learned limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdaptivePer {
    /// Each account, over all its keys.
    #[default]
    Account,
    /// Each model of an account.
    Model,
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        if self.memory < self.replay_cap {
            let what = format_args!(
                "{} is less than replay_cap, {}: a body between the two could never be let in",
                self.memory, self.replay_cap
            );
            return Err(SettingError::new("limits.memory", what));
        }
        Ok(())
    }

    /// What keeps request bodies to be sent again. Clones of it share one memory.
    pub fn buffer(&self) -> BufferLayer {
        BufferLayer::new().body_limit(self.body_limit.0).replay_cap(self.replay_cap.0).budget(self.memory.0)
    }

    /// The limit that is learned; `None` where that is off. Clones of it are one.
    ///
    /// # Errors
    /// When the bounds are none.
    pub fn learned(&self) -> Result<Option<AdaptiveLimit>, SettingError> {
        let policy = match self.adaptive {
            Adaptive::Off => return Ok(None),
            Adaptive::Aimd => AdaptivePolicy::aimd(),
            Adaptive::Gradient => AdaptivePolicy::gradient(),
        };
        let policy = policy.range(self.adaptive_min..=self.adaptive_max);
        let limit = AdaptiveLimit::new(policy.map_err(|error| SettingError::new("limits.adaptive_max", error))?);
        Ok(Some(match self.adaptive_per {
            AdaptivePer::Account => limit,
            AdaptivePer::Model => limit.by_model(),
        }))
    }
}

/// `[pace]`: how fast.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pace {
    /// Whether to learn from refusals how fast each account may be sent requests; default yes.
    pub learn: bool,
    /// A limit that is known; default none.
    pub requests_per_minute: Option<NonZeroU32>,
    /// How many requests go at once after a pause; default 1.
    pub burst: NonZeroU32,
    /// A limit that is known, of the tokens of prompts and answers; default none.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// A limit that is known, of a day from 00:00 UTC on; default none.
    pub requests_per_day: Option<NonZeroU32>,
    /// Whose the known limits are; default [`PaceScopeName::Account`].
    pub scope: PaceScopeName,
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

/// Whose the known limits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PaceScopeName {
    /// Each key's.
    Key,
    /// Each account's.
    Account,
    /// All keys' together.
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

impl Pace {
    /// What holds requests back; `None` when how fast is nobody's business. Clones of it are one.
    ///
    /// # Errors
    /// When a limit is beyond what can be counted.
    pub fn filter(&self) -> Result<Option<Pacing>, SettingError> {
        let trouble = |error| SettingError::new("pace", error);
        let rate = |per_minute: NonZeroU32, burst: NonZeroU32| {
            Rate::per_minute(per_minute.get().into()).and_then(|rate| rate.burst(burst.get())).map_err(trouble)
        };
        let mut policy = PacePolicy::default().scope(match self.scope {
            PaceScopeName::Key => PaceScope::Key,
            PaceScopeName::Account => PaceScope::Account,
            PaceScopeName::Pool => PaceScope::Pool,
        });
        let Self { requests_per_minute, tokens_per_minute, requests_per_day, .. } = self;
        if let Some(requests) = *requests_per_minute {
            policy = policy.requests(rate(requests, self.burst)?);
        }
        if let Some(tokens) = *tokens_per_minute {
            policy = policy.tokens(rate(tokens, tokens)?);
        }
        if let Some(requests) = *requests_per_day {
            policy = policy.per_day(requests.get().into()).map_err(trouble)?;
        }
        let is_given = requests_per_minute.is_some() || tokens_per_minute.is_some() || requests_per_day.is_some();
        if !self.learn && !is_given {
            return Ok(None);
        }
        Ok(Some(Pacing::new(policy.learn(self.learn).map_err(trouble)?)))
    }
}
