//! `/chat/completions`.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::{DONE, Failure, Served, data, finish, usage, with_routing};
use crate::simulator::scenario::InBand;

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    provider: &'a str,
    choices: [Choice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    openrouter_metadata: Option<&'a Value>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Delta<'a>,
    finish_reason: Option<&'a str>,
    native_finish_reason: Option<&'a str>,
    logprobs: Option<()>,
}

#[derive(Serialize)]
struct Delta<'a> {
    role: &'static str,
    content: &'a str,
}

fn chunk<'a>(served: &'a Served, content: &'a str, finish: Option<&'a str>, usage: Option<Value>) -> Bytes {
    let delta = Delta { role: "assistant", content };
    data(&Chunk {
        id: &served.id,
        object: "chat.completion.chunk",
        created: served.created.seconds(),
        model: &served.model,
        provider: &served.provider,
        choices: [Choice { index: 0, delta, finish_reason: finish, native_finish_reason: finish, logprobs: None }],
        openrouter_metadata: served.routing.as_ref().filter(|_| usage.is_some()),
        usage,
    })
}

pub(super) fn json(served: &Served, text: &str) -> Bytes {
    Bytes::from(with_routing(served, whole(served, text, finish(served))).to_string())
}

fn whole(served: &Served, text: &str, finish: &str) -> Value {
    json!({
        "id": served.id,
        "object": "chat.completion",
        "created": served.created.seconds(),
        "model": served.model,
        "provider": served.provider,
        "system_fingerprint": null,
        "service_tier": null,
        "choices": [{
            "index": 0,
            "logprobs": null,
            "finish_reason": finish,
            "native_finish_reason": finish,
            "message": {"role": "assistant", "content": text, "refusal": null, "reasoning": null}
        }],
        "usage": usage(served)
    })
}

pub(super) fn json_failure(served: &Served, failure: Failure, text: &str) -> Bytes {
    let mut body = whole(served, text, "error");
    body["choices"][0]["error"] = failure.error(&served.provider);
    Bytes::from(body.to_string())
}

pub(super) fn token(served: &Served, piece: &str) -> Bytes {
    chunk(served, piece, None, None)
}

/// The finish reason comes twice: alone, and with the usage.
pub(super) fn closing(served: &Served) -> Vec<Bytes> {
    let finish = Some(finish(served));
    vec![chunk(served, "", finish, None), chunk(served, "", finish, Some(usage(served))), DONE]
}

pub(super) fn failure(served: &Served, failure: Failure) -> Vec<Bytes> {
    let error = failure.error(&served.provider);
    if failure.form == InBand::Bare {
        return vec![data(&json!({"error": error}))];
    }
    let mut choice = json!({
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": "error",
        "native_finish_reason": "error"
    });
    if failure.form == InBand::Choice {
        choice["error"] = error.clone();
    }
    let choices = if failure.form == InBand::EmptyChoices { json!([]) } else { json!([choice]) };
    let event = data(&json!({
        "id": served.id,
        "object": "chat.completion.chunk",
        "created": served.created.seconds(),
        "model": served.model,
        "provider": served.provider,
        "error": error,
        "choices": choices
    }));
    match failure.form {
        // Reports differ on whether an end marker follows; here the two main forms have one.
        InBand::Standard | InBand::Choice => vec![event, DONE],
        _ => vec![event],
    }
}
