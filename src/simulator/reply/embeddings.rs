//! `/embeddings`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::Served;
use crate::simulator::draw;

/// Length of the vectors, short on purpose.
const DIMENSIONS: usize = 8;

pub(super) fn json(served: &Served) -> Bytes {
    let vector = |index: usize| {
        let mut rng = draw::rng(served.text_seed, "embedding", index as u64);
        let values: Vec<Value> = (0..DIMENSIONS).map(|_| json!(rng.f64() * 2.0 - 1.0)).collect();
        json!({"object": "embedding", "index": index, "embedding": values})
    };
    let data: Vec<Value> = (0..served.inputs).map(vector).collect();
    let body = json!({
        "id": served.id,
        "object": "list",
        "model": served.model,
        "data": data,
        "usage": {
            "prompt_tokens": served.used().0,
            "total_tokens": served.used().0,
            "cost": served.cost()
        }
    });
    Bytes::from(body.to_string())
}
