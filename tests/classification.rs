//! The classification table, a line for each row, signature and variant.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;
use tower_openrouter::{
    openrouter::{Answer, Judged, MAX_REST, classify},
    outcome::{
        Cause::{self, *},
        Fault, Outcome, Rest,
        Retry::{self, *},
        Scope::{self, *},
    },
};

/// 2026-11-21 08:00:00 UTC, a Saturday: 16 h to midnight, 40 h to Monday, 10 days to the first.
const NOW: u64 = 1_795_248_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

fn judge_opted(status: u16, headers: &[(&str, &str)], body: &str, opted_in: bool) -> Judged {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let status = StatusCode::from_u16(status).unwrap();
    classify(&Answer { status, headers: &map, body: body.as_bytes(), opted_in, now })
}

fn judge(status: u16, headers: &[(&str, &str)], body: &str) -> Judged {
    judge_opted(status, headers, body, false)
}

fn fault(status: u16, headers: &[(&str, &str)], body: &str) -> Fault {
    *judge(status, headers, body).outcome.fault().unwrap_or_else(|| panic!("{status} {body}"))
}

fn guess(seconds: u64) -> Option<Rest> {
    Some(Rest::guessed(Duration::from_secs(seconds)))
}

fn hint(seconds: u64) -> Option<Rest> {
    Some(Rest::hinted(Duration::from_secs(seconds)))
}

/// An error as most endpoints send it.
fn e1(code: u16, message: &str, metadata: &str) -> String {
    format!(r#"{{"error":{{"code":{code},"message":"{message}","metadata":{metadata}}},"user_id":"user_1"}}"#)
}

type Row = (&'static str, u16, Vec<(&'static str, String)>, String, Cause, Scope, Option<Rest>, Retry);

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let none = Vec::new;
    let after = |seconds: &str| vec![("retry-after", seconds.to_owned())];
    let reset = |ahead: u64| vec![("x-ratelimit-reset", ((NOW + ahead) * 1000).to_string()), ("x-ratelimit-remaining", "0".into())];
    let in_body = |ahead: u64| format!(r#""headers":{{"X-RateLimit-Limit":"20","X-RateLimit-Remaining":"0","X-RateLimit-Reset":"{}"}}"#, (NOW + ahead) * 1000);
    let html = "<!DOCTYPE html><html><title>Attention required</title></html>".to_owned();
    let ray = || vec![("cf-ray", "8c1-FRA".to_owned())];
    let afford = "This request requires more credits. You requested up to 64000 tokens, but can only afford 1200.";
    vec![
        // 2: an error inside a 200, by its own code
        ("2", 200, none(), r#"{"id":"gen-1","error":{"code":502,"message":"m"}}"#.into(), ProviderUnavailable, Pool, None, Backoff),
        ("2", 200, none(), r#"{"error":{"code":"429","message":"m","metadata":{"provider_name":"P","retry_after_seconds":9}}}"#.into(), ProviderLimit, Pool, hint(9), Backoff),
        ("2", 200, none(), r#"{"choices":[{"finish_reason":"error","message":{"content":"par"},"error":{"code":502,"message":"m"}}]}"#.into(), ProviderUnavailable, Pool, None, Backoff),
        ("2 E4", 200, none(), r#"{"id":"r","status":"failed","error":{"code":"rate_limit_exceeded","message":"m"},"error_type":"rate_limit_exceeded"}"#.into(), UnknownLimit, Pool, guess(1), Backoff),
        ("2 E4", 200, none(), r#"{"id":"r","status":"failed","error":{"code":"odd","message":"m"},"error_type":"timeout"}"#.into(), UpstreamTimeout, Pool, None, Once),
        // 5, 6
        ("5", 400, none(), e1(400, "Provider returned error", r#"{"raw":"x","previous_errors":[{"code":429,"message":"m","provider_name":"P"}]}"#), ProviderLimit, Pool, guess(1), Backoff),
        ("5 slim", 400, none(), e1(400, "Provider returned error", r#"{"raw":"x","previous_errors":[{"provider":"P","code":"x","status":503}]}"#), ProviderLimit, Pool, guess(1), Backoff),
        ("5 raw", 400, none(), e1(400, "Provider returned error", r#"{"raw":"{\"error\":{\"code\":429}}"}"#), ProviderLimit, Pool, guess(1), Backoff),
        ("6", 400, none(), e1(400, "a/b is not a valid model ID", "null"), BadRequest, Request, None, Never),
        ("6 raw", 400, none(), e1(400, "Provider returned error", r#"{"raw":"bad tool","previous_errors":[{"code":400}]}"#), BadRequest, Request, None, Never),
        ("6 E2", 400, none(), r#"{"success":false,"error":{"name":"ZodError","message":"[{\"code\":\"invalid_type\"}]"}}"#.into(), BadRequest, Request, None, Never),
        ("6", 412, none(), String::new(), BadRequest, Request, None, Never),
        ("6", 422, none(), "not json".into(), BadRequest, Request, None, Never),
        ("6 other", 418, none(), String::new(), BadRequest, Request, None, Never),
        // 7
        ("7", 401, none(), r#"{"error":{"code":401,"message":"User not found."}}"#.into(), InvalidKey, Key, guess(60), Elsewhere),
        ("7 E3", 401, none(), r#"{"type":"error","error":{"type":"authentication_error","message":"m"},"request_id":null}"#.into(), InvalidKey, Key, guess(60), Elsewhere),
        ("7 html", 401, none(), html.clone(), InvalidKey, Key, guess(60), Elsewhere),
        // 9 to 12
        ("9", 402, after("3"), e1(402, "m", r#"{"limit_source":"openrouter_in_flight_budget","reason":"in_flight_budget_exhausted"}"#), InFlightBudget, Account, hint(3), Elsewhere),
        ("9", 402, none(), e1(402, "m", r#"{"limit_source":"openrouter_in_flight_budget"}"#), InFlightBudget, Account, guess(5), Elsewhere),
        ("9 legacy", 402, after("2"), e1(402, "Payment required", "null"), InFlightBudget, Account, hint(2), Elsewhere),
        ("9 E3", 402, after("3"), r#"{"type":"error","error":{"type":"billing_error","message":"m"},"metadata":{"limit_source":"openrouter_in_flight_budget"}}"#.into(), InFlightBudget, Account, hint(3), Elsewhere),
        ("10", 402, none(), e1(402, "m", r#"{"limit_source":"openrouter_credits","reason":"weight_exceeds_budget"}"#), TooDearForAccount, Account, None, Elsewhere),
        ("10", 402, none(), e1(402, "m", r#"{"limit_source":"openrouter_in_flight_budget","reason":"weight_exceeds_budget"}"#), TooDearForAccount, Account, None, Elsewhere),
        ("10", 402, none(), e1(402, afford, r#"{"limit_source":"openrouter_credits"}"#), TooDearForAccount, Account, None, Elsewhere),
        ("10 legacy", 402, none(), e1(402, &format!("{afford} To increase, visit https://openrouter.ai/settings/credits"), r#"{"provider_name":null}"#), TooDearForAccount, Account, None, Elsewhere),
        ("11", 402, none(), e1(402, afford, r#"{"limit_source":"openrouter_key_limit"}"#), TooDearForKey, Key, None, Elsewhere),
        ("11 legacy", 402, none(), e1(402, &format!("{afford} To increase, visit https://openrouter.ai/settings/keys and create a key with a higher total limit"), "null"), TooDearForKey, Key, None, Elsewhere),
        ("11 legacy", 402, none(), e1(402, "Prompt tokens limit exceeded: 9000 > 1200", "null"), TooDearForKey, Key, None, Elsewhere),
        ("12", 402, none(), e1(402, "Insufficient credits. Add more using https://x", r#"{"limit_source":"openrouter_credits"}"#), NoCredit, Account, guess(10 * MINUTE), Elsewhere),
        ("12", 402, none(), e1(402, "Your account or API key never purchased credits", "null"), NoCredit, Account, guess(10 * MINUTE), Elsewhere),
        ("12", 402, none(), r#"{"error":{"message":"m"}}"#.into(), NoCredit, Account, guess(10 * MINUTE), Elsewhere),
        ("12", 402, none(), String::new(), NoCredit, Account, guess(10 * MINUTE), Elsewhere),
        // 13 to 16: the ten signatures of 403
        ("13 total", 403, none(), e1(403, "Key limit exceeded (total limit). Manage it using https://x/abc", "null"), KeyLimit, Key, guess(HOUR), Elsewhere),
        ("13 daily", 403, none(), e1(403, "Key limit exceeded (daily limit). Manage it", "null"), KeyLimit, Key, hint(16 * HOUR), Elsewhere),
        ("13 weekly", 403, none(), e1(403, "Key limit exceeded (weekly limit).", "null"), KeyLimit, Key, hint(24 * HOUR), Elsewhere),
        ("13 monthly", 403, none(), e1(403, "Key limit exceeded (monthly limit).", "null"), KeyLimit, Key, hint(24 * HOUR), Elsewhere),
        ("14", 403, none(), e1(403, "Workspace daily budget of $5 exceeded", "null"), WorkspaceBudget, Workspace, hint(16 * HOUR), Elsewhere),
        ("14 lifetime", 403, none(), e1(403, "Workspace lifetime budget of $5 exceeded", "null"), WorkspaceBudget, Workspace, guess(10 * MINUTE), Elsewhere),
        ("14 stated", 403, none(), e1(403, "Workspace monthly budget of $5 exceeded", r#"{"resets_at":"2026-11-21T09:00:00Z"}"#), WorkspaceBudget, Workspace, hint(HOUR), Elsewhere),
        ("14 guardrail", 403, none(), e1(403, "Guardrail budget exceeded", "null"), GuardrailBudget, Key, guess(10 * MINUTE), Elsewhere),
        ("15 patterns", 403, none(), e1(403, "Request blocked: prompt injection", r#"{"patterns":["x"]}"#), Refused, Request, None, Never),
        ("15 moderation", 403, none(), e1(403, "m", r#"{"reasons":["violence"],"flagged_input":"x","provider_name":"P","model_slug":"a/b"}"#), Refused, Request, None, Never),
        ("15 policy", 403, none(), e1(403, "m", r#"{"error_type":"content_policy_violation"}"#), Refused, Request, None, Never),
        ("15 refusal", 403, none(), e1(403, "m", r#"{"error_type":"refusal"}"#), Refused, Request, None, Never),
        ("15 harness", 403, none(), e1(403, "m", r#"{"failed_routing_step":"Gate Free Endpoints by Agentic Harness"}"#), Refused, Request, None, Never),
        ("15 geo", 403, none(), e1(403, "m", r#"{"failed_routing_step":"Gate Endpoints with Geo Restrictions"}"#), Refused, Request, None, Never),
        ("15 unknown", 403, none(), String::new(), Refused, Request, None, Never),
        ("16", 403, none(), e1(403, "Management keys cannot be used: this is a management key", "null"), ManagementKey, Key, guess(24 * HOUR), Elsewhere),
        // 17: free quotas
        ("17 minute", 429, reset(30), e1(429, "Rate limit exceeded: free-models-per-min. ", r#"{"limit_source":"openrouter_free_tier_per_minute"}"#), FreeTierMinute, FreeTier, hint(30), Elsewhere),
        ("17 minute, body", 429, none(), e1(429, "m", &format!(r#"{{"limit_source":"openrouter_free_tier_per_minute","provider_name":null,{}}}"#, in_body(20))), FreeTierMinute, FreeTier, hint(20), Elsewhere),
        ("17 minute, at most 60 s", 429, reset(500), e1(429, "m", r#"{"limit_source":"openrouter_free_models_per_min"}"#), FreeTierMinute, FreeTier, hint(60), Elsewhere),
        ("17 minute, no reset", 429, none(), e1(429, "m", r#"{"limit_source":"free_tier_per_minute"}"#), FreeTierMinute, FreeTier, guess(60), Elsewhere),
        ("17 daily", 429, reset(16 * HOUR), e1(429, "m", r#"{"limit_source":"openrouter_free_tier_daily"}"#), FreeTierDaily, FreeTier, hint(16 * HOUR), Elsewhere),
        ("17 daily, no reset", 429, after("5"), e1(429, "m", &format!(r#"{{"limit_source":"openrouter_free_tier_daily",{}}}"#, in_body(7 * HOUR))), FreeTierDaily, FreeTier, hint(7 * HOUR), Elsewhere),
        ("17 legacy minute", 429, none(), e1(429, "Rate limit exceeded: free-models-per-min. ", &format!("{{{}}}", in_body(20))), FreeTierMinute, FreeTier, hint(20), Elsewhere),
        ("17 legacy daily", 429, none(), e1(429, "Rate limit exceeded: free-models-per-day. Add 10 credits", "null"), FreeTierDaily, FreeTier, hint(16 * HOUR), Elsewhere),
        ("17 legacy daily", 429, none(), e1(429, "Rate limit exceeded: free-models-per-day-high-balance", "null"), FreeTierDaily, FreeTier, hint(16 * HOUR), Elsewhere),
        ("17 E3", 429, none(), format!(r#"{{"type":"error","error":{{"type":"rate_limit_error","message":"m"}},"request_id":null,"metadata":{{"limit_source":"openrouter_free_tier_per_minute",{}}}}}"#, in_body(20)), FreeTierMinute, FreeTier, hint(20), Elsewhere),
        ("17b", 429, reset(90), e1(429, "Rate limit exceeded", "null"), PlatformLimit, Account, hint(90), Elsewhere),
        ("17b no reset", 429, vec![("x-ratelimit-limit", "5".into())], e1(429, "m", r#"{"provider_name":"P"}"#), PlatformLimit, Account, guess(60), Elsewhere),
        ("17b body", 429, none(), e1(429, "m", &format!("{{{}}}", in_body(90))), PlatformLimit, Account, hint(90), Elsewhere),
        ("17b prefix", 429, none(), e1(429, "m", r#"{"limit_source":"openrouter_new_thing","provider_name":"P"}"#), PlatformLimit, Account, guess(60), Elsewhere),
        ("17b attempt 0", 429, none(), r#"{"error":{"code":429,"message":"m"},"openrouter_metadata":{"attempt":0}}"#.into(), PlatformLimit, Account, guess(60), Elsewhere),
        // 18, 18b, 19: upstream
        ("18", 429, after("29"), e1(429, "Provider returned error", r#"{"limit_source":"upstream_provider_shared_pool","provider_name":"P","is_byok":false}"#), ProviderLimit, Pool, hint(29), Backoff),
        ("18 body hint", 429, none(), e1(429, "m", r#"{"limit_source":"upstream_other","retry_after_seconds":29,"retry_after_seconds_raw":28.181,"headers":{"Retry-After":"29"}}"#), ProviderLimit, Pool, hint(29), Backoff),
        ("18 legacy", 429, none(), e1(429, "Provider returned error", r#"{"raw":"a/b is temporarily rate-limited upstream.","provider_name":"P"}"#), ProviderLimit, Pool, guess(1), Backoff),
        ("18 legacy code", 429, none(), e1(429, "m", r#"{"provider_error_code":"upstream_429"}"#), ProviderLimit, Pool, guess(1), Backoff),
        ("18 echo", 429, none(), e1(429, "m", &format!(r#"{{"provider_name":"P",{}}}"#, in_body(90))), ProviderLimit, Pool, hint(90), Backoff),
        ("18 attempt", 429, none(), r#"{"error":{"code":429,"message":"m"},"openrouter_metadata":{"attempt":2}}"#.into(), ProviderLimit, Pool, guess(1), Backoff),
        ("18 not free", 429, none(), e1(429, "Rate limit exceeded: free-models-per-minute-ish", r#"{"provider_name":"P"}"#), ProviderLimit, Pool, guess(1), Backoff),
        ("18b", 429, after("7"), e1(429, "m", r#"{"limit_source":"upstream_provider_byok"}"#), ByokLimit, AccountModel, hint(7), Elsewhere),
        ("18b legacy", 429, none(), e1(429, "m", r#"{"provider_name":"P","is_byok":true}"#), ByokLimit, AccountModel, guess(1), Elsewhere),
        ("19", 429, none(), r#"{"error":{"message":"slow down"}}"#.into(), UnknownLimit, Pool, guess(1), Backoff),
        ("19 odd", 429, none(), r#"{"error":"slow down"}"#.into(), UnknownLimit, Pool, guess(1), Backoff),
        ("19 cut", 429, none(), r#"{"error":{"message":"slow"#.into(), UnknownLimit, Pool, guess(1), Backoff),
        ("19 empty", 429, none(), String::new(), UnknownLimit, Pool, guess(1), Backoff),
        // 20: the edge
        ("20", 403, none(), html.clone(), EdgeBlock, Egress, guess(30), Backoff),
        ("20", 429, ray(), html.clone(), EdgeBlock, Egress, guess(30), Backoff),
        ("20", 503, ray(), html.clone(), EdgeBlock, Egress, guess(30), Backoff),
        ("20 text", 429, ray(), "error code: 1015".into(), EdgeBlock, Egress, guess(30), Backoff),
        ("20 text", 403, ray(), "error code: 1020".into(), EdgeBlock, Egress, guess(30), Backoff),
        // 21, 22
        ("21", 404, none(), e1(404, "m", r#"{"failed_routing_step":"Filter by Data Policy"}"#), Unroutable, AccountModel, guess(10 * MINUTE), Elsewhere),
        ("21", 404, none(), e1(404, "m", r#"{"failed_routing_step":"Filter by Guardrails"}"#), Unroutable, AccountModel, guess(10 * MINUTE), Elsewhere),
        ("21", 404, none(), e1(404, "m", r#"{"failed_routing_step":"Filter by Allowed Providers"}"#), Unroutable, AccountModel, guess(10 * MINUTE), Elsewhere),
        ("21 funnel", 404, none(), e1(404, "m", r#"{"routing_funnel":[{"step":"All","endpoint_count":3},{"step":"Filter by Data Policy","endpoint_count":0}]}"#), Unroutable, AccountModel, guess(10 * MINUTE), Elsewhere),
        ("21 legacy", 404, none(), e1(404, "No endpoints found matching your data policy (Free model publication)", "null"), Unroutable, AccountModel, guess(10 * MINUTE), Elsewhere),
        ("22", 404, none(), e1(404, "m", r#"{"failed_routing_step":"Filter by Max Price"}"#), NotFound, Request, None, Never),
        ("22", 404, none(), e1(404, "No endpoints found for a/b.", "null"), NotFound, Request, None, Never),
        ("22", 404, none(), html.clone(), NotFound, Request, None, Never),
        // 23 to 27
        ("23", 408, none(), e1(408, "m", "null"), UpstreamTimeout, Pool, None, Once),
        ("23", 504, after("4"), e1(504, "m", r#"{"error_type":"timeout"}"#), UpstreamTimeout, Pool, hint(4), Once),
        ("23", 524, ray(), html.clone(), UpstreamTimeout, Pool, None, Once),
        ("24", 413, none(), e1(413, "m", "null"), TooLarge, Request, None, Never),
        ("25", 500, none(), e1(500, "Internal Server Error", "null"), ServerError, Pool, None, Backoff),
        ("25", 599, none(), String::new(), ServerError, Pool, None, Backoff),
        ("26", 502, none(), e1(502, "m", r#"{"error_type":"provider_unavailable"}"#), ProviderUnavailable, Pool, None, Backoff),
        ("26", 503, after("8"), e1(503, "There is no available provider", "null"), ProviderUnavailable, Pool, hint(8), Backoff),
        ("26 zero", 503, after("0"), e1(503, "m", "null"), ProviderUnavailable, Pool, None, Backoff),
        ("26", 529, none(), r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#.into(), ProviderUnavailable, Pool, None, Backoff),
        ("26 attempt 0", 503, none(), r#"{"error":{"code":503,"message":"no provider meets routing"},"openrouter_metadata":{"attempt":0}}"#.into(), NoProvider, Request, None, Never),
        ("27", 520, ray(), html.clone(), EdgeError, Egress, None, Backoff),
        ("27", 530, none(), String::new(), EdgeError, Egress, None, Backoff),
        ("27", 502, ray(), html, EdgeError, Egress, None, Backoff),
        // redirects are not followed
        ("3xx", 302, none(), String::new(), BadRequest, Request, None, Never),
    ]
}

#[test]
fn every_row_says_why_who_how_long_and_where_to() {
    for (row, status, headers, body, cause, scope, rest, retry) in rows() {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let expected = Fault { cause, scope, rest, retry };
        assert_eq!(fault(status, &headers, &body), expected, "row {row}: {status} {body}");
    }
}

#[test]
fn row_1_an_answer_is_a_success() {
    for body in [
        r#"{"choices":[{"finish_reason":"length","message":{"content":""}}],"error":null}"#,
        "",
        "audio",
        r#"{"data":[]}"#,
    ] {
        assert_eq!(judge(200, &[], body).outcome, Outcome::Success, "{body}");
    }
    assert_eq!(judge(202, &[], "{}").outcome, Outcome::Success);
}

#[test]
fn opting_in_makes_the_absence_of_metadata_a_sign() {
    let body = r#"{"error":{"code":429,"message":"m"}}"#;
    assert_eq!(judge_opted(429, &[], body, true).outcome.fault().unwrap().cause, PlatformLimit);
    assert_eq!(judge_opted(429, &[], body, false).outcome.fault().unwrap().cause, UnknownLimit);
}

#[test]
fn account_and_provider_are_named_where_the_answer_names_them() {
    let judged = judge(429, &[], &e1(429, "m", r#"{"provider_name":"P"}"#));
    assert_eq!((judged.account.as_deref(), judged.provider.as_deref()), (Some("user_1"), Some("P")));
    let judged = judge(401, &[], r#"{"error":{"code":401,"message":"m"},"user_id":null}"#);
    assert_eq!((judged.account, judged.provider), (None, None));
}

#[test]
fn r056_no_rest_is_longer_than_a_day() {
    for (row, status, _, body, ..) in rows() {
        let rest = fault_of(status, &[("retry-after", "1000000000000")], &body).and_then(|fault| fault.rest);
        assert!(rest.is_none_or(|rest| rest.duration <= MAX_REST), "row {row}");
    }
}

fn fault_of(status: u16, headers: &[(&str, &str)], body: &str) -> Option<Fault> {
    judge(status, headers, body).outcome.fault().copied()
}

#[test]
fn r053_a_hint_of_zero_is_the_least_back_off() {
    let provider = e1(429, "m", r#"{"provider_name":"P"}"#);
    assert_eq!(fault(429, &[("retry-after", "0")], &provider).rest, guess(1));
    assert_eq!(fault(429, &[("retry-after", "Sat, 21 Nov 2026 07:00:00 GMT")], &provider).rest, guess(1));
    assert_eq!(fault(429, &[("retry-after-ms", "20")], &provider).rest, Some(Rest::hinted(Duration::from_millis(20))));
}

#[test]
fn r058_the_servers_word_on_retrying_decides() {
    let said = |status, body: &str, word| fault(status, &[("x-should-retry", word)], body).retry;
    let provider = e1(429, "m", r#"{"provider_name":"P"}"#);
    assert_eq!(said(429, &provider, "false"), Never);
    assert_eq!(said(429, &provider, "true"), Backoff);
    assert_eq!(said(401, "", "false"), Never);
    assert_eq!(said(401, "", "true"), Elsewhere);
    assert_eq!(
        said(400, "", "true"),
        Backoff,
        "never a failover at once, which would need proof that the model did not run"
    );
    assert_eq!(said(504, "", "true"), Backoff);
    assert_eq!(said(400, "", "perhaps"), Never);
}

#[test]
fn r036_no_status_alone_blames_a_key_but_401() {
    for status in (300..=599).filter(|status| StatusCode::from_u16(*status).is_ok()) {
        let blamed = fault(status, &[], r#"{"error":{"message":"m"}}"#);
        assert_eq!(blamed.is_of_key(), status == 401, "{status}");
        assert_eq!(blamed.scope == Account, status == 402, "{status}");
    }
}

#[test]
fn error_codes_in_words_stand_for_their_status() {
    for (name, cause) in [
        ("authentication_error", InvalidKey),
        ("payment_required", NoCredit),
        ("permission_denied", Refused),
        ("not_found", NotFound),
        ("payload_too_large", TooLarge),
        ("rate_limit_exceeded", UnknownLimit),
        ("server_error", ServerError),
        ("provider_unavailable", ProviderUnavailable),
        ("overloaded_error", ProviderUnavailable),
        ("timeout", UpstreamTimeout),
        ("context_length_exceeded", BadRequest),
        ("something_new", ProviderUnavailable),
    ] {
        assert_eq!(
            fault(200, &[], &format!(r#"{{"error":{{"code":"{name}","message":"m"}}}}"#)).cause,
            cause,
            "{name}"
        );
    }
}

proptest! {
    #[test]
    fn r119_any_answer_is_judged(
        status in 100u16..1000,
        body in prop_oneof![
            any::<String>(),
            "\\{\"error\":\\{\"code\":(-?[0-9]{1,25}|\"[a-z]{0,5}\"|null|\\[\\]),\"metadata\":(\\{\"raw\":[0-9],\"headers\":[0-9]\\}|3|\"x\")\\}\\}",
        ],
        after in "[ -~]{0,30}",
    ) {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_str(&after).unwrap());
        let status = StatusCode::from_u16(status).unwrap();
        let now = SystemTime::now();
        let judged = classify(&Answer { status, headers: &headers, body: body.as_bytes(), opted_in: false, now });
        prop_assert!(status.is_success() || judged.outcome.fault().is_some());
    }
}
