//! An error body, whichever of the five shapes it has, brought to one form.
//!
//! Chat and most other endpoints wrap errors one way, `/messages` Anthropic's way with the metadata beside the error,
//! `/responses` a third way, validation a fourth, and the edge sends HTML. Older answers lack whole members. Nothing here
//! is required: a member that is missing or of an odd type just says nothing.

use std::time::SystemTime;

use serde_json::Value;

use super::{calendar, hints::Hints};

/// What kind of document came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Empty,
    Json,
    Html,
    Text,
}

/// What an error body says. Words to be compared are in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct ErrorBody {
    pub(super) kind: Kind,
    /// `error.code`, a number or a numeric string.
    pub(super) code: Option<u16>,
    /// The status that the error's names (`error_type`, `type`, `code` in words) stand for.
    pub(super) named: Option<u16>,
    pub(super) message: String,
    pub(super) limit_source: String,
    pub(super) reason: String,
    /// The routing step that left no provider.
    pub(super) step: String,
    /// Whether anything in it comes from an upstream provider.
    pub(super) upstream: bool,
    pub(super) byok: bool,
    /// Whether it repeats `X-RateLimit-*` headers.
    pub(super) rate_headers: bool,
    /// Whether a provider's own answer inside says 429 or 5xx.
    pub(super) capacity: bool,
    /// Whether the request itself named the providers it wants.
    pub(super) providers_requested: bool,
    /// How many providers were tried, where the caller opted in to be told.
    pub(super) attempt: Option<u64>,
    pub(super) resets_at: Option<SystemTime>,
    pub(super) hints: Hints,
    pub(super) account: Option<Box<str>>,
    pub(super) provider: Option<Box<str>>,
}

impl ErrorBody {
    /// Reads the body of an error status.
    pub(super) fn read(body: &[u8], now: SystemTime) -> Self {
        let text = body.trim_ascii();
        match text.first() {
            None => Self::default(),
            Some(b'<') => Self { kind: Kind::Html, ..Self::default() },
            Some(b'{' | b'[') => match serde_json::from_slice::<Value>(text) {
                Ok(document) => Self::of(&document, find_error(&document).unwrap_or(&document), now),
                // cut at our bound, most likely: still no page of the edge
                Err(_) => Self { kind: Kind::Json, ..Self::default() },
            },
            Some(_) => Self { kind: Kind::Text, message: lower(&String::from_utf8_lossy(text)), ..Self::default() },
        }
    }

    /// Reads `error`, which stands in `document`.
    pub(super) fn of(document: &Value, error: &Value, now: SystemTime) -> Self {
        let nothing = &Value::Null;
        let metadata = [&error["metadata"], &document["metadata"], &document["response"]["metadata"]]
            .into_iter()
            .find(|metadata| metadata.is_object())
            .unwrap_or(nothing);
        let provider = metadata["provider_name"].as_str().filter(|name| !name.is_empty());
        let mut hints = Hints::default();
        hints.add_metadata(metadata, now);
        hints.add_retry_after(&error["availability"]["retry_after"], now);
        let names = [
            &metadata["error_type"],
            &error["error_type"],
            &document["error_type"],
            &document["response"]["error_type"],
            &error["type"],
            &error["code"],
        ];
        let said = |name: &str| !metadata[name].is_null();
        Self {
            kind: Kind::Json,
            code: code(&error["code"]),
            named: names.into_iter().filter_map(Value::as_str).find_map(status_of),
            message: lower(error.as_str().or_else(|| error["message"].as_str()).unwrap_or_default()),
            limit_source: lower(metadata["limit_source"].as_str().unwrap_or_default()),
            reason: lower(metadata["reason"].as_str().unwrap_or_default()),
            step: failed_step(metadata),
            upstream: provider.is_some()
                || ["provider_code", "provider_error_code", "raw", "is_byok"].into_iter().any(said),
            byok: metadata["is_byok"].as_bool() == Some(true),
            rate_headers: metadata["headers"]
                .as_object()
                .is_some_and(|headers| headers.keys().any(|name| is_rate_header(name))),
            capacity: capacity(&metadata["raw"])
                || metadata["previous_errors"].as_array().is_some_and(|errors| errors.iter().any(capacity)),
            providers_requested: metadata["requested_providers"].as_array().is_some_and(|names| !names.is_empty()),
            attempt: [&document["openrouter_metadata"], &error["openrouter_metadata"]]
                .into_iter()
                .find_map(|metadata| metadata["attempt"].as_u64()),
            resets_at: metadata["resets_at"].as_str().and_then(calendar::parse_rfc3339),
            hints,
            account: document["user_id"].as_str().filter(|id| !id.is_empty() && id.len() <= 128).map(Into::into),
            provider: provider.map(Into::into),
        }
    }

    /// The status an error inside a 200 stands for: its code, else its name, else a failed provider.
    pub(super) fn status_in_band(&self) -> u16 {
        let code = self.code.filter(|code| (400..=599).contains(code));
        code.or(self.named).unwrap_or(502)
    }
}

/// The error in a document, in whichever place: top level, in a choice, in `/responses`' response, or the whole event.
pub(super) fn find_error(document: &Value) -> Option<&Value> {
    let present = |value: &&Value| value.is_object() || value.as_str().is_some_and(|text| !text.is_empty());
    let of_choice = || document["choices"].as_array()?.iter().map(|choice| &choice["error"]).find(present);
    Some(&document["error"])
        .filter(present)
        // a job that is asked about may tell why it failed
        .filter(|error| error.is_object() || document["status"].is_null())
        .or_else(of_choice)
        .or_else(|| Some(&document["response"]["error"]).filter(present))
        .or_else(|| {
            matches!(document["type"].as_str(), Some("error" | "response.error" | "response.failed"))
                .then_some(document)
        })
        .or_else(|| {
            let mut choices = document["choices"].as_array()?.iter();
            choices.find(|choice| choice["finish_reason"] == "error")
        })
}

pub(super) fn is_rate_header(name: &str) -> bool {
    name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-ratelimit-"))
}

fn lower(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

fn code(value: &Value) -> Option<u16> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        value => value.as_u64().and_then(|code| u16::try_from(code).ok()),
    }
}

/// Whether a provider's error, given as an object or as its text, says 429 or 5xx.
fn capacity(error: &Value) -> bool {
    if let Some(text) = error.as_str() {
        return serde_json::from_str::<Value>(text).is_ok_and(|inner| inner.is_object() && capacity(&inner));
    }
    [&error["code"], &error["status"], &error["error"]["code"], &error["error"]["status"]]
        .into_iter()
        .filter_map(code)
        .any(|code| code == 429 || (500..=599).contains(&code))
}

fn failed_step(metadata: &Value) -> String {
    let named = metadata["failed_routing_step"].as_str();
    let emptied = || {
        let steps = metadata["routing_funnel"].as_array()?;
        steps.iter().find(|step| step["endpoint_count"] == 0)?["step"].as_str()
    };
    lower(named.or_else(emptied).unwrap_or_default())
}

/// The status that goes with an error's name, in OpenRouter's words or Anthropic's.
fn status_of(name: &str) -> Option<u16> {
    Some(match name {
        "authentication" | "authentication_error" | "invalid_api_key" => 401,
        "payment_required" | "billing_error" | "insufficient_credits" | "insufficient_quota" => 402,
        "permission_denied" | "permission_error" | "content_policy_violation" | "refusal" | "content_filter" => 403,
        "not_found" | "not_found_error" | "image_not_found" => 404,
        "precondition_failed" => 412,
        "payload_too_large" | "request_too_large" => 413,
        "unprocessable" => 422,
        "rate_limit_exceeded" | "rate_limit_error" => 429,
        "server" | "unmapped" | "server_error" | "api_error" | "internal_server_error" => 500,
        "provider_unavailable" => 502,
        "provider_overloaded" | "overloaded_error" | "engine_overloaded" | "service_unavailable" => 503,
        "timeout" | "timeout_error" => 504,
        "context_length_exceeded" | "max_tokens_exceeded" | "token_limit_exceeded" | "string_too_long" => 400,
        "invalid_request" | "invalid_request_error" | "invalid_prompt" | "invalid_image" | "image_too_large" => 400,
        "image_too_small" | "unsupported_image_format" | "image_download_failed" => 400,
        _ => return None,
    })
}
