//! The default stack's policies as settings that can be read from a file.
//!
//! Somebody finds good numbers in the lab, and then has to write them down a second time, in another form, for what is
//! deployed: that is where they stop being the same. So there is one form. [`Settings`] are sections of TOML, one for each
//! stage and named as it is; the gateway's file is these sections beside its listeners, keys and routes, and a stack of the
//! lab is these sections beside a name. Each section makes its layer or policy, and all together make a stack:
//!
//! ```
//! use std::time::Duration;
//! use tower_openrouter::{ApiKey, Balancer, OpenRouter, select::Pool, stack::settings::Settings};
//! # use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! let settings = Settings::from_toml(
//!     r#"
//!     deadline = "2m"
//!     select.pick = "peak-ewma"
//!
//!     [breaker]
//!     failures = 5
//!     cooldown = "30s"
//!     "#,
//! )?;
//! assert_eq!(settings.deadline.get(), Duration::from_secs(120));
//! let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a")])?;
//! # let transport = Simulator::new(Scenario::default())?.service();
//! let balancer = settings.balancer(pool)?.build(OpenRouter::new(transport));
//! # let _: &Balancer<String> = &balancer;
//!
//! let error = Settings::from_toml("[retry]\nmin_backoff = \"1m\"").unwrap_err();
//! assert_eq!(error.to_string(), "retry.max_backoff: 30s is shorter than min_backoff, 1m: make it at least that");
//! # Ok::<(), tower::BoxError>(())
//! ```
//!
//! `examples/gateway.toml` in the repository shows every setting with its default.

use std::fmt;

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    DeadlineLayer,
    openrouter::{OnFullPool, PreferenceError, ProviderLayer, ProviderPreferences},
};

mod limits;
mod models;
mod retry;
mod select;
mod shared;
mod stream;
mod values;

pub use limits::{Adaptive, AdaptivePer, Breaker, Limits, Pace, PaceScopeName};
pub use models::{Models, Unrouted};
pub use retry::{Hedge, Retry, WhenFull};
pub use select::{Credit, PickName, Select, Waiting};
pub use shared::Shared;
pub use stream::{Stream, Timeouts};
pub use values::{BadValue, Dollars, Share, Size, Span, Time};

/// What can be set of the default stack's policies. Its default is the default stack.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a request may take, with all its waits and attempts; default 10 minutes.
    pub deadline: Time,
    /// How long the upstream may be silent.
    pub timeouts: Timeouts,
    /// What is done before an answer has begun.
    pub stream: Stream,
    /// Which key.
    pub select: Select,
    /// How long to wait for a key, and how many may.
    pub waiting: Waiting,
    /// Which models, for requests that do not say or cannot be served.
    pub models: Models,
    /// Which providers, for requests that do not say; default nothing.
    pub provider: ProviderPreferences,
    /// What is known of money, and what is made of it.
    pub credit: Credit,
    /// When a key is left alone.
    pub breaker: Breaker,
    /// What is tried again.
    pub retry: Retry,
    /// What is sent a second time when it is late.
    pub hedge: Hedge,
    /// How much at once.
    pub limits: Limits,
    /// How fast.
    pub pace: Pace,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Time::seconds(600),
            timeouts: Timeouts::default(),
            stream: Stream::default(),
            select: Select::default(),
            waiting: Waiting::default(),
            models: Models::default(),
            provider: ProviderPreferences::default(),
            credit: Credit::default(),
            breaker: Breaker::default(),
            retry: Retry::default(),
            hedge: Hedge::default(),
            limits: Limits::default(),
            pace: Pace::default(),
        }
    }
}

impl Settings {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// When the text is not TOML, names what there is not, or holds values that cannot be meant.
    pub fn from_toml(text: &str) -> Result<Self, SettingError> {
        let settings: Self = parse(text)?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks what one value alone cannot show: that no setting contradicts another, and that each layer takes its own.
    ///
    /// # Errors
    /// For the first setting that cannot be meant.
    pub fn check(&self) -> Result<(), SettingError> {
        self.breaker.check()?;
        self.retry.check()?;
        self.select.check()?;
        self.credit.check()?;
        self.hedge.check(&self.retry)?;
        self.limits.check()?;
        Shared::new(self)?;
        self.breaker.policy()?;
        self.deadline_layer()?;
        self.timeouts.layer()?;
        self.stream.keep_alive().map(drop)?;
        self.provider_layer().map(drop)
    }

    /// One instant over all that a request does.
    ///
    /// # Errors
    /// None that a [`Time`] could have.
    pub fn deadline_layer(&self) -> Result<DeadlineLayer, SettingError> {
        DeadlineLayer::new(self.deadline.get()).map_err(|error| SettingError::new("deadline", error))
    }

    /// What is put into requests that do not say: the preferences, with what [`Models`] and [`Retry`] have for providers.
    ///
    /// # Errors
    /// When the preferences contradict each other or the variant, or a list or number makes no sense.
    pub fn provider_layer(&self) -> Result<ProviderLayer, SettingError> {
        self.providers().map_err(|error| SettingError::new("provider", error))
    }

    fn providers(&self) -> Result<ProviderLayer, PreferenceError> {
        let (models, retry) = (&self.models, &self.retry);
        let next = || retry.next_models.iter().map(|model| (**model).into()).collect();
        let mut layer = ProviderLayer::new(self.provider.clone())?.on_full_pool(match retry.when_provider_full {
            WhenFull::Wait => OnFullPool::Wait,
            WhenFull::IgnoreProvider => OnFullPool::IgnoreFailed,
            WhenFull::NextModel => OnFullPool::NextModel(next()),
        })?;
        if !models.upstream_fallback.is_empty() {
            layer = layer.models(models.upstream_fallback.iter().map(String::as_str))?;
        }
        match models.variant {
            Some(variant) => layer.variant(variant),
            None => Ok(layer),
        }
    }
}

/// Reads TOML; what is wrong is told with its line.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, SettingError> {
    toml::from_str(text).map_err(|error| SettingError { setting: "", what: error.to_string().trim_end().to_owned() })
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingError {
    setting: &'static str,
    what: String,
}

impl SettingError {
    pub(crate) fn new(setting: &'static str, what: impl fmt::Display) -> Self {
        Self { setting, what: what.to_string() }
    }

    /// The path of the setting, as in `retry.max_backoff`, or of its section. Empty when the text itself could not be read:
    /// then [`what`](Self::what) shows the place.
    pub fn setting(&self) -> &'static str {
        self.setting
    }

    /// What is wrong, without the path.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.setting {
            "" => f.write_str(&self.what),
            setting => write!(f, "{setting}: {}", self.what),
        }
    }
}

impl std::error::Error for SettingError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_another_setting_is_refused_by_its_path() {
        for (text, path) in [
            ("breaker.max_cooldown = \"30s\"", "breaker.max_cooldown"),
            ("retry.min_backoff = \"2m\"", "retry.max_backoff"),
            ("retry.when_provider_full = \"next-model\"", "retry.next_models"),
            ("retry.next_models = [\"a/b\"]", "retry.next_models"),
            ("select.sticky_back = 0.5", "select.sticky_back"),
            ("credit.poll_interval = \"10ms\"", "credit.poll_interval"),
            ("hedge.enabled = true\nretry.attempts = 1", "hedge.enabled"),
            ("limits.memory = \"1MiB\"", "limits.memory"),
            ("limits = { adaptive = \"aimd\", adaptive_min = 9, adaptive_max = 3 }", "limits.adaptive_max"),
            ("hedge = { enabled = true, percentile = 0.1 }", "hedge.percentile"),
            ("provider.order = []", "provider"),
        ] {
            let error = Settings::from_toml(text).unwrap_err();
            assert_eq!(error.setting(), path, "{error}");
            assert!(error.to_string().starts_with(&format!("{path}: ")), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        for text in ["\nretry.attempts = 0", "\nno_such = 1", "\n[breaker", "\nlimits.memory = \"1MB\""] {
            let error = Settings::from_toml(text).unwrap_err();
            assert!(error.to_string().contains("line 2"), "{error}");
        }
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(Settings::from_toml(""), Ok(Settings::default()));
        assert_eq!(Settings::from_toml("[breaker]\n[pace]\n"), Ok(Settings::default()));
    }
}
