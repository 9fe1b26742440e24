//! How long a provider takes for one request.

use std::time::Duration;

use super::draw;
use super::scenario::{ProviderEndpoint, What};

/// One request's times at one provider.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delays {
    /// Until it accepts or refuses.
    pub(super) accept: Duration,
    /// From acceptance to the first token.
    pub(super) first_token: Duration,
    /// From each token to the next.
    pub(super) per_token: Duration,
}

impl Delays {
    /// Drawn from the request's own random source, so that other requests do not matter.
    pub(super) fn drawn(endpoint: &ProviderEndpoint, rng: &mut fastrand::Rng, fault: Option<&What>) -> Self {
        let jitter = 1.0 + endpoint.jitter * (rng.f64() * 2.0 - 1.0);
        Self::of(endpoint, jitter, draw::spread(rng, endpoint.first_token_sigma), fault)
    }

    /// There is nobody to wait for.
    pub(super) const NONE: Self =
        Self { accept: Duration::ZERO, first_token: Duration::ZERO, per_token: Duration::ZERO };

    /// How soon and how late any request is accepted or refused.
    #[cfg(feature = "lab")]
    pub(super) fn accept_between(endpoint: &ProviderEndpoint, fault: Option<&What>) -> (Duration, Duration) {
        let accept = |jitter: f64| Self::of(endpoint, jitter, 1.0, fault).accept;
        (accept(1.0 - endpoint.jitter), accept(1.0 + endpoint.jitter))
    }

    fn of(endpoint: &ProviderEndpoint, jitter: f64, spread: f64, fault: Option<&What>) -> Self {
        let (factor, accept_ms, first_token_ms) = match fault {
            Some(What::Slow { factor, accept_ms, first_token_ms }) => (jitter * factor, *accept_ms, *first_token_ms),
            _ => (jitter, 0.0, 0.0),
        };
        let rate = endpoint.tokens_per_second;
        Self {
            accept: millis(endpoint.accept_ms * factor + accept_ms),
            first_token: millis(endpoint.first_token_ms * factor * spread + first_token_ms),
            per_token: millis(if rate > 0.0 { factor * 1e3 / rate } else { 0.0 }),
        }
    }
}

/// Milliseconds, however many.
pub(super) fn millis(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0) / 1e3).unwrap_or(Duration::MAX / 8)
}
