//! What can be set, and what holds where nothing is: the shape of the configuration file.

use std::{net::SocketAddr, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};
use tower_openrouter::{
    openrouter::{BASE_URL, ProviderPreferences},
    stack::settings::{
        Breaker, Credit, Hedge, Limits, Models, Pace, Retry, Select, Settings as Policies, Span, Stream, Time,
        Timeouts, Unrouted, Waiting,
    },
};

use super::{super::traces::Explained, keys::KeyEntry, routes::RouteEntry, trouble::Trouble};

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
    /// Where requests are recorded, if at all.
    pub(crate) record: Option<PathBuf>,
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
    pub(crate) hedge: Hedge,
    pub(crate) limits: Limits,
    pub(crate) pace: Pace,
    pub(crate) keys: Vec<KeyEntry>,
    pub(crate) routes: Vec<RouteEntry>,
}

impl Default for Settings {
    fn default() -> Self {
        let policies = Policies::default();
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            admin_listen: ([127, 0, 0, 1], 9090).into(),
            access_token: None,
            admin_token: None,
            header_timeout: Time::seconds(30),
            drain_timeout: Span::seconds(30),
            balancer_headers: true,
            explain: Explained::default(),
            record: None,
            upstream: None,
            deadline: policies.deadline,
            timeouts: policies.timeouts,
            stream: policies.stream,
            select: policies.select,
            waiting: policies.waiting,
            models: policies.models,
            provider: policies.provider,
            credit: policies.credit,
            breaker: policies.breaker,
            retry: policies.retry,
            hedge: policies.hedge,
            limits: policies.limits,
            pace: policies.pace,
            keys: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl Settings {
    /// Where requests are sent, unless to the simulator.
    pub(crate) fn upstream(&self) -> &str {
        self.upstream.as_deref().unwrap_or(BASE_URL)
    }

    /// What the stages are set to. They stand beside the rest here, since serde, when it flattens, forgets the lines.
    pub(crate) fn policies(&self) -> Policies {
        Policies {
            deadline: self.deadline,
            timeouts: self.timeouts.clone(),
            stream: self.stream.clone(),
            select: self.select.clone(),
            waiting: self.waiting,
            models: self.models.clone(),
            provider: self.provider.clone(),
            credit: self.credit.clone(),
            breaker: self.breaker.clone(),
            retry: self.retry.clone(),
            hedge: self.hedge.clone(),
            limits: self.limits.clone(),
            pace: self.pace.clone(),
        }
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
        self.policies().check()?;
        if self.models.unrouted == Unrouted::Refuse && self.routes.is_empty() {
            return Err(Trouble::with("models.unrouted", "without [[routes]] every model would be refused: add one"));
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
            "[hedge]",
            "[limits]",
            "[pace]",
            "[[keys]]",
        ];
        let route = "[[routes]]\nmodels = [\"*\"]";
        for section in sections.into_iter().chain([route]) {
            let error =
                Source::new("", &format!("{section}\nno_such = 1")).parse::<Settings>().unwrap_err().to_string();
            // serde joins two of them otherwise than more
            let expected = error.split_once("expected ").unwrap().1.trim_start_matches("one of ").replace(" or ", ", ");
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
