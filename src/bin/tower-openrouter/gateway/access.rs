//! Who may come in.

use http::{HeaderMap, header::AUTHORIZATION};
use subtle::ConstantTimeEq;

use super::config::Token;

/// The token a caller must show, if one is asked for.
#[derive(Debug, Clone)]
pub(super) struct Access(pub(super) Option<Token>);

impl Access {
    /// Whether the caller may come in. Comparing takes the same time whatever the shown token holds.
    pub(super) fn allows(&self, headers: &HeaderMap) -> bool {
        self.0.is_none() || self.shown(headers)
    }

    /// Whether a token is asked for and the caller shows it, as `Authorization: Bearer` or as `x-api-key`.
    pub(super) fn shown(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.0 else {
            return false;
        };
        let is_it = |shown: &[u8]| bool::from(shown.ct_eq(token.bytes()));
        headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes())).is_some_and(is_it)
            || headers.get("x-api-key").is_some_and(|value| is_it(value.as_bytes()))
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Access(Some(Token::new("let-me-in").unwrap())).allows(&headers)
    }

    #[test]
    fn r106_only_the_token_opens() {
        for shown in ["Bearer let-me-in", "bearer let-me-in", "BEARER  let-me-in "] {
            assert!(allowed(&[("authorization", shown)]), "{shown}");
        }
        assert!(allowed(&[("x-api-key", "let-me-in")]));
        assert!(allowed(&[("authorization", "Bearer other"), ("x-api-key", "let-me-in")]));
        for shown in ["", "let-me-in", "Basic let-me-in", "Bearer", "Bearer ", "Bearer let-me-i", "Bearer let-me-inn"] {
            assert!(!allowed(&[("authorization", shown)]), "{shown}");
        }
        assert!(!allowed(&[]) && !allowed(&[("x-api-key", "Bearer let-me-in")]));
        assert!(Access(None).allows(&HeaderMap::new()));
    }

    #[test]
    fn r106_how_much_of_a_token_is_right_does_not_show_in_the_time() {
        let token = "a".repeat(1 << 16);
        let access = Access(Some(Token::new(&token).unwrap()));
        let headers = |at: usize| {
            let mut shown = token.clone();
            shown.replace_range(at..=at, "b");
            HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {shown}").parse().unwrap())])
        };
        let shortest = |headers: &HeaderMap| {
            let time = |_| {
                let start = tokio::time::Instant::now();
                assert!(!access.allows(headers));
                start.elapsed()
            };
            (0..20).map(time).min().unwrap()
        };
        let (first, last) = (shortest(&headers(0)), shortest(&headers(token.len() - 1)));
        // a comparison that stops at the first difference would differ ten-thousandfold
        assert!(first * 20 > last && last * 20 > first, "{first:?} {last:?}");
    }
}
