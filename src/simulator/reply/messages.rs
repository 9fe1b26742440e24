//! `/messages`, Anthropic's shape: named events, no `[DONE]`, usage in `message_delta`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Failure, Served, named, with_routing};
use crate::simulator::refusal::{anthropic_name, canonical};
use crate::simulator::scenario::InBand;

fn stop_reason(served: &Served) -> &'static str {
    if served.cut_short { "max_tokens" } else { "end_turn" }
}

fn message(served: &Served, content: Value, stop: Option<&str>, output_tokens: u64) -> Value {
    json!({
        "id": served.id,
        "type": "message",
        "role": "assistant",
        "model": served.model,
        "provider": served.provider,
        "content": content,
        "container": null,
        "stop_reason": stop,
        "stop_details": null,
        "stop_sequence": null,
        "usage": {
            "input_tokens": served.used().0,
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": 0},
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "inference_geo": null,
            "server_tool_use": null,
            "service_tier": "standard"
        }
    })
}

pub(super) fn json(served: &Served, text: &str) -> Bytes {
    let content = json!([{"type": "text", "text": text, "citations": null}]);
    let mut body = message(served, content, Some(stop_reason(served)), served.used().1);
    body["usage"]["cost"] = served.cost().into();
    body["usage"]["is_byok"] = false.into();
    Bytes::from(with_routing(served, body).to_string())
}

fn error(failure: Failure) -> Value {
    let (error_type, message) = canonical(failure.code);
    json!({
        "type": "error",
        "error": {"type": anthropic_name(failure.code), "message": message, "error_type": error_type}
    })
}

pub(super) fn json_failure(served: &Served, failure: Failure) -> Bytes {
    let mut body = error(failure);
    body["request_id"] = served.id.as_str().into();
    Bytes::from(body.to_string())
}

pub(super) fn opening(served: &Served) -> Vec<Bytes> {
    let start = json!({"type": "message_start", "message": message(served, json!([]), None, 0)});
    let block = json!({
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": "", "citations": null}
    });
    vec![named("message_start", &start), named("content_block_start", &block), named("ping", &json!({"type": "ping"}))]
}

pub(super) fn token(piece: &str) -> Bytes {
    let event = json!({
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": piece}
    });
    named("content_block_delta", &event)
}

pub(super) fn closing(served: &Served) -> Vec<Bytes> {
    let delta = json!({
        "type": "message_delta",
        "delta": {
            "container": null,
            "stop_details": null,
            "stop_reason": stop_reason(served),
            "stop_sequence": null
        },
        "usage": {
            "input_tokens": served.used().0,
            "output_tokens": served.used().1,
            "output_tokens_details": {"thinking_tokens": 0},
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "server_tool_use": null,
            "cost": served.cost()
        }
    });
    vec![
        named("content_block_stop", &json!({"type": "content_block_stop", "index": 0})),
        named("message_delta", &delta),
        named("message_stop", &with_routing(served, json!({"type": "message_stop"}))),
    ]
}

pub(super) fn failure(failure: Failure) -> Vec<Bytes> {
    let mut event = error(failure);
    if failure.form == InBand::Bare {
        event["error"] = json!({"type": "api_error", "message": "Provider returned error"});
    }
    vec![named("error", &event)]
}
