//! The gateway's own errors, in the shape that the client of each endpoint understands.

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use tower_openrouter::answer::{ErrorAnswer, Shape};

/// An answer that says what went wrong here.
pub(super) fn refuse(shape: Shape, status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(ErrorAnswer::new(status, message).body(shape)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The event that ends a stream early. The empty line before it ends whatever event was cut.
pub(super) fn last_event(shape: Shape, message: &str) -> Bytes {
    let event = ErrorAnswer::new(StatusCode::SERVICE_UNAVAILABLE, message).event(shape);
    [b"\n\n", &event[..]].concat().into()
}
