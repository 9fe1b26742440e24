//! Routes: which keys serve which models, and how one of them is picked.

use serde::{Deserialize, Deserializer, de};
use tower_openrouter::{
    ApiKey,
    key::ModelPattern,
    openrouter::ProviderPreferences,
    stack::settings::{PickName, Select, Span, Waiting},
};

use super::trouble::Trouble;

/// `[[routes]]`: models, and the keys that serve them. A key is in when every list that is given names it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteEntry {
    #[serde(deserialize_with = "patterns")]
    pub(crate) models: Vec<String>,
    /// Labels, `*` standing for anything.
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    accounts: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    /// As in `[select]` and `[waiting]`, which hold where they are not given.
    pick: Option<PickName>,
    sessions: Option<bool>,
    max_wait: Option<Span>,
    /// In place of the common one.
    pub(crate) provider: Option<ProviderPreferences>,
}

fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let patterns = Vec::<String>::deserialize(deserializer)?;
    if patterns.is_empty() || patterns.iter().any(|pattern| ModelPattern::new(pattern).is_err()) {
        return Err(de::Error::custom("expected patterns of models without white space, such as [\"anthropic/*\"]"));
    }
    Ok(patterns)
}

impl RouteEntry {
    /// How it selects, where it does not as the others do.
    pub(crate) fn select(&self, common: &Select) -> Select {
        Select {
            pick: self.pick.unwrap_or(common.pick),
            sessions: self.sessions.unwrap_or(common.sessions),
            ..common.clone()
        }
    }

    /// How long one waits for its keys.
    pub(crate) fn waiting(&self, common: Waiting) -> Waiting {
        Waiting { max_wait: self.max_wait.unwrap_or(common.max_wait), ..common }
    }

    /// The keys that serve it.
    pub(crate) fn group<'a>(&self, keys: &'a [ApiKey]) -> impl Iterator<Item = &'a ApiKey> {
        keys.iter().filter(|key| self.kinds().iter().all(|kind| kind.is_open() || kind.has(key)))
    }

    fn kinds(&self) -> [Kind<'_>; 3] {
        [
            Kind("keys", "label", &self.keys),
            Kind("accounts", "account", &self.accounts),
            Kind("tags", "tag", &self.tags),
        ]
    }

    /// Refuses names that no key has, which are spelled wrong as a rule, and a route without a key.
    fn check(&self, keys: &[ApiKey]) -> Result<(), String> {
        for kind in self.kinds() {
            for name in kind.2 {
                if !keys.iter().any(|key| kind.names(name, key)) {
                    return Err(format!("{}: no key has the {} `{}`", kind.0, kind.1, name.escape_debug()));
                }
            }
        }
        match self.group(keys).next() {
            Some(_) => Ok(()),
            None => Err("no key is in all of its lists: a key must be named by each list that is given".into()),
        }
    }
}

/// A list of a route: its name, what it names of a key, and the names.
struct Kind<'a>(&'static str, &'static str, &'a [String]);

impl Kind<'_> {
    fn is_open(&self) -> bool {
        self.2.is_empty()
    }

    fn has(&self, key: &ApiKey) -> bool {
        self.2.iter().any(|name| self.names(name, key))
    }

    fn names(&self, name: &str, key: &ApiKey) -> bool {
        match self.0 {
            "keys" => ModelPattern::new(name).map_or(name == key.name(), |pattern| pattern.matches(key.name())),
            "accounts" => key.account_name() == Some(name),
            _ => key.has_tag(name),
        }
    }
}

/// Checks routes against the keys there are.
pub(super) fn check(routes: &[RouteEntry], keys: &[ApiKey]) -> Result<(), Trouble> {
    for (at, route) in routes.iter().enumerate() {
        let trouble = |what| Trouble::in_entry("routes", at, format_args!("[[routes]] number {}: {what}", at + 1));
        route.check(keys).map_err(trouble)?;
        let other = routes[..at].iter().flat_map(|other| &other.models).find(|pattern| route.models.contains(pattern));
        if let Some(pattern) = other {
            return Err(trouble(format!("`{pattern}` has a route already: a model can go to one of them only")));
        }
    }
    Ok(())
}
