use std::{error::Error, ops::Deref, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};

use super::{Cause, Fault, Outcome, Rest, Retry, Scope};
use crate::error::UpstreamError;

/// Says what an answer means, for stacks whose leaf puts no [`OutcomeCell`](super::OutcomeCell) into its responses.
///
/// Give the same one to every layer that judges: retry, commit gate, select, monitor, breaker.
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use tower_openrouter::{Classify, Outcome, RetryLayer};
/// use tower_openrouter::outcome::{Cause, Fault, HttpStatus, Retry, Scope};
///
/// /// An upstream whose 409 means that the model is still being loaded, for everybody.
/// struct Loading;
///
/// impl Classify for Loading {
///     fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
///         if status == StatusCode::CONFLICT {
///             return Some(Fault::new(Cause::ProviderUnavailable, Scope::Pool).retry(Retry::Backoff).into());
///         }
///         HttpStatus.head(status, headers)
///     }
/// }
///
/// let retry = RetryLayer::new().classify(Loading);
/// # let _ = retry;
/// ```
pub trait Classify: Send + Sync + 'static {
    /// Judges the head of a response; `None` when only its end can tell.
    fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome>;

    /// Judges the end of a body whose head said nothing, by its trailers. Default: a success.
    fn end(&self, trailers: Option<&HeaderMap>) -> Outcome {
        let _ = trailers;
        Outcome::Success
    }

    /// Judges an error of the inner service. Default: [`error_fault`].
    fn error(&self, error: &(dyn Error + 'static)) -> Outcome {
        Outcome::Fault(error_fault(error))
    }
}

/// Who judges: [`HttpStatus`] unless somebody else is named. As small as can be, since every attempt carries one, and none
/// counts the owners of the default.
#[derive(Clone, Default)]
pub(crate) struct Judge(Option<Arc<Box<dyn Classify>>>);

impl Judge {
    pub(crate) fn new(classify: impl Classify) -> Self {
        Self(Some(Arc::new(Box::new(classify))))
    }
}

impl Deref for Judge {
    type Target = dyn Classify;

    fn deref(&self) -> &dyn Classify {
        self.0.as_ref().map_or(&HttpStatus, |classify| &***classify)
    }
}

/// What an error in place of a response means: an [`UpstreamError`] by its kind, a refusal of our own nothing about
/// anybody, and whatever else a broken connection whose request may have been served.
pub fn error_fault(error: &(dyn Error + 'static)) -> Fault {
    if crate::error::Rejected::find(error).is_some() {
        return Fault::new(Cause::BadRequest, Scope::Request);
    }
    match UpstreamError::find(error) {
        Some(error) => error.fault(),
        None => Fault::new(Cause::Reset, Scope::Egress).retry(Retry::Unclear),
    }
}

/// Plain HTTP: the status code decides, `Retry-After` in whole seconds names the rest.
///
/// 429 rests the key, by default 1 s; 401 rests it 60 s; 402 rests the account 10 min; 5xx and 408 are suspect; other
/// 4xx are the request's own. The defaults are those of the classification table.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpStatus;

impl Classify for HttpStatus {
    fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        let hint = headers
            .get(http::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(|seconds| Rest::hinted(Duration::from_secs(seconds).min(crate::clock::FOREVER)));
        let rest = |seconds| hint.unwrap_or(Rest::guessed(Duration::from_secs(seconds)));
        Some(match status.as_u16() {
            100..=399 => Outcome::Success,
            401 => Fault::new(Cause::InvalidKey, Scope::Key).rest(rest(60)).retry(Retry::Elsewhere).into(),
            402 => Fault::new(Cause::NoCredit, Scope::Account).rest(rest(600)).retry(Retry::Elsewhere).into(),
            429 => Fault::new(Cause::PlatformLimit, Scope::Key).rest(rest(1)).retry(Retry::Elsewhere).into(),
            404 | 405 | 410 => Fault::new(Cause::NotFound, Scope::Request).into(),
            413 => Fault::new(Cause::TooLarge, Scope::Request).into(),
            408 | 504 => Fault::new(Cause::UpstreamTimeout, Scope::Pool).retry(Retry::Once).into(),
            502 | 503 => {
                let mut fault = Fault::new(Cause::ProviderUnavailable, Scope::Pool).retry(Retry::Backoff);
                fault.rest = hint;
                fault.into()
            }
            500..=599 => Fault::new(Cause::ServerError, Scope::Pool).retry(Retry::Backoff).into(),
            _ => Fault::new(Cause::BadRequest, Scope::Request).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn r036_only_documented_statuses_speak_against_the_key() {
        for code in 100..=599 {
            let status = StatusCode::from_u16(code).unwrap();
            let outcome = HttpStatus.head(status, &HeaderMap::new()).unwrap();
            let of_key = outcome.fault().is_some_and(Fault::is_of_key);
            assert_eq!(of_key, matches!(code, 401 | 429), "{code}");
            let suspect = outcome.fault().is_some_and(Fault::is_suspect);
            assert_eq!(suspect, code >= 500 || code == 408, "{code}");
        }
    }

    #[test]
    fn a_hint_names_the_rest() {
        let outcome = HttpStatus.head(StatusCode::TOO_MANY_REQUESTS, &headers("retry-after", "7")).unwrap();
        assert_eq!(outcome.fault().unwrap().rest, Some(Rest::hinted(Duration::from_secs(7))));
    }
}
