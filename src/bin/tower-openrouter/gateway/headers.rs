//! Which headers pass, and which end here.

use http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, TRANSFER_ENCODING},
};
use smallvec::SmallVec;

/// Whether a request's body is framed in a way that everybody on the line takes for the same. hyper takes the last of several
/// codings; another may take the first.
pub(super) fn framing_is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// Takes off a request what is between the client and this gateway: credentials, connection-level headers, and what
/// proxies in front of it noted.
pub(super) fn to_upstream(headers: &mut HeaderMap) {
    strip(headers, |name| {
        is_hop_by_hop(name)
            || match name {
                "authorization" | "cookie" | "host" | "expect" => true,
                // api-key, x-goog-api-key, x-litellm-api-key, x-auth-token, x-amz-security-token, helicone-auth …
                _ if ["api-key", "-token", "-auth"].iter().any(|suffix| name.ends_with(suffix)) => true,
                // between the client and our own line
                "x-priority" => true,
                // a CDN refuses requests that carry another one's marks
                "forwarded" | "via" | "x-real-ip" | "true-client-ip" | "cdn-loop" => true,
                _ => ["x-forwarded-", "cf-", "x-balancer-"].iter().any(|prefix| name.starts_with(prefix)),
            }
    });
}

/// Takes off an answer what is between this gateway and the upstream, and what speaks for the upstream's own address:
/// passed on, its `access-control-allow-origin: *` would open a local gateway to every web page.
pub(super) fn to_client(headers: &mut HeaderMap) {
    strip(headers, |name| {
        is_hop_by_hop(name)
            || match name {
                "set-cookie" | "alt-svc" | "strict-transport-security" | "nel" | "report-to" | "clear-site-data" => {
                    true
                }
                _ => name.starts_with("access-control-") || name.starts_with("x-balancer-"),
            }
    });
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
            | "proxy-connection"
            | "http2-settings"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn strip(headers: &mut HeaderMap, ends_here: impl Fn(&str) -> bool) {
    let mut gone = SmallVec::<[HeaderName; 4]>::new();
    for name in headers.keys() {
        if ends_here(name.as_str()) {
            gone.push(name.clone());
        }
    }
    if gone.contains(&CONNECTION) {
        for value in headers.get_all(CONNECTION) {
            let named = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            gone.extend(named.filter_map(|name| HeaderName::from_bytes(name).ok()));
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(strip: fn(&mut HeaderMap), headers: &[(&str, &str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        strip(&mut map);
        let mut left: Vec<_> = map.keys().map(ToString::to_string).collect();
        left.sort();
        left
    }

    #[test]
    fn r102_r105_credentials_and_connection_headers_of_a_request_end_here() {
        let headers = [
            ("authorization", "Bearer t"),
            ("X-Api-Key", "t"),
            ("api-key", "t"),
            ("x-goog-api-key", "t"),
            ("x-litellm-api-key", "t"),
            ("x-auth-token", "t"),
            ("helicone-auth", "t"),
            ("idempotency-key", "1"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
            ("proxy-authorization", "Basic x"),
            ("connection", "close, X-Private"),
            ("connection", "x-other,, bad name"),
            ("x-private", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
            ("transfer-encoding", "chunked"),
            ("host", "evil.example"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=10.0.0.1"),
            ("cf-connecting-ip", "10.0.0.1"),
            ("x-balancer-explain", "1"),
            ("x-priority", "high"),
            ("content-type", "application/json"),
            ("http-referer", "https://app.example"),
            ("x-title", "App"),
            ("anthropic-version", "2023-06-01"),
        ];
        let left = left(to_upstream, &headers);
        assert_eq!(left, ["anthropic-version", "content-type", "http-referer", "idempotency-key", "x-title"]);
    }

    #[test]
    fn r102_cookies_and_what_speaks_for_the_upstreams_address_end_here() {
        let headers = [
            ("set-cookie", "__cf_bm=x"),
            ("access-control-allow-origin", "*"),
            ("access-control-expose-headers", "x"),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1"),
            ("x-balancer-key", "forged"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("proxy-authenticate", "Basic"),
            ("retry-after", "3"),
            ("x-generation-id", "gen-1"),
            ("content-type", "application/json"),
        ];
        assert_eq!(left(to_client, &headers), ["content-type", "retry-after", "x-generation-id"]);
    }
}
