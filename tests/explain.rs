//! Why this key: what a trace holds, in each of its forms.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, Endpoint, ExplainLayer, ModelRouter, OpenRouter, RequestContext,
    breaker::{BreakerPolicy, TripPolicy},
    endpoint::{KeyReport, Money, Spendable},
    explain::{Explain, Trace},
    select::{Filter, Fit, LeastInFlight, MostCredit, PeakEwma, Pick, Pool, RoundRobin},
    simulator::{Fault, Scenario, Simulator, What},
    stack::{self, BalancerBody, BalancerBuilder},
};

type Stack = Explain<Balancer<Full<Bytes>>>;

/// Three accounts with a key each, and models that always take as long.
const THREE_KEYS: &str = r#"
accounts = [{ name = "a", credits = 100.0 }, { name = "b", credits = 100.0 }, { name = "c", credits = 100.0 }]
keys = [{ label = "a", account = "a" }, { label = "b", account = "b" }, { label = "c", account = "c" }]
models = [{ id = "acme/swift-1" }, { id = "acme/spare" }]
[[endpoints]]
model = "acme/spare"
provider = "Two"
accept_ms = 50
first_token_ms = 100
tokens_per_second = 200
jitter = 0.0
[[endpoints]]
model = "acme/swift-1"
provider = "One"
prompt_price = 0.2
completion_price = 0.6
accept_ms = 50
first_token_ms = 100
tokens_per_second = 200
jitter = 0.0
"#;

fn key(simulator: &Simulator, label: &str) -> ApiKey {
    let keys = simulator.keys();
    let key = keys.iter().find(|key| key.label == label).expect("is in the scenario");
    ApiKey::new(&key.secret).unwrap().label(label).account(key.account.clone())
}

/// The simulator, and a pool of these of its keys.
fn upstream(labels: &[&str]) -> (Simulator, Pool) {
    let simulator = Simulator::new(Scenario::from_toml(THREE_KEYS).unwrap()).unwrap();
    let pool = Pool::new(labels.iter().map(|label| key(&simulator, label))).unwrap();
    (simulator, pool)
}

fn explained<P: Pick>(simulator: &Simulator, builder: BalancerBuilder<P>) -> Stack {
    ExplainLayer::new().layer(builder.build(OpenRouter::new(simulator.service())))
}

/// A stack whose picks are no luck.
fn in_turn(simulator: &Simulator, pool: Pool) -> Stack {
    explained(simulator, Balancer::builder(pool).pick(RoundRobin::default()))
}

/// A stream, whose head is there while its body runs.
fn chat() -> Request<Full<Bytes>> {
    let body =
        r#"{"model":"acme/swift-1","stream":true,"max_tokens":16,"messages":[{"role":"user","content":"hello"}]}"#;
    Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .header("x-balancer-explain", "1")
        .body(Full::from(body))
        .unwrap()
}

fn trace(response: &Response<BalancerBody>) -> Trace {
    response.extensions().get::<Trace>().expect("the request asked").clone()
}

fn header(response: &Response<BalancerBody>) -> &str {
    response.headers()["x-balancer-explain"].to_str().unwrap()
}

/// Asks, reads the answer to its end, and gives back the compact form and the whole trace.
async fn ask(stack: &Stack) -> (String, Value) {
    let response = stack.clone().oneshot(chat()).await.unwrap();
    let (header, trace) = (header(&response).to_owned(), trace(&response));
    response.into_body().collect().await.expect("a body that ends well");
    (header, serde_json::to_value(&trace).unwrap())
}

/// What selection saw in the first look of an attempt.
fn look(told: &Value, attempt: usize) -> &Value {
    &told["attempts"][attempt]["looks"][0]
}

#[tokio::test(start_paused = true)]
async fn a_plain_success_is_told_whole() {
    let (simulator, pool) = upstream(&["a", "b"]);
    let (header, told) = ask(&in_turn(&simulator, pool)).await;
    assert_eq!(header, "1:a=200");
    let cost = simulator.counts().keys["a"].cost;
    let tokens = told["attempts"][0]["usage"]["completion_tokens"].as_u64().unwrap();
    let expected = json!({
        "attempts": [{
            "model": "acme/swift-1",
            "at_ms": 0,
            "looks": [{
                "at_ms": 0,
                "pick": "RoundRobin",
                "keys": 2,
                "candidates": {"count": 2, "keys": ["a", "b"]},
                "refused": [],
                "compared": [],
            }],
            "looked": 1,
            "key": "a",
            "hedge": false,
            "by": "pick",
            "rejected": null,
            "waited_ms": 0,
            "status": 200,
            "head_ms": 50,
            "gate": {"found": "output", "held_ms": 100},
            "outcome": {"success": true, "cause": null, "scope": null, "rest_ms": null, "hinted": null},
            "provider": null,
            "ending": "complete",
            "took_ms": 50 + 100 + (tokens - 1) * 5,
            "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "cost_usd": cost},
            "next": null,
        }],
        "left_out": 0,
        "result": {"kind": "answered", "at_ms": 150, "status": 200},
    });
    assert_eq!(told, expected, "{told:#}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_rests_is_named_with_cause_and_return() {
    let (simulator, pool) = upstream(&["a", "b"]);
    simulator.disable_key("a", true).unwrap();
    let stack = in_turn(&simulator, pool.clone());
    ask(&stack).await;
    tokio::time::advance(Duration::from_secs(10)).await;
    let back_in = pool.resting(&pool.endpoints()[0]).unwrap().until - Instant::now();
    let (header, told) = ask(&stack).await;
    assert_eq!(header, "1:b=200 out=resting:invalid_key*1");
    assert_eq!(look(&told, 0)["candidates"], json!({"count": 1, "keys": ["b"]}));
    let back_in = back_in.as_millis() as u64;
    assert_eq!(
        look(&told, 0)["refused"],
        json!([{"reason": "resting", "cause": "invalid_key", "count": 1, "keys": ["a"], "back_in_ms": back_in}])
    );
    assert!((49_000..50_000).contains(&back_in), "of the minute that it rests, ten seconds and an answer have passed");
}

#[tokio::test(start_paused = true)]
async fn a_failover_tells_both_attempts_and_why_there_was_a_second() {
    let (simulator, pool) = upstream(&["a", "b"]);
    simulator.disable_key("a", true).unwrap();
    let (header, told) = ask(&in_turn(&simulator, pool)).await;
    assert_eq!(header, "1:a=invalid_key(60s) next=failover;2:b=200 out=ruled_out*1");
    let first = &told["attempts"][0];
    assert_eq!(first["outcome"]["cause"], "invalid_key");
    assert_eq!(first["outcome"]["scope"], "key");
    assert_eq!((&first["status"], &first["ending"], &first["usage"]), (&json!(401), &json!(null), &json!(null)));
    assert_eq!(first["next"], json!({"kind": "failover"}));
    assert_eq!(look(&told, 0)["refused"], json!([]));
    assert_eq!(
        look(&told, 1)["refused"],
        json!([{"reason": "ruled_out", "count": 1, "keys": ["a"], "back_in_ms": null}])
    );
    assert_eq!((&told["attempts"][1]["key"], &told["attempts"][1]["next"]), (&json!("b"), &json!(null)));
    assert_eq!(told["result"]["status"], 200);
}

#[tokio::test(start_paused = true)]
async fn who_waited_is_told_how_long_and_for_whom() {
    let (simulator, pool) = upstream(&["a"]);
    let stack = explained(&simulator, Balancer::builder(pool).pick(RoundRobin::default()).max_in_flight(1).unwrap());
    let ((_, first), (header, second)) = tokio::join!(ask(&stack), ask(&stack));
    let took = first["attempts"][0]["took_ms"].as_u64().unwrap();
    assert_eq!(header, format!("1:a=200 wait={}s out=busy*1", took as f64 / 1000.0));
    let attempt = &second["attempts"][0];
    assert_eq!((&attempt["by"], &attempt["waited_ms"]), (&json!("line"), &json!(took)));
    assert_eq!(attempt["at_ms"], 0);
    assert_eq!(look(&second, 0)["candidates"], json!({"count": 0, "keys": []}));
    assert_eq!(look(&second, 0)["refused"], json!([{"reason": "busy", "count": 1, "keys": ["a"], "back_in_ms": null}]));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_rest_to_end_sees_why_and_who_gave_it_the_key() {
    let (simulator, pool) = upstream(&["a"]);
    simulator.inject(Fault::new(What::PoolFull { retry_after: Some(2) }).times(1)).unwrap();
    let stack = in_turn(&simulator, pool);
    let (header, told) = ask(&stack).await;
    assert!(header.starts_with("1:a=provider_limit(2s) next=retry(2"), "{header}");
    let attempts = told["attempts"].as_array().unwrap();
    assert_eq!((attempts.len(), &attempts[1]["key"]), (2, &json!("a")), "{told:#}");
    let wait = attempts[0]["next"]["wait_ms"].as_u64().unwrap();
    assert!((2000..=2600).contains(&wait), "{told:#}");

    simulator.inject(Fault::new(What::PoolFull { retry_after: Some(2) }).times(1)).unwrap();
    let (one, (header, told)) = tokio::join!(ask(&stack), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(&stack).await
    });
    assert!(header.starts_with("1:a=200 wait="), "{header} {one:?}");
    let (attempt, looks) = (&told["attempts"][0], told["attempts"][0]["looks"].as_array().unwrap());
    assert_eq!(looks[0]["refused"][0]["reason"], "upstream_resting");
    assert_eq!(looks[0]["refused"][0]["cause"], "provider_limit");
    // the line hands the key out; only who was to be told the end of the rest looks once more
    for again in &looks[1..] {
        assert_eq!((&again["refused"], &again["at_ms"]), (&json!([]), &attempt["waited_ms"]), "{told:#}");
    }
    assert_eq!(attempt["by"], "line");
    assert!((1900..=2600).contains(&attempt["waited_ms"].as_u64().unwrap()), "{told:#}");
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_named() {
    let (simulator, pool) = upstream(&["a", "b", "c"]);
    let breaker = BreakerPolicy::new(TripPolicy::consecutive(1).unwrap());
    let stack = explained(&simulator, Balancer::builder(pool.clone()).pick(RoundRobin::default()).breaker(breaker));
    simulator.inject(Fault::new(What::Status { status: 502, retry_after: None }).key("a")).unwrap();
    while pool.endpoints()[0].shut_until(Instant::now()).is_none() {
        ask(&stack).await;
    }
    let now = Instant::now();
    let back_in = (pool.endpoints()[0].shut_until(now).unwrap() - now).as_millis() as u64;
    let (header, told) = ask(&stack).await;
    assert!(header.ends_with("=200 out=breaker_open*1"), "{header}");
    assert_eq!(
        look(&told, 0)["refused"],
        json!([{"reason": "breaker_open", "count": 1, "keys": ["a"], "back_in_ms": back_in}])
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_our_own_carries_its_trace_too() {
    let (simulator, pool) = upstream(&["a", "b"]);
    let far = Instant::now() + Duration::from_secs(600);
    pool.endpoints()[0].set_shut_until(Some(far));
    pool.endpoints()[1].set_shut_until(Some(far + Duration::from_secs(60)));
    let stack = in_turn(&simulator, pool);
    let response = stack.oneshot(chat()).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response), "1:-=no_key out=breaker_open*2");
    let told = serde_json::to_value(trace(&response)).unwrap();
    let attempt = &told["attempts"][0];
    assert_eq!((&attempt["key"], &attempt["rejected"], &attempt["by"]), (&json!(null), &json!("no_key"), &json!(null)));
    assert_eq!(
        look(&told, 0)["refused"],
        json!([{"reason": "breaker_open", "count": 2, "keys": ["a", "b"], "back_in_ms": 600_000}])
    );
    assert_eq!(
        told["result"],
        json!({
            "kind": "rejected",
            "at_ms": 0,
            "status": 429,
            "why": "no_key",
            "detail": "none of the 2 keys can serve this request now: 2 breaker_open",
            "retry_after_ms": 600_000,
        })
    );
}

#[tokio::test(start_paused = true)]
async fn who_waited_in_vain_is_told_how_long() {
    let (simulator, pool) = upstream(&["a"]);
    let builder = Balancer::builder(pool).max_in_flight(1).unwrap().max_wait(Duration::from_millis(100));
    let stack = explained(&simulator, builder);
    let (_, response) = tokio::join!(ask(&stack), stack.clone().oneshot(chat()));
    let response = response.unwrap();
    assert_eq!((response.status().as_u16(), header(&response)), (429, "1:-=no_key wait=0.1s out=busy*1"));
}

#[tokio::test(start_paused = true)]
async fn what_the_pick_compared_is_told() {
    let (simulator, pool) = upstream(&["a", "b"]);
    let endpoints = pool.endpoints();
    // two of two are always compared, in either order
    endpoints.iter().for_each(|endpoint| endpoint.figures().succeed(Duration::ZERO, Duration::ZERO));
    (0..3).for_each(|_| endpoints[0].figures().start());
    endpoints[1].figures().start();
    let (_, told) = ask(&explained(&simulator, Balancer::builder(pool).pick(LeastInFlight::default()))).await;
    let mut compared = look(&told, 0)["compared"].as_array().unwrap().clone();
    compared.sort_by_key(|figure| figure["key"].to_string());
    assert_eq!(
        compared,
        [json!({"figure": "load", "key": "a", "value": 3.0}), json!({"figure": "load", "key": "b", "value": 1.0})]
    );
    assert_eq!((&look(&told, 0)["pick"], &told["attempts"][0]["key"]), (&json!("LeastInFlight"), &json!("b")));
}

#[tokio::test(start_paused = true)]
async fn picks_by_time_and_by_credit_tell_their_figures() {
    let (simulator, pool) = upstream(&["a", "b"]);
    for endpoint in pool.endpoints().iter() {
        endpoint.figures().succeed(Duration::from_millis(250), Duration::ZERO);
    }
    let (_, told) = ask(&explained(&simulator, Balancer::builder(pool).pick(PeakEwma::default()))).await;
    let compared = look(&told, 0)["compared"].as_array().unwrap();
    assert_eq!((compared.len(), &compared[0]["figure"]), (2, &json!("cost_s")), "{told:#}");

    let (simulator, pool) = upstream(&["a", "b"]);
    let endpoint = pool.endpoints()[0].clone();
    let credit = endpoint.credit();
    let left = Spendable::Money(Money::from_usd(1.5));
    credit.report_key(KeyReport { limit: Some(Money::from_usd(3.0)), left, ..KeyReport::default() }, Instant::now());
    credit.report_balance(Spendable::Unlimited, Instant::now());
    let (header, told) = ask(&explained(&simulator, Balancer::builder(pool).pick(MostCredit::default()))).await;
    let mut compared = look(&told, 0)["compared"].as_array().unwrap().clone();
    compared.sort_by_key(|figure| figure["key"].to_string());
    assert_eq!(compared[0], json!({"figure": "spendable_usd", "key": "a", "value": 1.5}), "{header} {told:#}");
}

#[tokio::test(start_paused = true)]
async fn attempts_of_all_models_are_in_one_trace() {
    let (simulator, pool) = upstream(&["a"]);
    pool.endpoints()[0].set_shut_until(Some(Instant::now() + Duration::from_secs(600)));
    let spare = Pool::new([key(&simulator, "b")]).unwrap();
    let leaf = OpenRouter::new(simulator.service());
    let router = ModelRouter::new()
        .route("acme/swift-1", Balancer::builder(pool).build(leaf.clone()))
        .route("acme/*", Balancer::builder(spare).build(leaf))
        .fallback_models(["acme/spare"])
        .build()
        .unwrap();
    let response = ExplainLayer::new().layer(stack::front(router)).oneshot(chat()).await.unwrap();
    let header = response.headers()["x-balancer-explain"].to_str().unwrap();
    assert_eq!(header, "1:-=no_key out=breaker_open*1 next=other_model;2:b=200");
    let told = serde_json::to_value(response.extensions().get::<Trace>().unwrap()).unwrap();
    let models: Vec<_> = told["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["model"]).collect();
    assert_eq!(models, ["acme/swift-1", "acme/spare"]);
}

#[tokio::test(start_paused = true)]
async fn demanded_tags_and_a_panic_are_told() {
    let (simulator, pool) = upstream(&["a"]);
    pool.add(key(&simulator, "b").tags(["eu"]));
    let mut request = chat();
    RequestContext::of(&mut request).require(["eu"]);
    let response = in_turn(&simulator, pool.clone()).oneshot(request).await.unwrap();
    assert_eq!(header(&response), "1:b=200 out=missing_tag*1");

    let far = Instant::now() + Duration::from_secs(60);
    pool.endpoints().iter().for_each(|endpoint| endpoint.set_shut_until(Some(far)));
    let builder = Balancer::builder(pool).pick(RoundRobin::default()).panic_below(0.5).unwrap();
    let (header, told) = ask(&explained(&simulator, builder)).await;
    assert_eq!(look(&told, 0)["candidates"]["count"], 2, "{header}: shut, and used all the same");
}

struct NoB;

impl Filter for NoB {
    fn judge(&self, endpoint: &Endpoint, _: &RequestContext, _: Instant) -> Fit {
        if endpoint.key().name() == "b" { Fit::No } else { Fit::Yes }
    }
}

#[tokio::test(start_paused = true)]
async fn filters_go_by_their_names_and_whoever_was_not_looked_at_is_judged_all_the_same() {
    let (simulator, _) = upstream(&["a"]);
    let of = |label| key(&simulator, label);
    let pool = Pool::new([of("c"), of("a").models(["openai/*"]).unwrap(), of("b")]).unwrap();
    let stack = explained(&simulator, Balancer::builder(pool).pick(RoundRobin::default()).filter(NoB));
    let (header, told) = ask(&stack).await;
    assert_eq!(header, "1:c=200 out=other_model*1,filtered:NoB*1");
    assert_eq!(
        look(&told, 0)["refused"],
        json!([
            {"reason": "other_model", "count": 1, "keys": ["a"], "back_in_ms": null},
            {"reason": "filtered", "filter": "NoB", "count": 1, "keys": ["b"], "back_in_ms": null},
        ])
    );
    // the second proposal is a, which may not, and the third is b: the scan finds c
    let (_, told) = ask(&stack).await;
    assert!(["pick", "scan"].contains(&told["attempts"][0]["by"].as_str().unwrap()));
    assert_eq!(told["attempts"][0]["key"], "c");
}

#[tokio::test(start_paused = true)]
async fn why_nothing_more_was_tried_is_told() {
    let (simulator, pool) = upstream(&["a", "b"]);
    simulator.inject(Fault::new(What::PoolFull { retry_after: Some(1000) })).unwrap();
    let response = in_turn(&simulator, pool).oneshot(chat()).await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(header(&response), "1:a=provider_limit(1000s) next=give_up:long_wait");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_noted_before_and_after_the_head() {
    let (simulator, pool) = upstream(&["a"]);
    let stack = in_turn(&simulator, pool);
    let response = stack.clone().oneshot(chat()).await.unwrap();
    let early = trace(&response);
    assert_eq!(serde_json::to_value(&early).unwrap()["attempts"][0]["ending"], json!(null), "it runs");
    drop(response);
    let told = serde_json::to_value(&early).unwrap();
    assert_eq!((&told["attempts"][0]["ending"], &told["result"]["kind"]), (&json!("dropped"), &json!("answered")));

    let mut request = chat();
    let trace = RequestContext::of(&mut request).explain().clone();
    let call = stack.oneshot(request);
    assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err(), "no head so soon");
    let told = serde_json::to_value(&trace).unwrap();
    assert_eq!(told["attempts"][0]["ending"], "future_dropped");
    assert_eq!((&told["attempts"][0]["took_ms"], &told["result"]), (&json!(20), &json!({"kind": "left", "at_ms": 20})));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_ask_is_not_explained_and_the_question_goes_no_further() {
    let (simulator, pool) = upstream(&["a"]);
    let stack = in_turn(&simulator, pool.clone());
    for value in [None, Some("0"), Some("")] {
        let mut request = chat();
        request.headers_mut().remove("x-balancer-explain");
        if let Some(value) = value {
            request.headers_mut().insert("x-balancer-explain", value.parse().unwrap());
        }
        let response = stack.clone().oneshot(request).await.unwrap();
        assert!(response.extensions().get::<Trace>().is_none());
        assert!(!response.headers().contains_key("x-balancer-explain"));
    }
    ask(&stack).await;
    for request in simulator.requests() {
        assert!(!request.headers.iter().any(|(name, _)| name == "x-balancer-explain"), "{:?}", request.headers);
    }
    let balancer = Balancer::builder(pool).build(OpenRouter::new(simulator.service()));
    let quiet = ExplainLayer::new().all().header(false).layer(balancer);
    let response = quiet.oneshot(chat()).await.unwrap();
    assert!(response.extensions().get::<Trace>().is_some() && !response.headers().contains_key("x-balancer-explain"));
}

#[tokio::test(start_paused = true)]
async fn r132_a_trace_of_ten_thousand_keys_is_small() {
    let (simulator, _) = upstream(&["a"]);
    let others = (0..10_000).map(|index| ApiKey::new(format!("other-{index}")).unwrap().models(["openai/*"]).unwrap());
    let pool = Pool::new([key(&simulator, "a")].into_iter().chain(others)).unwrap();
    let (header, told) = ask(&in_turn(&simulator, pool)).await;
    assert_eq!(header, "1:a=200 out=other_model*10000");
    assert_eq!(look(&told, 0)["keys"], 10_001);
    assert!(told.to_string().len() < 1200, "{told:#}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn who_listens_to_the_events_is_told_of_every_request() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("tower_openrouter::explain=debug")
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let _listening = tracing::subscriber::set_default(subscriber);
    let (simulator, pool) = upstream(&["a", "b"]);
    simulator.disable_key("a", true).unwrap();
    let mut request = chat();
    request.headers_mut().remove("x-balancer-explain");
    let response = in_turn(&simulator, pool).oneshot(request).await.unwrap();
    assert!(!response.headers().contains_key("x-balancer-explain"), "only who asks is answered");
    response.into_body().collect().await.unwrap();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let expected = [
        r#"sent attempt=1 key="a" by="pick" waited_ms=0 candidates=2 keys=2 out="""#,
        r#"over attempt=1 key="a" status=401 outcome="invalid_key""#,
        r#"decided attempt=1 next=failover"#,
        r#"sent attempt=2 key="b" by="pick" waited_ms=0 candidates=1 keys=2 out="ruled_out*1""#,
        r#"gate attempt=2 found="output""#,
        r#"answered attempts=2 status=200"#,
        r#"over attempt=2 key="b" status=200 outcome="success" ending="complete""#,
    ];
    let lines: Vec<_> =
        log.lines().map(|line| line.trim().trim_start_matches("DEBUG tower_openrouter::explain: ")).collect();
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
}
