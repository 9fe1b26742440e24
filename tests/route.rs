//! The model router: over scripted services for its own behaviour, over whole stacks and the simulator for what arrives.

mod support;

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use support::{Act, BodyAct, Probe};
use tokio::time::{self, Instant};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, BufferLayer, ModelRouter, OpenRouter, RetryLayer,
    buffer::ReplayBody,
    error::{Rejected, UpstreamError, UpstreamErrorKind, Why},
    route::Routes,
    select::Pool,
    simulator::{Fault, Reason, Scenario, Simulator, What},
    stack::{self, BalancerBuilder},
};

const SCENARIO: &str = r#"
accounts = [{ name = "a", credits = 9.0 }, { name = "b", credits = 9.0 }, { name = "c", credits = 9.0 }]
keys = [
  { label = "a-1", account = "a" }, { label = "a-2", account = "a" }, { label = "b-1", account = "b" },
  { label = "b-2", account = "b" }, { label = "c-1", account = "c" },
]
models = [{ id = "acme/one" }, { id = "acme/two" }, { id = "bolt/one" }, { id = "else/one" }]
endpoints = [
  { model = "acme/one", provider = "One" }, { model = "acme/two", provider = "Two" },
  { model = "bolt/one", provider = "One" }, { model = "else/one", provider = "One" },
]
[keep]
log = 1000
requests = 1000
"#;

type Group = Balancer<ReplayBody>;

/// The stack of one account's keys: one attempt, no waiting.
fn group(simulator: &Simulator, account: &str) -> Group {
    brief(simulator, account).build(OpenRouter::new(simulator.service()))
}

fn brief(simulator: &Simulator, account: &str) -> BalancerBuilder {
    let keys = simulator.keys().into_iter().filter(|key| key.account == account);
    let pool = Pool::new(keys.map(|key| ApiKey::new(&key.secret).unwrap().label(key.label).account(key.account)));
    Balancer::builder(pool.unwrap()).max_wait(Duration::ZERO).retry(RetryLayer::new().attempts(1).unwrap())
}

fn simulator() -> Simulator {
    Simulator::new(Scenario::from_toml(SCENARIO).unwrap()).unwrap()
}

/// Three groups, each with the keys of one account.
fn three(simulator: &Simulator) -> ModelRouter<Group> {
    ModelRouter::new()
        .route("acme/*", group(simulator, "a"))
        .route("bolt/*", group(simulator, "b"))
        .fallback(group(simulator, "c"))
}

fn chat(mut body: Value) -> Request<Full<Bytes>> {
    body["messages"] = json!([{"role": "user", "content": "hello"}]);
    body["max_tokens"] = 8.into();
    let text = body.to_string();
    Request::post("/v1/chat/completions").header("content-length", text.len()).body(Full::from(text)).unwrap()
}

async fn send(routes: &Routes<Group>, request: Request<Full<Bytes>>) -> (u16, Value) {
    let Ok(response) = stack::front(routes.clone()).oneshot(request).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// What arrived: the key, and the models asked for.
fn arrived(simulator: &Simulator) -> Vec<String> {
    let log = simulator.log();
    let models = simulator.requests().into_iter().map(|request| {
        let length: usize = request.headers["content-length"].to_str().unwrap().parse().unwrap();
        assert_eq!(length, request.body.len());
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        format!("{} {}", body["model"].as_str().unwrap_or("-"), body.get("models").unwrap_or(&Value::Null))
    });
    let account = |attempt: &tower_openrouter::simulator::Attempt| attempt.account.clone().unwrap();
    log.iter().zip(models).map(|(attempt, models)| format!("{} {models}", account(attempt))).collect()
}

#[tokio::test(start_paused = true)]
async fn each_model_is_served_by_the_keys_of_its_own_group() {
    let simulator = simulator();
    let routes = three(&simulator).build().unwrap();
    for turn in 0..60 {
        let model = ["acme/one", "acme/two", "bolt/one", "else/one"][turn % 4];
        let (status, answer) = send(&routes, chat(json!({"model": model}))).await;
        assert_eq!((status, answer["model"].as_str()), (200, Some(model)));
    }
    let served: BTreeSet<_> = simulator
        .log()
        .into_iter()
        .map(|attempt| format!("{} {}", attempt.model.unwrap().split_once('/').unwrap().0, attempt.key.unwrap()))
        .collect();
    assert_eq!(Vec::from_iter(served), ["acme a-1", "acme a-2", "bolt b-1", "bolt b-2", "else c-1"]);
}

#[tokio::test(start_paused = true)]
async fn the_most_specific_pattern_wins_whatever_the_order() {
    let services = ["acme/*", "*", "acme/one", "*:free", "acme/o*"];
    for start in 0..services.len() {
        let router = (0..services.len()).fold(ModelRouter::new(), |router, step| {
            let pattern = services[(start + step) % services.len()];
            router.route(pattern, pattern)
        });
        let routes = router.build().unwrap();
        for (model, pattern) in [
            ("acme/one", "acme/one"),
            ("acme/only", "acme/o*"),
            ("acme/two", "acme/*"),
            ("acme/o:free", "acme/o*"),
            ("x/y:free", "*:free"),
            ("x/y", "*"),
        ] {
            assert_eq!(routes.stack_of(model), Some(&pattern), "{model}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_without_a_route_is_a_404_in_the_shape_of_the_api() {
    let simulator = simulator();
    let routes = ModelRouter::new().route("acme/*", group(&simulator, "a")).build().unwrap();
    let (status, answer) = send(&routes, chat(json!({"model": "bolt/\"one\""}))).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!(404)));
    assert_eq!(answer["error"]["metadata"], json!({"error_type": "not_found", "reason": "no_route"}));
    assert!(answer["error"]["message"].as_str().unwrap().contains("bolt/"), "{answer}");

    let messages = Request::post("/v1/messages").body(Full::from(r#"{"model":"bolt/one"}"#)).unwrap();
    let (status, answer) = send(&routes, messages).await;
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")));
    // nothing names a model here
    for body in ["", "[]", "{"] {
        let request = Request::get("/v1/models").body(Full::from(body)).unwrap();
        assert_eq!(send(&routes, request).await.0, 404, "{body:?}");
    }
    assert_eq!(simulator.counts().attempts, 0);
    let routes = three(&simulator).build().unwrap();
    let request = Request::get("/v1/models").body(Full::default()).unwrap();
    assert_eq!(send(&routes, request).await.0, 200, "the fallback takes look-ups");
}

#[tokio::test(start_paused = true)]
async fn models_of_one_route_are_left_to_upstream_byte_for_byte() {
    let simulator = simulator();
    let routes = three(&simulator).fallback_models(["bolt/one"]).build().unwrap();
    simulator.inject(Fault::new(What::PoolFull { retry_after: None }).model("acme/one")).unwrap();
    let body =
        "{ \"models\" :[\"acme/one\",\n\"acme/two\"], \"messages\":[{\"role\":\"user\",\"content\":\"\\u0068i\"}]}";
    let request = Request::post("/v1/chat/completions").body(Full::from(body)).unwrap();
    let (status, answer) = send(&routes, request).await;
    assert_eq!((status, &answer["model"]), (200, &json!("acme/two")));
    let requests = simulator.requests();
    assert_eq!(requests.iter().map(|request| &*request.body).collect::<Vec<_>>(), [body.as_bytes()]);
}

#[tokio::test(start_paused = true)]
async fn when_a_model_cannot_serve_the_next_is_asked_on_its_own_route() {
    let full = || Fault::new(What::PoolFull { retry_after: Some(60) }).model("acme/one");
    type Break = fn(&Simulator);
    let cases: [(&str, Break, &[&str]); 4] = [
        ("the pool is full", |_| {}, &["a acme/one null", "b bolt/one null"]),
        (
            "no provider",
            |simulator| {
                let down = Fault::new(What::ProviderFails { status: 503 }).model("acme/one");
                simulator.clear_faults();
                simulator.inject(down).unwrap();
            },
            &["a acme/one null", "b bolt/one null"],
        ),
        (
            "all keys of the group are out",
            |simulator| {
                simulator.clear_faults();
                ["a-1", "a-2"].into_iter().for_each(|key| simulator.disable_key(key, true).unwrap());
            },
            &["a acme/one null", "a acme/one null", "b bolt/one null"],
        ),
        (
            "an account out of credit",
            |simulator| {
                simulator.clear_faults();
                simulator.set_credits("a", 0.0).unwrap();
            },
            &["a acme/one null", "b bolt/one null"],
        ),
    ];
    for (name, broken, expected) in cases {
        for (configured, body) in [
            (false, json!({"model": "acme/one", "models": ["bolt/one"]})),
            (false, json!({"models": ["acme/one", "nobody's", "bolt/one"]})),
            (true, json!({"model": "acme/one"})),
        ] {
            let simulator = simulator();
            simulator.inject(full()).unwrap();
            broken(&simulator);
            let router =
                ModelRouter::new().route("acme/*", group(&simulator, "a")).route("bolt/*", group(&simulator, "b"));
            let routes = if configured { router.fallback_models(["bolt/one"]) } else { router }.build().unwrap();
            let start = Instant::now();
            let (status, answer) = send(&routes, chat(body)).await;
            assert_eq!((status, &answer["model"]), (200, &json!("bolt/one")), "{name}");
            assert_eq!(arrived(&simulator), expected, "{name}");
            assert!(start.elapsed() < Duration::from_secs(1), "{name}: nothing was waited for");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_mixed_list_goes_to_each_route_in_parts() {
    let simulator = simulator();
    let routes = three(&simulator).build().unwrap();
    for model in ["acme/one", "acme/two", "bolt/one"] {
        simulator.inject(Fault::new(What::PoolFull { retry_after: None }).model(model)).unwrap();
    }
    let body = json!({"models": ["acme/one", "acme/two", "bolt/one", "else/one"]});
    let (status, answer) = send(&routes, chat(body)).await;
    assert_eq!((status, &answer["model"]), (200, &json!("else/one")));
    assert_eq!(arrived(&simulator), [r#"a acme/one ["acme/two"]"#, "b bolt/one null", "c else/one null"]);

    simulator.inject(Fault::new(What::PoolFull { retry_after: None }).model("else/one")).unwrap();
    let (status, _) = send(&routes, chat(json!({"model": "bolt/one", "models": ["else/one"]}))).await;
    assert_eq!(status, 429, "the last answer is the one given");
}

#[tokio::test(start_paused = true)]
async fn what_the_model_may_have_done_or_the_request_is_to_blame_for_is_asked_of_nobody_else() {
    for fault in [
        Fault::new(What::Refuse { reason: Reason::Moderation }),
        Fault::new(What::ProviderFails { status: 500 }),
        Fault::new(What::ProviderFails { status: 504 }),
    ] {
        let simulator = simulator();
        let name = format!("{fault:?}");
        simulator.inject(fault).unwrap();
        let routes = three(&simulator).fallback_models(["bolt/one"]).build().unwrap();
        let (status, _) = send(&routes, chat(json!({"model": "acme/one"}))).await;
        assert_ne!(status, 200, "{name}");
        assert_eq!(simulator.counts().accounts["b"].attempts, 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_goes_on_only_when_nothing_can_have_been_served() {
    type Make = fn() -> BoxError;
    let cases: [(Make, bool); 6] = [
        (|| Rejected::new(Why::NoKey, "none").into(), true),
        (|| Rejected::new(Why::LimitReached, "full").into(), true),
        (|| Rejected::new(Why::Deadline, "late").into(), false),
        (|| UpstreamError::new(UpstreamErrorKind::Connect, None).into(), true),
        (|| UpstreamError::new(UpstreamErrorKind::Reset, None).into(), false),
        (|| "unknown".into(), false),
    ];
    for (make, expected) in cases {
        // the same bare, and as the answer that a whole stack makes of it
        for answered in [false, true] {
            let bare = tower::service_fn(move |request: Request<ReplayBody>| async move {
                if request.headers().contains_key("x-first") && asks(&request) == "a" {
                    Err(make())
                } else {
                    Ok(answer())
                }
            });
            let service = tower::util::BoxCloneSyncService::new(bare);
            let service = if answered {
                let whole = ServiceBuilder::new().layer(tower_openrouter::RespondLayer::new()).service(service);
                let whole = whole.map_response(|response| response.map(|body| Full::new(collected(body))));
                tower::util::BoxCloneSyncService::new(whole.map_err(|error| match error {}))
            } else {
                service
            };
            let routes = ModelRouter::new().route("a", service.clone()).route("b", service).fallback_models(["b"]);
            let front = ServiceBuilder::new().layer(BufferLayer::new()).service(routes.build().unwrap());
            let request =
                Request::post("/").header("x-first", "1").body(Full::<Bytes>::from(r#"{"model":"a"}"#)).unwrap();
            let served = front.oneshot(request).await.is_ok_and(|response| response.status() == 200);
            assert_eq!(served, expected, "{:?}, answered: {answered}", make());
        }
    }
}

fn asks(request: &Request<ReplayBody>) -> String {
    let context = tower_openrouter::RequestContext::get(request.extensions()).unwrap();
    context.asks().model.as_deref().unwrap().to_owned()
}

fn answer() -> Response<Full<Bytes>> {
    Response::new(Full::from("{}"))
}

fn collected<B: http_body::Body<Data = Bytes> + Unpin>(body: B) -> Bytes {
    use futures_util::FutureExt;
    body.collect().now_or_never().and_then(Result::ok).unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_busy_route_holds_back_no_other_and_only_ready_instances_are_called() {
    let (busy, free) = (Probe::ok(), Probe::ok());
    busy.block(true);
    let routes = ModelRouter::new().route("busy", busy.clone()).route("free", free.clone()).build().unwrap();
    let service = ServiceBuilder::new().layer(BufferLayer::new()).service(routes);
    let mut service = service.map_request(|request: Request<Full<Bytes>>| request);
    let post = |model: &str| Request::post("/").body(Full::<Bytes>::from(format!(r#"{{"model":"{model}"}}"#))).unwrap();
    let mut waiting = tokio_test::task::spawn(service.ready().await.unwrap().call(post("busy")));
    assert!(waiting.poll().is_pending());
    assert!(service.ready().await.unwrap().call(post("free")).await.is_ok(), "the router is ready all the time");
    busy.block(false);
    assert!(waiting.is_woken());
    assert!(waiting.await.is_ok());
    assert_eq!((busy.unready_calls(), free.unready_calls(), busy.calls(), free.calls()), (0, 0, 1, 1));
    assert_eq!(busy.reserved() + free.reserved(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_failed_answer_is_gone_before_the_next_model_is_asked() {
    let (first, second) = (Probe::new(Act::status(429).body(BodyAct::Hang)), Probe::ok());
    let routes = ModelRouter::new().route("a", first.clone()).route("b", second.clone()).fallback_models(["b"]);
    let front = ServiceBuilder::new().layer(BufferLayer::new()).service(routes.build().unwrap());
    let request = Request::post("/").body(Full::<Bytes>::from(r#"{"model":"a"}"#)).unwrap();
    let response = front.oneshot(request).await.unwrap();
    assert_eq!((response.status(), first.in_flight(), second.in_flight()), (StatusCode::OK, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn one_deadline_holds_for_all_models_that_are_tried() {
    let simulator = simulator();
    let slow = What::Slow { factor: 1.0, accept_ms: 4000.0, first_token_ms: 0.0 };
    simulator.inject(Fault::new(slow)).unwrap();
    simulator.inject(Fault::new(What::PoolFull { retry_after: None }).model("acme/one")).unwrap();
    let limit = tower_openrouter::DeadlineLayer::new(Duration::from_secs(6)).unwrap();
    let of = |account| brief(&simulator, account).deadline(limit.clone()).build(OpenRouter::new(simulator.service()));
    let router = ModelRouter::new().route("acme/*", of("a")).route("bolt/*", of("b"));
    let routes = router.fallback_models(["bolt/one"]).build().unwrap();
    let start = Instant::now();
    let (status, _) =
        time::timeout(Duration::from_secs(60), send(&routes, chat(json!({"model": "acme/one"})))).await.unwrap();
    assert_eq!((status, start.elapsed()), (504, Duration::from_secs(6)));
    assert_eq!(simulator.counts().accounts["b"].attempts, 1);
}
