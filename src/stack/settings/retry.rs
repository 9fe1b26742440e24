//! Second attempts: after a failure, and beside one that is late.

use serde::{Deserialize, Deserializer, de};

use super::{Dollars, SettingError, Share, Span, Time};
use crate::{
    HedgeLayer, RetryLayer,
    retry::{Backoff, RetryBudget},
};

/// `[retry]`: what is tried again.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts of one request, 1 to 5; default 3. Moving on from a key that was refused does not count.
    #[serde(deserialize_with = "attempts")]
    pub attempts: u32,
    /// The first wait between them, which doubles each time; default 500 ms.
    pub min_backoff: Time,
    /// The longest wait; default 30 s.
    pub max_backoff: Time,
    /// How long a server's hint may make one wait; default 2 minutes.
    pub longest_hint: Span,
    /// Retries of all requests together, as a share of the requests; default 0.2.
    pub budget_ratio: Share,
    /// Retries in each second that are free whatever the traffic; default 10.
    pub budget_per_second: u32,
    /// Whether to repeat what may have run without our seeing the answer; default no. It may be billed twice.
    pub unclear: bool,
    /// What is tried after a provider's 429, which holds for every key; default [`WhenFull::Wait`].
    pub when_provider_full: WhenFull,
    /// The models for [`WhenFull::NextModel`], in order; default none.
    pub next_models: Vec<String>,
}

/// What is tried when a provider has no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The same again, after a wait.
    #[default]
    Wait,
    /// The other providers.
    IgnoreProvider,
    /// Other models.
    NextModel,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            min_backoff: Time::millis(500),
            max_backoff: Time::seconds(30),
            longest_hint: Span::seconds(120),
            budget_ratio: Share::of(0.2),
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

impl Retry {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        if self.max_backoff < self.min_backoff {
            let what = format_args!(
                "{} is shorter than min_backoff, {}: make it at least that",
                self.max_backoff, self.min_backoff
            );
            return Err(SettingError::new("retry.max_backoff", what));
        }
        if (self.when_provider_full == WhenFull::NextModel) == self.next_models.is_empty() {
            let what = "name models here and `next-model` in when_provider_full, or neither";
            return Err(SettingError::new("retry.next_models", what));
        }
        Ok(())
    }

    /// What tries again. Clones of it share one budget.
    ///
    /// # Errors
    /// When the attempts are not 1 to 5, or the first wait is longer than the longest.
    pub fn layer(&self) -> Result<RetryLayer, SettingError> {
        let trouble = |error| SettingError::new("retry", error);
        let backoff = Backoff::new(self.min_backoff.get(), self.max_backoff.get()).map_err(trouble)?;
        let budget = RetryBudget::new(self.budget_ratio.get(), self.budget_per_second).map_err(trouble)?;
        let layer = RetryLayer::new().attempts(self.attempts).map_err(trouble)?;
        Ok(layer.backoff(backoff).budget(budget).wait_cap(self.longest_hint.0).retry_unclear(self.unclear))
    }
}

/// `[hedge]`: what is sent a second time when it is late.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// Whether anything is; default no.
    pub enabled: bool,
    /// The share of the requests that are in time, from 0.5 to below 1; default 0.95.
    pub percentile: Share,
    /// How many second attempts there may be for each request, above 0; default 0.05.
    pub share: Share,
    /// What a request that is sent twice may cost at worst; default any.
    pub max_cost: Option<Dollars>,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { enabled: false, percentile: Share::of(0.95), share: Share::of(0.05), max_cost: None }
    }
}

impl Hedge {
    pub(super) fn check(&self, retry: &Retry) -> Result<(), SettingError> {
        if self.enabled && retry.attempts == 1 {
            let what = "a second attempt is one of the request's attempts, and retry.attempts is 1: make it at least 2";
            return Err(SettingError::new("hedge.enabled", what));
        }
        Ok(())
    }

    /// What sends a second time; `None` where that is off. Clones of it share what they know of lateness.
    ///
    /// # Errors
    /// When the percentile or the share is not within its bounds.
    pub fn layer(&self) -> Result<Option<HedgeLayer>, SettingError> {
        if !self.enabled {
            return Ok(None);
        }
        let layer = HedgeLayer::new().percentile(self.percentile.get());
        let layer = layer.map_err(|error| SettingError::new("hedge.percentile", error))?;
        let layer = layer.share(self.share.get()).map_err(|error| SettingError::new("hedge.share", error))?;
        match self.max_cost {
            None => Ok(Some(layer)),
            Some(usd) => {
                let layer = layer.max_cost(usd.get()).map_err(|error| SettingError::new("hedge.max_cost", error))?;
                Ok(Some(layer))
            }
        }
    }
}
