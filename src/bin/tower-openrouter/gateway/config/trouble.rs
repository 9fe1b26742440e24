//! What is wrong with the configuration: where, and never by a value, which could be a key.

use std::{borrow::Cow, fmt};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use tower_openrouter::stack::settings::SettingError;

/// What is wrong, and where in the file, if it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    place: Place,
    what: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Elsewhere,
    Line(usize),
    Path(Vec<Step>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Name(&'static str),
    Entry(usize),
}

impl Trouble {
    /// With a setting, by its path in the file, as in `retry.attempts`.
    pub(crate) fn with(setting: &'static str, what: impl fmt::Display) -> Self {
        let path = setting.split('.').map(Step::Name).collect();
        Self { place: Place::Path(path), what: format!("{setting}: {what}") }
    }

    /// With the entry `at`, counted from 0, of a list such as `keys`.
    pub(crate) fn in_entry(list: &'static str, at: usize, what: impl fmt::Display) -> Self {
        Self { place: Place::Path(vec![Step::Name(list), Step::Entry(at)]), what: what.to_string() }
    }
}

impl From<String> for Trouble {
    /// With something outside the file.
    fn from(what: String) -> Self {
        Self { place: Place::Elsewhere, what }
    }
}

impl From<SettingError> for Trouble {
    fn from(error: SettingError) -> Self {
        Self::with(error.setting(), error.what())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Line(line) => write!(f, "line {line}: {}", hide(&self.what)),
            _ => f.write_str(&hide(&self.what)),
        }
    }
}

/// The configuration file: its name, and its text.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) name: String,
    text: String,
}

impl Source {
    pub(super) fn new(name: impl Into<String>, text: &str) -> Self {
        Self { name: name.into(), text: text.strip_prefix('\u{feff}').unwrap_or(text).to_owned() }
    }

    /// Reads it.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Trouble> {
        toml::from_str(&self.text).map_err(|error| {
            let what = without_values(error.message());
            let Some(span) = error.span() else { return what.into() };
            let line = self.line_at(span.start);
            let what = match self.name_on(line) {
                Some(name) if !what.contains(name) => format!("{name}: {what}"),
                _ => what,
            };
            Trouble { place: Place::Line(line), what }
        })
    }

    /// What is wrong, after the file and the line where it is.
    pub(super) fn tell(&self, trouble: &Trouble) -> String {
        let line = match &trouble.place {
            Place::Elsewhere => None,
            Place::Line(line) => Some(*line),
            Place::Path(path) => self.line_of(path),
        };
        match line {
            Some(line) => format!("{}, line {line}: {}", self.name, hide(&trouble.what)),
            None => hide(&trouble.what).into_owned(),
        }
    }

    /// The line of a setting, or of what it would stand in.
    fn line_of(&self, path: &[Step]) -> Option<usize> {
        let root = DeValue::Table(DeTable::parse(&self.text).ok()?.into_inner());
        let (mut value, mut start) = (&root, None);
        for step in path {
            let found = match step {
                Step::Name(name) => {
                    let entry = value.as_table().and_then(|table| table.iter().find(|(key, _)| key.get_ref() == name));
                    entry.map(|(key, value)| (key.span().start, value))
                }
                Step::Entry(at) => {
                    value.as_array().and_then(|list| list.get(*at)).map(|entry| (entry.span().start, entry))
                }
            };
            let Some((at, found)) = found else { break };
            (value, start) = (found.get_ref(), Some(at));
        }
        start.map(|start| self.line_at(start))
    }

    fn line_at(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// The name of the setting on a line.
    fn name_on(&self, line: usize) -> Option<&str> {
        let (name, _) = self.text.lines().nth(line - 1)?.split_once('=')?;
        let name = name.trim();
        let is_bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (is_bare && name.len() <= 24).then_some(name)
    }
}

/// serde quotes the value it did not expect, as in `invalid type: string "sk-or-…", expected u32`, and what it does not know,
/// as in ``unknown variant `sk-or-…` ``. A name that is merely wrong stays: it is no secret.
fn without_values(message: &str) -> String {
    let message = match (message.find("string \""), message.rfind("\", expected")) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", &message[..from + "string".len()], &message[to + 1..])
        }
        _ => message.to_owned(),
    };
    if let Some(rest) = message.strip_prefix("unknown variant `")
        && let Some((_, expected)) = rest.split_once("`, ")
    {
        return format!("not one of its values, {expected}");
    }
    match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((name @ ("max_wait" | "max_waiters"), _)) => {
            format!("unknown field `{name}` here: it belongs in [waiting]")
        }
        Some((name, expected)) if looks_secret(name) => format!("unknown field{expected}"),
        _ => message,
    }
}

/// The last resort: whatever the message, what looks like a key does not show.
fn hide(text: &str) -> Cow<'_, str> {
    const START: &str = "sk-or-";
    let mut parts = text.split(START);
    let head = parts.next().unwrap_or_default();
    let mut hidden = head.to_owned();
    for part in parts {
        hidden += "…";
        hidden += part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    }
    if head.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned(hidden) }
}

/// Whether text that should be a name could be a key.
fn looks_secret(text: &str) -> bool {
    text.contains("sk-") || text.len() > 40 || text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct File {
        #[serde(default)]
        retry: Retry,
        #[serde(default)]
        keys: Vec<Retry>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Retry {
        attempts: Option<u32>,
        pick: Option<Pick>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Pick {
        RoundRobin,
    }

    #[test]
    fn r121_what_is_wrong_is_told_with_its_line() {
        for (text, told) in [
            ("\n[retry]\nattemps = 3\n", "f, line 3: unknown field `attemps`, expected `attempts` or `pick`"),
            ("[retry]\n# or\nattempts = \"three\"\n", "f, line 3: attempts: invalid type: string, expected u32"),
            ("[retry]\npick = \"sk-or-v1-a\"\n", "f, line 2: pick: not one of its values, expected `round-robin`"),
            ("[retry]\nsk-or-v1-a = 1\n", "f, line 2: unknown field, expected `attempts` or `pick`"),
            ("\u{feff}# é\n[retry\n", "f, line 2: "),
        ] {
            let source = Source::new("f", text);
            let trouble = source.parse::<File>().unwrap_err();
            let said = source.tell(&trouble);
            assert!(said.starts_with(told), "{text}: {said}");
            assert!(!said.contains("sk-or"), "{said}");
        }
    }

    #[test]
    fn r099_a_key_does_not_show_wherever_it_was_put() {
        let trouble = Trouble::with("provider", "order holds \"sk-or-v1-a_1\" twice: sk-or-v1-b");
        for said in [trouble.to_string(), Source::new("f", "provider.zdr = true").tell(&trouble)] {
            assert!(said.ends_with("provider: order holds \"…\" twice: …"), "{said}");
        }
    }

    #[test]
    fn a_setting_is_found_or_what_it_would_stand_in() {
        let source = Source::new(
            "f",
            "# é\n[retry]\npick = \"round-robin\"\nattempts = 3\n\n[[keys]]\n[[keys]]\nattempts = 1\n",
        );
        for (trouble, told) in [
            (Trouble::with("retry.attempts", "no"), "f, line 4: retry.attempts: no"),
            (Trouble::with("retry.pause", "no"), "f, line 2: retry.pause: no"),
            (Trouble::with("breaker.window", "no"), "breaker.window: no"),
            (Trouble::in_entry("keys", 1, "no"), "f, line 7: no"),
            (Trouble::in_entry("keys", 7, "no"), "f, line 6: no"),
            ("no".to_owned().into(), "no"),
        ] {
            assert_eq!(source.tell(&trouble), told);
        }
        let source = Source::new("f", "keys = [\n  {},\n  { attempts = 1 },\n]\nretry.attempts = 9\n");
        assert_eq!(source.tell(&Trouble::in_entry("keys", 1, "no")), "f, line 3: no");
        assert_eq!(source.tell(&Trouble::with("retry.attempts", "no")), "f, line 5: retry.attempts: no");
    }
}
