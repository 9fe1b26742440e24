//! What an answer means: the classification table as a pure function.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode, header::CONTENT_TYPE};
use serde_json::Value;

use super::{
    calendar,
    error_body::{ErrorBody, Kind, find_error, is_rate_header},
    hints::Hints,
};
use crate::outcome::{Cause, Fault, Outcome, Rest, Retry, Scope};

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const CF_RAY: HeaderName = HeaderName::from_static("cf-ray");

/// The most a scope rests for one answer: a hint beyond it is looked at again after a day.
pub const MAX_REST: Duration = Duration::from_secs(24 * 60 * 60);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// An answer, as far as it has been read.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, or the beginning of it.
    pub body: &'a [u8],
    /// Whether the request asked for `openrouter_metadata`, so that its absence says something.
    pub opted_in: bool,
    /// The wall clock when it arrived, for dates and for budgets that start anew with the calendar.
    pub now: SystemTime,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judged {
    /// The outcome.
    pub outcome: Outcome,
    /// The account the key belongs to, where the answer names it.
    pub account: Option<Box<str>>,
    /// The provider the error came from, where the answer names it.
    pub provider: Option<Box<str>>,
    /// How many requests the limit admits that was met, where the answer names it.
    pub limit: Option<u32>,
}

impl Judged {
    fn success() -> Self {
        Self { outcome: Outcome::Success, account: None, provider: None, limit: None }
    }
}

/// Judges an answer by the table in [`openrouter`](crate::openrouter). The body of a 2xx is searched for an error too.
///
/// `x-should-retry`, where the server sends it, decides on retrying: `false` is [`Retry::Never`], and `true` turns what
/// would not be repeated into [`Retry::Backoff`].
///
/// ```
/// use std::time::SystemTime;
/// use http::{HeaderMap, StatusCode};
/// use tower_openrouter::{openrouter::{Answer, classify}, outcome::Scope};
///
/// let judged = classify(&Answer {
///     status: StatusCode::FORBIDDEN,
///     headers: &HeaderMap::new(),
///     body: br#"{"error":{"code":403,"message":"Key limit exceeded (daily limit)."},"user_id":"user_1"}"#,
///     opted_in: false,
///     now: SystemTime::now(),
/// });
/// assert_eq!(judged.outcome.fault().unwrap().scope, Scope::Key);
/// assert_eq!(judged.account.as_deref(), Some("user_1"));
/// ```
pub fn classify(answer: &Answer<'_>) -> Judged {
    let &Answer { status, headers, body, opted_in, now } = answer;
    if status.is_success() {
        let document = serde_json::from_slice::<Value>(body).ok();
        return document.and_then(|document| in_band(&document, now)).unwrap_or_else(Judged::success);
    }
    let body = ErrorBody::read(body, now);
    let hints = Hints::of(headers, now).and(body.hints);
    judge(Case { status: status.as_u16(), body, headers, hints, opted_in, now })
}

/// Judges the error inside a 200, if there is one, by the row of its own code.
pub(super) fn in_band(document: &Value, now: SystemTime) -> Option<Judged> {
    let error = find_error(document)?;
    let body = ErrorBody::of(document, error, now);
    let (status, hints) = (body.status_in_band(), body.hints);
    Some(judge(Case { status, body, headers: &HeaderMap::new(), hints, opted_in: false, now }))
}

fn judge(case: Case<'_>) -> Judged {
    let mut fault = case.fault();
    match case.headers.get(SHOULD_RETRY).map(|value| value.as_bytes()) {
        Some(b"false") => fault.retry = Retry::Never,
        Some(b"true") if matches!(fault.retry, Retry::Never | Retry::Once | Retry::Unclear) => {
            fault.retry = Retry::Backoff;
        }
        _ => {}
    }
    let limit = case.hints.limit();
    Judged { outcome: fault.into(), account: case.body.account, provider: case.body.provider, limit }
}

/// An error, with all that is known of it.
struct Case<'a> {
    status: u16,
    body: ErrorBody,
    headers: &'a HeaderMap,
    hints: Hints,
    opted_in: bool,
    now: SystemTime,
}

impl Case<'_> {
    fn fault(&self) -> Fault {
        let request = |cause| Fault::new(cause, Scope::Request);
        match self.status {
            // 5, 6
            400 | 412 | 422 if self.body.capacity => self.provider_limit(Cause::ProviderLimit),
            // 7; only the pool can tell row 8 from it
            401 => Fault::new(Cause::InvalidKey, Scope::Key).rest(self.rest(MINUTE)).retry(Retry::Elsewhere),
            402 => self.payment(),
            // 20
            403 | 429 | 503 if self.is_edge() => {
                Fault::new(Cause::EdgeBlock, Scope::Egress).rest(self.rest(30 * SECOND)).retry(Retry::Backoff)
            }
            403 => self.forbidden(),
            404 => self.not_found(),
            405 | 410 => request(Cause::NotFound),
            // 23
            408 | 504 | 524 => self.hinted(Fault::new(Cause::UpstreamTimeout, Scope::Pool).retry(Retry::Once)),
            // 24
            413 => request(Cause::TooLarge),
            429 => self.rate_limit(),
            // 26
            502 if self.body.kind == Kind::Html => self.edge_error(),
            503 if self.body.attempt == Some(0) => request(Cause::NoProvider),
            502 | 503 | 529 => self.hinted(Fault::new(Cause::ProviderUnavailable, Scope::Pool).retry(Retry::Backoff)),
            // 27
            520..=530 => self.edge_error(),
            // 25
            500..=599 => self.hinted(Fault::new(Cause::ServerError, Scope::Pool).retry(Retry::Backoff)),
            _ => request(Cause::BadRequest),
        }
    }

    /// Rows 9 to 12.
    fn payment(&self) -> Fault {
        let account = |cause| Fault::new(cause, Scope::Account).retry(Retry::Elsewhere);
        let too_dear_for_key = Fault::new(Cause::TooDearForKey, Scope::Key).retry(Retry::Elsewhere);
        let ErrorBody { message, limit_source: source, reason, .. } = &self.body;
        let says = |words: &str| message.contains(words);
        let empty = says("insufficient credit") || says("never purchased") || says("negative");
        let in_flight = account(Cause::InFlightBudget).rest(self.rest(5 * SECOND));
        if reason == "weight_exceeds_budget" {
            account(Cause::TooDearForAccount)
        } else if source.contains("in_flight") || reason.contains("in_flight") || says("in-flight budget") {
            in_flight
        } else if source.contains("key_limit") {
            too_dear_for_key
        } else if says("can only afford") || says("tokens limit exceeded") {
            // bodies without a source: the key's own limit sends people to the keys page, or to a higher limit
            let of_key = source.is_empty()
                && (says("settings/keys")
                    || says("key limit")
                    || says("prompt tokens limit exceeded")
                    || ["total", "daily", "weekly", "monthly"].iter().any(|period| says(&format!("{period} limit"))));
            if of_key { too_dear_for_key } else { account(Cause::TooDearForAccount) }
        } else if source.is_empty() && !empty && self.hints.wait().is_some() {
            // the in-flight budget is the only one that names a time
            in_flight
        } else {
            account(Cause::NoCredit).rest(self.rest(10 * MINUTE))
        }
    }

    /// Rows 13 to 16. Every 403 that is none of the known signatures is a refusal of the request.
    fn forbidden(&self) -> Fault {
        let message = self.body.message.as_str();
        let spent = |cause, scope| {
            let rest = self.to_reset(message, if cause == Cause::KeyLimit { 60 * MINUTE } else { 10 * MINUTE });
            Fault::new(cause, scope).rest(rest).retry(Retry::Elsewhere)
        };
        if message.starts_with("key limit exceeded") {
            spent(Cause::KeyLimit, Scope::Key)
        } else if message.starts_with("workspace ") && message.contains("budget") {
            spent(Cause::WorkspaceBudget, Scope::Workspace)
        } else if (message.contains("guardrail") || message.contains("member")) && message.contains("budget") {
            spent(Cause::GuardrailBudget, Scope::Key)
        } else if message.contains("management key") || message.contains("provisioning key") {
            Fault::new(Cause::ManagementKey, Scope::Key).rest(Rest::guessed(MAX_REST)).retry(Retry::Elsewhere)
        } else {
            Fault::new(Cause::Refused, Scope::Request)
        }
    }

    /// Rows 21 and 22.
    fn not_found(&self) -> Fault {
        let ErrorBody { step, message, .. } = &self.body;
        let by_step = ["data policy", "guardrail", "allowed providers"].iter().any(|of| step.contains(of));
        let by_message = step.is_empty()
            && (message.contains("your data policy")
                || message.contains("your guardrail")
                || (message.contains("no allowed providers") && !self.body.providers_requested));
        if by_step || by_message {
            let unroutable = Fault::new(Cause::Unroutable, Scope::AccountModel);
            unroutable.rest(Rest::guessed(10 * MINUTE)).retry(Retry::Elsewhere)
        } else {
            Fault::new(Cause::NotFound, Scope::Request)
        }
    }

    /// Rows 17 to 19, in the order in which the signs are to be trusted.
    fn rate_limit(&self) -> Fault {
        let body = &self.body;
        let source = body.limit_source.as_str();
        if source.starts_with("upstream") {
            return self.provider_limit(if source.contains("byok") { Cause::ByokLimit } else { Cause::ProviderLimit });
        }
        if source.contains("free") {
            let daily = source.contains("daily") || source.contains("per_day") || source.contains("perday");
            return self.free_tier(daily);
        }
        if source.starts_with("openrouter") {
            return self.platform_limit();
        }
        if let Some(rest) = body.message.strip_prefix("rate limit exceeded: free-models-per-") {
            let ends = |unit: &str| {
                rest.strip_prefix(unit).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
            };
            if ends("min") || ends("day") {
                return self.free_tier(ends("day"));
            }
        }
        if self.headers.keys().any(|name| is_rate_header(name.as_str())) {
            return self.platform_limit();
        }
        if body.upstream {
            return self.provider_limit(if body.byok { Cause::ByokLimit } else { Cause::ProviderLimit });
        }
        if body.rate_headers {
            return self.platform_limit();
        }
        match body.attempt {
            Some(0) => self.platform_limit(),
            Some(_) => self.provider_limit(Cause::ProviderLimit),
            None if self.opted_in => self.platform_limit(),
            None => self.provider_limit(Cause::UnknownLimit),
        }
    }

    fn provider_limit(&self, cause: Cause) -> Fault {
        let fault = match cause {
            Cause::ByokLimit => Fault::new(cause, Scope::AccountModel).retry(Retry::Elsewhere),
            _ => Fault::new(cause, Scope::Pool).retry(Retry::Backoff),
        };
        fault.rest(self.rest(SECOND))
    }

    fn platform_limit(&self) -> Fault {
        Fault::new(Cause::PlatformLimit, Scope::Account).rest(self.rest(MINUTE)).retry(Retry::Elsewhere)
    }

    /// The reset comes before any other hint: asking again earlier counts against the quota as well.
    fn free_tier(&self, daily: bool) -> Fault {
        let hint = self.hints.reset().or(self.hints.wait()).filter(|hint| !hint.is_zero());
        let (cause, rest) = if daily {
            (Cause::FreeTierDaily, Rest::hinted(hint.unwrap_or_else(|| calendar::to_next_day(self.now)).min(MAX_REST)))
        } else {
            (Cause::FreeTierMinute, hint.map_or(Rest::guessed(MINUTE), |hint| Rest::hinted(hint.min(MINUTE))))
        };
        Fault::new(cause, Scope::FreeTier).rest(rest).retry(Retry::Elsewhere)
    }

    fn edge_error(&self) -> Fault {
        self.hinted(Fault::new(Cause::EdgeError, Scope::Egress).retry(Retry::Backoff))
    }

    /// Whether this is the edge's own page rather than an answer of the API. An empty body with no sign of the edge is not.
    fn is_edge(&self) -> bool {
        let html = || self.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
        match self.body.kind {
            Kind::Html => true,
            Kind::Json => false,
            Kind::Text => self.status == 429 || self.headers.contains_key(CF_RAY) || html(),
            Kind::Empty => self.headers.contains_key(CF_RAY) || html(),
        }
    }

    /// The hint, else a guess. A hint of zero asks for the least there is: a second, guessed so that it can grow.
    fn rest(&self, default: Duration) -> Rest {
        match self.hints.wait() {
            Some(hint) if hint.is_zero() => Rest::guessed(default.min(SECOND)),
            Some(hint) => Rest::hinted(hint.min(MAX_REST)),
            None => Rest::guessed(default),
        }
    }

    /// A rest only where the server asks for one.
    fn hinted(&self, mut fault: Fault) -> Fault {
        fault.rest = Some(self.rest(Duration::ZERO)).filter(|rest| !rest.duration.is_zero());
        fault
    }

    /// Until the budget of the period that `message` names starts anew.
    fn to_reset(&self, message: &str, default: Duration) -> Rest {
        let stated = self.body.resets_at.and_then(|at| at.duration_since(self.now).ok());
        let by_period = || {
            let head = message.get(..40).unwrap_or(message);
            if head.contains("daily") {
                Some(calendar::to_next_day(self.now))
            } else if head.contains("weekly") {
                Some(calendar::to_next_week(self.now))
            } else if head.contains("monthly") {
                Some(calendar::to_next_month(self.now))
            } else {
                None
            }
        };
        let until = stated.or_else(|| self.hints.wait()).filter(|span| !span.is_zero()).or_else(by_period);
        until.map_or(Rest::guessed(default), |span| Rest::hinted(span.min(MAX_REST)))
    }
}
