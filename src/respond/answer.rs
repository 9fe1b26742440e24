//! What a refusal or an error is as an answer: the table, and its two forms.

use std::{error::Error, fmt::Write, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use serde::Serialize;

use crate::error::{Rejected, UpstreamError, UpstreamErrorKind, Why, whole_seconds};

/// In which form an answer is given, decided by the layer and, for HTTP, by the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// OpenRouter's shape, which extends OpenAI's.
    Http,
    /// Anthropic's, for paths that end with `/messages`.
    Messages,
    /// A response of trailers only.
    Grpc,
}

/// An answer before it has a form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: StatusCode,
    /// Ours to name, so it holds nothing that another's error text might.
    reason: &'static str,
    message: String,
    /// When to come back, where that helps.
    retry_after: Option<Duration>,
}

/// When to come back when nobody knows.
const SOON: Duration = Duration::from_secs(1);

impl Answer {
    /// The answer that `error` amounts to. Only errors of our own are quoted; any other could hold a secret.
    pub(super) fn to(error: &(dyn Error + 'static)) -> Self {
        if let Some(refusal) = Rejected::find(error) {
            let (status, retryable) = match refusal.why() {
                Why::NoKey | Why::QueueFull | Why::LimitReached => (StatusCode::TOO_MANY_REQUESTS, true),
                Why::BreakerOpen | Why::Overloaded | Why::Draining => (StatusCode::SERVICE_UNAVAILABLE, true),
                Why::NoRoute => (StatusCode::NOT_FOUND, false),
                Why::Deadline => (StatusCode::GATEWAY_TIMEOUT, false),
                Why::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, false),
                Why::BodyBroken => (StatusCode::BAD_REQUEST, false),
            };
            return Self {
                status,
                reason: refusal.why().as_str(),
                message: refusal.to_string(),
                retry_after: retryable.then(|| refusal.after().unwrap_or(SOON)),
            };
        }
        let (status, reason, message) = match UpstreamError::find(error) {
            Some(error) => {
                let (status, reason) = match error.kind() {
                    UpstreamErrorKind::Connect => (StatusCode::BAD_GATEWAY, "connect"),
                    UpstreamErrorKind::Reset => (StatusCode::BAD_GATEWAY, "reset"),
                    UpstreamErrorKind::HeadersTimeout => (StatusCode::GATEWAY_TIMEOUT, "headers_timeout"),
                    UpstreamErrorKind::FirstOutputTimeout => (StatusCode::GATEWAY_TIMEOUT, "first_output_timeout"),
                    UpstreamErrorKind::GapTimeout => (StatusCode::GATEWAY_TIMEOUT, "gap_timeout"),
                    UpstreamErrorKind::TotalTimeout => (StatusCode::GATEWAY_TIMEOUT, "total_timeout"),
                };
                (status, reason, error.to_string())
            }
            None => (StatusCode::BAD_GATEWAY, "unknown", "the request could not be served".to_owned()),
        };
        Self { status, reason, message, retry_after: None }
    }

    pub(super) fn into_response<B>(self, form: Form) -> Response<Either<B, Full<Bytes>>> {
        tracing::debug!(status = self.status.as_u16(), reason = self.reason, "answered in place of the upstream");
        match form {
            Form::Http | Form::Messages => self.http(form),
            Form::Grpc => self.grpc(),
        }
    }

    fn http<B>(self, form: Form) -> Response<Either<B, Full<Bytes>>> {
        let seconds = self.retry_after.map(whole_seconds);
        let metadata = Metadata {
            error_type: self.error_type(),
            limit_source: (self.status == StatusCode::TOO_MANY_REQUESTS).then_some("balancer"),
            reason: self.reason,
            retry_after_seconds: seconds,
        };
        let message = &*self.message;
        let body = match form {
            Form::Messages => serde_json::to_vec(&Messages {
                kind: "error",
                error: MessagesError { kind: self.messages_type(), message },
                request_id: None,
                metadata,
            }),
            _ => serde_json::to_vec(&OpenRouter {
                error: OpenRouterError { code: self.status.as_u16(), message, metadata },
            }),
        };
        // strings and numbers always serialise
        let mut response = Response::new(Either::Right(Full::from(body.unwrap_or_default())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }

    fn grpc<B>(self) -> Response<Either<B, Full<Bytes>>> {
        const STATUS: HeaderName = HeaderName::from_static("grpc-status");
        const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
        const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

        let mut response = Response::new(Either::Right(Full::default()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(STATUS, HeaderValue::from_static(self.grpc_status()));
        if let Ok(message) = percent_encoded(&self.message).try_into() {
            headers.insert(MESSAGE, message);
        }
        if let Some(span) = self.retry_after {
            // rounded up, as the seconds are
            let millis = u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            headers.insert(PUSHBACK, millis.max(1).into());
        }
        response
    }

    /// OpenRouter's word for it.
    fn error_type(&self) -> &'static str {
        match self.status.as_u16() {
            400 => "invalid_request",
            404 => "not_found",
            413 => "payload_too_large",
            429 => "rate_limit_exceeded",
            503 => "provider_overloaded",
            504 => "timeout",
            _ => "provider_unavailable",
        }
    }

    /// Anthropic's word for it.
    fn messages_type(&self) -> &'static str {
        match self.status.as_u16() {
            400 | 413 => "invalid_request_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            _ => "api_error",
        }
    }

    fn grpc_status(&self) -> &'static str {
        match self.status.as_u16() {
            400 | 413 => "3", // INVALID_ARGUMENT
            404 => "5",       // NOT_FOUND
            429 => "8",       // RESOURCE_EXHAUSTED
            504 => "4",       // DEADLINE_EXCEEDED
            _ => "14",        // UNAVAILABLE
        }
    }
}

#[derive(Serialize)]
struct OpenRouter<'a> {
    error: OpenRouterError<'a>,
}

#[derive(Serialize)]
struct OpenRouterError<'a> {
    code: u16,
    message: &'a str,
    metadata: Metadata,
}

#[derive(Serialize)]
struct Messages<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: MessagesError<'a>,
    request_id: Option<&'static str>,
    metadata: Metadata,
}

#[derive(Serialize)]
struct MessagesError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct Metadata {
    error_type: &'static str,
    /// Whose limit it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_source: Option<&'static str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
}

/// As gRPC wants its messages: printable ASCII but `%`, all else by its bytes.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => {
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(byte.into()),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn r110_every_refusal_has_its_answer() {
        for (why, status, retry, grpc, messages) in [
            (Why::NoKey, 429, true, "8", "rate_limit_error"),
            (Why::QueueFull, 429, true, "8", "rate_limit_error"),
            (Why::NoRoute, 404, false, "5", "not_found_error"),
            (Why::LimitReached, 429, true, "8", "rate_limit_error"),
            (Why::BreakerOpen, 503, true, "14", "overloaded_error"),
            (Why::Deadline, 504, false, "4", "timeout_error"),
            (Why::BodyTooLarge, 413, false, "3", "invalid_request_error"),
            (Why::BodyBroken, 400, false, "3", "invalid_request_error"),
            (Why::Overloaded, 503, true, "14", "overloaded_error"),
            (Why::Draining, 503, true, "14", "overloaded_error"),
        ] {
            let answer = Answer::to(&Rejected::new(why, "no"));
            assert_eq!((answer.status.as_u16(), answer.retry_after), (status, retry.then_some(SOON)), "{why:?}");
            assert_eq!((answer.grpc_status(), answer.messages_type()), (grpc, messages), "{why:?}");
            assert_eq!(answer.reason, why.as_str());
        }
        for (kind, status, grpc) in [
            (UpstreamErrorKind::Connect, 502, "14"),
            (UpstreamErrorKind::Reset, 502, "14"),
            (UpstreamErrorKind::HeadersTimeout, 504, "4"),
            (UpstreamErrorKind::FirstOutputTimeout, 504, "4"),
            (UpstreamErrorKind::GapTimeout, 504, "4"),
            (UpstreamErrorKind::TotalTimeout, 504, "4"),
        ] {
            let answer = Answer::to(&UpstreamError::new(kind, None));
            assert_eq!((answer.status.as_u16(), answer.grpc_status(), answer.retry_after), (status, grpc, None));
        }
    }

    proptest! {
        #[test]
        fn an_encoded_message_is_a_header_and_decodes_to_itself(message in any::<String>()) {
            let encoded = percent_encoded(&message);
            prop_assert!(HeaderValue::try_from(&encoded).is_ok());
            let mut bytes = encoded.bytes();
            let mut decoded = Vec::new();
            while let Some(byte) = bytes.next() {
                decoded.push(match byte {
                    b'%' => {
                        let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                        u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                    }
                    byte => byte,
                });
            }
            prop_assert_eq!(decoded, message.into_bytes());
        }
    }
}
