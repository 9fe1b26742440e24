//! One line of our own format.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::request::Priority;

/// One request, as a line of a JSONL trace has it: a JSON object with these members.
///
/// What came in is replayed; what became of it stands there for people and is not read by the lab, nor are members that are
/// not listed here. A trace holds no content, no credential and nobody's name: whoever writes one puts a number in place of a
/// session's id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When the request came, milliseconds since any one instant, the same for the whole file. Lines may be in any order.
    pub at_ms: f64,
    /// The model it asked for, of several the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The length of the prompt, tokens; an estimate will do.
    pub prompt_tokens: u64,
    /// The length of the reply, tokens, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_tokens: Option<u64>,
    /// The longest reply it allowed, tokens; replayed as the reply's length when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Whether it asked for a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// The conversation it belonged to, by any name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Its class in a waiting line: `high`, `normal` or `low`.
    #[serde(default, with = "class", skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The status that was answered; absent when the caller left before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How it ended: `served` whole, `failed` with an error, `broken` after the 200, or `left` by the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<String>,
    /// How many attempts were sent upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// How long it waited for a key, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<f64>,
    /// From its arrival to the first output, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_output_ms: Option<f64>,
    /// From its arrival to the end, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<f64>,
    /// What it cost, USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

impl Record {
    /// When it came, since the trace's first request.
    pub fn at(&self) -> Duration {
        Duration::try_from_secs_f64(self.at_ms / 1e3).unwrap_or_default()
    }

    /// How long its reply is, or may be; tokens.
    pub fn reply(&self) -> Option<u64> {
        self.reply_tokens.or(self.max_tokens)
    }
}

pub(super) fn read(line: &str) -> Result<Record, String> {
    serde_json::from_str(line).map_err(|error| {
        // the line is the file's, not that of the text between two line ends
        let text = error.to_string();
        let (problem, place) = text.rsplit_once(" at line 1 ").unwrap_or((&text, ""));
        format!("{problem}{}{place}", if place.is_empty() { "" } else { ", " })
    })
}

/// A [`Priority`] by its name.
mod class {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Priority;

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(class: &Option<Priority>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(class.unwrap_or_default().as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Priority>, D::Error> {
        let name = Option::<String>::deserialize(deserializer)?;
        name.map(|name| {
            name.parse().map_err(|_| D::Error::custom(format!("priority: {name:?} is not high, normal or low")))
        })
        .transpose()
    }
}
