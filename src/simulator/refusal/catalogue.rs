//! The texts a balancer may match, each in one place.
//!
//! Wordings are those of OpenRouter's documents and of published captures; where none was found (budget of
//! a guardrail, wrong kind of key) the wording is ours.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Refusal, canonical};
use crate::simulator::clock::Wall;
use crate::simulator::scenario::Reset;

const CREDITS_PAGE: &str = "https://openrouter.ai/settings/credits";
const KEYS_PAGE: &str = "https://openrouter.ai/settings/keys";

pub(crate) fn of_status(status: u16) -> Refusal {
    let (error_type, message) = canonical(status);
    Refusal::new(status, error_type, message)
}

pub(crate) fn missing_credentials() -> Refusal {
    Refusal::new(401, "authentication", "Missing Authentication header")
}

pub(crate) fn unusable_credentials() -> Refusal {
    Refusal::new(401, "authentication", "No cookie auth credentials found")
}

pub(crate) fn unknown_key() -> Refusal {
    Refusal::new(401, "authentication", "User not found.")
}

pub(crate) fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "invalid_request", message)
}

pub(crate) fn invalid_model(model: &str) -> Refusal {
    bad_request(format!("{model} is not a valid model ID"))
}

pub(crate) fn not_found(message: impl Into<String>) -> Refusal {
    Refusal::new(404, "not_found", message)
}

pub(crate) fn insufficient_credits(ever_purchased: bool) -> Refusal {
    let message = if ever_purchased {
        "Insufficient credits. Add more using https://openrouter.ai/settings/credits".to_owned()
    } else {
        format!(
            "Insufficient credits. This account never purchased credits. Make sure your key is on the \
             correct account or org, and if so, purchase more at {CREDITS_PAGE}"
        )
    };
    Refusal::new(402, "payment_required", message)
        .limited_by("openrouter_credits", "Add credits to the account.")
        .with("provider_name", Value::Null)
}

pub(crate) fn cannot_afford(wanted: u64, affordable: u64) -> Refusal {
    let message = format!(
        "This request requires more credits, or fewer max_tokens. You requested up to {wanted} tokens, but \
         can only afford {affordable}. To increase, visit {CREDITS_PAGE} and upgrade to a paid account"
    );
    Refusal::new(402, "payment_required", message)
        .limited_by("openrouter_credits", "Lower max_tokens or add credits.")
        .with("provider_name", Value::Null)
}

pub(crate) fn key_cannot_afford(wanted: u64, affordable: u64, reset: Reset) -> Refusal {
    let message = format!(
        "This request requires more credits, or fewer max_tokens. You requested up to {wanted} tokens, but \
         can only afford {affordable}. To increase, visit {KEYS_PAGE} and create a key with a higher {} limit",
        period(reset, "total")
    );
    Refusal::new(402, "payment_required", message)
        .limited_by("openrouter_key_limit", "Lower max_tokens or raise the key's limit.")
        .with("provider_name", Value::Null)
}

pub(crate) fn in_flight_exhausted(retry_after: u64) -> Refusal {
    Refusal::new(402, "payment_required", "Too many requests in flight for the available credits. Retry shortly.")
        .limited_by("openrouter_in_flight_budget", "Wait for running requests to finish, or add credits.")
        .with("reason", "in_flight_budget_exhausted")
        .retry_after(retry_after)
}

pub(crate) fn weight_exceeds_budget() -> Refusal {
    Refusal::new(402, "payment_required", "The estimated cost of this request exceeds the in-flight budget.")
        .limited_by("openrouter_credits", "Lower max_tokens or add credits.")
        .with("reason", "weight_exceeds_budget")
}

pub(crate) fn key_limit(reset: Reset, hash: &str) -> Refusal {
    let message = format!("Key limit exceeded ({} limit). Manage it using {KEYS_PAGE}/{hash}", period(reset, "total"));
    Refusal { error_type: None, ..Refusal::new(403, "", message) }
}

pub(crate) fn workspace_budget(reset: Reset, limit: f64) -> Refusal {
    let message = format!(
        "Workspace {} budget of ${limit} exceeded. Ask a workspace admin to raise it.",
        period(reset, "lifetime")
    );
    Refusal::new(403, "permission_denied", message)
}

pub(crate) fn management_key() -> Refusal {
    Refusal::new(403, "permission_denied", "Management keys cannot be used for inference. Use an API key instead.")
}

pub(crate) fn free_per_minute(limit: u64, now: Wall) -> Refusal {
    let refusal = Refusal::new(429, "rate_limit_exceeded", "Rate limit exceeded: free-models-per-min. ");
    Refusal { quota: Some((limit, now.next_minute().millis())), ..refusal }
        .limited_by("openrouter_free_tier_per_minute", "Wait for the next minute or use a paid model.")
        .with("provider_name", Value::Null)
}

pub(crate) fn free_per_day(limit: u64, high_balance: bool, now: Wall) -> Refusal {
    let message = if high_balance {
        "Rate limit exceeded: free-models-per-day-high-balance. ".to_owned()
    } else {
        "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day".to_owned()
    };
    let refusal = Refusal::new(429, "rate_limit_exceeded", message);
    Refusal { quota: Some((limit, now.next_day().millis())), ..refusal }
        .limited_by("openrouter_free_tier_daily", "Wait for 00:00 UTC or use a paid model.")
        .with("provider_name", Value::Null)
}

/// A limit of the account that is not the free tier's; `silent`: neither how many nor until when.
pub(crate) fn platform_limit(limit: u64, reset_ms: i64, silent: bool) -> Refusal {
    let refusal = Refusal::new(429, "rate_limit_exceeded", "Rate limit exceeded");
    Refusal { quota: Some((limit, reset_ms)), silent, ..refusal }
}

pub(crate) fn pool_full(model: &str, provider: &str, wait: Option<f64>) -> Refusal {
    let raw = format!("{model} is temporarily rate-limited upstream. Please retry shortly, or add your own key.");
    let refusal = Refusal::new(429, "rate_limit_exceeded", "Provider returned error")
        .limited_by("upstream_provider_shared_pool", "Retry later, or use your own provider key.")
        .with("raw", raw)
        .with("provider_name", provider)
        .with("is_byok", false)
        .with("provider_error_code", "rate_limit_exceeded")
        .routed();
    hinted(refusal, wait)
}

/// Adds a provider's hint in all its copies.
pub(crate) fn hinted(refusal: Refusal, wait: Option<f64>) -> Refusal {
    let Some(wait) = wait else { return refusal };
    let seconds = (wait.ceil() as u64).max(1);
    refusal
        .retry_after(seconds)
        .with("retry_after_seconds", seconds)
        .with("retry_after_seconds_raw", (wait * 1e3).round() / 1e3)
        .with("headers", json!({"Retry-After": seconds.to_string()}))
}

pub(crate) fn provider_failed(provider: &str, status: u16) -> Refusal {
    let (error_type, message) = match status {
        429 | 503 | 529 | 408 | 504 => canonical(status),
        500 => return of_status(500).routed(),
        _ => (canonical(status).0, "Provider returned error"),
    };
    Refusal::new(status, error_type, message)
        .with("provider_name", provider)
        .with("raw", format!("{{\"error\":{{\"message\":\"upstream answered {status}\"}}}}"))
        .with("is_byok", false)
        .with("provider_error_code", status.to_string())
        .routed()
}

/// No endpoint is left after a routing step.
pub(crate) fn unroutable(model: &str, step: &str, funnel: &[(&'static str, usize)]) -> Refusal {
    let message = match step {
        "Filter by Data Policy" => format!(
            "No endpoints found matching your data policy. Configure: https://openrouter.ai/settings/privacy ({model})"
        ),
        "Filter by Guardrails" => {
            format!("No endpoints found for {model} that your guardrails allow.")
        }
        "Filter by Parameters" => {
            format!("No endpoints found that support the given parameters ({model}).")
        }
        _ => format!("No allowed providers are available for the selected model ({model})."),
    };
    let funnel: Vec<Value> =
        funnel.iter().map(|(step, count)| json!({"step": step, "endpoint_count": count})).collect();
    not_found(message).with("failed_routing_step", step).with("routing_funnel", funnel)
}

/// A page of Cloudflare's edge.
pub(crate) fn html(status: u16, ray: &str) -> Refusal {
    let title = match status {
        403 => "Attention Required! | Cloudflare",
        429 => "Access denied | openrouter.ai used Cloudflare to restrict access",
        502 => "502 Bad Gateway",
        524 => "524: A timeout occurred",
        _ => "Cloudflare error",
    };
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en-US\">\n<head><title>{title}</title></head>\n<body>\n\
         <h1>Error {status}</h1>\n<p>Cloudflare Ray ID: <strong>{ray}</strong></p>\n</body>\n</html>\n"
    );
    let verbatim = Some(Box::new(("text/html; charset=UTF-8".to_owned(), Bytes::from(page))));
    Refusal { verbatim, error_type: None, ..Refusal::new(status, "", title) }
}

fn period(reset: Reset, total: &'static str) -> &'static str {
    match reset {
        Reset::None => total,
        Reset::Daily => "daily",
        Reset::Weekly => "weekly",
        Reset::Monthly => "monthly",
    }
}
