//! What gRPC says of a call: the status, and when to come back.
//!
//! A gRPC call is an HTTP 200 whatever became of it. The status stands in the head when there is nothing else to say (an
//! answer of trailers only), else in the trailers, and when to come back in one of two places: `grpc-retry-pushback-ms`, which
//! gRPC's own retries read and [`RespondLayer::grpc`](crate::RespondLayer::grpc) writes, and `google.rpc.RetryInfo` among the
//! details of the status, as the services of Google and many after them send it. Both are read here.

use std::time::Duration;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, StatusCode};

use super::{Cause, Classify, Fault, HttpStatus, Outcome, Rest, Retry, Scope};
use crate::clock::FOREVER;

mod wire;

/// gRPC: `grpc-status` in the head (an answer of trailers only) or in the trailers decides.
///
/// | status | means |
/// | --- | --- |
/// | `RESOURCE_EXHAUSTED` | the key rests, by default 1 s; another may serve |
/// | `UNAUTHENTICATED` | the key rests, by default 60 s; another may serve |
/// | `UNAVAILABLE` | suspect; the service itself rests if it says for how long; tried again after a wait |
/// | `DEADLINE_EXCEEDED`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS`, no status at all | suspect; it may have run, so it is tried again only where [`retry_unclear`](crate::RetryLayer::retry_unclear) says so |
/// | the others | the request's own |
///
/// How long a rest lasts, the server says as `google.rpc.RetryInfo` in `grpc-status-details-bin` or as
/// `grpc-retry-pushback-ms`; the longer of the two holds. A pushback that is negative, or no number, asks that nothing be
/// tried again, as gRPC has it. A head without the status says nothing yet: then the trailers do, which each layer reads as
/// they pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grpc;

/// When a server wants the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It does not say.
    Unsaid,
    /// After so long.
    After(Duration),
    Never,
}

impl Grpc {
    fn status(headers: &HeaderMap) -> Option<Outcome> {
        let code: u32 = headers.get("grpc-status")?.to_str().ok()?.trim().parse().ok()?;
        let mut fault = match code {
            0 => return Some(Outcome::Success),
            4 => Fault::new(Cause::UpstreamTimeout, Scope::Pool).retry(Retry::Unclear),
            5 | 12 => Fault::new(Cause::NotFound, Scope::Request),
            7 => Fault::new(Cause::Refused, Scope::Request),
            8 => Fault::new(Cause::PlatformLimit, Scope::Key).rest(guessed(1)).retry(Retry::Elsewhere),
            14 => Fault::new(Cause::ProviderUnavailable, Scope::Pool).retry(Retry::Backoff),
            16 => Fault::new(Cause::InvalidKey, Scope::Key).rest(guessed(60)).retry(Retry::Elsewhere),
            2 | 13 | 15 => Fault::new(Cause::ServerError, Scope::Pool).retry(Retry::Unclear),
            _ => Fault::new(Cause::BadRequest, Scope::Request),
        };
        if matches!(fault.retry, Retry::Elsewhere | Retry::Backoff) {
            match Next::of(headers) {
                Next::Unsaid => {}
                Next::After(span) => fault.rest = Some(Rest::hinted(span.min(FOREVER))),
                Next::Never => fault.retry = Retry::Never,
            }
        }
        Some(fault.into())
    }
}

fn guessed(seconds: u64) -> Rest {
    Rest::guessed(Duration::from_secs(seconds))
}

impl Next {
    fn of(headers: &HeaderMap) -> Self {
        let info = headers.get("grpc-status-details-bin").and_then(|details| retry_delay(details.as_bytes()));
        let Some(pushback) = headers.get("grpc-retry-pushback-ms") else {
            return info.map_or(Self::Unsaid, Self::After);
        };
        match pushback.to_str().ok().and_then(|millis| millis.trim().parse().ok()) {
            Some(millis) => Self::After(Duration::from_millis(millis).max(info.unwrap_or_default())),
            None => Self::Never,
        }
    }
}

/// The delay of the `RetryInfo` in a `google.rpc.Status`, which gRPC sends in base64, padded or not.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    const PADDED_OR_NOT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PADDED_OR_NOT);
    wire::retry_delay(&BASE64.decode(details).ok()?)
}

impl Classify for Grpc {
    fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
        match Self::status(headers) {
            Some(outcome) => Some(outcome),
            None if status.is_success() => None,
            None => HttpStatus.head(status, headers),
        }
    }

    fn end(&self, trailers: Option<&HeaderMap>) -> Outcome {
        trailers
            .and_then(Self::status)
            .unwrap_or_else(|| Fault::new(Cause::Truncated, Scope::Pool).retry(Retry::Unclear).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<const N: usize>(headers: [(&'static str, &str); N]) -> HeaderMap {
        headers.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// `google.rpc.Status` with code 8 and one detail, a `RetryInfo` of 2.5 s, as `tonic-types` writes it.
    const IN_2500_MS: &str = "CAgSBHNvb24aNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggIAhCAyrXuAQ==";

    fn fault(headers: &HeaderMap) -> Fault {
        *Grpc.head(StatusCode::OK, headers).unwrap().fault().unwrap()
    }

    #[test]
    fn grpc_waits_for_its_trailers() {
        assert_eq!(Grpc.head(StatusCode::OK, &HeaderMap::new()), None);
        assert_eq!(Grpc.end(Some(&headers([("grpc-status", "0")]))), Outcome::Success);
        assert!(Grpc.end(None).fault().is_some_and(Fault::is_suspect), "no trailers is a cut stream");
        assert!(Grpc.end(Some(&HeaderMap::new())).fault().is_some_and(Fault::is_suspect), "nor is their status");
        assert_eq!(fault(&headers([("grpc-status", "8")])).scope, Scope::Key);
        let page = Grpc.head(StatusCode::BAD_GATEWAY, &HeaderMap::new()).unwrap();
        assert_eq!(page.fault().unwrap().cause, Cause::ProviderUnavailable, "of a proxy that speaks no gRPC");
    }

    #[test]
    fn every_status_speaks_about_somebody() {
        for code in 1..=20 {
            let fault = fault(&headers([("grpc-status", &code.to_string())]));
            assert_eq!(fault.is_of_key(), matches!(code, 8 | 16), "{code}");
            assert_eq!(fault.is_suspect(), matches!(code, 2 | 4 | 13 | 14 | 15), "{code}");
            assert_eq!(fault.rest.is_some(), fault.is_of_key(), "{code}");
            assert_eq!(fault.retry == Retry::Never, !fault.is_of_key() && !fault.is_suspect(), "{code}");
        }
    }

    #[test]
    fn when_to_come_back_is_read_from_both_places() {
        let hinted = |millis| Some(Rest::hinted(Duration::from_millis(millis)));
        let of = |status, more| {
            let mut all = headers([("grpc-status", status)]);
            all.extend::<HeaderMap>(more);
            fault(&all)
        };
        for (more, rest) in [
            (headers([("grpc-status-details-bin", IN_2500_MS)]), hinted(2500)),
            (headers([("grpc-status-details-bin", IN_2500_MS.trim_end_matches('='))]), hinted(2500)),
            (headers([("grpc-retry-pushback-ms", "70")]), hinted(70)),
            (headers([("grpc-status-details-bin", IN_2500_MS), ("grpc-retry-pushback-ms", "70")]), hinted(2500)),
            (headers([("grpc-status-details-bin", IN_2500_MS), ("grpc-retry-pushback-ms", "4000")]), hinted(4000)),
            (headers([("grpc-status-details-bin", "%")]), Some(guessed(1))),
            (headers([("grpc-status-details-bin", "")]), Some(guessed(1))),
        ] {
            let fault = of("8", more.clone());
            assert_eq!((fault.rest, fault.retry), (rest, Retry::Elsewhere), "{more:?}");
        }
        let info = || headers([("grpc-status-details-bin", IN_2500_MS)]);
        assert_eq!((of("14", info()).rest, of("14", info()).scope), (hinted(2500), Scope::Pool));
        assert_eq!(of("3", info()).rest, None, "a bad request stays bad");
        assert_eq!(of("14", HeaderMap::new()).rest, None);
    }

    #[test]
    fn a_server_may_forbid_to_try_again() {
        for pushback in ["-1", "soon", ""] {
            let fault = fault(&headers([("grpc-status", "14"), ("grpc-retry-pushback-ms", pushback)]));
            assert_eq!((fault.retry, fault.rest), (Retry::Never, None), "{pushback}");
        }
    }
}
