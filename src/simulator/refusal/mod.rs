//! An error answer before it has a wire form.
//!
//! The same refusal is spelled differently by endpoint (`/messages` has Anthropic's envelope) and by age
//! (legacy bodies lack members). So checks produce a [`Refusal`], and only [`Refusal::answer`] knows forms.

mod catalogue;
mod reasons;

pub(super) use catalogue::*;
pub(super) use reasons::{Struck, of_reason};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::request::Dialect;
use super::scenario::Wire;
use super::service::Reference;

/// A status with everything a body or header may say about it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
    pub(super) error_type: Option<&'static str>,
    pub(super) metadata: Map<String, Value>,
    /// `X-RateLimit-Limit` and `-Reset`; `-Remaining` is always 0.
    pub(super) quota: Option<(u64, i64)>,
    /// Whether of these only `-Remaining` is sent.
    pub(super) silent: bool,
    pub(super) retry_after: Option<u64>,
    /// Whether providers were tried, which gives the request an id.
    pub(super) routed: bool,
    /// A body that replaces the API form altogether, with its content type.
    pub(super) verbatim: Option<Box<(String, Bytes)>>,
}

impl Refusal {
    pub(super) fn new(status: u16, error_type: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            error_type: Some(error_type),
            metadata: Map::new(),
            quota: None,
            silent: false,
            retry_after: None,
            routed: false,
            verbatim: None,
        }
    }

    pub(super) fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(member.to_owned(), value.into());
        self
    }

    pub(super) fn limited_by(self, source: &str, remedy: &str) -> Self {
        self.with("limit_source", source).with("remedy_hint", remedy)
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(super) fn routed(mut self) -> Self {
        self.routed = true;
        self
    }

    /// The headers that say what quota was met, if one was.
    pub(super) fn rate_limit(&self) -> impl Iterator<Item = (&'static str, String)> {
        let told = self.quota.filter(|_| !self.silent);
        [
            ("X-RateLimit-Limit", told.map(|(limit, _)| limit.to_string())),
            ("X-RateLimit-Remaining", self.quota.map(|_| "0".to_owned())),
            ("X-RateLimit-Reset", told.map(|(_, reset)| reset.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// The `metadata` member under the wire's switches; empty when none is left.
    pub(super) fn visible_metadata(&self, wire: &Wire) -> Map<String, Value> {
        let mut metadata = self.metadata.clone();
        if self.quota.is_some() {
            let headers: Map<_, _> = self.rate_limit().map(|(name, value)| (name.to_owned(), value.into())).collect();
            metadata.insert("headers".to_owned(), headers.into());
        }
        if wire.legacy_bodies {
            for member in ["limit_source", "reason", "remedy_hint"] {
                metadata.remove(member);
            }
        }
        if wire.legacy_bodies || wire.omit_hints {
            metadata.remove("retry_after_seconds");
            metadata.remove("retry_after_seconds_raw");
        }
        if wire.omit_hints && self.quota.is_none() {
            metadata.remove("headers");
        }
        // Captured 401 bodies have no metadata at all, and old bodies had no types.
        let typed = self.status != 401 && !wire.omit_error_type && !wire.legacy_bodies;
        if let Some(kind) = self.error_type.filter(|_| typed) {
            metadata.insert("error_type".to_owned(), kind.into());
        }
        metadata
    }

    /// The answer's body and content type.
    pub(super) fn body(&self, wire: &Wire, reference: &Reference, owner: Option<&str>) -> (String, Bytes) {
        if let Some((content_type, bytes)) = self.verbatim.as_deref() {
            return (content_type.clone(), bytes.clone());
        }
        let metadata = self.visible_metadata(wire);
        let mut body = if reference.dialect == Dialect::Messages {
            let mut error = json!({"type": anthropic_name(self.status), "message": self.message});
            let mut metadata = metadata;
            if let Some(kind) = metadata.remove("error_type") {
                error["error_type"] = kind;
            }
            let id = reference.generation.as_deref().filter(|_| self.routed);
            let mut body = json!({"type": "error", "error": error, "request_id": id});
            if !metadata.is_empty() {
                body["metadata"] = metadata.into();
            }
            body
        } else {
            let mut error = json!({"code": self.status, "message": self.message});
            if !metadata.is_empty() {
                error["metadata"] = metadata.into();
            }
            let mut body = json!({"error": error});
            if let Some(owner) = owner {
                body["user_id"] = owner.into();
            }
            body
        };
        if let Some(routing) = reference.routing.as_ref().filter(|_| self.status != 500) {
            body["openrouter_metadata"] = routing.clone();
        }
        ("application/json".to_owned(), Bytes::from(body.to_string()))
    }
}

/// `error.type` of `/messages` for a status.
pub(super) const fn anthropic_name(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 | 524 => "timeout_error",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// The canonical `error_type` and message of a status.
pub(super) const fn canonical(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("invalid_request", "Invalid request parameters"),
        401 => ("authentication", "User not found."),
        402 => ("payment_required", "Insufficient credits. Add more using https://openrouter.ai/credits"),
        403 => ("permission_denied", "Access denied"),
        404 => ("not_found", "Resource not found"),
        408 => ("timeout", "Request timed out. Please try again later."),
        412 => ("precondition_failed", "Precondition failed"),
        413 => ("payload_too_large", "Request payload exceeds size limits"),
        422 => ("unprocessable", "Unable to process request"),
        429 => ("rate_limit_exceeded", "Rate limit exceeded"),
        500 => ("server", "Internal Server Error"),
        502 => ("provider_unavailable", "Provider returned error"),
        503 => ("provider_overloaded", "Service temporarily unavailable"),
        504 | 524 => ("timeout", "Request timed out. Please try again later."),
        529 => ("provider_overloaded", "Provider is temporarily overloaded"),
        _ => ("unmapped", "Request failed"),
    }
}
