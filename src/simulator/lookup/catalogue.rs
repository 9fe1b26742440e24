//! `/models`, `/providers` and what belongs to them. Public, and the same for everybody.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::simulator::Shared;
use crate::simulator::refusal::{Refusal, not_found};
use crate::simulator::routing::slug;
use crate::simulator::scenario::{Model, ProviderEndpoint};

/// 2025-01-01, when every simulated model appeared.
const CREATED: i64 = 1_735_689_600;

const PARAMETERS: [&str; 7] =
    ["max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "response_format"];

fn architecture() -> Value {
    json!({
        "modality": "text->text",
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "tokenizer": "Other",
        "instruct_type": null
    })
}

fn cheapest<'a>(shared: &'a Shared, model: &Model) -> Option<&'a ProviderEndpoint> {
    let serving = shared.scenario.endpoints.iter().filter(|endpoint| endpoint.model == model.id);
    let price = |endpoint: &ProviderEndpoint| endpoint.prompt_price + endpoint.completion_price;
    serving.min_by(|a, b| price(a).total_cmp(&price(b)))
}

/// Prices are strings in USD per token.
fn per_token(per_million: f64) -> String {
    // Twelve digits after the point hold a millionth of a cent per million tokens.
    let text = format!("{:.12}", per_million / 1e6);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn pricing(endpoint: Option<&ProviderEndpoint>) -> Value {
    let (prompt, completion) = endpoint.map_or((0.0, 0.0), |e| (e.prompt_price, e.completion_price));
    json!({"prompt": per_token(prompt), "completion": per_token(completion), "request": "0", "image": "0"})
}

fn entry(shared: &Shared, model: &Model) -> Value {
    json!({
        "id": model.id,
        "canonical_slug": model.id,
        "name": model.id,
        "created": CREATED,
        "description": "A simulated model.",
        "context_length": model.context_length,
        "architecture": architecture(),
        "pricing": pricing(cheapest(shared, model)),
        "top_provider": {
            "context_length": model.context_length,
            "max_completion_tokens": model.max_output,
            "is_moderated": false
        },
        "per_request_limits": null,
        "supported_parameters": PARAMETERS,
        "default_parameters": {},
        "supported_voices": null,
        "links": {"details": format!("/api/v1/models/{}/endpoints", model.id)}
    })
}

pub(super) fn models(shared: &Shared) -> Value {
    let data: Vec<Value> = shared.scenario.models.iter().map(|model| entry(shared, model)).collect();
    json!({"total_count": data.len(), "data": data, "links": {"next": null}})
}

pub(super) fn count(shared: &Shared) -> Value {
    json!({"data": {"count": shared.scenario.models.len()}})
}

fn find<'a>(shared: &'a Shared, author: &str, slug: &str) -> Result<&'a Model, Refusal> {
    // A colon of a variant may arrive percent-encoded.
    let id = format!("{author}/{slug}").replace("%3A", ":").replace("%3a", ":");
    let models = &shared.scenario.models;
    models.iter().find(|model| model.id == id).ok_or_else(|| not_found(format!("Model {id} not found")))
}

pub(super) fn model(shared: &Shared, author: &str, slug: &str) -> Result<Value, Refusal> {
    Ok(json!({"data": entry(shared, find(shared, author, slug)?)}))
}

pub(super) fn endpoints(shared: &Shared, author: &str, slug: &str) -> Result<Value, Refusal> {
    let model = find(shared, author, slug)?;
    let serving = shared.scenario.endpoints.iter().filter(|endpoint| endpoint.model == model.id);
    let endpoints: Vec<Value> = serving.map(|endpoint| endpoint_entry(model, endpoint)).collect();
    Ok(json!({"data": {
        "id": model.id,
        "name": model.id,
        "created": CREATED,
        "description": "A simulated model.",
        "architecture": architecture(),
        "endpoints": endpoints
    }}))
}

fn endpoint_entry(model: &Model, endpoint: &ProviderEndpoint) -> Value {
    json!({
        "name": format!("{} | {}", endpoint.provider, model.id),
        "model_id": model.id,
        "model_name": model.id,
        "context_length": model.context_length,
        "pricing": pricing(Some(endpoint)),
        "provider_name": endpoint.provider,
        "tag": slug(&endpoint.provider),
        "service_tier": null,
        "quantization": "unknown",
        "max_completion_tokens": model.max_output,
        "max_prompt_tokens": null,
        "supported_parameters": PARAMETERS,
        "supports_tool_choice": {"none": false, "auto": false, "required": false, "function": false},
        "status": 0,
        "uptime_last_5m": 100.0,
        "uptime_last_30m": 100.0,
        "uptime_last_1d": 100.0,
        "supports_implicit_caching": false,
        "supports_diarization": false,
        "native_tools": {},
        "latency_last_30m": null,
        "throughput_last_30m": null
    })
}

pub(super) fn providers(shared: &Shared) -> Value {
    let names: BTreeSet<&str> = shared.scenario.endpoints.iter().map(|e| e.provider.as_str()).collect();
    let entry = |name: &str| {
        json!({
            "name": name,
            "slug": slug(name),
            "privacy_policy_url": null,
            "terms_of_service_url": null,
            "status_page_url": null
        })
    };
    json!({"data": names.into_iter().map(entry).collect::<Vec<_>>()})
}
