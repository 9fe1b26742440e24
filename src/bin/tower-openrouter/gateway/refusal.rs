//! The gateway's own errors, in the shape that the client of each endpoint understands.

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::json;

/// How an endpoint spells errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// OpenRouter's own, which is also OpenAI's.
    OpenRouter,
    /// `/responses`, whose streams have an error event of their own.
    Responses,
    /// `/messages`: Anthropic's.
    Messages,
}

impl Dialect {
    pub(super) fn of(path: &str) -> Self {
        let root = |root: &str| path.strip_prefix(root);
        let endpoint = root("/v1/").or_else(|| root("/api/v1/")).unwrap_or_default();
        match endpoint.split_once('/').map_or(endpoint, |(endpoint, _)| endpoint) {
            "messages" => Self::Messages,
            "responses" => Self::Responses,
            _ => Self::OpenRouter,
        }
    }

    /// An error body.
    fn body(self, status: StatusCode, message: &str) -> serde_json::Value {
        match self {
            Self::OpenRouter | Self::Responses => json!({"error": {"code": status.as_u16(), "message": message}}),
            Self::Messages => {
                let kind = match status.as_u16() {
                    401 => "authentication_error",
                    404 => "not_found_error",
                    400..500 => "invalid_request_error",
                    503 => "overloaded_error",
                    _ => "api_error",
                };
                json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": null})
            }
        }
    }

    /// An answer that says what went wrong here.
    pub(super) fn refuse(self, status: StatusCode, message: &str) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body(status, message).to_string()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// The event that ends a stream early. The empty line before it ends whatever event was cut.
    pub(super) fn last_event(self, message: &str) -> Bytes {
        let body = self.body(StatusCode::SERVICE_UNAVAILABLE, message);
        match self {
            Self::OpenRouter => format!("\n\ndata: {body}\n\n"),
            Self::Messages => format!("\n\nevent: error\ndata: {body}\n\n"),
            Self::Responses => {
                let body = json!({"type": "error", "code": "server_error", "message": message, "param": null});
                format!("\n\nevent: error\ndata: {body}\n\n")
            }
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_dialect() {
        for (path, dialect) in [
            ("/v1/messages", Dialect::Messages),
            ("/api/v1/messages/count_tokens", Dialect::Messages),
            ("/v1/responses", Dialect::Responses),
            ("/v1/chat/completions", Dialect::OpenRouter),
            ("/messages", Dialect::OpenRouter),
            ("", Dialect::OpenRouter),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }

    #[test]
    fn an_error_is_spelled_as_its_endpoint_spells_errors() {
        let of = |dialect: Dialect| dialect.body(StatusCode::UNAUTHORIZED, "no").to_string();
        assert_eq!(of(Dialect::OpenRouter), r#"{"error":{"code":401,"message":"no"}}"#);
        assert_eq!(
            of(Dialect::Messages),
            r#"{"error":{"message":"no","type":"authentication_error"},"request_id":null,"type":"error"}"#
        );
        let last = |dialect: Dialect| String::from_utf8(dialect.last_event("bye").to_vec()).unwrap();
        assert_eq!(last(Dialect::OpenRouter), "\n\ndata: {\"error\":{\"code\":503,\"message\":\"bye\"}}\n\n");
        assert!(last(Dialect::Messages).starts_with("\n\nevent: error\ndata: {\"error\":"));
        assert!(last(Dialect::Responses).contains("\"type\":\"error\""));
    }
}
