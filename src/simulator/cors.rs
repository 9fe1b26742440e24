//! What browsers are told of who may ask, and what they may read.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method};

/// Whether a browser asks for a page of another origin.
pub(super) fn is_cross_origin(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
}

/// Whether it only asks whether it may, which needs no key.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && is_cross_origin(headers) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// That it may, and with which headers. `X-OpenRouter-Metadata` is not one of them.
pub(super) fn preflight() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET,POST,PATCH,DELETE,OPTIONS"));
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "Authorization,Content-Type,HTTP-Referer,X-Title,X-OpenRouter-Title,X-OpenRouter-Categories,x-api-key,\
             anthropic-version,anthropic-beta,x-session-id,Idempotency-Key",
        ),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    headers
}

/// Any page may read the answer, and of its headers these; not `Retry-After`, nor the limits.
pub(super) fn open(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("X-Generation-Id,X-Provider-Name,request-id,cf-ray"),
    );
}
