//! `/completions`, the legacy prompt API: documented, and absent from the OpenAPI document.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{DONE, Served, data, finish, usage};

fn body(served: &Served, text: &str, finish: Option<&str>) -> Value {
    json!({
        "id": served.id,
        "object": "text_completion",
        "created": served.created.seconds(),
        "model": served.model,
        "provider": served.provider,
        "choices": [{
            "index": 0,
            "text": text,
            "logprobs": null,
            "finish_reason": finish,
            "native_finish_reason": finish
        }]
    })
}

pub(super) fn json(served: &Served, text: &str) -> Bytes {
    let mut body = body(served, text, Some(finish(served)));
    body["usage"] = usage(served);
    Bytes::from(body.to_string())
}

pub(super) fn token(served: &Served, piece: &str) -> Bytes {
    data(&body(served, piece, None))
}

pub(super) fn closing(served: &Served) -> Vec<Bytes> {
    let last = body(served, "", Some(finish(served)));
    let mut with_usage = last.clone();
    with_usage["usage"] = usage(served);
    vec![data(&last), data(&with_usage), DONE]
}
