//! `/generation`: a 404 for a while, then what a request cost.

use serde_json::{Value, json};

use super::parameter;
use crate::simulator::Shared;
use crate::simulator::clock::Now;
use crate::simulator::generation::{EndOf, Generation};
use crate::simulator::refusal::{Refusal, bad_request, not_found};
use crate::simulator::request::Dialect;
use crate::simulator::world::World;

pub(super) fn generation(shared: &Shared, world: &World, key: usize, query: &str, now: Now) -> Result<Value, Refusal> {
    let id = parameter(query, "id").unwrap_or_default();
    let shaped = id.strip_prefix("gen-").is_some_and(|rest| {
        !rest.is_empty() && id.len() <= 128 && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    if !shaped {
        return Err(bad_request("id: Invalid generation id"));
    }
    let account = world.keys[key].account;
    let delay = shared.scenario.wire.generation_delay_ms / 1e3;
    let visible = |generation: &&Generation| {
        let age = generation.settled.map(|end| now.elapsed.saturating_sub(end.at).as_secs_f64());
        generation.served.id == id && generation.account == account && age.is_some_and(|age| age >= delay)
    };
    let Some(generation) = world.generations.iter().rev().find(visible) else {
        return Err(not_found(format!("Generation {id} not found")));
    };
    Ok(json!({"data": record(world, generation)}))
}

/// Members that are null for a plain text request.
const UNKNOWN: [&str; 18] = [
    "app_id",
    "cache_discount",
    "external_user",
    "http_referer",
    "moderation_latency",
    "native_tokens_completion_images",
    "num_fetches",
    "num_input_audio_prompt",
    "num_media_completion",
    "num_media_prompt",
    "num_search_results",
    "preset_id",
    "provider_responses",
    "router",
    "service_tier",
    "upstream_id",
    "user_agent",
    "web_search_engine",
];

fn record(world: &World, generation: &Generation) -> Value {
    let served = &generation.served;
    let (tokens, cost, end, at) =
        generation.settled.map_or((0, 0.0, EndOf::Left, generation.started), |s| (s.tokens, s.cost, s.end, s.at));
    let finish = match end {
        EndOf::Whole if served.cut_short => Some("length"),
        EndOf::Whole => Some("stop"),
        EndOf::Error => Some("error"),
        EndOf::Broken | EndOf::Left => None,
    };
    let took = at.saturating_sub(generation.started).as_millis() as u64;
    let api_type = if served.dialect == Dialect::Embeddings { "embeddings" } else { "completions" };
    let mut record = json!({
        "id": served.id,
        "api_type": api_type,
        "cancelled": end == EndOf::Left,
        "created_at": served.created.to_string(),
        "data_region": "global",
        "finish_reason": finish,
        "generation_time": took,
        "is_byok": false,
        "latency": took,
        "model": served.model,
        "native_finish_reason": finish,
        "native_tokens_cached": 0,
        "native_tokens_completion": tokens,
        "native_tokens_prompt": served.prompt_tokens,
        "native_tokens_reasoning": 0,
        "origin": "",
        "provider_name": served.provider,
        "streamed": served.streamed,
        "tokens_completion": tokens,
        "tokens_prompt": served.prompt_tokens,
        "total_cost": cost,
        "upstream_inference_cost": 0,
        "usage": cost,
        "workspace_id": world.workspaces[generation.workspace].id
    });
    for member in UNKNOWN {
        record[member] = Value::Null;
    }
    record
}
