//! What happens to headers on their way to the upstream and back.

use http::{HeaderMap, HeaderName, HeaderValue, header::CONNECTION};
use smallvec::SmallVec;

/// The headers that say which app is asking, in the order of [`Found`]'s bits.
pub(super) const REFERER: HeaderName = HeaderName::from_static("http-referer");
pub(super) const TITLE: HeaderName = HeaderName::from_static("x-openrouter-title");
pub(super) const CATEGORIES: HeaderName = HeaderName::from_static("x-openrouter-categories");

/// What the app is called, for OpenRouter's rankings and for models that only serve known apps.
#[derive(Debug, Clone, Default)]
pub(super) struct Attribution {
    pub(super) referer: Option<HeaderValue>,
    pub(super) title: Option<HeaderValue>,
    pub(super) categories: Option<HeaderValue>,
}

/// Makes a caller's headers fit to send: connection-level ones go, attribution comes where the caller gave none. Tells
/// whether the caller asked for `openrouter_metadata`.
pub(super) fn prepare(headers: &mut HeaderMap, attribution: &Attribution) -> bool {
    let (mut referer, mut title, mut categories, mut metadata) = (false, false, false, false);
    // one pass over the names, rather than a look-up for each that might be there
    let (mut hops, mut host, mut expect) = (false, false, false);
    for (name, value) in headers.iter() {
        match name.as_str() {
            "http-referer" => referer = true,
            "x-openrouter-title" | "x-title" => title = true,
            "x-openrouter-categories" => categories = true,
            "x-openrouter-metadata" | "x-openrouter-experimental-metadata" => {
                metadata |= value.as_bytes().eq_ignore_ascii_case(b"enabled");
            }
            "host" => host = true,
            "expect" => expect = true,
            name => hops |= is_hop_by_hop(name),
        }
    }
    if hops {
        strip_hop_by_hop(headers);
    }
    if host {
        headers.remove(http::header::HOST);
    }
    if expect {
        // the upstream's interim answer would come too late to be of use
        headers.remove(http::header::EXPECT);
    }
    for (name, value, given) in [
        (REFERER, &attribution.referer, referer),
        (TITLE, &attribution.title, title),
        (CATEGORIES, &attribution.categories, categories),
    ] {
        if let (Some(value), false) = (value, given) {
            headers.insert(name, value.clone());
        }
    }
    metadata
}

/// Takes connection-level headers off a response.
pub(super) fn clean(headers: &mut HeaderMap) {
    if headers.keys().any(|name| is_hop_by_hop(name.as_str())) {
        strip_hop_by_hop(headers);
    }
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let mut gone: SmallVec<[HeaderName; 4]> = SmallVec::new();
    gone.extend(headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned());
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    gone.extend(named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()));
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn r102_connection_level_headers_stop_here() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "x-second"),
            ("x-private", "1"),
            ("x-second", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "Basic x"),
            ("host", "evil.example"),
            ("expect", "100-continue"),
            ("x-kept", "1"),
        ]);
        assert!(!prepare(&mut headers, &Attribution::default()));
        assert_eq!(headers, map(&[("x-kept", "1")]));
        let mut headers = map(&[("connection", "x-a"), ("x-a", "1"), ("server", "s")]);
        clean(&mut headers);
        assert_eq!(headers, map(&[("server", "s")]));
    }

    #[test]
    fn attribution_fills_only_what_the_caller_left_out() {
        let ours = Attribution {
            referer: Some(HeaderValue::from_static("https://ours")),
            title: Some(HeaderValue::from_static("ours")),
            categories: Some(HeaderValue::from_static("cli-agent")),
        };
        let mut headers = map(&[("x-title", "theirs"), ("x-openrouter-metadata", "enabled")]);
        assert!(prepare(&mut headers, &ours));
        assert!(!headers.contains_key(TITLE));
        assert_eq!(headers[REFERER], "https://ours");
        assert_eq!(headers[CATEGORIES], "cli-agent");
    }
}
