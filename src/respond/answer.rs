//! The two forms of an answer: HTTP, in the shape of the path, and gRPC.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{Either, Full};

use super::ToldBody;
use crate::{
    answer::{ErrorAnswer, Shape},
    error::{UpstreamError, UpstreamErrorKind, whole_seconds},
    outcome::{Cause, Outcome, OutcomeCell},
};

/// In which form an answer is given, decided by the layer and, for HTTP, by the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Http(Shape),
    /// A response of trailers only.
    Grpc,
}

impl Form {
    /// An answer of the inner service's, whose body may still fail.
    pub(super) fn pass<B>(self, mut response: Response<B>) -> Response<Either<ToldBody<B>, Full<Bytes>>> {
        let body = match self {
            Self::Http(shape) if is_plain_event_stream(response.headers()) => {
                // an event more may come than its length says
                response.headers_mut().remove(header::CONTENT_LENGTH);
                response.map(|body| ToldBody::events(body, shape))
            }
            Self::Http(_) | Self::Grpc => response.map(ToldBody::untouched),
        };
        body.map(Either::Left)
    }

    /// What an answer failed with before it said anything, where its head can still be taken back.
    pub(super) fn unsaid<B: Body>(self, response: &Response<B>) -> Option<UpstreamError> {
        let Outcome::Fault(fault) = response.extensions().get::<OutcomeCell>()?.at_commit()? else { return None };
        let kind = match fault.cause {
            Cause::Truncated => UpstreamErrorKind::Truncated,
            Cause::FirstOutputTimeout => UpstreamErrorKind::FirstOutputTimeout,
            Cause::GapTimeout => UpstreamErrorKind::GapTimeout,
            Cause::Timeout => UpstreamErrorKind::TotalTimeout,
            _ => return None,
        };
        // one that came to its end is passed on as it is, since it has a length
        let fails = response.status() == StatusCode::OK && response.body().size_hint().exact().is_none();
        let is_plain = matches!(self, Self::Http(_)) && !is_plain_event_stream(response.headers());
        (fails && is_plain).then(|| UpstreamError::new(kind, None))
    }

    pub(super) fn answer<B>(self, answer: &ErrorAnswer) -> Response<Either<B, Full<Bytes>>> {
        let (status, reason) = (answer.status().as_u16(), answer.reason_name());
        tracing::debug!(status, reason, "answered in place of the upstream");
        match self {
            Self::Http(shape) => http(answer, shape),
            Self::Grpc => grpc(answer),
        }
    }
}

fn is_plain_event_stream(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..KIND.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
        && headers.get(header::CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity")
}

fn http<B>(answer: &ErrorAnswer, shape: Shape) -> Response<Either<B, Full<Bytes>>> {
    let mut response = Response::new(Either::Right(Full::from(answer.body(shape))));
    *response.status_mut() = answer.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(span) = answer.after() {
        headers.insert(header::RETRY_AFTER, whole_seconds(span).into());
    }
    response
}

fn grpc<B>(answer: &ErrorAnswer) -> Response<Either<B, Full<Bytes>>> {
    const STATUS: HeaderName = HeaderName::from_static("grpc-status");
    const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
    const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

    let mut response = Response::new(Either::Right(Full::default()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from_static(grpc_status(answer)));
    if let Ok(message) = percent_encoded(answer.message()).try_into() {
        headers.insert(MESSAGE, message);
    }
    if let Some(span) = answer.after() {
        // rounded up, as the seconds are
        let millis = u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        headers.insert(PUSHBACK, millis.max(1).into());
    }
    response
}

fn grpc_status(answer: &ErrorAnswer) -> &'static str {
    match answer.status().as_u16() {
        400 | 413 => "3", // INVALID_ARGUMENT
        404 => "5",       // NOT_FOUND
        429 => "8",       // RESOURCE_EXHAUSTED
        408 | 504 => "4", // DEADLINE_EXCEEDED
        _ => "14",        // UNAVAILABLE
    }
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
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::error::{Rejected, Why};

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
            (Why::BodyTooSlow, 408, false, "4", "timeout_error"),
            (Why::Overloaded, 503, true, "14", "overloaded_error"),
            (Why::Draining, 503, true, "14", "overloaded_error"),
        ] {
            let answer = ErrorAnswer::to(&Rejected::new(why, "no"));
            let soon = Duration::from_secs(1);
            assert_eq!((answer.status().as_u16(), answer.after()), (status, retry.then_some(soon)), "{why:?}");
            assert_eq!((grpc_status(&answer), answer.reason_name()), (grpc, why.as_str()), "{why:?}");
            let body: serde_json::Value = serde_json::from_slice(&answer.body(Shape::Messages)).unwrap();
            assert_eq!(body["error"]["type"], messages, "{why:?}");
        }
        for (kind, status, grpc) in [
            (UpstreamErrorKind::Connect, 502, "14"),
            (UpstreamErrorKind::Reset, 502, "14"),
            (UpstreamErrorKind::HeadersTimeout, 504, "4"),
            (UpstreamErrorKind::FirstOutputTimeout, 504, "4"),
            (UpstreamErrorKind::GapTimeout, 504, "4"),
            (UpstreamErrorKind::TotalTimeout, 504, "4"),
        ] {
            let answer = ErrorAnswer::to(&UpstreamError::new(kind, None));
            assert_eq!((answer.status().as_u16(), grpc_status(&answer), answer.after()), (status, grpc, None));
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
