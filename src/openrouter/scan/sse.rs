//! An event stream, read line by line.

use memchr::memchr2;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    KEPT, Note,
    usage::{ERROR, has_member, value_after},
};
use crate::outcome::Retry;

#[derive(Debug, Default)]
pub(super) struct Sse {
    /// A line whose end has not come.
    line: Vec<u8>,
    /// The data lines so far of an event that has several.
    event: Vec<u8>,
    shape: Shape,
    after_cr: bool,
    /// The current line is longer than we keep: it is passed over.
    overlong: bool,
    began: bool,
    /// The current event is named an error, whatever its data says.
    named_error: bool,
}

/// Whose events these are, which says where output, usage and the end are found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Shape {
    #[default]
    Unknown,
    /// Chunks with `choices`, ended by `[DONE]`.
    Chat,
    /// Events with a `type`: `/responses` and `/messages`, ended by an event of their own.
    Typed,
}

impl Sse {
    pub(super) fn data(&mut self, mut chunk: &[u8], note: &mut Note) {
        while let Some(at) = memchr2(b'\n', b'\r', chunk) {
            let (line, rest) = (&chunk[..at], &chunk[at + 1..]);
            // CR LF is one line end, even with a cut between the two
            let second_half = at == 0 && chunk[0] == b'\n' && self.after_cr;
            self.after_cr = chunk[at] == b'\r';
            chunk = rest;
            if second_half {
                continue;
            }
            self.line_end(line, note);
            if note.ended {
                return;
            }
        }
        if !chunk.is_empty() {
            self.after_cr = false;
            self.keep(chunk, note);
        }
    }

    pub(super) fn end(mut self, note: &mut Note) {
        self.line_end(b"", note);
        self.dispatch(note);
        note.cut(false, Retry::Once);
    }

    fn keep(&mut self, piece: &[u8], note: &mut Note) {
        if self.overlong {
            return;
        }
        if self.line.len() + piece.len() <= KEPT {
            self.line.extend_from_slice(piece);
            return;
        }
        self.overlong = true;
        let mut head = std::mem::take(&mut self.line);
        // as much as is kept in any case, so that it is the same wherever the line was cut
        head.extend_from_slice(&piece[..KEPT - head.len()]);
        let Some(data) = data_of(&head) else { return };
        if ["response.completed", "response.incomplete"].iter().any(|kind| starts_with_type(data, kind)) {
            // the whole answer once more at its end
            note.complete();
        } else if let Some(error) = error_in_head(data) {
            // with a page of the provider's in it, say
            note.error_in(&error);
        } else {
            // an image, say
            note.output();
        }
    }

    fn line_end(&mut self, last_piece: &[u8], note: &mut Note) {
        if self.line.is_empty() && last_piece.len() <= KEPT && !self.overlong {
            return self.line(last_piece, note);
        }
        self.keep(last_piece, note);
        if !std::mem::take(&mut self.overlong) {
            let mut line = std::mem::take(&mut self.line);
            self.line(&line, note);
            line.clear();
            self.line = line;
        }
    }

    fn line(&mut self, mut line: &[u8], note: &mut Note) {
        if !self.began {
            self.began = true;
            // a byte order mark
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(note);
        }
        let Some(data) = data_of(line) else {
            self.named_error |= is_named_error(line);
            return;
        };
        let alone = self.event.is_empty();
        if alone && data.trim_ascii() == b"[DONE]" {
            note.output();
            return note.complete();
        }
        // nearly every event is one line: it is read where it lies
        if alone && (data.is_empty() || data.first() == Some(&b'{') && data.ends_with(b"}") && self.read(data, note)) {
            return;
        }
        if self.event.len() + data.len() < KEPT {
            if !alone {
                self.event.push(b'\n');
            }
            self.event.extend_from_slice(data);
        }
    }

    /// The end of an event that was not understood line by line.
    fn dispatch(&mut self, note: &mut Note) {
        if !self.event.is_empty() {
            let event = std::mem::take(&mut self.event);
            if !self.read(&event, note) {
                if self.named_error {
                    note.error_in(&json!({ "type": "error", "message": String::from_utf8_lossy(&event) }));
                } else {
                    // not JSON: whatever it is, the caller gets something
                    note.output();
                }
            }
        }
        self.named_error = false;
    }

    /// Reads an event; `false` if it is not JSON.
    fn read(&mut self, event: &[u8], note: &mut Note) -> bool {
        note.model_in(event);
        let committed = note.committed && !self.named_error;
        if committed && self.shape == Shape::Chat && !has_member(event, &ERROR) {
            note.usage_in(event);
            return true;
        }
        if committed && self.shape == Shape::Typed && !has_member(event, &ERROR) {
            #[derive(Deserialize)]
            struct Typed<'a> {
                #[serde(borrow, rename = "type")]
                kind: Option<&'a str>,
            }
            let Ok(Typed { kind }) = serde_json::from_slice(event) else { return false };
            return Self::after(kind.unwrap_or_default(), event, note);
        }
        let Ok(document) = serde_json::from_slice::<Value>(event) else { return false };
        if note.error_in(&document) {
            return true;
        }
        if self.named_error {
            // no member says so, but then the name does
            note.error_in(&json!({ "type": "error", "code": document["code"], "message": document["message"] }));
            return true;
        }
        let kind = document["type"].as_str().unwrap_or_default();
        if document["choices"].is_array() {
            self.shape = Shape::Chat;
        } else if !kind.is_empty() {
            self.shape = Shape::Typed;
        }
        if is_output(&document, kind) {
            note.output();
        }
        Self::after(kind, event, note)
    }

    /// What an event without an error says about usage and the end.
    fn after(kind: &str, event: &[u8], note: &mut Note) -> bool {
        match kind {
            "response.completed" | "response.incomplete" | "message_stop" => {
                note.usage_in(event);
                note.output();
                note.complete();
            }
            "response.failed" => {
                note.error_in(&json!({ "type": kind }));
            }
            // it reports the whole; what comes at the start is only the prompt's
            "" | "message_delta" => note.usage_in(event),
            _ => {}
        }
        true
    }
}

fn data_of(line: &[u8]) -> Option<&[u8]> {
    let data = line.strip_prefix(b"data:")?;
    Some(data.strip_prefix(b" ").unwrap_or(data))
}

/// Whether a line names its event an error.
fn is_named_error(line: &[u8]) -> bool {
    line.strip_prefix(b"event:").is_some_and(|name| matches!(name.trim_ascii(), b"error" | b"response.error"))
}

/// The error whose beginning stands in an event of which the end is missing: its code is all that can be read.
fn error_in_head(data: &[u8]) -> Option<Value> {
    let mut errors = ERROR.find_iter(data).filter_map(|at| value_after(&data[at + ERROR.needle().len()..]));
    let error = errors.find(|value| value.starts_with(b"{"))?;
    let code = memchr::memmem::find(error, b"\"code\"").and_then(|at| value_after(&error[at + 6..])).map(|value| {
        let value = value.strip_prefix(b"\"").unwrap_or(value);
        let digits = value.iter().take(4).take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |code, digit| code * 10 + u64::from(digit - b'0'))
    });
    Some(json!({ "error": { "code": code } }))
}

fn starts_with_type(data: &[u8], kind: &str) -> bool {
    let head = data.get(..256).unwrap_or(data);
    memchr::memmem::find(head, format!("\"{kind}\"").as_bytes()).is_some()
}

/// Whether an event carries something of the answer, rather than news about its making.
fn is_output(event: &Value, kind: &str) -> bool {
    if let Some(choices) = event["choices"].as_array() {
        return choices.iter().any(|choice| {
            [&choice["delta"], &choice["message"]].into_iter().any(says_something)
                || says(&choice["text"])
                || choice["finish_reason"].is_string()
        });
    }
    match kind {
        // of no shape that is known: whatever it is, the caller gets something
        "" => event.as_object().is_none_or(|members| members.keys().any(|name| name != "id")),
        "ping" | "message_start" | "response.created" | "response.queued" | "response.in_progress" => false,
        "content_block_start" => event["content_block"]["type"] == "tool_use",
        "response.output_item.added" => event["item"]["type"] == "function_call",
        "response.content_part.added" | "response.reasoning_summary_part.added" => false,
        "content_block_delta" => event["delta"]
            .as_object()
            .is_some_and(|delta| delta.iter().any(|(name, value)| name != "type" && says(value))),
        kind if kind.ends_with(".delta") => says(&event["delta"]),
        _ => true,
    }
}

/// Whether any member of a delta but its role is more than empty.
fn says_something(delta: &Value) -> bool {
    delta.as_object().is_some_and(|delta| delta.iter().any(|(name, value)| name != "role" && says(value)))
}

fn says(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

#[cfg(test)]
impl Sse {
    pub(super) fn kept(&self) -> usize {
        self.line.capacity() + self.event.capacity()
    }
}
