//! `GET /models`.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::lenient::{name, number, whole};
use crate::endpoint::Price;

/// What `GET /models` tells about a model, as far as its cost goes. Prices are US dollars for one token or one request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// `author/slug`, with the variant where it is an entry of its own.
    pub id: Box<str>,
    /// A token of the prompt; `None` when it depends, as it does for routers.
    pub prompt_price: Option<f64>,
    /// A token of the answer; `None` when it depends.
    pub completion_price: Option<f64>,
    /// A request as such.
    pub request_price: Option<f64>,
    /// How many tokens prompt and answer can have together.
    pub context_length: Option<u64>,
    /// How many tokens an answer can have.
    pub max_completion_tokens: Option<u64>,
}

/// The list, its entries unread: one that is odd does not cost the others.
#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

impl ModelInfo {
    /// Reads the body of an answer; an entry without an id is left out.
    ///
    /// # Errors
    /// When it is not a list of models.
    pub fn read_list(body: &[u8]) -> Result<Vec<Self>, &'static str> {
        let list: List<'_> = serde_json::from_slice(body).map_err(|_| "it is not a list of models")?;
        Ok(list.data.iter().filter_map(|entry| Self::read(&serde_json::from_str(entry.get()).ok()?)).collect())
    }

    fn read(entry: &Value) -> Option<Self> {
        let pricing = &entry["pricing"];
        Some(Self {
            id: name(&entry["id"])?,
            prompt_price: dearest(pricing, "prompt"),
            completion_price: dearest(pricing, "completion"),
            request_price: dearest(pricing, "request"),
            context_length: [&entry["context_length"], &entry["top_provider"]["context_length"]]
                .into_iter()
                .find_map(whole),
            max_completion_tokens: whole(&entry["top_provider"]["max_completion_tokens"]),
        })
    }

    /// What the model costs, where prompt and answer both have a price.
    pub fn price(&self) -> Option<Price> {
        let price = Price::per_token(self.prompt_price?, self.completion_price?);
        let price = price.request(self.request_price.unwrap_or_default());
        Some(price.max_output(self.max_completion_tokens).context(self.context_length))
    }
}

/// The price of its kind, or the highest that may take its place for long prompts or at some hours. One below zero stands
/// for "it depends".
fn dearest(pricing: &Value, kind: &str) -> Option<f64> {
    let price = number(&pricing[kind]).filter(|price| *price >= 0.0)?;
    let others = pricing["overrides"].as_array().into_iter().flatten().filter_map(|other| number(&other[kind]));
    Some(others.fold(price, f64::max))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::Money;

    fn read(entries: Value) -> Vec<ModelInfo> {
        ModelInfo::read_list(json!({"data": entries}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn prices_are_strings_for_one_token() {
        let model = &read(json!([{
            "id": "openai/gpt-4", "context_length": 8192,
            "pricing": {"completion": "0.00006", "image": "0", "prompt": "0.00003", "request": "0"},
            "top_provider": {"context_length": 8192, "is_moderated": true, "max_completion_tokens": 4096}
        }]))[0];
        assert_eq!((model.context_length, model.max_completion_tokens), (Some(8192), Some(4096)));
        let price = model.price().unwrap();
        assert_eq!(price.worst_case(0, Some(1_000_000), 0), Money::from_usd(4096.0 * 0.00006), "as much as it gives");
    }

    #[test]
    fn what_depends_or_is_missing_is_no_price_and_odd_entries_cost_only_themselves() {
        let models = read(json!([
            {"id": "openrouter/auto", "pricing": {"prompt": "-1", "completion": "-1"}},
            {"id": "acme/bare"},
            {"name": "no id"},
            "odd",
            {"id": "acme/free", "context_length": null, "pricing": {"prompt": "0", "completion": 0}}
        ]));
        let priced: Vec<_> = models.iter().map(|model| (&*model.id, model.price().is_some())).collect();
        assert_eq!(priced, [("openrouter/auto", false), ("acme/bare", false), ("acme/free", true)]);
        assert!(ModelInfo::read_list(b"{\"data\":{}}").is_err());
    }

    #[test]
    fn the_dearest_of_the_prices_that_may_hold_is_the_one() {
        let model = &read(json!([{"id": "a/b", "pricing": {
            "prompt": "0.000001", "completion": "0.000002",
            "overrides": [{"min_prompt_tokens": 200000, "prompt": "0.000004"}, {"prompt": "0.0000005", "completion": "-1"}, 7]
        }}]))[0];
        assert_eq!((model.prompt_price, model.completion_price), (Some(0.000_004), Some(0.000_002)));
    }
}
