//! Finds tokens and cost in a document without reading all of it.

use std::sync::LazyLock;

use memchr::{memchr2_iter, memmem::Finder};

use crate::outcome::Usage;

/// A quoted name, searched for often.
///
/// A complete quoted name cannot occur inside a JSON string, where quotes are escaped, so a plain search finds names (and
/// values that are nothing else).
pub(super) type Name = LazyLock<Finder<'static>>;

static USAGE: Name = LazyLock::new(|| Finder::new(r#""usage""#));
static PROMPT: Name = LazyLock::new(|| Finder::new(r#""prompt_tokens""#));
static COMPLETION: Name = LazyLock::new(|| Finder::new(r#""completion_tokens""#));
static INPUT: Name = LazyLock::new(|| Finder::new(r#""input_tokens""#));
static OUTPUT: Name = LazyLock::new(|| Finder::new(r#""output_tokens""#));
static COST: Name = LazyLock::new(|| Finder::new(r#""cost""#));

/// Reads the last usage object of a document.
pub(super) fn find(document: &[u8]) -> Option<Usage> {
    // forwards, because only that search is vectorised
    let values = USAGE.find_iter(document).filter_map(|at| value_after(&document[at + USAGE.needle().len()..]));
    read(values.filter_map(object).last()?)
}

/// What follows a name's colon; `None` when no colon does, so that the name was a value.
pub(super) fn value_after(rest: &[u8]) -> Option<&[u8]> {
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// Whether `name` occurs as a member that is not null, or as a value.
pub(super) fn has_member(document: &[u8], name: &Name) -> bool {
    name.find_iter(document).any(|at| match value_after(&document[at + name.needle().len()..]) {
        Some(value) => !value.starts_with(b"null"),
        // as a value, such as in "finish_reason":"error"
        None => true,
    })
}

/// The object that `value` begins with. Usage holds no text, so braces are always its own.
fn object(value: &[u8]) -> Option<&[u8]> {
    if value.first() != Some(&b'{') {
        return None;
    }
    let mut depth = 0usize;
    let end = memchr2_iter(b'{', b'}', value).find(|&at| {
        depth = if value[at] == b'{' { depth + 1 } else { depth - 1 };
        depth == 0
    })?;
    Some(&value[..end])
}

fn read(object: &[u8]) -> Option<Usage> {
    let number = |name: &Name| {
        let value = value_after(&object[name.find(object)? + name.needle().len()..])?;
        let end = value.iter().position(|byte| matches!(byte, b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t'));
        let number = std::str::from_utf8(&value[..end.unwrap_or(value.len())]).ok()?;
        // most are small and whole
        let number = number.parse::<u32>().map(f64::from).or_else(|_| number.parse()).ok()?;
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    let (prompt, completion) =
        (number(&PROMPT).or_else(|| number(&INPUT)), number(&COMPLETION).or_else(|| number(&OUTPUT)));
    if prompt.is_none() && completion.is_none() {
        return None;
    }
    Some(Usage {
        prompt_tokens: prompt.unwrap_or(0.0) as u64,
        completion_tokens: completion.unwrap_or(0.0) as u64,
        cost: number(&COST).unwrap_or(0.0),
    })
}
