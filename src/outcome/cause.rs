use std::fmt;

/// Why an attempt failed. Each names its row of the classification table in [`openrouter`](crate::openrouter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The upstream reported an error after output had been forwarded (row 3).
    MidStream,
    /// The body ended, or was not understood, before its proper end (row 4).
    Truncated,
    /// The request itself is wrong (row 6), or its answer is an error nobody can mend by trying again.
    BadRequest,
    /// The key is unknown, revoked, disabled or expired (row 7).
    InvalidKey,
    /// Most keys are refused at once: the platform's incident, not the keys' (row 8).
    PlatformAuth,
    /// The estimated cost of running requests fills the account's budget for now (row 9).
    InFlightBudget,
    /// The request's worst case costs more than the account can pay (row 10).
    TooDearForAccount,
    /// The request's worst case costs more than is left under the key's cap (row 11).
    TooDearForKey,
    /// The account has no credit (row 12).
    NoCredit,
    /// The key has spent its cap (row 13).
    KeyLimit,
    /// The workspace has spent its budget (row 14).
    WorkspaceBudget,
    /// The member, or the key, has spent a guardrail's budget (row 14).
    GuardrailBudget,
    /// Moderation, guardrail, policy, app or region forbid the request (row 15).
    Refused,
    /// A management key cannot call models (row 16).
    ManagementKey,
    /// The account's free requests of this minute are used up (row 17).
    FreeTierMinute,
    /// The account's free requests of this UTC day are used up (row 17).
    FreeTierDaily,
    /// Another limit of the platform on the account (row 17b).
    PlatformLimit,
    /// The provider's pool for the model is full, for everybody (rows 5 and 18).
    ProviderLimit,
    /// The account's own key at the provider is full (row 18b).
    ByokLimit,
    /// A 429 that does not say whose (row 19).
    UnknownLimit,
    /// The edge blocks our address (row 20).
    EdgeBlock,
    /// The settings of account, workspace or key leave no provider for the model (row 21).
    Unroutable,
    /// Model, endpoint or parameters do not exist (row 22).
    NotFound,
    /// The upstream says that it timed out (row 23).
    UpstreamTimeout,
    /// The request is too large (row 24).
    TooLarge,
    /// The platform, or a provider behind a generic message, failed (row 25).
    ServerError,
    /// The provider is down or overloaded (row 26).
    ProviderUnavailable,
    /// No provider meets the request's routing wishes (row 26, attempt 0).
    NoProvider,
    /// The edge failed (row 27).
    EdgeError,
    /// No connection could be made: nothing was sent (row 28).
    Connect,
    /// The connection broke after the request was sent (row 28).
    Reset,
    /// Our own time limit for the whole passed (row 29).
    Timeout,
    /// No head came within our own time limit (row 29).
    HeadersTimeout,
    /// Nothing of an answer came within our own time limit (row 29).
    FirstOutputTimeout,
    /// The answer had begun, and fell silent for longer than our own time limit (row 29).
    GapTimeout,
}

impl Cause {
    /// Every cause, in the order of the table.
    pub const ALL: [Self; 35] = [
        Self::MidStream,
        Self::Truncated,
        Self::BadRequest,
        Self::InvalidKey,
        Self::PlatformAuth,
        Self::InFlightBudget,
        Self::TooDearForAccount,
        Self::TooDearForKey,
        Self::NoCredit,
        Self::KeyLimit,
        Self::WorkspaceBudget,
        Self::GuardrailBudget,
        Self::Refused,
        Self::ManagementKey,
        Self::FreeTierMinute,
        Self::FreeTierDaily,
        Self::PlatformLimit,
        Self::ProviderLimit,
        Self::ByokLimit,
        Self::UnknownLimit,
        Self::EdgeBlock,
        Self::Unroutable,
        Self::NotFound,
        Self::UpstreamTimeout,
        Self::TooLarge,
        Self::ServerError,
        Self::ProviderUnavailable,
        Self::NoProvider,
        Self::EdgeError,
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::HeadersTimeout,
        Self::FirstOutputTimeout,
        Self::GapTimeout,
    ];

    /// Whether it is an account's limit that has room again in a moment, so that who met it may wait like those who come later.
    pub(crate) fn is_momentary(self) -> bool {
        matches!(self, Self::InFlightBudget | Self::FreeTierMinute | Self::PlatformLimit)
    }

    /// Position in [`ALL`](Self::ALL), for tables of counters.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The cause's name in metrics, logs and snapshots.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::MidStream => "mid_stream",
            Self::Truncated => "truncated",
            Self::BadRequest => "bad_request",
            Self::InvalidKey => "invalid_key",
            Self::PlatformAuth => "platform_auth",
            Self::InFlightBudget => "in_flight_budget",
            Self::TooDearForAccount => "too_dear_for_account",
            Self::TooDearForKey => "too_dear_for_key",
            Self::NoCredit => "no_credit",
            Self::KeyLimit => "key_limit",
            Self::WorkspaceBudget => "workspace_budget",
            Self::GuardrailBudget => "guardrail_budget",
            // a snapshot calls `refused` what a layer of ours turned away
            Self::Refused => "forbidden",
            Self::ManagementKey => "management_key",
            Self::FreeTierMinute => "free_tier_minute",
            Self::FreeTierDaily => "free_tier_daily",
            Self::PlatformLimit => "platform_limit",
            Self::ProviderLimit => "provider_limit",
            Self::ByokLimit => "byok_limit",
            Self::UnknownLimit => "unknown_limit",
            Self::EdgeBlock => "edge_block",
            Self::Unroutable => "unroutable",
            Self::NotFound => "not_found",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::TooLarge => "too_large",
            Self::ServerError => "server_error",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::NoProvider => "no_provider",
            Self::EdgeError => "edge_error",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::HeadersTimeout => "headers_timeout",
            Self::FirstOutputTimeout => "first_output_timeout",
            Self::GapTimeout => "gap_timeout",
        }
    }

    /// See [`Fault::is_suspect`](super::Fault::is_suspect).
    pub(crate) fn is_suspect(self) -> bool {
        matches!(
            self,
            Self::Truncated
                | Self::UpstreamTimeout
                | Self::ServerError
                | Self::ProviderUnavailable
                | Self::EdgeError
                | Self::Connect
                | Self::Reset
                | Self::Timeout
                | Self::HeadersTimeout
                | Self::FirstOutputTimeout
                | Self::GapTimeout
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_causes_stand_at_their_index() {
        for (index, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(cause.index(), index, "{cause}");
        }
    }
}
