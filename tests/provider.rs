//! Provider preferences: what arrives at the simulator, and what is left of the caller's request.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, BufferLayer, OpenRouter, RequestContext,
    buffer::ReplayBody,
    openrouter::{
        DataCollection, MaxPrice, OnFullPool, Partition, Percentiles, ProviderLayer, ProviderPreferences, Quantization,
        Sort, SortBy, Variant,
    },
    select::Pool,
    simulator::{Fault, Scenario, Simulator, What},
};

const SCENARIO: &str = r#"
accounts = [{ name = "a", credits = 9.0 }, { name = "b", credits = 9.0 }]
keys = [{ label = "a-1", account = "a" }, { label = "b-1", account = "b" }]
models = [{ id = "acme/one" }, { id = "acme/two" }]
endpoints = [
  { model = "acme/one", provider = "One", completion_price = 1.0, tokens_per_second = 10 },
  { model = "acme/one", provider = "Two", completion_price = 2.0, tokens_per_second = 20 },
  { model = "acme/one", provider = "Three", completion_price = 3.0, tokens_per_second = 30 },
  { model = "acme/two", provider = "One" },
]
[keep]
log = 1000
requests = 1000
"#;

fn simulator() -> Simulator {
    Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap()
}

fn stack(simulator: &Simulator, provider: ProviderLayer) -> Balancer<Full<Bytes>> {
    let keys = simulator.keys().into_iter();
    let keys = keys.map(|key| ApiKey::new(&key.secret).unwrap().label(key.label).account(key.account));
    Balancer::builder(Pool::new(keys).unwrap()).provider(provider).build(OpenRouter::new(simulator.service()))
}

fn chat(mut body: Value) -> Request<Full<Bytes>> {
    body["messages"] = json!([{"role": "user", "content": "hello"}]);
    body["max_tokens"] = 8.into();
    let text = body.to_string();
    let request = Request::post("/v1/chat/completions").header("content-length", text.len());
    request.body(Full::from(text)).unwrap()
}

async fn send(stack: &Balancer<Full<Bytes>>, body: Value) -> (u16, Value) {
    let Ok(response) = stack.clone().oneshot(chat(body)).await;
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

fn bodies(simulator: &Simulator) -> Vec<Value> {
    let body = |request: tower_openrouter::simulator::Received| {
        assert_eq!(request.headers["content-length"], request.body.len().to_string());
        serde_json::from_slice(&request.body).unwrap()
    };
    simulator.requests().into_iter().map(body).collect()
}

fn new() -> ProviderPreferences {
    ProviderPreferences::new()
}

#[tokio::test(start_paused = true)]
async fn preferences_arrive_and_decide_unless_the_caller_does() {
    let dear = MaxPrice { completion: Some(1.5), ..MaxPrice::default() };
    for (layer, own, serving) in [
        (ProviderLayer::default(), json!(null), "One"),
        (ProviderLayer::new(new().order(["three"])).unwrap(), json!(null), "Three"),
        (ProviderLayer::new(new().order(["three"])).unwrap(), json!({"only": ["Two"]}), "Two"),
        (ProviderLayer::new(new().ignore(["one"])).unwrap(), json!(null), "Two"),
        (ProviderLayer::new(new().ignore(["one"])).unwrap(), json!({"order": ["one"]}), "One"),
        (ProviderLayer::new(new().sort(SortBy::Throughput)).unwrap(), json!(null), "Three"),
        (ProviderLayer::new(new().sort(SortBy::Throughput)).unwrap(), json!({"sort": "price"}), "One"),
        (ProviderLayer::new(new().sort(SortBy::Throughput).max_price(dear)).unwrap(), json!({}), "One"),
        (ProviderLayer::default().variant(Variant::Nitro).unwrap(), json!(null), "Three"),
        (ProviderLayer::default().variant(Variant::Nitro).unwrap(), json!({"sort": "price"}), "One"),
    ] {
        let simulator = simulator();
        let name = format!("{layer:?} {own}");
        let (status, _) = send(&stack(&simulator, layer), json!({"model": "acme/one", "provider": own})).await;
        assert_eq!(status, 200, "{name}");
        assert_eq!(simulator.log()[0].provider.as_deref(), Some(serving), "{name}");
        bodies(&simulator);
    }
}

#[tokio::test(start_paused = true)]
async fn every_member_is_known_upstream_and_goes_out_as_the_schema_has_it() {
    let options = Map::from_iter([("max_tokens".to_owned(), json!(5))]);
    let all = new()
        .order(["one"])
        .only(["one", "two"])
        .ignore(["three"])
        .allow_fallbacks(true)
        .require_parameters(true)
        .data_collection(DataCollection::Deny)
        .zdr(true)
        .enforce_distillable_text(false)
        .quantizations([Quantization::NvFp4, Quantization::Bf16])
        .max_price(MaxPrice { prompt: Some(1e-7), completion: Some(1e9), ..MaxPrice::default() })
        .preferred_min_throughput(10.0)
        .preferred_max_latency(Percentiles { p90: Some(2.5), ..Percentiles::default() })
        .options("one", options);
    let wire = json!({
        "order": ["one"], "only": ["one", "two"], "ignore": ["three"], "allow_fallbacks": true, "require_parameters": true,
        "data_collection": "deny", "zdr": true, "enforce_distillable_text": false, "quantizations": ["nvfp4", "bf16"],
        "max_price": {"prompt": "0.0000001", "completion": "1000000000"}, "preferred_min_throughput": 10.0,
        "preferred_max_latency": {"p90": 2.5}, "options": {"one": {"max_tokens": 5}},
    });
    assert_eq!(serde_json::to_value(&all).unwrap(), wire);
    assert_eq!(serde_json::from_value::<ProviderPreferences>(wire.clone()).unwrap(), all);
    for (sort, wire) in [
        (Sort::from(SortBy::Exacto), json!("exacto")),
        (Sort::over(Partition::None, SortBy::Latency), json!({"by": "latency", "partition": "none"})),
    ] {
        let preferences = new().sort(sort);
        assert_eq!(serde_json::to_value(&preferences).unwrap(), json!({"sort": wire}));
        assert_eq!(serde_json::from_value::<ProviderPreferences>(json!({"sort": wire})).unwrap(), preferences);
    }
    for unknown in [
        json!({"zd": true}),
        json!({"sort": "cheap"}),
        json!({"quantizations": ["int5"]}),
        json!({"sort": {"by": "price", "of": 1}}),
    ] {
        assert!(serde_json::from_value::<ProviderPreferences>(unknown.clone()).is_err(), "{unknown}");
    }

    let simulator = simulator();
    let cheap = all.max_price(MaxPrice { completion: Some(5.0), ..MaxPrice::default() });
    let (status, answer) =
        send(&stack(&simulator, ProviderLayer::new(cheap).unwrap()), json!({"model": "acme/one"})).await;
    assert_eq!(status, 200, "{answer}");
    let mut expected = wire;
    expected["max_price"] = json!({"completion": "5"});
    assert_eq!(bodies(&simulator)[0]["provider"], expected);
}

#[tokio::test(start_paused = true)]
async fn only_endpoints_that_take_preferences_get_them() {
    let layer = ProviderLayer::new(new().zdr(true)).unwrap().models(["b"]).unwrap();
    let echo = service_fn(async |request: Request<ReplayBody>| {
        Ok::<_, BoxError>(Response::new(request.into_body().collect().await?.to_bytes()))
    });
    let service = ServiceBuilder::new().layer(BufferLayer::new()).layer(layer).service(echo);
    for (path, provider, models) in [
        ("/v1/chat/completions", true, true),
        ("/api/v1/completions", true, true),
        ("/v1/responses", true, true),
        ("/v1/messages", true, true),
        ("/v1/presets/mine/chat/completions", true, true),
        ("/v1/embeddings", true, false),
        ("/v1/rerank", true, false),
        ("/v1/images", false, false),
        ("/v1/batches", false, false),
        ("/v1/audio/speech", false, false),
    ] {
        let request = Request::post(path).body(Full::<Bytes>::from(r#"{"model":"a"}"#)).unwrap();
        let body: Value = serde_json::from_slice(service.clone().oneshot(request).await.unwrap().body()).unwrap();
        assert_eq!((body.get("provider").is_some(), body.get("models").is_some()), (provider, models), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn models_given_by_the_layer_are_fallen_back_on_by_upstream() {
    let simulator = simulator();
    simulator.inject(Fault::new(What::PoolFull { retry_after: None }).model("acme/one")).unwrap();
    let stack = stack(&simulator, ProviderLayer::default().models(["acme/two"]).unwrap());
    let (status, answer) = send(&stack, json!({"model": "acme/one"})).await;
    assert_eq!((status, &answer["model"]), (200, &json!("acme/two")));
    assert_eq!(simulator.counts().attempts, 1);
}

/// One and Two are tried by upstream itself, Three fails once and is named.
fn all_full_once(simulator: &Simulator) {
    let full = || Fault::new(What::PoolFull { retry_after: Some(20) }).model("acme/one");
    simulator.inject(full().provider("One").window(0.0, 1000.0)).unwrap();
    simulator.inject(full().provider("Two").times(1)).unwrap();
    simulator.inject(full().provider("Three").times(1)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn by_default_a_full_pool_is_waited_for_and_asked_again_as_before() {
    let simulator = simulator();
    all_full_once(&simulator);
    let start = Instant::now();
    let (status, _) = send(&stack(&simulator, ProviderLayer::default()), json!({"model": "acme/one"})).await;
    assert_eq!(status, 200);
    assert!(start.elapsed() >= Duration::from_secs(20));
    let bodies = bodies(&simulator);
    assert_eq!(bodies[0], bodies[1]);
}

#[tokio::test(start_paused = true)]
async fn if_allowed_the_failed_provider_is_ignored_at_once() {
    let simulator = simulator();
    all_full_once(&simulator);
    let preferences = new().order(["one", "two"]);
    let layer = ProviderLayer::new(preferences).unwrap().on_full_pool(OnFullPool::IgnoreFailed).unwrap();
    let start = Instant::now();
    let (status, _) =
        send(&stack(&simulator, layer), json!({"model": "acme/one", "provider": {"ignore": ["x"]}})).await;
    assert_eq!(status, 200);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let ignored: Vec<_> = bodies(&simulator).into_iter().map(|body| body["provider"]["ignore"].clone()).collect();
    assert_eq!(ignored, [json!(["x"]), json!(["x", "Three"])]);
    assert_eq!(simulator.log()[1].provider.as_deref(), Some("Two"));
}

#[tokio::test(start_paused = true)]
async fn if_allowed_the_next_model_is_asked_at_once_within_attempts() {
    let simulator = simulator();
    simulator.inject(Fault::new(What::PoolFull { retry_after: Some(20) }).model("acme/one")).unwrap();
    let next = OnFullPool::NextModel(vec!["acme/two".into()]);
    let stack = stack(&simulator, ProviderLayer::default().on_full_pool(next).unwrap());
    let start = Instant::now();
    let (status, answer) = send(&stack, json!({"model": "acme/one"})).await;
    assert_eq!((status, &answer["model"], simulator.counts().attempts), (200, &json!("acme/two"), 2));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let total = stack.handle().snapshot();
    assert_eq!(total.total.attempts, 2);

    // a last resort that is full too is waited for, and nothing passes the attempts
    simulator.inject(Fault::new(What::PoolFull { retry_after: Some(2) }).model("acme/two")).unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    let before = simulator.counts().attempts;
    let (status, _) = send(&stack, json!({"model": "acme/one"})).await;
    assert_eq!((status, simulator.counts().attempts - before), (429, 3));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("a number", |number| number.is_finite()).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn own_provider() -> impl Strategy<Value = Value> {
    let names =
        || prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d/fp8"]), 0..3).prop_map(Value::from);
    let member = |name: &'static str, value: BoxedStrategy<Value>| {
        prop::option::of(value).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    };
    let members = (
        member("order", names().boxed()),
        member("only", names().boxed()),
        member("ignore", names().boxed()),
        member("sort", prop_oneof![Just(json!("price")), Just(json!(null)), Just(json!({"by": "latency"}))].boxed()),
        member("zdr", value().boxed()),
        member("new", value().boxed()),
    );
    members.prop_map(|(a, b, c, d, e, f)| Value::Object([a, b, c, d, e, f].into_iter().flatten().collect()))
}

proptest! {
    #[test]
    fn what_is_merged_parses_and_all_that_the_caller_set_is_unchanged(
        rest in prop::collection::btree_map("[a-z\"\\\\é]{1,4}", value(), 0..5),
        provider in prop::option::of(prop_oneof![own_provider(), value()]),
        models in prop::option::of(prop::collection::vec("[a-c]", 0..3)),
        model in prop::option::of("[a-c](:[a-z]{1,6})?"), pretty: bool,
        (order, sort, variant) in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) {
        let mut body: Map<String, Value> = rest.into_iter().collect();
        body.extend(provider.map(|value| ("provider".to_owned(), value)));
        body.extend(models.map(|value| ("models".to_owned(), value.into())));
        body.extend(model.map(|value| ("model".to_owned(), value.into())));
        let mut preferences = new().only(["a", "b"]).ignore(["c", "d"]).zdr(true);
        if order { preferences = preferences.order(["b"]) } else if sort { preferences = preferences.sort(SortBy::Price) }
        let mut layer = ProviderLayer::new(preferences).unwrap().models(["x"]).unwrap();
        if variant && !order && !sort { layer = layer.variant(Variant::Nitro).unwrap() }

        let document = Value::Object(body.clone());
        let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
        let echo = service_fn(async |request: Request<ReplayBody>| {
            let context = RequestContext::get(request.extensions()).unwrap().clone();
            let sent = request.into_body().collect().await?.to_bytes();
            assert_eq!(context.body(), Some(&sent), "the context knows what is sent");
            Ok::<_, BoxError>(Response::new(sent))
        });
        let service = ServiceBuilder::new().layer(BufferLayer::new()).layer(layer).service(echo);
        let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from(text)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sent = runtime.block_on(service.oneshot(request)).unwrap().into_body();
        let sent: Map<String, Value> = serde_json::from_slice(&sent).unwrap();
        for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
            match (name.as_str(), value) {
                ("provider", Value::Object(members)) => {
                    for (member, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                        prop_assert_eq!(&sent["provider"][member], value, "provider.{}", member);
                    }
                }
                ("model", Value::String(model)) => {
                    let sent = sent["model"].as_str().unwrap();
                    prop_assert!(sent == model || (variant && sent == format!("{model}:nitro")), "{}", sent);
                }
                (name, value) => prop_assert_eq!(&sent[name], value, "{}", name),
            }
        }
        let ours = ["provider", "models"];
        prop_assert!(sent.keys().all(|name| body.contains_key(name) || ours.contains(&name.as_str())));
    }
}
