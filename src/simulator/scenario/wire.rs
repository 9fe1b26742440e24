//! Settings of the platform as a whole: replies, wire forms, history.

use serde::{Deserialize, Serialize};

/// What successful replies contain.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reply {
    /// Fewest completion tokens. Default 8.
    pub min_tokens: u64,
    /// Most completion tokens, before the request's own maximum. Default 32.
    pub max_tokens: u64,
    /// Tokens that one event of a stream carries, once the first was sent alone; it is sent when the last of them is there.
    /// More make long streams cheap to simulate. Default 1.
    pub tokens_per_event: u64,
}

impl Default for Reply {
    fn default() -> Self {
        Self { min_tokens: 8, max_tokens: 32, tokens_per_event: 1 }
    }
}

/// Forms of the wire on which reports differ, and keep-alives. Times in ms, 0 = off.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wire {
    /// Bodies as before spring 2026: no `limit_source`, `reason`, `remedy_hint`, `retry_after_*`.
    pub legacy_bodies: bool,
    /// No `error_type` in errors, as in many captured 4xx bodies.
    pub omit_error_type: bool,
    /// No `Retry-After` and no copy of it in the body.
    pub omit_hints: bool,
    /// First `: OPENROUTER PROCESSING` comment of a stream that waits. Default off.
    pub comment_first_ms: f64,
    /// Further comments while it still waits. Default off.
    pub comment_every_ms: f64,
    /// Whitespace before a JSON body, at this interval while the model works. Default off.
    pub padding_every_ms: f64,
    /// `/credits` refuses ordinary keys, as documented; observed is the contrary. Default false.
    pub credits_management_only: bool,
    /// How long `/generation` answers 404 after the request, ms. Default 5000; the wire took minutes.
    pub generation_delay_ms: f64,
    /// Largest request body, bytes; more is 413. Default 32 MiB; OpenRouter publishes none.
    pub max_body_bytes: usize,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            legacy_bodies: false,
            omit_error_type: false,
            omit_hints: false,
            comment_first_ms: 0.0,
            comment_every_ms: 0.0,
            padding_every_ms: 0.0,
            credits_management_only: false,
            generation_delay_ms: 5_000.0,
            max_body_bytes: 32 << 20,
        }
    }
}

/// How late the edge notices changes, for it answers from caches. Times in ms; default 0: at once.
///
/// What a request spends counts against caps and balances at once, as OpenRouter says of keys and accounts near their end.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stale {
    /// A key made, disabled, enabled or deleted while the simulation runs.
    pub key_ms: f64,
    /// A key's new cap, or its new reset.
    pub cap_ms: f64,
    /// An account's new balance.
    pub credits_ms: f64,
    /// The counters of `/key` and `/credits`: spending, what is left, and free requests of the day.
    pub counters_ms: f64,
}

/// How much history is kept; older entries go first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// Attempts in the log. Default 10 000.
    pub log: usize,
    /// Requests with headers and body. Default 64.
    pub requests: usize,
    /// Generations that `/generation` knows. Default 1 000.
    pub generations: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { log: 10_000, requests: 64, generations: 1_000 }
    }
}
