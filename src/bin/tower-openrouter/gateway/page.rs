//! The live page: `/` and the files it needs. It holds no data; that comes from `/events`, which asks who is there.
//!
//! Nothing of it comes from elsewhere, and its policy lets nothing else in: no inline script or style, no other site, no
//! markup made from text.

use axum::{Router, body::Body, extract::State, routing::get};
use bytes::Bytes;
use http::{
    HeaderValue, Response,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS,
    },
};

use super::{admin::Admin, live::Live};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const SCRIPTS: [(&str, &str); 4] = [
    ("/page.js", include_str!("page/page.js")),
    ("/draw.js", include_str!("page/draw.js")),
    ("/rests.js", include_str!("page/rests.js")),
    ("/requests.js", include_str!("page/requests.js")),
];

/// What the page says of itself; the other is said where a token is asked for, so that it need not ask in vain.
const NO_TOKEN: &str = "data-token=\"none\"";
const TOKEN: &str = "data-token=\"asked\"";

/// The page's files.
pub(super) fn routes() -> Router<Live<Admin>> {
    let css = async || file(Bytes::from_static(CSS.as_bytes()), "text/css; charset=utf-8");
    let router = Router::new().route("/", get(page)).route("/page.css", get(css));
    SCRIPTS.into_iter().fold(router, |router, (path, text)| {
        let js = async move || file(Bytes::from_static(text.as_bytes()), "text/javascript; charset=utf-8");
        router.route(path, get(js))
    })
}

async fn page(State(admin): State<Live<Admin>>) -> Response<Body> {
    let text = match admin.now().access.0 {
        None => Bytes::from_static(HTML.as_bytes()),
        Some(_) => HTML.replacen(NO_TOKEN, TOKEN, 1).into(),
    };
    file(text, "text/html; charset=utf-8")
}

fn file(text: Bytes, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // the next version of the gateway has another page
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
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
        let scripts = SCRIPTS.map(|(_, text)| text);
        assert!(HTML.len() + CSS.len() + scripts.map(str::len).iter().sum::<usize>() < 100_000);
        for text in [HTML, CSS].into_iter().chain(scripts) {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"));
            for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(markup), "{markup} makes markup or script of text");
            }
        }
        assert_eq!(HTML.matches(NO_TOKEN).count(), 1);
        assert!(!HTML.contains("style=") && !HTML.contains("onclick") && !HTML.contains("<style"));
    }
}
