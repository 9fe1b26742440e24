//! A JSON answer: judged once, when all of it is here.

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    KEPT, Note,
    usage::{ERROR, has_member, value_after},
};
use crate::outcome::Retry;

#[derive(Debug)]
pub(super) struct Json {
    /// How long the body is, where that is known.
    exact: Option<u64>,
    // boxed, since the usual answer is never kept
    kept: Option<Box<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// What has come, without the padding before it; its beginning is gone once it outgrew the bound.
    bytes: Vec<u8>,
    outgrown: bool,
}

impl Json {
    pub(super) fn new(exact: Option<u64>) -> Self {
        Self { exact, kept: None }
    }

    pub(super) fn is_of_known_length(&self) -> bool {
        self.exact.is_some()
    }

    pub(super) fn has_begun(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.bytes.is_empty())
    }

    pub(super) fn data(&mut self, chunk: &[u8], note: &mut Note) {
        let padding = if self.has_begun() { 0 } else { chunk.len() - chunk.trim_ascii_start().len() };
        // the usual answer comes in one piece, and need not be copied
        if !self.has_begun() && self.exact == Some(chunk.len() as u64) {
            return judge(&chunk[padding..], note);
        }
        self.exact = self.exact.map(|exact| exact.saturating_sub(padding as u64));
        let mut chunk = &chunk[padding..];
        let Kept { bytes, outgrown } = &mut **self.kept.get_or_insert_default();
        if bytes.len() + chunk.len() > KEPT {
            // the end holds the usage, and an error that came late
            *outgrown = true;
            let spare = KEPT / 2;
            chunk = &chunk[chunk.len().saturating_sub(spare)..];
            bytes.drain(..bytes.len().saturating_sub(spare - chunk.len()));
        }
        bytes.extend_from_slice(chunk);
    }

    pub(super) fn end(self, note: &mut Note) {
        match self.kept.as_deref() {
            Some(Kept { bytes, outgrown: true }) => judge_tail(bytes, note),
            Some(Kept { bytes, outgrown: false }) => judge(bytes, note),
            None => judge(&[], note),
        }
    }
}

/// Judges a whole document.
fn judge(document: &[u8], note: &mut Note) {
    let document = document.trim_ascii();
    if document.is_empty() {
        return note.cut(false, Retry::Once);
    }
    if !is_whole(document) {
        return note.cut(true, Retry::Unclear);
    }
    // the common answer has no such member, or null: it need not be parsed
    if has_member(document, &ERROR) {
        match serde_json::from_slice::<Value>(document) {
            Ok(parsed) if note.error_in(&parsed) => return,
            Ok(_) => {}
            Err(_) => return note.cut(true, Retry::Unclear),
        }
    }
    note.usage_in(document);
    note.model_in(document);
    note.complete();
}

/// Judges a document of which only the end is left.
fn judge_tail(tail: &[u8], note: &mut Note) {
    let tail = tail.trim_ascii_end();
    if !matches!(tail.last(), Some(b'}' | b']')) {
        return note.cut(true, Retry::Unclear);
    }
    let mut errors = ERROR
        .find_iter(tail)
        .filter_map(|at| value_after(&tail[at + ERROR.needle().len()..]))
        .filter(|value| value.first() == Some(&b'{'))
        .filter_map(|value| serde_json::Deserializer::from_slice(value).into_iter::<Value>().next()?.ok())
        .filter(|error| error["message"].is_string() && !error["code"].is_null());
    if let Some(error) = errors.next() {
        note.error_in(&serde_json::json!({ "error": error }));
        return;
    }
    note.usage_in(tail);
    note.complete();
}

/// Whether a document came whole. Counting braces tells nearly always; where a text holds unpaired ones, a parse does.
fn is_whole(document: &[u8]) -> bool {
    let ends = (document.first(), document.last());
    if !matches!(ends, (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']'))) {
        return false;
    }
    // in pieces that cannot overflow a byte, so that the compiler makes vectors of it
    let open: i64 = document
        .chunks(112)
        .map(|piece| {
            i64::from(piece.iter().fold(0i8, |sum, &byte| sum + i8::from(byte == b'{') - i8::from(byte == b'}')))
        })
        .sum();
    open == 0 || serde_json::from_slice::<IgnoredAny>(document).is_ok()
}
