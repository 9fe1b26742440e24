//! Successful replies and errors inside them, in the five shapes of the API.
//!
//! Each shape has a file with the same few functions: the whole JSON, and a stream's opening, token, closing
//! and error events.

mod chat;
mod completions;
mod embeddings;
mod messages;
mod responses;

use bytes::Bytes;
use serde_json::{Value, json};

use super::generation::Served;
use super::request::Dialect;
use super::scenario::InBand;

/// A failure after the 200.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) form: InBand,
    pub(super) code: u16,
}

impl Failure {
    fn error(self, provider: &str) -> Value {
        let (error_type, message) = super::refusal::canonical(self.code);
        let code = match self.form {
            InBand::StringCode => Value::from("server_error"),
            _ => Value::from(self.code),
        };
        let metadata = json!({
            "error_type": error_type,
            "provider_name": provider,
            "provider_code": self.code.to_string(),
        });
        json!({"code": code, "message": message, "metadata": metadata})
    }
}

/// The whole answer of a request without streaming.
pub(super) fn json(served: &Served) -> Bytes {
    let text = served.text(served.completion_tokens);
    match served.dialect {
        Dialect::Chat => chat::json(served, &text),
        Dialect::Completions => completions::json(served, &text),
        Dialect::Responses => responses::json(served, &text),
        Dialect::Messages => messages::json(served, &text),
        Dialect::Embeddings => embeddings::json(served),
    }
}

/// The answer with an error in place of, or beside, `tokens` tokens of text.
pub(super) fn json_failure(served: &Served, failure: Failure, tokens: u64) -> Bytes {
    let text = served.text(tokens.min(served.completion_tokens));
    match served.dialect {
        Dialect::Responses => responses::json_failure(served, failure),
        Dialect::Messages => messages::json_failure(served, failure),
        Dialect::Chat if failure.form == InBand::Choice => chat::json_failure(served, failure, &text),
        _ => {
            let body = json!({"id": served.id, "error": failure.error(&served.provider)});
            Bytes::from(body.to_string())
        }
    }
}

/// Events before the first token.
pub(super) fn opening(served: &Served) -> Vec<Bytes> {
    match served.dialect {
        Dialect::Responses => responses::opening(served),
        Dialect::Messages => messages::opening(served),
        _ => Vec::new(),
    }
}

/// The event of so many tokens; `from` 0 is the first.
pub(super) fn tokens(served: &Served, from: u64, tokens: u64) -> Bytes {
    let piece = &*served.part(from, tokens);
    match served.dialect {
        Dialect::Completions => completions::token(served, piece),
        Dialect::Responses => responses::token(served, served.events(from), piece),
        Dialect::Messages => messages::token(piece),
        Dialect::Chat | Dialect::Embeddings => chat::token(served, piece),
    }
}

/// Events after the last token.
pub(super) fn closing(served: &Served) -> Vec<Bytes> {
    match served.dialect {
        Dialect::Completions => completions::closing(served),
        Dialect::Responses => responses::closing(served),
        Dialect::Messages => messages::closing(served),
        Dialect::Chat | Dialect::Embeddings => chat::closing(served),
    }
}

/// The event of a failure after `sent` tokens, and what follows it.
pub(super) fn failure(served: &Served, failure: Failure, sent: u64) -> Vec<Bytes> {
    match served.dialect {
        Dialect::Responses => responses::failure(served, failure, sent),
        Dialect::Messages => messages::failure(failure),
        _ => chat::failure(served, failure),
    }
}

/// An event whose JSON does not parse.
pub(super) fn malformed(served: &Served) -> Bytes {
    Bytes::from(format!("{{\"id\":\"{}\",\"object\":\"chat.completion\",\"choices\":[{{\"ind", served.id))
}

/// Adds `openrouter_metadata` where the caller opted in.
fn with_routing(served: &Served, mut body: Value) -> Value {
    if let Some(routing) = &served.routing {
        body["openrouter_metadata"] = routing.clone();
    }
    body
}

/// `data: <json>` and a blank line, LF only.
fn data(body: &impl serde::Serialize) -> Bytes {
    event_into(b"data: ".to_vec(), body)
}

/// The same with an `event:` line, as the responses and messages APIs send.
fn named(name: &str, body: &Value) -> Bytes {
    event_into(format!("event: {name}\ndata: ").into_bytes(), body)
}

fn event_into(mut event: Vec<u8>, body: &impl serde::Serialize) -> Bytes {
    // Serialising strings, numbers and maps with string keys into memory cannot fail.
    let _infallible = serde_json::to_writer(&mut event, body);
    event.extend_from_slice(b"\n\n");
    Bytes::from(event)
}

const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// The `usage` of chat and completions.
fn usage(served: &Served) -> Value {
    let (prompt, completion) = served.used();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "cost": served.cost(),
        "is_byok": false,
        "prompt_tokens_details": {
            "cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0, "video_tokens": 0
        },
        "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0, "audio_tokens": 0},
        "cost_details": {
            "upstream_inference_cost": null,
            "upstream_inference_prompt_cost": prompt as f64 * served.prices.0,
            "upstream_inference_completions_cost": completion as f64 * served.prices.1
        }
    })
}

/// `stop`, or `length` when a maximum ended the text.
fn finish(served: &Served) -> &'static str {
    if served.cut_short { "length" } else { "stop" }
}
