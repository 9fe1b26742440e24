use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, de::DeserializeOwned};

use super::members;

/// The members that are read.
const NAMES: [&str; 10] = [
    "model",
    "models",
    "fallbacks",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "session_id",
    "user",
    "provider",
];

/// What a request's body asks for, as far as balancing cares.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Asks {
    /// The model's name; the first of `models` where there is no `model`.
    pub model: Option<Box<str>>,
    /// The other models it may be served by, in order (`models`, or the `fallbacks` of `/messages`).
    pub models: Vec<Box<str>>,
    /// Whether the answer should be a stream.
    pub stream: bool,
    /// The most tokens the answer may have (`max_tokens`, `max_completion_tokens` or `max_output_tokens`).
    pub max_tokens: Option<u64>,
    /// The conversation it belongs to (`session_id`).
    pub session: Option<Box<str>>,
    /// Whom it is for (`user`).
    pub user: Option<Box<str>>,
    /// A hash of the provider preferences; 0 when there are none. Requests with other wishes use other provider pools.
    pub provider: u64,
}

impl Asks {
    pub(super) const fn nothing() -> Self {
        Self {
            model: None,
            models: Vec::new(),
            stream: false,
            max_tokens: None,
            session: None,
            user: None,
            provider: 0,
        }
    }

    pub(super) fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Fallback {
            model: Box<str>,
        }
        let Some([model, models, fallbacks, stream, max_tokens, completion, output, session, user, provider]) =
            members::find(body, NAMES)
        else {
            return Self::nothing();
        };
        // a member of an odd type is the upstream's to refuse; here it just says nothing
        fn value<T: DeserializeOwned>(text: Option<&[u8]>) -> Option<T> {
            serde_json::from_slice(text?).ok()
        }
        let mut models: Vec<Box<str>> = value(models).unwrap_or_default();
        models.extend(value(fallbacks).into_iter().flat_map(|list: Vec<Fallback>| list).map(|other| other.model));
        let model = value(model).or_else(|| models.first().cloned());
        if !models.is_empty() {
            let mut known: Vec<_> = model.iter().cloned().collect();
            models.retain(|other| {
                let new = !known.contains(other);
                known.extend(new.then(|| other.clone()));
                new
            });
        }
        Self {
            model,
            models,
            stream: value(stream).unwrap_or(false),
            max_tokens: value(max_tokens).or_else(|| value(completion)).or_else(|| value(output)),
            session: value(session),
            user: value(user),
            provider: provider.map_or(0, |text| {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                hasher.finish().max(1)
            }),
        }
    }

    /// Whether the model is one of the free ones, which have a quota of their own per account.
    pub fn is_free(&self) -> bool {
        self.model.as_deref().is_some_and(|model| model.ends_with(":free") || model == "openrouter/free")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(body: &str) -> Asks {
        Asks::read(body.as_bytes())
    }

    #[test]
    fn models_are_read_in_order_without_repeats_from_whichever_member() {
        for (body, model, models) in [
            (r#"{"model":"a"}"#, Some("a"), &[] as &[&str]),
            (r#"{"model":"a","models":["b","a","c","b"]}"#, Some("a"), &["b", "c"]),
            (r#"{"models":["b","c"]}"#, Some("b"), &["c"]),
            (r#"{"model":"a","fallbacks":[{"model":"b"},{"model":"c"}]}"#, Some("a"), &["b", "c"]),
            (r#"{"model":"a","models":"b"}"#, Some("a"), &[]),
            (r#"{"model":null,"models":[]}"#, None, &[]),
        ] {
            let asks = asks(body);
            assert_eq!(asks.model.as_deref(), model, "{body}");
            assert!(asks.models.iter().map(AsRef::as_ref).eq(models.iter().copied()), "{body}: {:?}", asks.models);
        }
    }
}
