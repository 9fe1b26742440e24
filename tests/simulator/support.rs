//! One small platform, and a client that reads whole answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_openrouter::simulator::{
    Account, Fault, Model, ProviderEndpoint, Scenario, SimKey, Simulator, SimulatorBody, SimulatorError, What,
};

pub(crate) const PAID: &str = "acme/swift";
pub(crate) const FREE: &str = "acme/swift:free";

/// Two accounts with ten dollars each, three keys, one paid and one free model, no latency.
pub(crate) fn scenario() -> Scenario {
    Scenario {
        accounts: vec![account("alpha", 10.0), account("beta", 10.0)],
        keys: vec![SimKey::new("a1", "alpha"), SimKey::new("a2", "alpha"), SimKey::new("b1", "beta")],
        models: vec![model(PAID), model(FREE)],
        endpoints: vec![endpoint(PAID, "DeepInfra", 1.0), endpoint(FREE, "Chutes", 0.0)],
        ..Scenario::empty()
    }
}

pub(crate) fn account(name: &str, credits: f64) -> Account {
    from(json!({"name": name, "credits": credits}))
}

pub(crate) fn model(id: &str) -> Model {
    from(json!({"id": id}))
}

/// Prices are USD per million tokens, for prompt and completion alike.
pub(crate) fn endpoint(model: &str, provider: &str, price: f64) -> ProviderEndpoint {
    from(json!({"model": model, "provider": provider, "prompt_price": price, "completion_price": price}))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a valid part of a scenario")
}

pub(crate) fn simulator(scenario: Scenario) -> Simulator {
    Simulator::new(scenario).expect("a valid scenario")
}

pub(crate) fn secret(simulator: &Simulator, label: &str) -> String {
    let keys = simulator.keys();
    keys.into_iter().find(|key| key.label == label).expect("a key with this label").secret
}

/// The small platform with a fault that strikes everybody.
pub(crate) fn struck(what: What) -> Simulator {
    let simulator = simulator(scenario());
    simulator.inject(Fault::new(what)).expect("a valid fault");
    simulator
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("visible ASCII"))
    }
}

pub(crate) type Sent = Result<Response<SimulatorBody>, SimulatorError>;

/// Sends a request and returns its head.
pub(crate) async fn send(simulator: &Simulator, request: Request<Full<Bytes>>) -> Sent {
    simulator.service().oneshot(request).await
}

/// Sends a request and reads the answer to its end.
pub(crate) async fn call(simulator: &Simulator, request: Request<Full<Bytes>>) -> Answer {
    read(send(simulator, request).await.expect("an answer")).await
}

pub(crate) async fn read(response: Response<SimulatorBody>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// A POST with the key of this label.
pub(crate) fn post(simulator: &Simulator, label: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(format!("/api/v1/{path}"))
        .header("authorization", format!("Bearer {}", secret(simulator, label)))
        .body(Full::from(body.to_string()))
        .expect("a valid request")
}

pub(crate) fn get(simulator: &Simulator, label: &str, path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("/api/v1/{path}"))
        .header("authorization", format!("Bearer {}", secret(simulator, label)))
        .body(Full::default())
        .expect("a valid request")
}

pub(crate) fn chat_body(model: &str) -> Value {
    json!({"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]})
}

/// A chat request for a model with the key of this label, answered whole.
pub(crate) async fn chat(simulator: &Simulator, label: &str, model: &str) -> Answer {
    call(simulator, post(simulator, label, "chat/completions", &chat_body(model))).await
}

/// A streamed chat request, not yet read.
pub(crate) async fn stream(simulator: &Simulator, label: &str, model: &str) -> Response<SimulatorBody> {
    let mut body = chat_body(model);
    body["stream"] = true.into();
    send(simulator, post(simulator, label, "chat/completions", &body)).await.expect("an answer")
}

/// The JSON of every `data:` line except the end marker.
pub(crate) fn events(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).expect("UTF-8");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

pub(crate) fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

pub(crate) fn toml_scenario(text: &str) -> Scenario {
    Scenario::from_toml(text).expect("a valid scenario")
}
