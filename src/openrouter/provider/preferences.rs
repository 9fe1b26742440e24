//! The `provider` member of a request, typed as OpenRouter's schema has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::{Map, Value};

/// Which providers may serve, and in which order they are asked: the `provider` member of a request.
///
/// What is not set is not sent, and upstream's default holds. Providers go by slug (`deepinfra`), by a slug with a tag for
/// one of their endpoints (`deepinfra/fp8`), or by name. It can be read from configuration with serde, under the wire's own
/// names; an unknown member or value is an error then. [`ProviderLayer::new`](super::ProviderLayer::new) checks the rest.
///
/// ```
/// use tower_openrouter::openrouter::{MaxPrice, ProviderPreferences, Quantization};
///
/// let preferences = ProviderPreferences::new()
///     .ignore(["azure"])
///     .quantizations([Quantization::Fp8, Quantization::Bf16])
///     .zdr(true)
///     .max_price(MaxPrice { completion: Some(2.0), ..MaxPrice::default() });
/// assert_eq!(
///     serde_json::to_string(&preferences)?,
///     r#"{"ignore":["azure"],"zdr":true,"quantizations":["fp8","bf16"],"max_price":{"completion":"2"}}"#,
/// );
/// assert!(serde_json::from_str::<ProviderPreferences>(r#"{"sort":"cheapest"}"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[must_use]
pub struct ProviderPreferences {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order: Option<Vec<Box<str>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) only: Option<Vec<Box<str>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ignore: Option<Vec<Box<str>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allow_fallbacks: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    require_parameters: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_collection: Option<DataCollection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zdr: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforce_distillable_text: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) quantizations: Option<Vec<Quantization>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sort: Option<Sort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_price: Option<MaxPrice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preferred_min_throughput: Option<Threshold>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preferred_max_latency: Option<Threshold>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) options: Option<BTreeMap<Box<str>, Map<String, Value>>>,
}

fn list<T, N: Into<T>>(items: impl IntoIterator<Item = N>) -> Option<Vec<T>> {
    Some(items.into_iter().map(Into::into).collect())
}

impl ProviderPreferences {
    /// No preferences.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks these providers first, in this order.
    pub fn order<N: Into<Box<str>>>(mut self, providers: impl IntoIterator<Item = N>) -> Self {
        self.order = list(providers);
        self
    }

    /// Allows these providers and no others.
    pub fn only<N: Into<Box<str>>>(mut self, providers: impl IntoIterator<Item = N>) -> Self {
        self.only = list(providers);
        self
    }

    /// Leaves these providers out.
    pub fn ignore<N: Into<Box<str>>>(mut self, providers: impl IntoIterator<Item = N>) -> Self {
        self.ignore = list(providers);
        self
    }

    /// Sets whether others may serve when the first provider, or those of [`order`](Self::order), cannot; upstream's default
    /// is yes.
    pub fn allow_fallbacks(mut self, allow: bool) -> Self {
        self.allow_fallbacks = Some(allow);
        self
    }

    /// Sets whether a provider must support every parameter of the request; upstream's default is no.
    pub fn require_parameters(mut self, require: bool) -> Self {
        self.require_parameters = Some(require);
        self
    }

    /// Sets whether providers that keep prompts, and may train on them, are allowed; upstream's default is yes.
    pub fn data_collection(mut self, policy: DataCollection) -> Self {
        self.data_collection = Some(policy);
        self
    }

    /// Sets whether only endpoints that retain nothing may serve (zero data retention).
    pub fn zdr(mut self, only: bool) -> Self {
        self.zdr = Some(only);
        self
    }

    /// Sets whether only models may serve whose authors allow distillation of their text.
    pub fn enforce_distillable_text(mut self, enforce: bool) -> Self {
        self.enforce_distillable_text = Some(enforce);
        self
    }

    /// Allows these quantizations and no others.
    pub fn quantizations(mut self, levels: impl IntoIterator<Item = Quantization>) -> Self {
        self.quantizations = list(levels);
        self
    }

    /// Asks providers in the order of a measure, without balancing load between them.
    pub fn sort(mut self, sort: impl Into<Sort>) -> Self {
        self.sort = Some(sort.into());
        self
    }

    /// Leaves out providers that are dearer.
    pub fn max_price(mut self, price: MaxPrice) -> Self {
        self.max_price = Some(price);
        self
    }

    /// Prefers providers that are at least this fast, in tokens a second.
    pub fn preferred_min_throughput(mut self, least: impl Into<Threshold>) -> Self {
        self.preferred_min_throughput = Some(least.into());
        self
    }

    /// Prefers providers whose first token comes at most this late, in seconds.
    pub fn preferred_max_latency(mut self, most: impl Into<Threshold>) -> Self {
        self.preferred_max_latency = Some(most.into());
        self
    }

    /// Passes options to one provider, by its slug, when it serves. Once for each.
    pub fn options(mut self, provider: impl Into<Box<str>>, options: Map<String, Value>) -> Self {
        self.options.get_or_insert_default().insert(provider.into(), options);
        self
    }
}

/// Whether providers that keep prompts are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataCollection {
    /// They are.
    Allow,
    /// They are not.
    Deny,
}

/// How coarsely a provider stores a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say all there is")]
pub enum Quantization {
    Int4,
    Int8,
    Fp4,
    MxFp4,
    NvFp4,
    Fp6,
    Fp8,
    MxFp8,
    Fp16,
    Bf16,
    Fp32,
    /// The provider does not say.
    Unknown,
}

/// By what providers are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SortBy {
    /// The cheapest first.
    Price,
    /// The one with most tokens a second first.
    Throughput,
    /// The one with the earliest first token first.
    Latency,
    /// The one whose tool calls are most exact first.
    Exacto,
}

/// Over what providers are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Partition {
    /// Those of each model, so that fallback models remain fallbacks; upstream's default.
    Model,
    /// Those of all models of the request together.
    None,
}

/// In which order providers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "SortForm", into = "SortForm")]
pub struct Sort {
    by: SortBy,
    partition: Option<Partition>,
}

impl Sort {
    /// The providers of each model, or of all models together, sorted by `by`.
    pub fn over(partition: Partition, by: SortBy) -> Self {
        Self { by, partition: Some(partition) }
    }
}

impl From<SortBy> for Sort {
    fn from(by: SortBy) -> Self {
        Self { by, partition: None }
    }
}

/// The two forms of a sort on the wire.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SortForm {
    By(SortBy),
    Over(SortOver),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SortOver {
    by: SortBy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition: Option<Partition>,
}

impl From<SortForm> for Sort {
    fn from(form: SortForm) -> Self {
        match form {
            SortForm::By(by) => by.into(),
            SortForm::Over(SortOver { by, partition }) => Self { by, partition },
        }
    }
}

impl From<Sort> for SortForm {
    fn from(Sort { by, partition }: Sort) -> Self {
        match partition {
            None => Self::By(by),
            partition => Self::Over(SortOver { by, partition }),
        }
    }
}

/// The most that may be asked, in US dollars; sent as text, as the schema wants it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaxPrice {
    /// For a million tokens of prompt.
    #[serde(with = "price", skip_serializing_if = "Option::is_none")]
    pub prompt: Option<f64>,
    /// For a million tokens of answer.
    #[serde(with = "price", skip_serializing_if = "Option::is_none")]
    pub completion: Option<f64>,
    /// For a request.
    #[serde(with = "price", skip_serializing_if = "Option::is_none")]
    pub request: Option<f64>,
    /// For an image.
    #[serde(with = "price", skip_serializing_if = "Option::is_none")]
    pub image: Option<f64>,
    /// For a unit of audio.
    #[serde(with = "price", skip_serializing_if = "Option::is_none")]
    pub audio: Option<f64>,
}

/// A number on our side, text on the wire; both are read.
mod price {
    use super::{Deserialize, Deserializer, Error, Serializer, Value};

    pub(super) fn serialize<S: Serializer>(price: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match price {
            Some(price) => serializer.serialize_str(&price.to_string()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
        number.map(Some).ok_or_else(|| D::Error::custom("a price is a number of US dollars"))
    }
}

/// A measure that a provider should reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Threshold {
    /// In the median.
    Median(f64),
    /// In each of these percentiles.
    Percentiles(Percentiles),
}

impl From<f64> for Threshold {
    fn from(value: f64) -> Self {
        Self::Median(value)
    }
}

impl From<Percentiles> for Threshold {
    fn from(percentiles: Percentiles) -> Self {
        Self::Percentiles(percentiles)
    }
}

/// A measure for some percentiles of the recent past.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Percentiles {
    /// The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// Three of four.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p75: Option<f64>,
    /// Nine of ten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// All but one of a hundred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// A variant of the model, appended to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Variant {
    /// `:nitro`: sorted by throughput.
    Nitro,
    /// `:floor`: sorted by price.
    Floor,
    /// `:exacto`: sorted by the exactness of tool calls.
    Exacto,
    /// `:online`: with a search of the web. OpenRouter prefers its `web` plugin to it.
    Online,
}

impl Variant {
    /// The variant's name, without the colon.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Nitro => "nitro",
            Self::Floor => "floor",
            Self::Exacto => "exacto",
            Self::Online => "online",
        }
    }

    /// Whether it sorts the providers.
    pub(super) fn sorts(self) -> bool {
        self != Self::Online
    }
}
