//! Finds tokens and cost in a document without reading all of it.

use std::sync::LazyLock;

use memchr::{memchr2, memmem};

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

/// Reads the numbers of the object at the start of `text`; what is nested in it, and what follows it, is passed over. Every
/// answer pays for this, and a parser that checks all of the object takes five times as long.
fn read(text: &[u8]) -> Option<Usage> {
    let mut usage = Usage::default();
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match text.get(at)? {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return Some(usage),
            b'}' | b']' => depth -= 1,
            b'"' => {
                let length = length_of_string(&text[at + 1..])?;
                let name = &text[at + 1..][..length];
                at += length + 1;
                if depth == 1
                    && let Some(value) = value_after(&text[at + 1..])
                    && !value.starts_with(b"null")
                {
                    match name {
                        b"prompt_tokens" | b"input_tokens" => usage.prompt_tokens = count(value)?,
                        b"completion_tokens" | b"output_tokens" => usage.completion_tokens = count(value)?,
                        b"cost" => usage.cost = number(value)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// How long a string is whose opening quote has been read.
fn length_of_string(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// The number at the start of `text`, if there is one; 0 for what no tokens or money can be.
fn number(text: &[u8]) -> Option<f64> {
    let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let digits = &text[..text.iter().take_while(is_part).count()];
    let number: f64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if number.is_finite() { number.max(0.0) } else { 0.0 })
}

/// The same for what is counted, which nearly always is a plain number.
fn count(text: &[u8]) -> Option<u64> {
    let mut count = 0_u64;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' if at < 18 => count = count * 10 + u64::from(byte - b'0'),
            b',' | b'}' | b' ' | b'\t' | b'\r' | b'\n' => return Some(count),
            _ => break,
        }
    }
    number(text).map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (r#"{"prompt_tokens":"3"}"#, None),
            (r#"{"cost":0.25"#, None),
            (r#"{"cost"#, None),
            (r#"{"cost\"#, None),
        ] {
            assert_eq!(read(object.as_bytes()), expected, "{object}");
        }
    }
}
