//! Finds tokens and cost in a document without reading all of it.

use std::sync::LazyLock;

use memchr::{memchr_iter, memmem};

use crate::outcome::Usage;

/// A search for a quoted name, prepared once rather than for each answer.
pub(super) type Finder = LazyLock<memmem::Finder<'static>>;

pub(super) static ERROR: Finder = LazyLock::new(|| memmem::Finder::new(r#""error""#));
static USAGE: Finder = LazyLock::new(|| memmem::Finder::new(r#""usage""#));

/// Reads the last usage object of a document.
///
/// A complete quoted name cannot occur inside a JSON string, where quotes are escaped, so a plain search finds members only.
pub(super) fn find(document: &[u8]) -> Option<Usage> {
    let after = USAGE.needle().len();
    let values = USAGE.find_iter(document).filter_map(|at| value_after(&document[at + after..]));
    read(values.filter(|value| value.starts_with(b"{")).last()?)
}

/// Reads the model that a document names, as [`find`] reads its usage.
pub(super) fn model(document: &[u8]) -> Option<String> {
    static MODEL: Finder = LazyLock::new(|| memmem::Finder::new(r#""model""#));
    let after = MODEL.needle().len();
    let mut values = MODEL.find_iter(document).filter_map(|at| value_after(&document[at + after..]));
    let value = values.find(|value| value.starts_with(b"\""))?;
    serde_json::Deserializer::from_slice(value).into_iter().next()?.ok()
}

/// What follows a name's colon; `None` when no colon does, so that the name was a value.
pub(super) fn value_after(rest: &[u8]) -> Option<&[u8]> {
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// Whether the quoted name occurs as a member that is not null, or as a value.
pub(super) fn has_member(document: &[u8], quoted: &Finder) -> bool {
    quoted.find_iter(document).any(|at| match value_after(&document[at + quoted.needle().len()..]) {
        Some(value) => !value.starts_with(b"null"),
        // as a value, such as in "finish_reason":"error"
        None => true,
    })
}

/// Reads the numbers of the object at the start of `text`; what is nested in it, and what follows it, is passed over, and so
/// is the rest once all numbers are known. Every answer pays for this, and a parser that checks all of the object takes many
/// times as long.
fn read(text: &[u8]) -> Option<Usage> {
    let (mut prompt, mut completion, mut cost) = (None, None, None);
    let (mut depth, mut at) = (0_usize, 0);
    while prompt.is_none() || completion.is_none() || cost.is_none() {
        match text.get(at)? {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => break,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let start = at + 1;
                at = end_of_string(text, start)?;
                let after = &text[at + 1..];
                match &text[start..at] {
                    _ if depth > 1 => {}
                    b"prompt_tokens" | b"input_tokens" => note(&mut prompt, after, count)?,
                    b"completion_tokens" | b"output_tokens" => note(&mut completion, after, count)?,
                    b"cost" => note(&mut cost, after, number)?,
                    _ => {}
                }
            }
            _ => {}
        }
        at += 1;
    }
    Some(Usage {
        prompt_tokens: prompt.unwrap_or_default(),
        completion_tokens: completion.unwrap_or_default(),
        cost: cost.unwrap_or_default(),
    })
}

/// Notes the value after a name, unless it is null; `None` when it cannot be read.
fn note<T>(member: &mut Option<T>, after: &[u8], read: fn(&[u8]) -> Option<T>) -> Option<()> {
    if let Some(value) = value_after(after).filter(|value| !value.starts_with(b"null")) {
        *member = Some(read(value)?);
    }
    Some(())
}

/// Where the quote stands that ends the string that begins at `start`: one with an even number of backslashes before it.
fn end_of_string(text: &[u8], start: usize) -> Option<usize> {
    memchr_iter(b'"', text.get(start..)?)
        .map(|at| start + at)
        .find(|&at| text[start..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0)
}

/// The number at the start of `text`, if there is one; 0 for what no tokens or money can be.
fn number(text: &[u8]) -> Option<f64> {
    if let Some((digits, scale)) = plain(text) {
        // both are exact, so the one division rounds as a parser would
        return Some(digits as f64 / 10_f64.powi(scale));
    }
    let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let digits = &text[..text.iter().take_while(is_part).count()];
    let number: f64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if number.is_finite() { number.max(0.0) } else { 0.0 })
}

/// The same for what is counted.
fn count(text: &[u8]) -> Option<u64> {
    match plain(text) {
        Some((digits, 0)) => Some(digits),
        _ => number(text).map(|number| number as u64),
    }
}

/// The digits of a number, and how many of them stand after the point; `None` unless it is short and plain, as nearly all are.
fn plain(text: &[u8]) -> Option<(u64, i32)> {
    let (mut digits, mut point) = (0_u64, None);
    for (at, byte) in text.iter().enumerate().take(16) {
        match byte {
            b'0'..=b'9' => digits = digits * 10 + u64::from(byte - b'0'),
            b'.' if point.is_none() && at > 0 => point = Some(at + 1),
            b',' | b'}' | b' ' | b'\t' | b'\r' | b'\n' if at > 0 => {
                return Some((digits, point.map_or(0, |point| (at - point) as i32)));
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_the_first_member_of_that_name() {
        for (document, expected) in [
            (r#"{"id":"x","model" : "acme/\u0073wift-1","choices":[]}"#, Some("acme/swift-1")),
            (r#"{"type":"model","response":{"model":"acme/a"},"model":"acme/b"}"#, Some("acme/a")),
            (r#"{"text":"\"model\":\"x\"","model":null}"#, None),
            (r#"{"model":"acme"#, None),
        ] {
            assert_eq!(model(document.as_bytes()).as_deref(), expected, "{document}");
        }
    }

    #[test]
    fn numbers_are_taken_from_the_object_itself_only() {
        let usage = |prompt_tokens, completion_tokens, cost| Some(Usage { prompt_tokens, completion_tokens, cost });
        for (object, expected) in [
            (r#"{}"#, usage(0, 0, 0.0)),
            (r#"{"prompt_tokens":3,"completion_tokens" : 2 ,"cost":0.25}"#, usage(3, 2, 0.25)),
            (r#"{"input_tokens":3,"output_tokens":2,"cost":null}, {"cost":9}"#, usage(3, 2, 0.0)),
            (r#"{"details":{"cost":9,"list":[{"prompt_tokens":9}]},"cost":1.5e-3}"#, usage(0, 0, 0.0015)),
            (r#"{"a\"}\\":"}","note":"\\\"cost\":9","prompt_tokens":3e2,"prompt_tokens":null}"#, usage(300, 0, 0.0)),
            (r#"{"prompt_tokens":-1,"completion_tokens":99999999999999999999,"cost":1e999}"#, usage(0, u64::MAX, 0.0)),
            (r#"{"prompt_tokens":17,"cost":0.00014725}"#, usage(17, 0, 0.00014725)),
            (
                r#"{"prompt_tokens":123456789012345,"cost":999999999999.99}"#,
                usage(123_456_789_012_345, 0, 999_999_999_999.99),
            ),
            (r#"{"prompt_tokens":"3"}"#, None),
            (r#"{"cost":0.25"#, None),
            (r#"{"cost"#, None),
            (r#"{"cost\"#, None),
        ] {
            assert_eq!(read(object.as_bytes()), expected, "{object}");
        }
    }
}
