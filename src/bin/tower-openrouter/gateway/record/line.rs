//! The lines of a recording.

use serde::Serialize;

/// The first line of a recording. The times of the lines after it, up to the next such line, count from here.
#[derive(Debug, Serialize)]
pub(super) struct Head {
    /// The version of the form.
    pub(super) recording: u32,
    pub(super) date: String,
}

/// Some requests before this line are missing.
#[derive(Debug, Serialize)]
pub(super) struct Gap {
    pub(super) lost: u64,
    pub(super) at_ms: u64,
}

/// One request of a client.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    /// When its head had come.
    pub(super) at_ms: u64,
    pub(super) model: Option<Box<str>>,
    pub(super) request_bytes: Option<u64>,
    pub(super) prompt_tokens: Option<u64>,
    pub(super) reply_tokens: Option<u64>,
    pub(super) max_tokens: Option<u64>,
    pub(super) stream: bool,
    pub(super) session: Option<String>,
    pub(super) priority: &'static str,
    /// What the client saw; nothing when it left before.
    pub(super) status: Option<u16>,
    /// What went wrong; nothing when all went well.
    pub(super) cause: Option<&'static str>,
    pub(super) attempts: u32,
    /// Whose answer it was.
    pub(super) key: Option<String>,
    /// From its arrival to the head, to the first output, and to the end.
    pub(super) head_ms: Option<u64>,
    pub(super) first_output_ms: Option<u64>,
    pub(super) total_ms: u64,
}
