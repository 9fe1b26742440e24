//! An error as the caller is told it: status, message and hint, in the shape of the endpoint that was asked.
//!
//! Each endpoint of the API spells errors in a way of its own, and once a stream has begun there is no status left to set:
//! what went wrong must come as one more event, which clients read as strictly as any other. Two stages have to say such
//! things, the one that ends a stack and the one that keeps slow streams alive, and so has a server that shuts down; so the
//! table from errors to answers and the shapes are here, for all of them.
//!
//! What the events hold is what real clients accept: OpenAI's raise where a member `error` is, OpenRouter's own want whole
//! chunks with a number for a code, Anthropic's an event named `error`.
//!
//! ```
//! use http::StatusCode;
//! use tower_openrouter::answer::{ErrorAnswer, Shape};
//!
//! let answer = ErrorAnswer::new(StatusCode::SERVICE_UNAVAILABLE, "we are closing");
//! let event = answer.event(Shape::of_path("/v1/messages"));
//! assert!(event.starts_with(b"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\""));
//! assert!(event.ends_with(b"}\n\n"));
//! ```

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Rejected, UpstreamError, UpstreamErrorKind, Why, whole_seconds};

/// How an endpoint spells errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shape {
    /// `/chat/completions`, and every endpoint that has no shape of its own.
    Chat,
    /// `/completions`, whose chunks hold text in place of deltas.
    Completions,
    /// `/responses`, whose streams have an error event of their own.
    Responses,
    /// `/messages`: Anthropic's.
    Messages,
}

impl Shape {
    /// The shape of the endpoint at `path`, wherever its root may be: `/v1`, `/api/v1/presets/mine` or none.
    pub fn of_path(path: &str) -> Self {
        // what nearly everyone asks for
        if path.ends_with("/chat/completions") {
            return Self::Chat;
        }
        let mut segments = path.rsplit('/');
        while let Some(segment) = segments.next() {
            match segment {
                "completions" if segments.next() == Some("chat") => return Self::Chat,
                "completions" => return Self::Completions,
                "responses" => return Self::Responses,
                "messages" => return Self::Messages,
                _ => {}
            }
        }
        Self::Chat
    }
}

/// An error, before it has a shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorAnswer {
    status: StatusCode,
    message: String,
    /// Ours to name, so it holds nothing that another's error text might.
    reason: Option<&'static str>,
    retry_after: Option<Duration>,
    /// What the upstream said beside the message.
    metadata: Option<serde_json::Map<String, Value>>,
}

/// When to come back when nobody knows.
const SOON: Duration = Duration::from_secs(1);

impl ErrorAnswer {
    /// An error with this status; the message must hold no secret.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), reason: None, retry_after: None, metadata: None }
    }

    /// What `error` amounts to, by the table in [`respond`](crate::respond). Only errors of our own are quoted; any other
    /// could hold a secret.
    pub fn to(error: &(dyn Error + 'static)) -> Self {
        if let Some(refusal) = Rejected::find(error) {
            let (status, retryable) = match refusal.why() {
                Why::NoKey | Why::QueueFull | Why::LimitReached => (StatusCode::TOO_MANY_REQUESTS, true),
                Why::BreakerOpen | Why::Overloaded | Why::Draining => (StatusCode::SERVICE_UNAVAILABLE, true),
                Why::NoRoute => (StatusCode::NOT_FOUND, false),
                Why::Deadline => (StatusCode::GATEWAY_TIMEOUT, false),
                Why::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, false),
                Why::BodyBroken => (StatusCode::BAD_REQUEST, false),
                Why::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, false),
            };
            let mut answer = Self::new(status, refusal.to_string()).reason(refusal.why().as_str());
            answer.retry_after = retryable.then(|| refusal.after().unwrap_or(SOON));
            return answer;
        }
        match UpstreamError::find(error) {
            Some(error) => {
                let (status, reason) = match error.kind() {
                    UpstreamErrorKind::Connect => (StatusCode::BAD_GATEWAY, "connect"),
                    UpstreamErrorKind::Reset => (StatusCode::BAD_GATEWAY, "reset"),
                    UpstreamErrorKind::HeadersTimeout => (StatusCode::GATEWAY_TIMEOUT, "headers_timeout"),
                    UpstreamErrorKind::FirstOutputTimeout => (StatusCode::GATEWAY_TIMEOUT, "first_output_timeout"),
                    UpstreamErrorKind::GapTimeout => (StatusCode::GATEWAY_TIMEOUT, "gap_timeout"),
                    UpstreamErrorKind::TotalTimeout => (StatusCode::GATEWAY_TIMEOUT, "total_timeout"),
                    UpstreamErrorKind::Truncated => (StatusCode::BAD_GATEWAY, "truncated"),
                };
                Self::new(status, error.to_string()).reason(reason)
            }
            None => Self::new(StatusCode::BAD_GATEWAY, "the request could not be served").reason("unknown"),
        }
    }

    /// An error answer of the upstream's, to be told again in another place: its message and metadata, from whichever of
    /// the API's shapes `body` has. Where it has none, the status has to speak.
    pub fn relayed(status: StatusCode, body: &[u8]) -> Self {
        let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let metadata = [&document["error"]["metadata"], &document["metadata"]].into_iter().find_map(Value::as_object);
        let error = &document["error"];
        let message = error["message"].as_str().or_else(|| error.as_str()).filter(|message| !message.is_empty());
        let message = message.map_or_else(|| format!("the upstream answered with {}", status.as_str()), str::to_owned);
        Self { metadata: metadata.cloned(), ..Self::new(status, message) }
    }

    /// The same with the reason's name, as machines should read it.
    #[must_use]
    pub fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, in a sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// When to come back, where that helps.
    pub fn after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The reason's name, where there is one.
    pub(crate) fn reason_name(&self) -> &'static str {
        self.reason.unwrap_or("unknown")
    }

    /// The JSON body of an answer with this error and its status.
    pub fn body(&self, shape: Shape) -> Bytes {
        match shape {
            Shape::Messages => json_of(&self.messages()),
            _ => json_of(&Plain { error: self.error() }),
        }
        .into()
    }

    /// The error as one server-sent event, with the empty line that ends it: all that is left to say once a stream has
    /// begun.
    pub fn event(&self, shape: Shape) -> Bytes {
        let (name, document) = match shape {
            Shape::Chat | Shape::Completions => ("", json_of(&self.chunk(shape))),
            Shape::Responses => ("event: error\n", json_of(&self.responses())),
            Shape::Messages => ("event: error\n", json_of(&self.messages())),
        };
        [name.as_bytes(), b"data: ", &document, b"\n\n"].concat().into()
    }

    fn error(&self) -> PlainError<'_> {
        PlainError { code: self.status.as_u16(), message: &self.message, metadata: self.metadata() }
    }

    fn metadata(&self) -> Metadata<'_> {
        let own = |name: &str| self.metadata.as_ref().is_none_or(|metadata| !metadata.contains_key(name));
        Metadata {
            error_type: own("error_type").then(|| self.error_type()),
            // an answer of the upstream's has said so itself
            limit_source: (self.status == StatusCode::TOO_MANY_REQUESTS && self.reason.is_some()).then_some("balancer"),
            reason: self.reason,
            retry_after_seconds: self.retry_after.map(whole_seconds),
            upstream: self.metadata.as_ref(),
        }
    }

    /// A whole chunk: OpenRouter's own clients refuse less. Whose answer it belongs to is not known here.
    fn chunk(&self, shape: Shape) -> Chunk<'_> {
        let (object, text, delta) = match shape {
            Shape::Completions => ("text_completion", Some(""), None),
            _ => ("chat.completion.chunk", None, Some(Delta { role: "assistant", content: "" })),
        };
        let choice = Choice { index: 0, text, delta, finish_reason: "error", native_finish_reason: "error" };
        Chunk { id: "", object, created: 0, model: "", error: self.error(), choices: [choice] }
    }

    /// Both ways in which clients know this event: the documented one with all at the top, and with a member `error`, without
    /// which OpenAI's do not raise.
    fn responses(&self) -> Value {
        let code = match self.status.as_u16() {
            500.. => "server_error",
            _ => self.error_type(),
        };
        json!({
            "type": "error",
            // that of the last event is not known: greater than any
            "sequence_number": i32::MAX,
            "code": code,
            "message": self.message,
            "param": null,
            "error": {
                "type": self.error_type(), "code": code, "message": self.message, "param": null,
                "metadata": self.metadata(),
            },
        })
    }

    fn messages(&self) -> Messages<'_> {
        let error = MessagesError { kind: self.messages_type(), message: &self.message };
        Messages { kind: "error", error, request_id: None, metadata: self.metadata() }
    }

    /// OpenRouter's word for it.
    fn error_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication",
            402 => "payment_required",
            403 => "permission_denied",
            404 => "not_found",
            408 | 504 | 524 => "timeout",
            412 => "precondition_failed",
            413 => "payload_too_large",
            422 => "unprocessable",
            429 => "rate_limit_exceeded",
            500 => "server",
            503 | 529 => "provider_overloaded",
            ..500 => "invalid_request",
            _ => "provider_unavailable",
        }
    }

    /// Anthropic's word for it.
    fn messages_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            408 | 504 | 524 => "timeout_error",
            429 => "rate_limit_error",
            503 | 529 => "overloaded_error",
            ..500 => "invalid_request_error",
            _ => "api_error",
        }
    }
}

/// Strings, numbers and maps with string keys always serialise.
fn json_of(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}

#[derive(Serialize)]
struct Plain<'a> {
    error: PlainError<'a>,
}

#[derive(Serialize)]
struct PlainError<'a> {
    code: u16,
    message: &'a str,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'static str,
    object: &'static str,
    created: u32,
    model: &'static str,
    error: PlainError<'a>,
    choices: [Choice; 1],
}

#[derive(Serialize)]
struct Choice {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta>,
    finish_reason: &'static str,
    native_finish_reason: &'static str,
}

#[derive(Serialize)]
struct Delta {
    role: &'static str,
    content: &'static str,
}

#[derive(Serialize)]
struct Messages<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: MessagesError<'a>,
    request_id: Option<&'static str>,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct MessagesError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error_type: Option<&'static str>,
    /// Whose limit it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
    #[serde(flatten)]
    upstream: Option<&'a serde_json::Map<String, Value>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_shape() {
        for (path, shape) in [
            ("/v1/chat/completions", Shape::Chat),
            ("/api/v1/completions", Shape::Completions),
            ("/v1/messages", Shape::Messages),
            ("/api/v1/messages/count_tokens", Shape::Messages),
            ("/messages", Shape::Messages),
            ("/v1/responses", Shape::Responses),
            ("/v1/responses/resp_1/cancel", Shape::Responses),
            ("/v1/presets/messages/chat/completions", Shape::Chat),
            ("/v1/presets/chat/responses", Shape::Responses),
            ("/v1/embeddings", Shape::Chat),
            ("/v1/my-messages", Shape::Chat),
            ("/", Shape::Chat),
            ("", Shape::Chat),
        ] {
            assert_eq!(Shape::of_path(path), shape, "{path}");
        }
    }

    /// The document of an event, and its name.
    fn read(event: &[u8]) -> (Option<String>, Value) {
        let text = std::str::from_utf8(event).unwrap();
        let lines: Vec<_> = text.strip_suffix("\n\n").unwrap().split('\n').collect();
        let (last, names) = lines.split_last().unwrap();
        let name = names.first().map(|line| line.strip_prefix("event: ").unwrap().to_owned());
        (name, serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap())
    }

    #[test]
    fn an_event_has_the_shape_that_its_endpoints_clients_accept() {
        let answer = ErrorAnswer::to(&Rejected::new(Why::NoKey, "none\n\n").retry_after(Duration::from_millis(1500)));
        let metadata = json!({
            "error_type": "rate_limit_exceeded", "limit_source": "balancer", "reason": "no_key", "retry_after_seconds": 2,
        });
        let error = json!({"code": 429, "message": "none\n\n (try again in 2 s)", "metadata": metadata});
        let (name, chat) = read(&answer.event(Shape::Chat));
        assert_eq!((name, &chat["error"]), (None, &error));
        for required in ["id", "object", "created", "model", "choices"] {
            assert!(!chat[required].is_null(), "OpenRouter's own clients want {required}");
        }
        assert_eq!(chat["choices"][0]["finish_reason"], "error");
        assert_eq!(chat["choices"][0]["delta"]["content"], "");
        let (name, completions) = read(&answer.event(Shape::Completions));
        assert_eq!((name, &completions["error"], &completions["choices"][0]["text"]), (None, &error, &json!("")));
        let (name, responses) = read(&answer.event(Shape::Responses));
        assert_eq!(name.as_deref(), Some("error"));
        assert_eq!((&responses["type"], &responses["code"]), (&json!("error"), &json!("rate_limit_exceeded")));
        assert!(responses["sequence_number"].is_i64() && responses["message"].is_string());
        assert_eq!(responses["error"]["metadata"], metadata);
        let (name, messages) = read(&answer.event(Shape::Messages));
        assert_eq!(name.as_deref(), Some("error"));
        assert_eq!(messages["error"]["type"], "rate_limit_error");
        assert_eq!(messages["metadata"], metadata);
    }

    #[test]
    fn an_answer_of_the_upstreams_keeps_its_words() {
        let metadata = json!({"provider_name": "P", "raw": "full"});
        let kept = json!({"provider_name": "P", "raw": "full", "error_type": "rate_limit_exceeded"});
        let status = StatusCode::TOO_MANY_REQUESTS;
        for body in [
            json!({"error": {"code": 429, "message": "m", "metadata": metadata}, "user_id": "user_1"}),
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": "m"}, "metadata": metadata}),
        ] {
            let answer = ErrorAnswer::relayed(status, body.to_string().as_bytes());
            let (_, event) = read(&answer.event(Shape::Chat));
            assert_eq!(event["error"], json!({"code": 429, "message": "m", "metadata": kept}));
        }
        for body in ["", "<html>", "[]", "3", r#"{"error":3}"#, r#"{"error":{"message":""}}"#, r#"{"error":""}"#] {
            let answer = ErrorAnswer::relayed(status, body.as_bytes());
            assert_eq!(answer.message(), "the upstream answered with 429", "{body}");
        }
        assert_eq!(ErrorAnswer::relayed(status, br#"{"error":"m"}"#).message(), "m");
    }

    #[test]
    fn every_status_has_its_words() {
        for code in 400..=599 {
            let answer = ErrorAnswer::new(StatusCode::from_u16(code).unwrap(), "m");
            for shape in [Shape::Chat, Shape::Completions, Shape::Responses, Shape::Messages] {
                read(&answer.event(shape));
                let body: Value = serde_json::from_slice(&answer.body(shape)).unwrap();
                assert_eq!(body["error"]["message"], "m");
            }
        }
    }
}
