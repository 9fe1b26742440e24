//! A platform with good keys and bad ones, the default stack before it, and callers of several kinds.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, ObserveLayer, OpenRouter,
    observe::Observe,
    select::{Pool, RoundRobin},
    simulator::{Fault, Scenario, Simulator, What},
    stack::BalancerHandle,
};

pub(crate) const MODEL: &str = "acme/swift-1";

/// Three good keys, one that has no credit; prices that make whole nanodollars.
const PLATFORM: &str = r#"
accounts = [{ name = "a", credits = 1000.0 }, { name = "b", credits = 1000.0 }, { name = "broke" }]
keys = [
  { label = "a-1", account = "a" }, { label = "a-2", account = "a" }, { label = "b-1", account = "b" },
  { label = "broke-1", account = "broke" },
]
models = [{ id = "acme/swift-1" }, { id = "acme/other" }]
[[endpoints]]
model = "acme/swift-1"
provider = "One"
prompt_price = 1.0
completion_price = 2.0
accept_ms = 50
first_token_ms = 100
tokens_per_second = 200
[[endpoints]]
model = "acme/other"
provider = "Two"
prompt_price = 1.0
completion_price = 2.0
accept_ms = 50
first_token_ms = 100
tokens_per_second = 200
[keep]
log = 50000
requests = 0
"#;

type Watched = Observe<Balancer<Full<Bytes>>>;
type Answer = <Watched as Service<Request<Full<Bytes>>>>::Response;

pub(crate) struct World {
    pub(crate) simulator: Simulator,
    pub(crate) service: Watched,
    pub(crate) handle: BalancerHandle,
}

impl World {
    pub(crate) fn new(observe: &ObserveLayer) -> Self {
        let simulator = Simulator::new(Scenario::from_toml(PLATFORM).unwrap()).unwrap();
        let mut keys: Vec<_> = simulator.keys().into_iter().map(|key| (key.label, key.secret)).collect();
        keys.push(("dead".into(), "sk-or-v1-nobody-knows-this-key".into()));
        let keys = keys.into_iter().map(|(label, secret)| ApiKey::new(secret).unwrap().label(label));
        let builder = Balancer::builder(Pool::new(keys).unwrap()).pick(RoundRobin::default());
        let balancer = builder.build(OpenRouter::new(simulator.service()));
        let handle = balancer.handle().clone();
        Self { simulator, service: observe.layer(balancer), handle }
    }

    /// Has this share of attempts fail as overloaded.
    pub(crate) fn strike(&self, share: f64) {
        self.simulator.inject(Fault::new(What::Status { status: 503, retry_after: None }).probability(share)).unwrap();
    }

    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> Answer {
        self.service.clone().oneshot(request).await.unwrap()
    }

    /// Sends a request and reads its answer; the status.
    pub(crate) async fn whole(&self, request: Request<Full<Bytes>>) -> u16 {
        let response = self.ask(request).await;
        let status = response.status().as_u16();
        let _ = response.into_body().collect().await;
        status
    }
}

pub(crate) fn chat(model: &str, stream: bool) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":16,"messages":[{{"role":"user","content":"hello"}}],"stream":{stream}}}"#
    );
    Request::post("/v1/chat/completions").header("content-type", "application/json").body(Full::from(body)).unwrap()
}
