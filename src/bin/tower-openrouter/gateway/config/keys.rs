//! The keys: those of the configuration file, then those of the environment.

use std::{collections::HashSet, ffi::OsString, fmt, fs, path::Path};

use serde::Deserialize;
use tower_openrouter::{ApiKey, KeyError};

use super::{Variables, trouble::Trouble};

/// A key, or a file of them, in the configuration file.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KeyEntry {
    label: Option<String>,
    key: Option<String>,
    key_env: Option<String>,
    key_file: Option<String>,
    weight: Option<f64>,
    tier: Option<u32>,
    tags: Vec<String>,
    account: Option<String>,
    workspace: Option<String>,
    models: Vec<String>,
    base_url: Option<String>,
    max_in_flight: Option<usize>,
}

impl fmt::Debug for KeyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyEntry").field("label", &self.label).finish_non_exhaustive()
    }
}

/// A secret, and where it was found.
struct Found {
    secret: String,
    label: String,
    place: String,
}

/// Reads every key; one found twice is used once, as it was found first. Relative paths start at `folder`.
pub(super) fn load(entries: &[KeyEntry], folder: &Path, variables: &Variables) -> Result<Vec<ApiKey>, Trouble> {
    // each with where it was found, and its entry if it has one
    let mut keys: Vec<(ApiKey, String, Option<usize>)> = Vec::new();
    let (mut secrets, mut labels) = (HashSet::new(), HashSet::new());
    for (at, entry) in entries.iter().enumerate() {
        let trouble = |what| Trouble::in_entry("keys", at, what);
        for found in entry.secrets(at + 1, folder, variables).map_err(trouble)? {
            let place = found.place.clone();
            let key = entry.dress(key(found).map_err(trouble)?).map_err(|error| match error {
                // it could be a key in the wrong place
                KeyError::BadPattern(_) => {
                    trouble(format!("{place}: a pattern in models is empty or holds white space"))
                }
                error => trouble(format!("{place}: {error}")),
            })?;
            keys.push((key, place, Some(at)));
        }
    }
    for found in in_environment(variables)? {
        let place = found.place.clone();
        keys.push((key(found)?, place, None));
    }
    keys.retain(|(key, ..)| secrets.insert(key.hash().to_owned()));
    for (key, place, entry) in &keys {
        if !labels.insert(key.name()) {
            let what = format!("{place}: two keys have the label `{}`: give one of them another", key.name());
            return Err(entry.map_or_else(|| what.clone().into(), |at| Trouble::in_entry("keys", at, &what)));
        }
    }
    Ok(keys.into_iter().map(|(key, ..)| key).collect())
}

fn key(found: Found) -> Result<ApiKey, String> {
    let Found { secret, label, place } = found;
    // it stands in response headers and logs
    if label.is_empty() || label.trim() != label || label.chars().any(char::is_control) {
        return Err(format!("{place}: the label is empty, or holds control characters or white space around it"));
    }
    if label.contains("sk-or-") {
        return Err(format!("{place}: the label looks like a key: it is shown in answers and logs, so give a name"));
    }
    Ok(ApiKey::new(secret).map_err(|error| format!("{place}: {error}"))?.label(label))
}

impl KeyEntry {
    /// Its secrets: one, or those of its file.
    fn secrets(&self, number: usize, folder: &Path, variables: &Variables) -> Result<Vec<Found>, String> {
        let place = match &self.label {
            Some(label) if !label.contains("sk-or-") => format!("[[keys]] number {number}, `{}`", label.escape_debug()),
            _ => format!("[[keys]] number {number}"),
        };
        let label = |default: String| self.label.clone().unwrap_or(default);
        match (&self.key, &self.key_env, &self.key_file) {
            (Some(secret), None, None) => {
                Ok(vec![Found { secret: secret.clone(), label: label(format!("config-{number}")), place }])
            }
            (None, Some(name), None) => {
                let Some((_, value)) = variables.iter().find(|(variable, _)| variable == name.as_str()) else {
                    // who mixes up key and key_env writes a key here
                    let is_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
                    let name = if name.bytes().all(is_name) { &**name } else { "that key_env names" };
                    return Err(format!("{place}: the variable {name} is not set: set it, or name another in key_env"));
                };
                let place = format!("{place}, {name}");
                Ok(vec![Found { secret: text_of(value, &place)?, label: label(label_of(name)), place }])
            }
            (None, None, Some(path)) => {
                let place =
                    if path.contains("sk-or-") { format!("{place}, key_file") } else { format!("{place}, {path}") };
                let path = folder.join(path);
                let text = fs::read_to_string(&path).map_err(|error| format!("{place}: {error}"))?;
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                in_file(&text, &label(stem), &place)
            }
            _ => Err(format!("{place}: give exactly one of key, key_env and key_file")),
        }
    }

    /// Gives a key the rest of what the entry says.
    fn dress(&self, mut key: ApiKey) -> Result<ApiKey, KeyError> {
        if let Some(weight) = self.weight {
            key = key.weight(weight)?;
        }
        if let Some(tier) = self.tier {
            key = key.tier(tier);
        }
        if !self.tags.is_empty() {
            key = key.tags(self.tags.iter().map(String::as_str));
        }
        if let Some(account) = &self.account {
            key = key.account(account.as_str());
        }
        if let Some(workspace) = &self.workspace {
            key = key.workspace(workspace.as_str());
        }
        if let Some(url) = &self.base_url {
            key = key.base_url(url)?;
        }
        if let Some(cap) = self.max_in_flight {
            key = key.max_in_flight(cap)?;
        }
        key.models(&self.models)
    }
}

/// The keys of a file: one a line; empty lines, and lines that start with `#`, say nothing.
fn in_file(text: &str, label: &str, place: &str) -> Result<Vec<Found>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<_> = text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .collect();
    match lines[..] {
        [] => Err(format!("{place}: no key in it")),
        [(at, secret)] => {
            Ok(vec![Found { secret: secret.into(), label: label.into(), place: format!("{place} line {at}") }])
        }
        _ => Ok(lines
            .iter()
            .enumerate()
            .map(|(number, (at, secret))| Found {
                secret: (*secret).into(),
                label: format!("{label}-{}", number + 1),
                place: format!("{place} line {at}"),
            })
            .collect()),
    }
}

/// The keys of the variables made for them, in the order of their names and numbers.
fn in_environment(variables: &Variables) -> Result<Vec<Found>, String> {
    let mut named: Vec<_> = variables
        .iter()
        .filter_map(|(name, value)| {
            let name = name.to_str()?;
            Some((rank(name)?, name, value))
        })
        .collect();
    named.sort();
    let mut found = Vec::new();
    for (_, name, value) in named {
        let text = text_of(value, name)?;
        if name != "OPENROUTER_API_KEYS" {
            found.push(Found { secret: text, label: label_of(name), place: name.into() });
            continue;
        }
        let items: Vec<_> = text.split(',').collect();
        for (at, item) in items.iter().enumerate() {
            let place = format!("{name}, key {} of {}", at + 1, items.len());
            found.push(Found { secret: (*item).into(), label: format!("{}-{}", label_of(name), at + 1), place });
        }
    }
    Ok(found)
}

/// Whether a variable holds keys, and where it stands among those that do.
fn rank(name: &str) -> Option<(u8, u64)> {
    let number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?;
    match name {
        "OPENROUTER_API_KEY" => Some((0, 0)),
        "OPENROUTER_API_KEYS" => Some((1, 0)),
        _ => match name.strip_prefix("OPENROUTER_API_KEY_") {
            Some(digits) => Some((2, number(digits)?)),
            None => Some((3, number(name.strip_prefix("OPENROUTER_KEY_")?)?)),
        },
    }
}

/// A label people recognise the variable in: `OPENROUTER_API_KEY_2` becomes `api-key-2`.
fn label_of(variable: &str) -> String {
    variable.strip_prefix("OPENROUTER_").unwrap_or(variable).to_ascii_lowercase().replace('_', "-")
}

fn text_of(value: &OsString, place: &str) -> Result<String, String> {
    match value.to_str() {
        None => Err(format!("{place}: the value is not text")),
        Some(text) if text.trim().is_empty() => Err(format!("{place} is set but empty: give it a key, or unset it")),
        Some(text) => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn from_environment(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let keys = load(&[], Path::new(""), &variables(pairs)).map_err(|trouble| trouble.to_string())?;
        Ok(keys.iter().map(|key| (key.name().to_owned(), key.expose_secret().to_owned())).collect())
    }

    fn from_entries(text: &str, pairs: &[(&str, &str)]) -> Result<Vec<ApiKey>, String> {
        #[derive(Deserialize)]
        struct File {
            keys: Vec<KeyEntry>,
        }
        let entries = toml::from_str::<File>(text).unwrap().keys;
        load(&entries, Path::new(""), &variables(pairs)).map_err(|trouble| trouble.to_string())
    }

    #[test]
    fn all_variables_are_merged_in_order_and_duplicates_are_one() {
        let found = from_environment(&[
            ("OPENROUTER_KEY_7", "g"),
            ("OPENROUTER_API_KEY_10", "f"),
            ("OPENROUTER_API_KEY_2", "e"),
            ("OPENROUTER_API_KEYS", " b ,c,a"),
            ("OPENROUTER_API_KEY", "a\n"),
            ("OPENROUTER_KEY_8", "e"),
            ("OPENROUTER_API_KEY_X", "not a key"),
            ("OPENROUTER_API_KEY_+1", "not a key"),
            ("OPENROUTER_BASE_URL", "not a key"),
            ("PATH", "not a key"),
        ]);
        let expected = [
            ("api-key", "a"),
            ("api-keys-1", "b"),
            ("api-keys-2", "c"),
            ("api-key-2", "e"),
            ("api-key-10", "f"),
            ("key-7", "g"),
        ];
        assert_eq!(found.unwrap(), expected.map(|(label, key)| (label.to_owned(), key.to_owned())));
        assert_eq!(from_environment(&[]).unwrap(), []);
    }

    #[test]
    fn r100_what_is_wrong_with_a_variable_is_told_by_its_name_and_never_its_value() {
        for (name, value, told) in [
            ("OPENROUTER_API_KEY", "", "OPENROUTER_API_KEY is set but empty"),
            ("OPENROUTER_API_KEY", " \n", "OPENROUTER_API_KEY is set but empty"),
            ("OPENROUTER_API_KEYS", "", "OPENROUTER_API_KEYS is set but empty"),
            ("OPENROUTER_API_KEY_3", "", "OPENROUTER_API_KEY_3 is set but empty"),
            ("OPENROUTER_KEY_1", "", "OPENROUTER_KEY_1 is set but empty"),
            ("OPENROUTER_API_KEYS", "canary,", "OPENROUTER_API_KEYS, key 2 of 2: the key is empty"),
            (
                "OPENROUTER_API_KEYS",
                "a,can ary,b",
                "OPENROUTER_API_KEYS, key 2 of 3: the key holds white space at position 4",
            ),
            ("OPENROUTER_API_KEY", "can\r\nary", "OPENROUTER_API_KEY: the key holds a carriage return at position 4"),
        ] {
            let trouble = from_environment(&[(name, value)]).unwrap_err();
            assert!(trouble.starts_with(told), "{trouble}");
            assert!(!trouble.contains("ary"), "{trouble}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let variables = vec![("OPENROUTER_API_KEY".into(), OsString::from_vec(vec![b'k', 0xff]))];
        let trouble = load(&[], Path::new(""), &variables).unwrap_err().to_string();
        assert_eq!(trouble, "OPENROUTER_API_KEY: the value is not text");
    }

    #[test]
    fn an_entry_says_everything_about_its_key() {
        let keys = from_entries(
            r#"
            [[keys]]
            label = "team a"
            key = " sk-or-v1-a "
            weight = 2.5
            tier = 2
            tags = ["eu", "spare"]
            account = "acme"
            workspace = "batch"
            models = ["openai/*"]
            base_url = "https://eu.openrouter.ai/api/v1"
            max_in_flight = 3
            [[keys]]
            key = "sk-or-v1-b"
            [[keys]]
            key_env = "TEAM_C"
            "#,
            &[("TEAM_C", "sk-or-v1-c"), ("OPENROUTER_API_KEY", "sk-or-v1-a")],
        )
        .unwrap();
        assert_eq!(keys.iter().map(ApiKey::name).collect::<Vec<_>>(), ["team a", "config-2", "team-c"]);
        let key = &keys[0];
        assert_eq!((key.weight_of(), key.account_name(), key.workspace_name()), (2.5, Some("acme"), Some("batch")));
        assert!(key.tier_of() == 2 && key.has_tag("eu") && key.has_tag("spare"));
        assert_eq!((key.in_flight_cap(), key.base().unwrap().host()), (Some(3), Some("eu.openrouter.ai")));
        assert!(key.serves("openai/gpt-4o") && !key.serves("acme/swift-1"));
    }

    #[test]
    fn an_entry_that_cannot_be_meant_is_refused_by_its_number_and_label() {
        for (entry, told) in [
            ("label = \"a\"", "[[keys]] number 1, `a`: give exactly one of key, key_env and key_file"),
            ("key = \"a\"\nkey_env = \"B\"", "[[keys]] number 1: give exactly one of"),
            ("key = \"\"", "[[keys]] number 1: the key is empty"),
            ("key_env = \"NOWHERE\"", "[[keys]] number 1: the variable NOWHERE is not set: set it"),
            ("key_env = \"nowhere\"", "[[keys]] number 1: the variable that key_env names is not set"),
            ("key = \"a\"\nlabel = \"sk-or-v1-a\"", "[[keys]] number 1: the label looks like a key"),
            ("key_env = \"EMPTY\"", "[[keys]] number 1, EMPTY is set but empty"),
            ("key_file = \"no-such-file\"", "[[keys]] number 1, no-such-file: "),
            ("key = \"a\"\nweight = -1.0", "[[keys]] number 1: "),
            ("key = \"a\"\nmax_in_flight = 0", "[[keys]] number 1: "),
            ("key = \"a\"\nbase_url = \"ftp://x\"", "[[keys]] number 1: "),
            ("key = \"a\"\nmodels = [\"\"]", "[[keys]] number 1: "),
            ("key = \"a\"\nlabel = \"x\\ny\"", "[[keys]] number 1, `x\\ny`: the label is empty, or holds control"),
            ("key = \"a\"\nlabel = \"\"", "[[keys]] number 1, ``: the label is empty"),
            (
                "key = \"a\"\n[[keys]]\nlabel = \"config-1\"\nkey = \"b\"",
                "[[keys]] number 2, `config-1`: two keys have the label",
            ),
        ] {
            let trouble = from_entries(&format!("[[keys]]\n{entry}\n"), &[("EMPTY", "")]).unwrap_err();
            assert!(trouble.starts_with(told), "{entry} -> {trouble}");
        }
    }

    #[test]
    fn r121_a_key_file_may_hold_comments_blank_lines_and_a_byte_order_mark() {
        let labels = |text: &str| -> Vec<(String, String)> {
            in_file(text, "team", "place").unwrap().into_iter().map(|found| (found.label, found.secret)).collect()
        };
        assert_eq!(labels("\u{feff}# ours\r\n\r\n  sk-a  \r\n"), [("team".into(), "sk-a".into())]);
        assert_eq!(labels("sk-a\n\n#sk-x\nsk-b"), [("team-1".into(), "sk-a".into()), ("team-2".into(), "sk-b".into())]);
        assert_eq!(in_file("# nothing\n", "team", "place").err().unwrap(), "place: no key in it");
    }

    proptest! {
        #[test]
        fn r119_any_text_is_keys_or_says_what_is_wrong_without_the_text(
            text in prop_oneof![
                any::<String>(),
                proptest::collection::vec(prop::sample::select(&["sk-or-v1-a", " ", "\n", ",", "#", "=", "label", "\t", "\u{feff}", "\0", "é"][..]), 0..12)
                    .prop_map(|pieces| pieces.concat()),
            ],
        ) {
            let pairs = [("OPENROUTER_API_KEYS", text.as_str()), ("OPENROUTER_KEY_1", &text)];
            for found in [from_environment(&pairs).map(drop), in_file(&text, "file", "the file").map(drop)] {
                prop_assert!(found.is_ok() || !found.unwrap_err().contains("sk-or-v1-a"));
            }
        }
    }
}
