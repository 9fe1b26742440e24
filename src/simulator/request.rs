//! Reads from an inference request only what decides its fate, without building a tree of it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::refusal::{Refusal, bad_request};

/// The shapes of inference requests and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completions,
    Responses,
    Messages,
    Embeddings,
}

/// An inference request, as far as the simulator cares.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) dialect: Dialect,
    /// The model and its fallbacks in order, never empty.
    pub(super) models: Vec<String>,
    pub(super) stream: bool,
    pub(super) max_tokens: Option<u64>,
    pub(super) prompt_tokens: u64,
    /// How many embeddings are wanted.
    pub(super) inputs: usize,
    pub(super) provider: ProviderChoice,
}

/// The `provider` member. The schema forbids unknown ones, so they are refused.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ProviderChoice {
    pub(super) order: Option<Vec<String>>,
    pub(super) only: Option<Vec<String>>,
    pub(super) ignore: Option<Vec<String>>,
    pub(super) allow_fallbacks: Option<bool>,
    pub(super) data_collection: Option<String>,
    pub(super) sort: Option<serde_json::Value>,
    pub(super) max_price: Option<MaxPrice>,
}

/// Members of `provider` that are valid and have no effect here.
const OTHER_PREFERENCES: [&str; 7] = [
    "require_parameters",
    "zdr",
    "enforce_distillable_text",
    "quantizations",
    "preferred_min_throughput",
    "preferred_max_latency",
    "options",
];
const PREFERENCES: [&str; 7] = ["order", "only", "ignore", "allow_fallbacks", "data_collection", "sort", "max_price"];

/// USD per million tokens, as a number or a numeric string.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct MaxPrice {
    prompt: Option<serde_json::Value>,
    completion: Option<serde_json::Value>,
}

impl MaxPrice {
    pub(super) fn allows(&self, prompt: f64, completion: f64) -> bool {
        let limit = |value: &Option<serde_json::Value>| {
            let value = value.as_ref()?;
            value.as_f64().or_else(|| value.as_str()?.parse().ok())
        };
        limit(&self.prompt).is_none_or(|max| prompt <= max)
            && limit(&self.completion).is_none_or(|max| completion <= max)
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    model: Option<String>,
    models: Option<Vec<String>>,
    #[serde(borrow)]
    fallbacks: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    provider: Option<&'a RawValue>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    store: Option<bool>,
    previous_response_id: Option<String>,
}

#[derive(Deserialize)]
struct Fallback {
    model: String,
}

impl Asked {
    /// Reads a request of `dialect`.
    ///
    /// # Errors
    ///
    /// A 400 that says what was wrong.
    pub(super) fn read(dialect: Dialect, body: &Bytes) -> Result<Self, Refusal> {
        let body: Body<'_> =
            serde_json::from_slice(body).map_err(|error| bad_request(format!("Invalid JSON body: {error}")))?;
        let mut models: Vec<String> = body.model.into_iter().collect();
        models.extend(body.models.unwrap_or_default());
        if let Some(fallbacks) = body.fallbacks.filter(|_| dialect == Dialect::Messages) {
            let list: Vec<Fallback> = member("fallbacks", fallbacks)?;
            if list.len() > 3 {
                return Err(bad_request("fallbacks: at most 3 are allowed"));
            }
            models.extend(list.into_iter().map(|fallback| fallback.model));
        }
        let mut seen = std::collections::BTreeSet::new();
        models.retain(|model| seen.insert(model.clone()));
        if models.is_empty() {
            return Err(bad_request("No models provided"));
        }
        let (content, name) = match dialect {
            Dialect::Chat | Dialect::Messages => (body.messages, "messages"),
            Dialect::Completions => (body.prompt, "prompt"),
            Dialect::Responses | Dialect::Embeddings => (body.input, "input"),
        };
        let Some(content) = content.map(RawValue::get).filter(|text| !matches!(*text, "[]" | "null" | "\"\"")) else {
            return Err(bad_request(format!("Input required: specify \"{name}\"")));
        };
        if name == "messages" && !content.starts_with('[') {
            return Err(bad_request("messages: Invalid input: expected array"));
        }
        let inputs = match dialect {
            Dialect::Embeddings if content.starts_with('[') => {
                let list: Vec<serde_json::Value> = serde_json::from_str(content).unwrap_or_default();
                // A list of numbers is one tokenised input, a list of anything else several inputs.
                if list.iter().all(serde_json::Value::is_number) { 1 } else { list.len() }
            }
            _ => 1,
        };
        if dialect == Dialect::Responses && (body.store == Some(true) || body.previous_response_id.is_some()) {
            return Err(bad_request("store and previous_response_id are not supported: the API is stateless"));
        }
        let max_tokens = body.max_completion_tokens.or(body.max_tokens).or(body.max_output_tokens);
        if max_tokens == Some(0) {
            return Err(bad_request("max_tokens: Number must be greater than or equal to 1"));
        }
        if dialect == Dialect::Messages && max_tokens.is_none() {
            return Err(bad_request("max_tokens: Required"));
        }
        let provider = body.provider.map_or_else(|| Ok(ProviderChoice::default()), preferences)?;
        Ok(Self {
            dialect,
            models,
            stream: body.stream.unwrap_or(false) && dialect != Dialect::Embeddings,
            max_tokens,
            // Four bytes of the content's JSON count as a token, close to what tokenisers do.
            prompt_tokens: (content.len() as u64).div_ceil(4),
            inputs,
            provider,
        })
    }
}

fn member<'a, T: Deserialize<'a>>(name: &str, raw: &'a RawValue) -> Result<T, Refusal> {
    serde_json::from_str(raw.get()).map_err(|error| bad_request(format!("{name}: {error}")))
}

fn preferences(raw: &RawValue) -> Result<ProviderChoice, Refusal> {
    if raw.get() == "null" {
        return Ok(ProviderChoice::default());
    }
    let members: serde_json::Map<String, serde_json::Value> = member("provider", raw)?;
    let known = |name: &str| PREFERENCES.contains(&name) || OTHER_PREFERENCES.contains(&name);
    if let Some(name) = members.keys().find(|name| !known(name)) {
        return Err(bad_request(format!("provider: Unrecognized key: \"{name}\"")));
    }
    member("provider", raw)
}

#[cfg(test)]
mod tests {
    use super::{Asked, Dialect};

    fn chat(body: &str) -> Result<Asked, String> {
        Asked::read(Dialect::Chat, &body.to_owned().into()).map_err(|refusal| refusal.message)
    }

    #[test]
    fn unknown_members_pass_at_the_top_and_fail_inside_provider() {
        let asked = chat(r#"{"model":"a/b","messages":[{}],"new_thing":1,"provider":{"zdr":true}}"#);
        assert_eq!(asked.expect("accepted").models, ["a/b"]);
        let refused = chat(r#"{"model":"a/b","messages":[{}],"provider":{"new_thing":1}}"#);
        assert_eq!(refused.expect_err("refused"), "provider: Unrecognized key: \"new_thing\"");
    }

    #[test]
    fn fallbacks_follow_the_model_without_repeats() {
        let asked = chat(r#"{"model":"a/b","models":["c/d","a/b"],"messages":[{}]}"#);
        assert_eq!(asked.expect("accepted").models, ["a/b", "c/d"]);
    }

    #[test]
    fn what_is_missing_or_ill_typed_is_named() {
        for (body, part) in [
            ("{", "Invalid JSON"),
            (r#"{"messages":[{}]}"#, "No models provided"),
            (r#"{"model":"a/b"}"#, "messages"),
            (r#"{"model":"a/b","messages":[]}"#, "messages"),
            (r#"{"model":"a/b","messages":"hello"}"#, "expected array"),
            (r#"{"model":"a/b","messages":[{}],"max_tokens":-1}"#, "Invalid JSON"),
            (r#"{"model":"a/b","messages":[{}],"max_tokens":0}"#, "max_tokens"),
        ] {
            let message = chat(body).expect_err(body);
            assert!(message.contains(part), "{body}: {message}");
        }
    }
}
