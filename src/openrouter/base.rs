//! The API root a request is sent to.
//!
//! Scheme, host and port are always the configured ones; of a request only what lies below the API root is taken, so no
//! absolute-form target, authority or climbing path can send a key anywhere else.

use std::fmt;

use http::uri::{Authority, PathAndQuery, Scheme, Uri};

use crate::key::{self, KeyError};

/// The endpoints whose addresses are made once rather than for each request.
const COMMON: [&str; 5] = ["/chat/completions", "/completions", "/responses", "/messages", "/embeddings"];

/// An API root, such as `https://openrouter.ai/api/v1`.
pub(super) struct Base {
    scheme: Scheme,
    authority: Authority,
    prefix: Box<str>,
    /// In the order of [`COMMON`].
    common: Vec<PathAndQuery>,
}

impl Base {
    pub(super) fn parse(url: &str) -> Result<Self, KeyError> {
        Self::of(&key::base_url(url)?)
    }

    /// Of a URL that [`key::base_url`] has accepted.
    pub(super) fn of(url: &Uri) -> Result<Self, KeyError> {
        let incomplete = KeyError::BadBaseUrl { what: "it is not an absolute URL" };
        let (Some(scheme), Some(authority)) = (url.scheme().cloned(), url.authority().cloned()) else {
            return Err(incomplete);
        };
        let prefix: Box<str> = url.path().trim_end_matches('/').into();
        let common: Option<Vec<_>> = COMMON.iter().map(|path| join_path(&prefix, path, None)).collect();
        Ok(Self { scheme, authority, prefix, common: common.ok_or(incomplete)? })
    }

    /// Where a request with this target goes; `None` when it does not lie below the API root.
    pub(super) fn join(&self, target: &Uri) -> Option<Uri> {
        let path = below_root(target.path());
        let common = COMMON.iter().zip(&self.common).find(|(common, _)| **common == path);
        let path = match (common, target.query()) {
            (Some((_, joined)), None) => joined.clone(),
            (_, query) => join_path(&self.prefix, plain(path)?, query)?,
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).ok()
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

fn join_path(prefix: &str, path: &str, query: Option<&str>) -> Option<PathAndQuery> {
    let mut joined = String::with_capacity(prefix.len() + path.len() + query.map_or(0, |query| query.len() + 1));
    joined.push_str(prefix);
    joined.push_str(path);
    if let Some(query) = query {
        joined.push('?');
        joined.push_str(query);
    }
    PathAndQuery::from_maybe_shared(bytes::Bytes::from(joined)).ok()
}

/// The path below the API root, which clients spell `/api/v1/…`, `/v1/…` or not at all.
fn below_root(path: &str) -> &str {
    let under = |root: &str| path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    under("/api/v1").or_else(|| under("/v1")).unwrap_or(path)
}

/// The path, if it names something below the root and does not climb.
fn plain(path: &str) -> Option<&str> {
    (path.len() > 1 && path.starts_with('/') && key::is_plain_path(path)).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(base: &str, target: &str) -> Option<String> {
        let base = Base::parse(base).unwrap();
        base.join(&target.parse().ok()?).map(|uri| uri.to_string())
    }

    #[test]
    fn every_spelling_of_the_root_is_the_same_address() {
        let root = "https://openrouter.ai/api/v1";
        for target in ["/v1/chat/completions", "/api/v1/chat/completions", "/chat/completions"] {
            assert_eq!(joined(root, target).unwrap(), "https://openrouter.ai/api/v1/chat/completions");
        }
        assert_eq!(joined(root, "/v1/models?a=b&c=%2e").unwrap(), "https://openrouter.ai/api/v1/models?a=b&c=%2e");
        assert_eq!(joined(root, "/v1/messages?beta=true").unwrap(), "https://openrouter.ai/api/v1/messages?beta=true");
        assert_eq!(joined(root, "/v10/models").unwrap(), "https://openrouter.ai/api/v1/v10/models");
        assert_eq!(joined("http://127.0.0.1:9/", "/v1/models/").unwrap(), "http://127.0.0.1:9/models/");
        assert_eq!(joined("http://[::1]:9/x", "/models").unwrap(), "http://[::1]:9/x/models");
    }

    #[test]
    fn r104_no_target_chooses_the_host_or_climbs() {
        let root = "https://openrouter.ai/api/v1";
        for target in [
            "http://evil.example/v1/chat/completions",
            "https://user:secret@evil.example:1/chat/completions",
            "https://openrouter.ai@evil.example/chat/completions",
        ] {
            assert_eq!(joined(root, target).unwrap(), "https://openrouter.ai/api/v1/chat/completions");
        }
        for target in [
            "*",
            "/",
            "/v1",
            "/v1/",
            "evil.example:443",
            "//evil.example/chat/completions",
            "/v1//evil.example",
            "/v1/../../admin",
            "/v1/./chat",
            "/v1/%2e%2E/keys",
            "/v1/.%2e/keys",
            "/v1/..%2f..%2Fkeys",
            "/v1/..%5ckeys",
            "/v1/x%5C..%5C..",
            "/v1/..",
        ] {
            assert_eq!(joined(root, target), None, "{target}");
        }
    }

    #[test]
    fn a_base_that_climbs_is_refused() {
        for url in ["https://h/a/../b", "https://h/a//b", "https://h/%2e%2e"] {
            assert!(matches!(Base::parse(url), Err(KeyError::BadBaseUrl { .. })), "{url}");
        }
    }

    proptest! {
        #[test]
        fn r104_whatever_is_asked_stays_below_the_root(target in "[a-z./\\\\%25eEfF@:?#-]{0,30}") {
            if let Some(url) = joined("https://openrouter.ai/api/v1", &format!("/{target}")) {
                prop_assert!(url.starts_with("https://openrouter.ai/api/v1/"), "{}", url);
                let path = url.split('?').next().unwrap();
                prop_assert!(!path.contains("/..") && !path.contains('\\'), "{}", url);
            }
        }
    }
}
