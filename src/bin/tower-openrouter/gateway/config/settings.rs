//! What can be set, and what holds where nothing is: the shape of the configuration file.

use std::{
    fmt,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};
use tower_openrouter::{
    RetryLayer,
    openrouter::{BASE_URL, ProviderPreferences, Variant},
};

use super::{
    super::traces::Explained,
    keys::KeyEntry,
    routes::RouteEntry,
    trouble::Trouble,
    values::{Dollars, Share, Size, Span, Time},
};

/// Everything that can be set. Its default is what holds without a file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) access_token: Option<Token>,
    pub(crate) admin_token: Option<Token>,
    pub(crate) header_timeout: Time,
    pub(crate) drain_timeout: Span,
    pub(crate) balancer_headers: bool,
    pub(crate) explain: Explained,
    /// `None`: OpenRouter, or the simulator when there is no key either.
    pub(crate) upstream: Option<String>,
    pub(crate) deadline: Time,
    pub(crate) timeouts: Timeouts,
    pub(crate) stream: Stream,
    pub(crate) select: Select,
    pub(crate) waiting: Waiting,
    pub(crate) models: Models,
    pub(crate) provider: ProviderPreferences,
    pub(crate) credit: Credit,
    pub(crate) breaker: Breaker,
    pub(crate) retry: Retry,
    pub(crate) limits: Limits,
    pub(crate) pace: Pace,
    pub(crate) keys: Vec<KeyEntry>,
    pub(crate) routes: Vec<RouteEntry>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            admin_listen: ([127, 0, 0, 1], 9090).into(),
            access_token: None,
            admin_token: None,
            header_timeout: Time::seconds(30),
            drain_timeout: Span::seconds(30),
            balancer_headers: true,
            explain: Explained::default(),
            upstream: None,
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
            limits: Limits::default(),
            pace: Pace::default(),
            keys: Vec::new(),
            routes: Vec::new(),
        }
    }
}

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

/// `[limits]`: how much at once.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// On one key, unless it has its own; `None`: any number.
    pub(crate) max_in_flight: Option<NonZeroUsize>,
    pub(crate) body_limit: Size,
    pub(crate) replay_cap: Size,
    pub(crate) memory: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_in_flight: None, body_limit: Size::mib(64), replay_cap: Size::mib(16), memory: Size::mib(1024) }
    }
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

impl Settings {
    /// Where requests are sent, unless to the simulator.
    pub(crate) fn upstream(&self) -> &str {
        self.upstream.as_deref().unwrap_or(BASE_URL)
    }

    /// What one value alone cannot show.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        if !self.admin_listen.ip().is_loopback() && self.admin_token.is_none() {
            return Err(Trouble::with(
                "admin_listen",
                format_args!(
                    "other machines can reach {}: set --admin-token (TOWER_OPENROUTER_ADMIN_TOKEN, admin_token), or keep \
                     --admin-listen on 127.0.0.1",
                    self.admin_listen
                ),
            ));
        }
        if self.breaker.longest() < self.breaker.cooldown {
            let what = format_args!(
                "{} is shorter than the first cooldown, {}: make it at least that",
                self.breaker.longest(),
                self.breaker.cooldown
            );
            return Err(Trouble::with("breaker.max_cooldown", what));
        }
        if self.retry.max_backoff < self.retry.min_backoff {
            let what = format_args!(
                "{} is shorter than min_backoff, {}: make it at least that",
                self.retry.max_backoff, self.retry.min_backoff
            );
            return Err(Trouble::with("retry.max_backoff", what));
        }
        if self.select.sticky_back.is_some_and(|back| back < self.select.sticky_floor) {
            let floor = self.select.sticky_floor;
            let what = format_args!("it is less than sticky_floor, {floor}: make it at least that");
            return Err(Trouble::with("select.sticky_back", what));
        }
        let interval = self.credit.poll_interval;
        if interval > Span::seconds(0) && interval < Span::seconds(1) {
            return Err(Trouble::with(
                "credit.poll_interval",
                "it is shorter than 1s: make it longer, or 0s for never",
            ));
        }
        if (self.retry.when_provider_full == WhenFull::NextModel) == self.retry.next_models.is_empty() {
            let what = "name models here and `next-model` in when_provider_full, or neither";
            return Err(Trouble::with("retry.next_models", what));
        }
        if self.models.unrouted == Unrouted::Refuse && self.routes.is_empty() {
            return Err(Trouble::with("models.unrouted", "without [[routes]] every model would be refused: add one"));
        }
        if self.limits.memory < self.limits.replay_cap {
            let what = format_args!(
                "{} is less than replay_cap, {}: a body between the two could never be let in",
                self.limits.memory, self.limits.replay_cap
            );
            return Err(Trouble::with("limits.memory", what));
        }
        Ok(())
    }
}

/// A token somebody must show.
#[derive(Debug, Clone)]
pub(crate) struct Token(SecretString);

impl Token {
    /// Reads one; what is wrong with it is told without it.
    pub(crate) fn new(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("the token is empty: give one, or leave it out");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token holds white space or other characters that a header cannot carry");
        }
        Ok(Self(text.into()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::config::trouble::Source;

    const SAMPLE: &str = include_str!("../../../../../examples/gateway.toml");

    /// The name of the setting that a line shows as its default.
    fn default_on(line: &str) -> Option<&str> {
        let shown = line.strip_prefix('#')?;
        let (name, _) = shown.split_once(" = ")?;
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then_some(shown)
    }

    #[test]
    fn what_the_sample_shows_as_default_is_the_default() {
        let shown: Vec<_> = SAMPLE.lines().map(|line| default_on(line).unwrap_or(line)).collect();
        assert_ne!(shown.join("\n"), SAMPLE.trim_end());
        let parse =
            |text: &str| Source::new("sample", text).parse::<Settings>().unwrap_or_else(|error| panic!("{error}"));
        let (plain, mut shown) = (parse(SAMPLE), parse(&shown.join("\n")));
        assert_eq!(shown.upstream.take().as_deref(), Some(BASE_URL));
        assert_eq!(shown.breaker.max_cooldown.take(), Some(Breaker::default().longest()));
        assert_eq!(plain, shown);
        let only_examples = Settings { keys: Vec::new(), routes: Vec::new(), provider: Default::default(), ..plain };
        assert_eq!(only_examples, Settings::default());
    }

    #[test]
    fn the_sample_names_every_setting() {
        let sections = [
            "",
            "[timeouts]",
            "[stream]",
            "[select]",
            "[waiting]",
            "[models]",
            "[provider]",
            "[credit]",
            "[breaker]",
            "[retry]",
            "[limits]",
            "[pace]",
            "[[keys]]",
        ];
        let route = "[[routes]]\nmodels = [\"*\"]";
        for section in sections.into_iter().chain([route]) {
            let error =
                Source::new("", &format!("{section}\nno_such = 1")).parse::<Settings>().unwrap_err().to_string();
            let (_, expected) = error.split_once("expected one of ").unwrap();
            let sample = match section.lines().next() {
                None => SAMPLE,
                Some(header) => SAMPLE.split_once(&format!("\n{header}\n")).unwrap().1,
            };
            for name in expected.split(", ").map(|name| name.trim_matches('`')) {
                let shows = |line: &str| {
                    let line = line.trim_start_matches(['#', ' ']);
                    line.starts_with(&format!("{name} = "))
                        || line == format!("[{name}]")
                        || line == format!("[[{name}]]")
                };
                assert!(sample.lines().any(shows), "{section} {name}");
            }
        }
    }

    /// Most of the sample's settings are comments: here they are settings.
    fn all_set() -> String {
        SAMPLE.lines().map(|line| default_on(line).unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    proptest! {
        #[test]
        fn r119_any_file_is_settings_or_says_what_is_wrong_and_where(
            changes in proptest::collection::vec((
                any::<prop::sample::Index>(), 0..20_usize,
                prop::sample::select(&["", "=", "\"", "[", "]", "[[", "{", "\n", "0", "-1", "1e999", "99999999999999999999", "é", "\0", "''"][..]),
            ), 0..6),
            foreign in ".{0,20}",
        ) {
            let mut text = all_set();
            for (at, length, put) in changes {
                let mut from = at.index(text.len() + 1);
                let mut to = (from + length).min(text.len());
                while !text.is_char_boundary(from) { from -= 1; }
                while !text.is_char_boundary(to) { to += 1; }
                text.replace_range(from..to, put);
            }
            for text in [text, foreign] {
                let source = Source::new("sample", &text);
                let trouble = match source.parse::<Settings>() {
                    Ok(settings) => settings.check().err(),
                    Err(trouble) => Some(trouble),
                };
                if let Some(trouble) = trouble {
                    prop_assert!(!source.tell(&trouble).is_empty());
                }
            }
        }
    }
}
