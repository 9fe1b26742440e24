//! Finds tokens and cost in a document without reading all of it.

use memchr::memmem;
use serde::Deserialize;

use crate::outcome::Usage;

/// Reads the last usage object of a document.
///
/// A complete quoted name cannot occur inside a JSON string, where quotes are escaped, so a plain search finds members only.
pub(super) fn find(document: &[u8]) -> Option<Usage> {
    let name = br#""usage""#;
    let mut before = document;
    while let Some(at) = memmem::rfind(before, name) {
        if let Some(value) = value_after(&document[at + name.len()..])
            && value.first() == Some(&b'{')
        {
            return read(value);
        }
        before = &document[..at];
    }
    None
}

/// What follows a name's colon; `None` when no colon does, so that the name was a value.
pub(super) fn value_after(rest: &[u8]) -> Option<&[u8]> {
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// Whether `quoted` occurs as a member that is not null, or as a value.
pub(super) fn has_member(document: &[u8], quoted: &[u8]) -> bool {
    memmem::find_iter(document, quoted).any(|at| match value_after(&document[at + quoted.len()..]) {
        Some(value) => !value.starts_with(b"null"),
        // as a value, such as in "finish_reason":"error"
        None => true,
    })
}

fn read(object: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Fields {
        prompt_tokens: Option<f64>,
        completion_tokens: Option<f64>,
        input_tokens: Option<f64>,
        output_tokens: Option<f64>,
        cost: Option<f64>,
    }
    // only the object itself is read, not what follows it
    let fields = Fields::deserialize(&mut serde_json::Deserializer::from_slice(object)).ok()?;
    let positive = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0).unwrap_or(0.0);
    Some(Usage {
        prompt_tokens: positive(fields.prompt_tokens.or(fields.input_tokens)) as u64,
        completion_tokens: positive(fields.completion_tokens.or(fields.output_tokens)) as u64,
        cost: positive(fields.cost),
    })
}
