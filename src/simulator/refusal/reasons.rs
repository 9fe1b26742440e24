//! Each row of the wire reference's error tables, on demand, for faults that ask for one by name.

use serde_json::json;

use super::{
    Refusal, cannot_afford, free_per_day, free_per_minute, in_flight_exhausted, insufficient_credits,
    key_cannot_afford, key_limit, management_key, of_status, platform_limit, provider_failed, unroutable,
    weight_exceeds_budget, workspace_budget,
};
use crate::simulator::clock::Wall;
use crate::simulator::scenario::{Reason, Reset, What};

impl What {
    /// The refusal of a fault that names a status.
    pub(in crate::simulator) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Status { status, retry_after } => Some(Refusal { retry_after: *retry_after, ..of_status(*status) }),
            _ => None,
        }
    }
}

/// What a refusal by name needs to know about the request it strikes.
pub(crate) struct Struck<'a> {
    pub(crate) model: &'a str,
    pub(crate) hash: &'a str,
    pub(crate) now: Wall,
}

pub(crate) fn of_reason(reason: Reason, struck: &Struck<'_>) -> Refusal {
    let model = struck.model;
    match reason {
        Reason::InFlightBudget => in_flight_exhausted(3),
        Reason::WeightExceedsBudget => weight_exceeds_budget(),
        Reason::CannotAfford => cannot_afford(16_384, 1_210),
        Reason::KeyCannotAfford => key_cannot_afford(16_384, 1_210, Reset::None),
        Reason::InsufficientCredits => insufficient_credits(true),
        Reason::NeverPurchased => insufficient_credits(false),
        Reason::KeyLimit => key_limit(Reset::None, struck.hash),
        Reason::WorkspaceBudget => workspace_budget(Reset::Daily, 5.0),
        Reason::ManagementKey => management_key(),
        Reason::Guardrail => {
            Refusal::new(403, "permission_denied", "Request blocked: prompt injection patterns detected")
                .with("patterns", json!(["ignore all previous instructions"]))
        }
        Reason::Moderation => Refusal::new(
            403,
            "permission_denied",
            format!("{model} requires moderation on SomeProvider. Your input was flagged for \"violence\"."),
        )
        .with("reasons", json!(["violence"]))
        .with("flagged_input", "a sentence of the prompt")
        .with("provider_name", "SomeProvider")
        .with("model_slug", model),
        Reason::ContentPolicy => Refusal::new(403, "content_policy_violation", "The provider refused this content.")
            .with("provider_name", "SomeProvider")
            .routed(),
        Reason::Harness => gated(model, "Gate Free Endpoints by Agentic Harness"),
        Reason::Geo => gated(model, "Gate Endpoints with Geo Restrictions"),
        Reason::DataPolicy => {
            unroutable(model, "Filter by Data Policy", &[("Initial Endpoints", 2), ("Filter by Data Policy", 0)])
        }
        Reason::Parameters => {
            unroutable(model, "Filter by Parameters", &[("Initial Endpoints", 2), ("Filter by Parameters", 0)])
        }
        Reason::ProviderBadRequest => provider_failed("SomeProvider", 400),
        Reason::CapacityAs400 => provider_failed("SomeProvider", 400)
            .with("raw", "{\"error\":{\"code\":429,\"message\":\"rate limit\"}}")
            .with("previous_errors", json!([{"provider": "SomeProvider", "code": 429, "status": 429}])),
        Reason::FreePerMinute => free_per_minute(20, struck.now),
        Reason::FreePerDay => free_per_day(50, false, struck.now),
        Reason::PlatformLimit => platform_limit(100, struck.now.next_minute().millis(), false),
        Reason::UpstreamByok => provider_failed("SomeProvider", 429)
            .limited_by("upstream_provider_byok", "Your own provider key is rate-limited.")
            .with("is_byok", true),
        Reason::Unidentified429 => Refusal { error_type: None, ..Refusal::new(429, "", "Too many requests") },
    }
}

fn gated(model: &str, step: &str) -> Refusal {
    let message = format!("{model} is not available for this request.");
    Refusal::new(403, "permission_denied", message)
        .with("failed_routing_step", step)
        .with("routing_funnel", json!([{"step": step, "endpoint_count": 0}]))
}
