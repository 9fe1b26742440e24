//! `/responses`: one object that grows, told in numbered events, without `[DONE]`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Failure, Served, named, with_routing};
use crate::simulator::refusal::canonical;
use crate::simulator::scenario::InBand;

fn item_id(served: &Served) -> String {
    format!("msg_{}", served.id.trim_start_matches("gen-"))
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn item(served: &Served, status: &str, content: Value) -> Value {
    json!({
        "id": item_id(served),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content
    })
}

fn response(served: &Served, status: &str, output: Value) -> Value {
    let completed = matches!(status, "completed" | "incomplete").then(|| served.created.seconds());
    json!({
        "id": served.id,
        "object": "response",
        "created_at": served.created.seconds(),
        "completed_at": completed,
        "model": served.model,
        "status": status,
        "output": output,
        "error": null,
        "incomplete_details": null,
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "instructions": null,
        "metadata": null,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": true,
        "store": false,
        "previous_response_id": null
    })
}

fn done(served: &Served, text: &str) -> Value {
    let status = if served.cut_short { "incomplete" } else { "completed" };
    let mut body = response(served, status, json!([item(served, status, json!([part(text)]))]));
    if served.cut_short {
        body["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    body["output_text"] = text.into();
    body["usage"] = json!({
        "input_tokens": served.used().0,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": served.used().1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": served.used().0 + served.used().1,
        "cost": served.cost(),
        "is_byok": false
    });
    with_routing(served, body)
}

pub(super) fn json(served: &Served, text: &str) -> Bytes {
    Bytes::from(done(served, text).to_string())
}

fn failed(served: &Served, failure: Failure) -> Value {
    let (error_type, message) = canonical(failure.code);
    let code = if failure.code == 429 { "rate_limit_exceeded" } else { "server_error" };
    let mut body = response(served, "failed", json!([]));
    body["error"] = json!({"code": code, "message": message});
    body["error_type"] = error_type.into();
    body
}

pub(super) fn json_failure(served: &Served, failure: Failure) -> Bytes {
    Bytes::from(failed(served, failure).to_string())
}

fn numbered(number: u64, mut event: Value) -> Bytes {
    event["sequence_number"] = number.into();
    let name = event["type"].as_str().unwrap_or_default().to_owned();
    named(&name, &event)
}

/// Events before the first token; they take the numbers 0 to 3.
pub(super) fn opening(served: &Served) -> Vec<Bytes> {
    let running = response(served, "in_progress", json!([]));
    let events = [
        json!({"type": "response.created", "response": running}),
        json!({"type": "response.in_progress", "response": running}),
        json!({
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item(served, "in_progress", json!([]))
        }),
        json!({
            "type": "response.content_part.added",
            "output_index": 0,
            "content_index": 0,
            "item_id": item_id(served),
            "part": part("")
        }),
    ];
    (0..).zip(events).map(|(number, event)| numbered(number, event)).collect()
}

const OPENING: u64 = 4;

pub(super) fn token(served: &Served, event_number: u64, piece: &str) -> Bytes {
    let event = json!({
        "type": "response.output_text.delta",
        "output_index": 0,
        "content_index": 0,
        "item_id": item_id(served),
        "delta": piece,
        "logprobs": []
    });
    numbered(OPENING + event_number, event)
}

pub(super) fn closing(served: &Served) -> Vec<Bytes> {
    let text = served.text(served.completion_tokens);
    let status = if served.cut_short { "incomplete" } else { "completed" };
    let events = [
        json!({
            "type": "response.output_text.done",
            "output_index": 0,
            "content_index": 0,
            "item_id": item_id(served),
            "text": text,
            "logprobs": []
        }),
        json!({
            "type": "response.content_part.done",
            "output_index": 0,
            "content_index": 0,
            "item_id": item_id(served),
            "part": part(&text)
        }),
        json!({
            "type": "response.output_item.done",
            "output_index": 0,
            "item": item(served, status, json!([part(&text)]))
        }),
        json!({"type": format!("response.{status}"), "response": done(served, &text)}),
    ];
    let first = OPENING + served.events(served.completion_tokens);
    (first..).zip(events).map(|(number, event)| numbered(number, event)).collect()
}

pub(super) fn failure(served: &Served, failure: Failure, sent: u64) -> Vec<Bytes> {
    let message = canonical(failure.code).1;
    let event = match failure.form {
        InBand::Standard | InBand::Choice => {
            json!({"type": "response.failed", "response": failed(served, failure)})
        }
        _ => {
            json!({"type": "error", "code": failure.code.to_string(), "message": message, "param": null})
        }
    };
    vec![numbered(OPENING + served.events(sent), event)]
}
