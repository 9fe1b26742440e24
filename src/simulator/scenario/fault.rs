//! What goes wrong: a window in time, whom it concerns, and what they see.

use serde::{Deserialize, Serialize};

/// One disturbance. Every given filter must match; the first matching fault of a kind wins.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Seconds after the simulator's start. Default 0. For an injected fault: after the injection.
    #[serde(default)]
    pub at_s: f64,
    /// Seconds it lasts. Default for good.
    pub for_s: Option<f64>,
    /// Only requests of the key with this label.
    pub key: Option<String>,
    /// Only requests of this account's keys.
    pub account: Option<String>,
    /// Only requests for this model.
    pub model: Option<String>,
    /// Only when this provider is tried or serves; no effect on what happens before routing.
    pub provider: Option<String>,
    /// Part of the matching requests it strikes, 0 to 1. Default 1.
    #[serde(default = "always")]
    pub probability: f64,
    /// How many requests it strikes at most. Default no limit.
    pub times: Option<u64>,
    /// What they see.
    pub what: What,
}

const fn always() -> f64 {
    1.0
}

impl Fault {
    /// A fault that strikes every request from now on, to be narrowed by the methods below.
    pub fn new(what: What) -> Self {
        Self {
            at_s: 0.0,
            for_s: None,
            key: None,
            account: None,
            model: None,
            provider: None,
            probability: 1.0,
            times: None,
            what,
        }
    }

    /// Begins after `at` seconds and lasts `seconds`.
    #[must_use]
    pub fn window(mut self, at: f64, seconds: f64) -> Self {
        self.at_s = at;
        self.for_s = Some(seconds);
        self
    }

    /// Strikes only the key with this label.
    #[must_use]
    pub fn key(mut self, label: impl Into<String>) -> Self {
        self.key = Some(label.into());
        self
    }

    /// Strikes only this account's keys.
    #[must_use]
    pub fn account(mut self, name: impl Into<String>) -> Self {
        self.account = Some(name.into());
        self
    }

    /// Strikes only requests for this model.
    #[must_use]
    pub fn model(mut self, id: impl Into<String>) -> Self {
        self.model = Some(id.into());
        self
    }

    /// Strikes only where this provider is involved.
    #[must_use]
    pub fn provider(mut self, name: impl Into<String>) -> Self {
        self.provider = Some(name.into());
        self
    }

    /// Strikes at most this many requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Strikes this part of the matching requests, 0 to 1.
    #[must_use]
    pub fn probability(mut self, part: f64) -> Self {
        self.probability = part;
        self
    }
}

/// What a request struck by a [`Fault`] sees, from the edge inwards.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum What {
    /// The connection is reset before any header.
    Reset,
    /// No header, ever.
    Stall,
    /// A Cloudflare page, not JSON: 403, 429, 502, 503, 520 to 530.
    Html {
        /// HTTP status.
        status: u16,
    },
    /// Any answer at all.
    Raw {
        /// HTTP status.
        status: u16,
        /// `Content-Type`. Default `application/json`.
        #[serde(default = "json")]
        content_type: String,
        /// The body as it is.
        body: String,
    },
    /// 401 for a valid key; without filters the storm that strikes every key at once.
    Unauthorized,
    /// A refusal of the platform in API form, by meaning.
    Refuse {
        /// Which.
        reason: Reason,
    },
    /// An error with this status and its canonical message and `error_type`.
    Status {
        /// 400 to 599.
        status: u16,
        /// `Retry-After` seconds. Default none.
        retry_after: Option<u64>,
    },
    /// The provider's shared pool is full: 429 unless another provider serves.
    PoolFull {
        /// The provider's hint, seconds. Default none.
        retry_after: Option<u64>,
    },
    /// The provider fails before it accepts: this status unless another provider serves.
    ProviderFails {
        /// 400, 408, 500, 502, 503, 504, 529; a 400 is not tried elsewhere.
        status: u16,
    },
    /// More time until the provider accepts, between acceptance and first token, and between tokens.
    Slow {
        /// All of the provider's times are multiplied by this, before what follows is added. Default 1.
        #[serde(default = "unchanged")]
        factor: f64,
        /// Added before acceptance, ms. Default 0.
        #[serde(default)]
        accept_ms: f64,
        /// Added before the first token, ms. Default 0.
        #[serde(default)]
        first_token_ms: f64,
    },
    /// 200, then an error in the body.
    InBand {
        /// Its form.
        form: InBand,
        /// Tokens before it; ignored by the JSON forms that carry no text. Default 0.
        #[serde(default)]
        after_tokens: u64,
        /// `error.code`. Default 502.
        #[serde(default = "bad_gateway")]
        code: u16,
    },
    /// 200, then the stream ends quietly: no finish frame, no `[DONE]`; JSON is cut in half.
    Eof {
        /// Tokens before it. Default 0.
        #[serde(default)]
        after_tokens: u64,
    },
    /// 200, then the body fails.
    Cut {
        /// Tokens before it. Default 0.
        #[serde(default)]
        after_tokens: u64,
        /// Whether the connection is reset rather than closed early. Default false.
        #[serde(default)]
        reset: bool,
        /// Whether half of a stream's next event is sent before that. Default false.
        #[serde(default)]
        half: bool,
    },
    /// 200, then nothing more, not even an end.
    Hang {
        /// Tokens before it. Default 0.
        #[serde(default)]
        after_tokens: u64,
    },
    /// 200 with JSON that does not parse, whole or as an event.
    Malformed,
    /// 200 with whitespace only, then the end.
    PaddingOnly,
    /// 200 whose text is this many bytes long.
    Huge {
        /// Bytes of text.
        bytes: usize,
    },
}

fn json() -> String {
    "application/json".to_owned()
}

const fn unchanged() -> f64 {
    1.0
}

const fn bad_gateway() -> u16 {
    502
}

/// The forms of an error inside a 200. JSON answers know the first two, streams all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InBand {
    /// JSON: `{id, error}` without choices. Stream: `error` and a choice that finishes with `error`.
    Standard,
    /// JSON: partial text with `choices[].error`. Stream: as `Standard`, the error inside the choice too.
    Choice,
    /// Stream: `error` with `choices: []`.
    EmptyChoices,
    /// Stream: as `Standard` with a string for a code.
    StringCode,
    /// Stream: an event `{"error": …}` and nothing else.
    Bare,
}

/// Refusals by meaning, with the bodies of the wire reference's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// 402: running requests fill the account's in-flight budget; `Retry-After: 3`.
    InFlightBudget,
    /// 402: this one request exceeds the whole in-flight budget.
    WeightExceedsBudget,
    /// 402: the balance does not cover the worst case.
    CannotAfford,
    /// 402: the key's remaining cap does not cover the worst case.
    KeyCannotAfford,
    /// 402: no balance.
    InsufficientCredits,
    /// 402: the account never bought credits.
    NeverPurchased,
    /// 403: the key's cap is reached (total).
    KeyLimit,
    /// 403: the workspace's daily budget is reached.
    WorkspaceBudget,
    /// 403: a management key cannot infer.
    ManagementKey,
    /// 403: a guardrail blocks the content.
    Guardrail,
    /// 403: moderation flagged the input.
    Moderation,
    /// 403: the provider refused the content.
    ContentPolicy,
    /// 403: this free model is for known agent harnesses.
    Harness,
    /// 403: the region.
    Geo,
    /// 404: the account's data policy leaves no endpoint.
    DataPolicy,
    /// 404: a parameter leaves no endpoint.
    Parameters,
    /// 400: the provider judged the request.
    ProviderBadRequest,
    /// 400 that is really capacity: a 429 in `previous_errors`.
    CapacityAs400,
    /// 429: free requests per minute.
    FreePerMinute,
    /// 429: free requests per day.
    FreePerDay,
    /// 429: another limit of the platform, with `X-RateLimit-*` headers.
    PlatformLimit,
    /// 429: the account's own provider key is full.
    UpstreamByok,
    /// 429 that says nothing about its source.
    Unidentified429,
}
