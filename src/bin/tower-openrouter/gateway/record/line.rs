//! The line of a request.

use serde::Serialize;

/// One request of a client. The lab reads what came in; what became of it stands there for people.
#[derive(Debug, Default, Serialize)]
pub(super) struct Line {
    /// When its head had come, milliseconds since 1970.
    pub(super) at_ms: u64,
    pub(super) model: Option<Box<str>>,
    pub(super) request_bytes: Option<u64>,
    /// As the answer says, else a quarter of the bytes.
    pub(super) prompt_tokens: u64,
    pub(super) reply_tokens: Option<u64>,
    pub(super) max_tokens: Option<u64>,
    pub(super) stream: bool,
    pub(super) session: Option<String>,
    pub(super) priority: &'static str,
    /// What the client saw; nothing when it left before.
    pub(super) status: Option<u16>,
    /// `served` whole, `failed` with an error in its place, `broken` after the 200, or `left` by the client.
    pub(super) ending: &'static str,
    /// Why, when it was not served.
    pub(super) cause: Option<&'static str>,
    pub(super) attempts: u32,
    /// Whose answer it was.
    pub(super) key: Option<String>,
    /// From its arrival to the head, to the first output, and to the end.
    pub(super) head_ms: Option<u64>,
    pub(super) first_output_ms: Option<u64>,
    pub(super) end_ms: u64,
    /// US dollars.
    pub(super) cost: Option<f64>,
    /// So many requests that were over before this one are missing.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) lost_before: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
