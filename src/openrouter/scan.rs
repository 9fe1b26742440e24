//! Watches the body of a 200 for what only the body can tell.
//!
//! OpenRouter sends 200 as soon as a provider accepts, before any token; a failure after that is a 200 whose body holds an
//! error, streaming or not. So the outcome of a 200 is made here while the body flows: the first real output commits it as
//! a success, an error before that is judged by its own code, one after it is a broken stream, and so is an end without
//! the end marker. Bytes pass untouched; what is kept of them is bounded; where they are cut makes no difference.
//!
//! A compressed body, and one that is neither JSON nor an event stream, is not looked into: its first bytes commit it.

use http::{
    StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    response::Parts,
};
use serde_json::Value;

use super::{
    body::End,
    classify::{Judged, in_band},
};
use crate::{
    body::{Ending, Guard},
    clock::WallClock,
    outcome::{Cause, Fault, Outcome, OutcomeCell, Retry, Scope},
    spans::Wanted,
};

mod json;
mod sse;
mod usage;

use json::Json;
use sse::Sse;

/// The most that is kept of a body, in bytes.
pub(super) const KEPT: usize = 64 * 1024;

/// The guard that watches a body and fills its [`OutcomeCell`].
#[derive(Debug)]
pub struct Scan {
    note: Note,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// No content type: the first bytes tell.
    Unknown(Option<u64>),
    /// Not looked into.
    Opaque,
    Json(Json),
    // boxed, so that plain answers need not carry its size
    Sse(Box<Sse>),
}

/// Where a scanner writes what it finds.
#[derive(Debug)]
pub(super) struct Note {
    cell: OutcomeCell,
    wall_clock: WallClock,
    committed: bool,
    ended: bool,
    /// Gone once it has been told which model answers.
    span: Wanted,
}

impl Scan {
    /// For a response with this head; `exact` is the length of its body where that is known.
    pub(super) fn new(cell: OutcomeCell, parts: &Parts, exact: Option<u64>, head: bool, wall_clock: WallClock) -> Self {
        let note = Note { cell, wall_clock, committed: false, ended: false, span: None };
        let bodiless = head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        let plain = parts.headers.get(CONTENT_ENCODING).is_none_or(|value| value == "identity");
        let mode = match parts.headers.get(CONTENT_TYPE).map(|value| value.as_bytes()) {
            _ if bodiless || !plain => Mode::Opaque,
            None => Mode::Unknown(exact),
            Some(kind) if is(kind, b"text/event-stream") => Mode::Sse(Box::default()),
            Some(kind) if is(kind, b"application/json") => Mode::Json(Json::new(exact)),
            Some(_) => Mode::Opaque,
        };
        Self { note, mode }
    }

    /// Has a span told which model answers.
    pub(super) fn tell(mut self, span: Wanted) -> Self {
        self.note.span = span;
        self
    }

    /// How the end of the body is to be taken.
    pub(super) fn end(&self) -> End {
        match &self.mode {
            Mode::Sse(_) => End::Marked(self.note.cell.clone()),
            Mode::Json(json) if !json.is_of_known_length() => End::Document(self.note.cell.clone(), false),
            Mode::Json(_) | Mode::Unknown(_) | Mode::Opaque => End::Any,
        }
    }
}

fn is(kind: &[u8], wanted: &[u8]) -> bool {
    kind.get(..wanted.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(wanted))
}

impl Guard for Scan {
    fn data(&mut self, chunk: &[u8]) {
        if self.note.ended || chunk.is_empty() {
            return;
        }
        if let Mode::Unknown(exact) = self.mode {
            self.mode = match chunk.trim_ascii_start() {
                [] => return,
                [b'{' | b'[', ..] => Mode::Json(Json::new(exact.filter(|exact| *exact == chunk.len() as u64))),
                text if text.starts_with(b"data:") || text.starts_with(b"event:") || text[0] == b':' => {
                    Mode::Sse(Box::default())
                }
                _ => Mode::Opaque,
            };
        }
        match &mut self.mode {
            Mode::Json(json) => json.data(chunk, &mut self.note),
            Mode::Sse(sse) => sse.data(chunk, &mut self.note),
            Mode::Opaque | Mode::Unknown(_) => self.note.output(),
        }
    }

    fn finish(mut self, ending: Ending) {
        let note = &mut self.note;
        match ending {
            Ending::Complete | Ending::HeadOnly => match self.mode {
                Mode::Json(json) => json.end(note),
                Mode::Sse(sse) => sse.end(note),
                Mode::Opaque | Mode::Unknown(_) => note.complete(),
            },
            Ending::Failed => {
                let begun = match &self.mode {
                    Mode::Json(json) => json.has_begun(),
                    Mode::Sse(_) | Mode::Opaque | Mode::Unknown(_) => false,
                };
                note.cut(begun, Retry::Unclear);
            }
            // the caller left: nothing is known, and nobody is to blame
            Ending::Dropped | Ending::FutureDropped | Ending::NoResponse => {}
        }
    }
}

impl Note {
    /// The answer has begun: this is a success as far as keys are concerned.
    fn output(&mut self) {
        if !self.committed {
            self.committed = true;
            self.cell.commit(Outcome::Success);
        }
    }

    /// The answer is complete.
    fn complete(&mut self) {
        self.end(Outcome::Success);
    }

    /// The body was over too early. `begun`: some of an answer had come, so the model has run.
    fn cut(&mut self, begun: bool, retry: Retry) {
        let retry = match (self.committed, begun) {
            (true, _) => Retry::Never,
            (false, true) => Retry::Unclear,
            (false, false) => retry,
        };
        self.end(Fault::new(Cause::Truncated, Scope::Pool).retry(retry).into());
    }

    /// Looks for an error in a document; notes it and says so, if there is one.
    fn error_in(&mut self, document: &Value) -> bool {
        let Some(Judged { outcome, account, provider, limit }) = in_band(document, (self.wall_clock)()) else {
            return false;
        };
        if let Some(account) = &account {
            self.cell.report_account(account);
        }
        if let Some(provider) = &provider {
            self.cell.report_provider(provider);
        }
        if let Some(limit) = limit {
            self.cell.report_limit(limit);
        }
        if self.committed {
            self.end(Fault::new(Cause::MidStream, Scope::Pool).into());
        } else {
            self.end(outcome);
        }
        true
    }

    fn end(&mut self, outcome: Outcome) {
        if !self.ended {
            self.ended = true;
            self.committed = true;
            self.cell.end(outcome);
        }
    }

    /// Tells who wants to know which model answers, once a document names it.
    fn model_in(&mut self, document: &[u8]) {
        if self.span.is_some()
            && let Some(model) = usage::model(document)
            && let Some(span) = self.span.take()
        {
            span.record("gen_ai.response.model", &*model);
        }
    }

    /// Notes the usage object in `document`, if there is one.
    fn usage_in(&self, document: &[u8]) {
        if let Some(usage) = usage::find(document) {
            self.cell.report_usage(usage);
        }
    }
}

#[cfg(test)]
mod tests;
