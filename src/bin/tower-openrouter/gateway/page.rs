//! The live page: `/` and the two files it needs. It holds no data; that comes from `/events`, which asks who is there.
//!
//! Nothing of it comes from elsewhere, and its policy lets nothing else in: no inline script or style, no other site, no
//! markup made from text.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{
    HeaderValue, Response,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS,
    },
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");

/// Adds the page's files to a router.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .route("/", get(async || file(HTML, "text/html; charset=utf-8")))
        .route("/page.css", get(async || file(CSS, "text/css; charset=utf-8")))
        .route("/page.js", get(async || file(JS, "text/javascript; charset=utf-8")))
}

fn file(text: &'static str, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from_static(text.as_bytes())));
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // the next version of the gateway has another page
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_whole_by_itself() {
        assert!(HTML.len() + CSS.len() + JS.len() < 100_000);
        for text in [HTML, CSS, JS] {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://") && !elsewhere.contains("//cdn"));
        }
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
            assert!(!JS.contains(markup), "{markup} makes markup or script of text");
        }
        assert!(!HTML.contains("style=") && !HTML.contains("onclick") && !HTML.contains("<style"));
    }
}
