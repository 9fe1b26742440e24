//! How long the server asks us to wait, in every form it says so.
//!
//! Four spellings are in use: `retry-after-ms`, `Retry-After` in seconds or as a date, `X-RateLimit-Reset` in three units,
//! and copies of these in error bodies for those who cannot see headers. Clients differ in which they read, and a
//! misread unit parks a key for years or hammers it at once. Here each kind keeps the longest valid value it meets, wherever
//! that stood, and the kinds have an order: milliseconds, then `Retry-After`, then the reset.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, header::RETRY_AFTER};
use serde_json::Value;

use crate::clock::FOREVER;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");

/// From here on a reset is epoch milliseconds: as seconds it would lie in the year 5138.
const EPOCH_MILLIS: f64 = 1e11;
/// From here on a reset is epoch seconds: as a span it would be 31 years.
const EPOCH_SECONDS: f64 = 1e9;

/// The waiting times an answer names, each measured from its arrival.
///
/// A span of zero comes from a `0` or from a date that has passed. It says "soon", not "at once": whoever waits takes its
/// own minimum back-off instead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hints {
    millis: Option<Duration>,
    retry_after: Option<Duration>,
    reset: Option<Duration>,
    limit: Option<u32>,
}

impl Hints {
    /// Reads the headers; `now` is the wall clock, for dates.
    pub fn of(headers: &HeaderMap, now: SystemTime) -> Self {
        let mut hints = Self::default();
        if headers.is_empty() {
            return hints;
        }
        let each = |name: HeaderName, note: &mut dyn FnMut(&str)| {
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).for_each(note);
        };
        each(RETRY_AFTER_MS, &mut |text| longest(&mut hints.millis, millis(text)));
        each(RETRY_AFTER, &mut |text| longest(&mut hints.retry_after, retry_after(text, now)));
        each(RATE_LIMIT_RESET, &mut |text| longest(&mut hints.reset, reset(text, now)));
        each(RATE_LIMIT, &mut |text| hints.limit = limit(text).or(hints.limit));
        hints
    }

    /// Adds the copies in an error's `metadata`.
    pub(super) fn add_metadata(&mut self, metadata: &Value, now: SystemTime) {
        for name in ["retry_after_seconds", "retry_after_seconds_raw", "retry_after"] {
            self.add_retry_after(&metadata[name], now);
        }
        let Some(copies) = metadata["headers"].as_object() else { return };
        for (name, value) in copies {
            if name.eq_ignore_ascii_case(RETRY_AFTER.as_str()) {
                self.add_retry_after(value, now);
            } else if name.eq_ignore_ascii_case(RETRY_AFTER_MS.as_str()) {
                longest(&mut self.millis, text_of(value).and_then(|text| millis(&text)));
            } else if name.eq_ignore_ascii_case(RATE_LIMIT_RESET.as_str()) {
                longest(&mut self.reset, text_of(value).and_then(|text| reset(&text, now)));
            } else if name.eq_ignore_ascii_case(RATE_LIMIT.as_str()) {
                self.limit = text_of(value).and_then(|text| limit(&text)).or(self.limit);
            }
        }
    }

    pub(super) fn add_retry_after(&mut self, value: &Value, now: SystemTime) {
        longest(&mut self.retry_after, text_of(value).and_then(|text| retry_after(&text, now)));
    }

    /// The hint that wins: `retry-after-ms`, else `Retry-After`, else the reset.
    pub fn wait(&self) -> Option<Duration> {
        self.millis.or(self.retry_after).or(self.reset)
    }

    /// When the limit starts anew, by `X-RateLimit-Reset` alone.
    pub fn reset(&self) -> Option<Duration> {
        self.reset
    }

    /// How many requests the limit admits, by `X-RateLimit-Limit`.
    pub fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Both together; the longest of each kind.
    pub(super) fn and(mut self, other: Self) -> Self {
        longest(&mut self.millis, other.millis);
        longest(&mut self.retry_after, other.retry_after);
        longest(&mut self.reset, other.reset);
        self.limit = self.limit.or(other.limit);
        self
    }
}

fn longest(held: &mut Option<Duration>, seen: Option<Duration>) {
    *held = (*held).max(seen);
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn millis(text: &str) -> Option<Duration> {
    Some(span(number(text)? / 1e3))
}

fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    match number(text) {
        Some(seconds) => Some(span(seconds)),
        None => Some(until(httpdate::parse_http_date(text.trim()).ok()?, now)),
    }
}

fn reset(text: &str, now: SystemTime) -> Option<Duration> {
    let value = number(text)?;
    if value < EPOCH_SECONDS {
        return Some(span(value));
    }
    let since_epoch = span_of_epoch(if value < EPOCH_MILLIS { value } else { value / 1e3 });
    Some(UNIX_EPOCH.checked_add(since_epoch).map_or(FOREVER, |at| until(at, now)))
}

/// A whole number; 0 would say nothing.
fn limit(text: &str) -> Option<u32> {
    text.trim_matches([' ', '\t']).parse().ok().filter(|limit| *limit > 0)
}

/// Digits, with a fraction or without; no sign, no exponent, no words. More digits than fit are merely a long time.
fn number(text: &str) -> Option<f64> {
    let text = text.trim_matches([' ', '\t']);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if text.len() > 400 || !digits(whole) || !digits(fraction) {
        return None;
    }
    text.parse().ok()
}

fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).map_or(FOREVER, |span| span.min(FOREVER))
}

fn span_of_epoch(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn until(at: SystemTime, now: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default().min(FOREVER)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-21 08:00:00 UTC.
    const NOW_SECONDS: u64 = 1_795_248_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_SECONDS)
    }

    fn hints(pairs: &[(&'static str, &str)]) -> Hints {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Hints::of(&headers, now())
    }

    #[test]
    fn r053_retry_after_in_every_shape() {
        let secs = |seconds: f64| Some(Duration::from_secs_f64(seconds));
        for (value, expected) in [
            ("7", secs(7.0)),
            ("0", secs(0.0)),
            ("1.5", secs(1.5)),
            (" 5 ", secs(5.0)),
            ("\t5", secs(5.0)),
            ("007", secs(7.0)),
            ("1000000000000", Some(FOREVER)),
            ("340282366920938463463374607431768211456", Some(FOREVER)),
            ("-1", None),
            ("+5", None),
            ("1e3", None),
            ("", None),
            (" ", None),
            (".5", None),
            ("5.", None),
            ("1.5.2", None),
            ("1,5", None),
            ("5s", None),
            ("NaN", None),
            ("inf", None),
            ("infinity", None),
            ("0x10", None),
            ("sóon", None),
            ("garbage", None),
            ("Sat, 21 Nov 2026 08:00:30 GMT", secs(30.0)),
            ("Saturday, 21-Nov-26 08:00:30 GMT", secs(30.0)),
            ("Sat Nov 21 08:00:30 2026", secs(30.0)),
            ("Sat, 21 Nov 2026 07:00:00 GMT", secs(0.0)),
            ("Fri, 01 Jan 100000 00:00:00 GMT", None),
            ("Sat, 21 Nov 2026 08:00:30", None),
        ] {
            assert_eq!(hints(&[("retry-after", value)]).wait(), expected, "{value:?}");
        }
    }

    #[test]
    fn r054_milliseconds_then_retry_after_then_reset() {
        let reset = ("x-ratelimit-reset", "30");
        let after = ("retry-after", "20");
        let millis = ("retry-after-ms", "1500");
        let wait = |pairs: &[(&'static str, &str)]| hints(pairs).wait().unwrap().as_secs_f64();
        assert_eq!(wait(&[reset, after, millis]), 1.5);
        assert_eq!(wait(&[reset, after]), 20.0);
        assert_eq!(wait(&[reset]), 30.0);
        assert_eq!(
            wait(&[reset, ("retry-after", "junk"), ("retry-after-ms", "-3")]),
            30.0,
            "what is invalid says nothing"
        );
        assert_eq!(wait(&[("retry-after", "3"), ("retry-after", "9"), ("retry-after", "x")]), 9.0, "the longest valid");
        assert_eq!(hints(&[]).wait(), None);
    }

    #[test]
    fn r054_copies_in_the_body_are_repeats() {
        let metadata = serde_json::json!({
            "retry_after_seconds": 29, "retry_after_seconds_raw": 28.181,
            "headers": {"Retry-After": "27", "X-RateLimit-Reset": (NOW_SECONDS * 1000 + 40_000).to_string()},
        });
        let mut found = hints(&[("retry-after", "12")]);
        found.add_metadata(&metadata, now());
        assert_eq!(found.wait(), Some(Duration::from_secs(29)));
        assert_eq!(found.reset(), Some(Duration::from_secs(40)));
    }

    #[test]
    fn r055_the_unit_of_a_reset_is_told_by_its_size() {
        for (value, expected) in [
            ("0".to_owned(), 0.0),
            ("59".to_owned(), 59.0),
            ("59.5".to_owned(), 59.5),
            ("86400".to_owned(), 86_400.0),
            ((NOW_SECONDS + 45).to_string(), 45.0),
            ((NOW_SECONDS - 45).to_string(), 0.0),
            ((NOW_SECONDS * 1000 + 45_500).to_string(), 45.5),
            ((NOW_SECONDS * 1000 - 1).to_string(), 0.0),
            ("999999999".to_owned(), FOREVER.as_secs_f64()),
            ("1000000000".to_owned(), 0.0),
            ("99999999999".to_owned(), FOREVER.as_secs_f64()),
            ("100000000000".to_owned(), 0.0),
            ("1".repeat(300), FOREVER.as_secs_f64()),
        ] {
            let wait = hints(&[("x-ratelimit-reset", &value)]).reset().unwrap().as_secs_f64();
            assert!((wait - expected).abs() < 0.01, "{value}: {wait} for {expected}");
        }
        assert_eq!(hints(&[("x-ratelimit-reset", "6m0s")]).reset(), None);
    }

    #[test]
    fn a_limit_is_a_whole_number_and_the_header_comes_before_its_copy() {
        for (value, limit) in
            [("20", Some(20)), (" 20 ", Some(20)), ("0", None), ("-1", None), ("1.5", None), ("x", None)]
        {
            assert_eq!(hints(&[("x-ratelimit-limit", value)]).limit(), limit, "{value:?}");
        }
        let copy = serde_json::json!({"headers": {"X-RateLimit-Limit": "30"}});
        let mut copied = Hints::default();
        copied.add_metadata(&copy, now());
        assert_eq!(copied.limit(), Some(30));
        assert_eq!(hints(&[("x-ratelimit-limit", "20")]).and(copied).limit(), Some(20));
    }

    proptest! {
        #[test]
        fn r118_any_value_is_a_bounded_wait_or_none(value in proptest::collection::vec(any::<u8>(), 0..40), kind in 0..3usize) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            headers.insert(["retry-after-ms", "retry-after", "x-ratelimit-reset"][kind], value);
            prop_assert!(Hints::of(&headers, now()).wait().is_none_or(|wait| wait <= FOREVER));
        }

        #[test]
        fn r055_any_instant_ahead_is_understood_in_each_unit(ahead in 1u64..90_000) {
            let millis = ((NOW_SECONDS + ahead) * 1000).to_string();
            let seconds = (NOW_SECONDS + ahead).to_string();
            for text in [millis, seconds, ahead.to_string()] {
                let wait = hints(&[("x-ratelimit-reset", &text)]).reset().unwrap();
                prop_assert!(wait.abs_diff(Duration::from_secs(ahead)) < Duration::from_secs(1));
            }
        }
    }
}
