//! One credential and what is known of it.
//!
//! Keys are pasted, exported and mounted by people, so most trouble with them starts with a stray line break or a key that
//! shows up in a log. Here a key is checked when it is loaded, refused by the position of what is wrong and never by its
//! value, and afterwards known only by its label, or by the first eight characters of its SHA-256.

use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, Uri};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

mod error;
mod pattern;
mod url;

pub use error::KeyError;
pub use pattern::ModelPattern;
pub(crate) use url::{base_url, is_plain_path};

/// An API key: the secret, and how it should be used.
///
/// ```
/// use tower_openrouter::ApiKey;
///
/// let key = ApiKey::new("sk-or-v1-0123456789abcdef")?.label("team-a").account("acme");
/// assert_eq!(key.name(), "team-a");
/// assert!(!format!("{key:?}").contains("0123456789abcdef"));
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Clone)]
pub struct ApiKey {
    secret: SecretString,
    authorization: HeaderValue,
    hash: Box<str>,
    label: Box<str>,
    weight: f64,
    account: Option<Box<str>>,
    workspace: Option<Box<str>>,
    models: Vec<ModelPattern>,
    refused_models: Vec<ModelPattern>,
    base_url: Option<Uri>,
    max_in_flight: Option<usize>,
    tier: u32,
    tags: Vec<Box<str>>,
}

impl ApiKey {
    /// A key by its secret; surrounding white space is trimmed. The label is the first 8 characters of its SHA-256 until
    /// [`label`](Self::label) gives another.
    ///
    /// # Errors
    /// When the secret is empty or holds anything but visible ASCII, by position.
    pub fn new(secret: impl AsRef<str>) -> Result<Self, KeyError> {
        let secret = secret.as_ref();
        let lead = secret.len() - secret.trim_start().len();
        let trimmed = secret.trim();
        if trimmed.is_empty() {
            return Err(KeyError::EmptySecret);
        }
        if let Some((at, bad)) = trimmed.char_indices().find(|(_, c)| !c.is_ascii_graphic()) {
            return Err(KeyError::BadCharacter { position: lead + at + 1, what: name_of(bad) });
        }
        let authorization = bearer(trimmed).ok_or(KeyError::EmptySecret)?;
        let hash: String = Sha256::digest(trimmed).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            secret: trimmed.into(),
            authorization,
            label: hash[..8].into(),
            hash: hash.into(),
            weight: 1.0,
            account: None,
            workspace: None,
            models: Vec::new(),
            refused_models: Vec::new(),
            base_url: None,
            max_in_flight: None,
            tier: 1,
            tags: Vec::new(),
        })
    }

    /// Sets the name the key goes by in logs, metrics and answers.
    #[must_use]
    pub fn label(mut self, label: impl Into<Box<str>>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the key's share of the traffic under [`SmoothWeighted`](crate::select::SmoothWeighted) and
    /// [`WeightedRandom`](crate::select::WeightedRandom); default 1. Under every pick, 0 drains the key: what runs is
    /// finished, nothing new is sent to it.
    ///
    /// # Errors
    /// When the weight is negative, infinite or not a number.
    pub fn weight(mut self, weight: f64) -> Result<Self, KeyError> {
        if !weight.is_finite() || weight < 0.0 {
            return Err(KeyError::BadWeight(weight));
        }
        self.weight = weight;
        Ok(self)
    }

    /// Names the account the key belongs to: keys of one account share its balance and its free quota. Without it the key
    /// stands alone until an answer names its account.
    #[must_use]
    pub fn account(mut self, account: impl Into<Box<str>>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// Names the workspace the key spends in.
    #[must_use]
    pub fn workspace(mut self, workspace: impl Into<Box<str>>) -> Self {
        self.workspace = Some(workspace.into());
        self
    }

    /// Limits the key to models that match one of the patterns; default: every model. With a `!` before it, a pattern refuses
    /// what it matches. The narrowest that matches decides: one without `*`, else the one with the most other characters,
    /// and of two alike the one that refuses. If all of them refuse, the rest is served.
    ///
    /// ```
    /// use tower_openrouter::ApiKey;
    ///
    /// let key = ApiKey::new("sk-or-v1-a")?.models(["anthropic/*", "!anthropic/claude-opus*", "*:free"])?;
    /// assert!(key.serves("anthropic/claude-haiku") && key.serves("acme/swift:free"));
    /// assert!(!key.serves("anthropic/claude-opus-4") && !key.serves("openai/gpt-4o"));
    /// # Ok::<(), tower_openrouter::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// When a pattern is empty or holds white space.
    pub fn models<P: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = P>) -> Result<Self, KeyError> {
        (self.models, self.refused_models) = (Vec::new(), Vec::new());
        for pattern in patterns {
            let pattern = pattern.as_ref();
            match pattern.strip_prefix('!') {
                Some(refused) => self.refused_models.push(ModelPattern::new(refused)?),
                None => self.models.push(ModelPattern::new(pattern)?),
            }
        }
        Ok(self)
    }

    /// Sets the base URL of this key, such as a regional host; default: that of the [`OpenRouter`](crate::OpenRouter)
    /// service.
    ///
    /// # Errors
    /// When it is not an `http` or `https` URL with a host, or carries credentials or a query.
    pub fn base_url(mut self, url: &str) -> Result<Self, KeyError> {
        self.base_url = Some(base_url(url)?);
        Ok(self)
    }

    /// Caps how many requests run on the key at once; default: the stack's own limit.
    ///
    /// # Errors
    /// When the cap is 0.
    pub fn max_in_flight(mut self, cap: usize) -> Result<Self, KeyError> {
        if cap == 0 {
            return Err(KeyError::ZeroCap);
        }
        self.max_in_flight = Some(cap);
        Ok(self)
    }

    /// Sets the key's tier under [`PriorityTiers`](crate::select::PriorityTiers), which uses the lower ones first; default 1.
    #[must_use]
    pub fn tier(mut self, tier: u32) -> Self {
        self.tier = tier;
        self
    }

    /// Names what the key is for, such as a team or a region, for requests that
    /// [demand it](crate::RequestContext::require) and for [`RequireTags`](crate::select::RequireTags).
    #[must_use]
    pub fn tags<T: Into<Box<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// The label.
    pub fn name(&self) -> &str {
        &self.label
    }

    /// The SHA-256 of the key, 64 hexadecimal characters: the id under which OpenRouter's key management knows it.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The key's weight.
    pub fn weight_of(&self) -> f64 {
        self.weight
    }

    /// The account named for it.
    pub fn account_name(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// The workspace named for it.
    pub fn workspace_name(&self) -> Option<&str> {
        self.workspace.as_deref()
    }

    /// The patterns of models it serves; empty means all that are not refused.
    pub fn model_patterns(&self) -> &[ModelPattern] {
        &self.models
    }

    /// The patterns of models it refuses, without their `!`.
    pub fn refused_patterns(&self) -> &[ModelPattern] {
        &self.refused_models
    }

    /// Whether it may serve `model`.
    pub fn serves(&self, model: &str) -> bool {
        let narrowest = |patterns: &[ModelPattern]| {
            let matching = patterns.iter().filter(|pattern| pattern.matches(model));
            matching.map(ModelPattern::narrowness).max()
        };
        let refused = narrowest(&self.refused_models);
        match narrowest(&self.models) {
            Some(served) => refused < Some(served),
            None => self.models.is_empty() && refused.is_none(),
        }
    }

    /// Whether it has no model patterns at all.
    pub(crate) fn serves_all(&self) -> bool {
        self.models.is_empty() && self.refused_models.is_empty()
    }

    /// Its own base URL.
    pub fn base(&self) -> Option<&Uri> {
        self.base_url.as_ref()
    }

    /// Its own cap of requests at once.
    pub fn in_flight_cap(&self) -> Option<usize> {
        self.max_in_flight
    }

    /// Its tier.
    pub fn tier_of(&self) -> u32 {
        self.tier
    }

    /// Its tags.
    pub fn tags_of(&self) -> &[Box<str>] {
        &self.tags
    }

    /// Whether it has this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| **own == *tag)
    }

    /// The `Authorization` header that carries it, marked sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    /// Makes the header anew, so that it lies beside what is allocated next.
    pub(crate) fn renew_header(&mut self) {
        if let Some(renewed) = bearer(self.expose_secret()) {
            self.authorization = renewed;
        }
    }

    /// The secret itself, for those who must send it some other way.
    pub fn expose_secret(&self) -> &str {
        self.secret.expose_secret()
    }

    /// Whether the secret has the shape of an OpenRouter key.
    pub fn looks_like_openrouter(&self) -> bool {
        self.expose_secret().starts_with("sk-or-")
    }
}

impl PartialEq for ApiKey {
    /// Whether the secret and all settings are the same.
    fn eq(&self, other: &Self) -> bool {
        // named one by one, so that a new setting is not forgotten here
        let Self {
            secret: _,
            authorization: _,
            hash,
            label,
            weight,
            account,
            workspace,
            models,
            refused_models,
            base_url,
            max_in_flight,
            tier,
            tags,
        } = self;
        *hash == other.hash
            && *label == other.label
            && *weight == other.weight
            && *account == other.account
            && *workspace == other.workspace
            && *models == other.models
            && *refused_models == other.refused_models
            && *base_url == other.base_url
            && *max_in_flight == other.max_in_flight
            && *tier == other.tier
            && *tags == other.tags
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("label", &self.label)
            .field("id", &&self.hash[..8])
            .field("weight", &self.weight)
            .field("account", &self.account)
            .field("workspace", &self.workspace)
            .field("models", &self.models)
            .field("refused_models", &self.refused_models)
            .field("base_url", &self.base_url)
            .field("max_in_flight", &self.max_in_flight)
            .field("tier", &self.tier)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

/// The header that carries a secret, in one piece of memory with the count of its owners, which each attempt writes to.
fn bearer(secret: &str) -> Option<HeaderValue> {
    let mut bearer = SmallVec::<[u8; 96]>::from_slice(b"Bearer ");
    bearer.extend_from_slice(secret.as_bytes());
    let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(bearer)).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn name_of(bad: char) -> &'static str {
    match bad {
        '\r' => "a carriage return",
        '\n' => "a line feed",
        '\0' => "a NUL",
        c if c.is_whitespace() => "white space",
        c if c.is_control() => "a control character",
        _ => "a character outside ASCII",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn r100_bad_secrets_are_refused_by_position_never_by_value() {
        for (secret, position, what) in [
            ("sk-or-\rcanary", 7, "a carriage return"),
            ("sk-or-\ncanary", 7, "a line feed"),
            ("  sk-or-\0canary", 9, "a NUL"),
            ("sk or-canary", 3, "white space"),
            ("sk-or-cänary", 8, "a character outside ASCII"),
        ] {
            let error = ApiKey::new(secret).unwrap_err();
            assert_eq!(error, KeyError::BadCharacter { position, what });
            assert!(!error.to_string().contains("anary"));
        }
        assert_eq!(ApiKey::new(" \n").unwrap_err(), KeyError::EmptySecret);
    }

    #[test]
    fn r099_a_key_shows_its_label_and_eight_characters_of_its_hash() {
        let key = ApiKey::new(" sk-or-v1-canary \n").unwrap();
        assert_eq!(key.expose_secret(), "sk-or-v1-canary");
        assert!(key.authorization().is_sensitive());
        let shown = format!("{key:?} {:?}", key.authorization());
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains(&key.hash()[..8]));
        assert_eq!(key.name(), &key.hash()[..8]);
        assert_eq!(key.hash().len(), 64);
    }

    #[test]
    fn r117_numbers_out_of_range_are_refused() {
        let key = ApiKey::new("k").unwrap();
        for weight in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(key.clone().weight(weight), Err(KeyError::BadWeight(_))));
        }
        assert_eq!(key.clone().max_in_flight(0).unwrap_err(), KeyError::ZeroCap);
        for url in ["", "openrouter.ai", "ftp://x/", "https://", "https://u:p@host", "https://host/?q"] {
            assert!(matches!(key.clone().base_url(url), Err(KeyError::BadBaseUrl { .. })), "{url}");
        }
        assert_eq!(key.base_url("https://eu.openrouter.ai/api/v1/").unwrap().base().unwrap().path(), "/api/v1");
    }

    #[test]
    fn the_narrowest_pattern_decides() {
        for (patterns, model, expected) in [
            (&[][..], "any", true),
            (&["anthropic/*"], "anthropic/claude", true),
            (&["anthropic/*"], "openai/gpt-4o", false),
            (&["*", "!*:free"], "acme/swift:free", false),
            (&["*", "!*:free"], "acme/swift", true),
            (&["!*:free"], "acme/swift", true),
            (&["!*:free", "acme/*"], "acme/swift:free", false),
            (&["!*:free", "acme/swift:free"], "acme/swift:free", true),
            (&["!acme/*", "acme/swift"], "acme/swift", true),
            (&["acme/*", "!acme/*"], "acme/swift", false),
            (&["acme/swift", "!acme/swift"], "acme/swift", false),
            (&["acme/s*", "!acme/*", "*"], "acme/swift", true),
            (&["acme/s*", "!acme/*", "*"], "acme/tern", false),
        ] {
            let key = ApiKey::new("k").unwrap().models(patterns).unwrap();
            assert_eq!(key.serves(model), expected, "{patterns:?} {model}");
        }
        assert!(ApiKey::new("k").unwrap().models(["!"]).is_err());
    }

    proptest! {
        #[test]
        fn without_refusals_any_match_serves(patterns in proptest::collection::vec("[ab*]{1,4}", 1..5), model in "[ab]{0,5}") {
            let key = ApiKey::new("k").unwrap().models(&patterns).unwrap();
            let matches = |pattern: &String| ModelPattern::new(pattern).unwrap().matches(&model);
            prop_assert_eq!(key.serves(&model), patterns.iter().any(matches));
        }

        #[test]
        fn what_is_named_in_full_is_decided_by_that(others in proptest::collection::vec("!?[ab*]{0,3}[*]", 0..5), model in "[ab]{1,5}") {
            let with = |own: String| ApiKey::new("k").unwrap().models(others.iter().cloned().chain([own])).unwrap();
            let refused = format!("!{model}");
            prop_assert!(with(model.clone()).serves(&model) && !with(refused).serves(&model));
        }

        #[test]
        fn r119_any_text_is_a_key_or_an_error(text in any::<String>()) {
            if let Ok(key) = ApiKey::new(&text) {
                prop_assert_eq!(key.expose_secret(), text.trim());
            }
        }
    }
}
