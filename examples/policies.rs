//! Whom each pick picks: 100,000 requests through the simulator for each, under a clock that waits for nobody.
//!
//! `cargo run --release --example policies` prints the table of the README; a debug build sends fewer, and runs in seconds. There are three keys on three accounts. `a` has
//! weight 3 and 3 dollars, and its first byte comes after 100 ms; `b` has weight 2, 2 dollars and 200 ms; `c` weight 1, 1
//! dollar, 400 ms and tier 2. All requests together cost 2 dollars. Answers go on for
//! a second after their first byte, and 100 requests are under way at once, in 1,000 conversations.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::{runtime::Builder, task::LocalSet, time::Instant};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt};
use tower_openrouter::{
    ApiKey, AuthorizeLayer, Endpoint, KeySelectLayer, LoadMonitorLayer, OpenRouter, RequestContext,
    endpoint::{KeyReport, Money, Price, Spendable},
    endpoint_fn,
    select::{
        Candidates, CreditLimit, LeastInFlight, MostCredit, PeakEwma, Pick, Pool, PriorityTiers, Rendezvous, Rng,
        RoundRobin, SmoothWeighted, Sticky, WeightedRandom, pick_fn,
    },
    simulator::{Fault, Scenario, Simulator, What},
};

const PICKS: u64 = if cfg!(debug_assertions) { 500 } else { 100_000 };
const AT_ONCE: u64 = if cfg!(debug_assertions) { 10 } else { 100 };
const SESSIONS: u64 = 1_000;
const CHAT: &str =
    r#"{"model":"acme/swift","stream":true,"max_tokens":10,"messages":[{"role":"user","content":"Hi"}]}"#;

const PLATFORM: &str = r#"
    accounts = [{ name = "a", credits = 1e6 }, { name = "b", credits = 1e6 }, { name = "c", credits = 1e6 }]
    keys = [{ label = "a", account = "a" }, { label = "b", account = "b" }, { label = "c", account = "c" }]
    models = [{ id = "acme/swift" }]
    endpoints = [{ model = "acme/swift", provider = "P", accept_ms = 50, first_token_ms = 50, tokens_per_second = 10, jitter = 0, completion_price = 2.0 }]
    reply = { min_tokens = 10, max_tokens = 10 }
"#;

/// A policy's line of code, what it is for, and itself.
type Policy = (&'static str, &'static str, Box<dyn Pick>);

fn policies() -> Vec<Policy> {
    let first = pick_fn(|_: &Candidates<'_>, _: usize, _: &mut Rng| 0);
    vec![
        ("RoundRobin::default()", "keys that are alike", Box::new(RoundRobin::default())),
        ("SmoothWeighted::default()", "exact shares, evenly interleaved", Box::new(SmoothWeighted::default())),
        (
            "WeightedRandom::default()",
            "shares by chance, in many processes at once",
            Box::new(WeightedRandom::default()),
        ),
        ("LeastInFlight::default()", "the default: answers of very unlike length", Box::new(LeastInFlight::default())),
        ("PeakEwma::default()", "keys that are not equally fast", Box::new(PeakEwma::default())),
        ("MostCredit::default()", "caps and balances that are to drain evenly", Box::new(MostCredit::default())),
        (
            "Sticky::new(Money::from_usd(1.5))",
            "one key used up before the next is begun",
            Box::new(Sticky::new(Money::from_usd(1.5))),
        ),
        (
            "Rendezvous::default()",
            "conversations that keep their account and its prompt cache",
            Box::new(Rendezvous::default()),
        ),
        ("PriorityTiers::default()", "keys for the case of need", Box::new(PriorityTiers::default())),
        (r"pick_fn(\|candidates, turn, rng\| …)", "anything else; here, always the first", Box::new(first)),
    ]
}

/// The share of each key.
async fn measure(pick: Box<dyn Pick>) -> Result<[f64; 3], BoxError> {
    let simulator = Simulator::new(Scenario::from_toml(PLATFORM)?)?;
    for (key, more) in [("b", 100.0), ("c", 300.0)] {
        simulator.inject(Fault::new(What::Slow { factor: 1.0, accept_ms: 0.0, first_token_ms: more }).key(key))?;
    }
    let mut keys = Vec::new();
    for ((key, weight), tier) in simulator.keys().into_iter().zip([3.0, 2.0, 1.0]).zip([1, 1, 2]) {
        keys.push(ApiKey::new(key.secret)?.label(key.label).account(key.account).weight(weight)?.tier(tier));
    }
    let per_key = endpoint_fn(|endpoint: &Endpoint| {
        ServiceBuilder::new()
            .layer(LoadMonitorLayer::endpoint(endpoint))
            .layer(AuthorizeLayer::new(endpoint.key()))
            .into_inner()
    });
    let pool = Pool::new(keys)?;
    pool.prices().set([("acme/swift".into(), Price::per_million(0.0, 2.0))]);
    for (endpoint, dollars) in pool.endpoints().iter().zip([3.0, 2.0, 1.0]) {
        let left = Spendable::Money(Money::from_usd(dollars));
        endpoint.credit().report_key(KeyReport { left, ..KeyReport::default() }, Instant::now());
    }
    let layer = KeySelectLayer::new(pool, per_key).filter(CreditLimit::new()).pick(pick);
    let service = layer.layer(OpenRouter::new(simulator.service()));

    let next = Rc::new(Cell::new(0));
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (service, next) = (service.clone(), next.clone());
            tokio::task::spawn_local(async move {
                while next.get() < PICKS {
                    let session = next.replace(next.get() + 1) % SESSIONS;
                    let mut request = Request::post("/v1/chat/completions")
                        .header("x-session-id", session.to_string())
                        .body(Full::<Bytes>::from(CHAT))?;
                    // as a BufferLayer would
                    RequestContext::of(&mut request).set_body(Bytes::from_static(CHAT.as_bytes()));
                    service.clone().oneshot(request).await?.into_body().collect().await?;
                }
                Ok::<_, BoxError>(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    let counts = simulator.counts();
    Ok(["a", "b", "c"].map(|key| counts.keys[key].attempts as f64 / counts.attempts as f64))
}

fn main() -> Result<(), BoxError> {
    println!("| pick | for | share of a, b, c |\n| --- | --- | --- |");
    let mut measured = BTreeMap::new();
    for (code, purpose, pick) in policies() {
        // each under a clock of its own
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let shares = LocalSet::new().block_on(&runtime, measure(pick))?;
        let [a, b, c] = shares.map(|share| share * 100.0);
        println!("| `{code}` | {purpose} | {a:.1} %, {b:.1} %, {c:.1} % |");
        measured.insert(code, [a, b, c]);
    }
    let near = |code, shares: [f64; 3]| measured[code].iter().zip(shares).all(|(is, share)| (is - share).abs() < 8.0);
    assert!(near("RoundRobin::default()", [33.3; 3]), "the same for all");
    assert!(near("SmoothWeighted::default()", [50.0, 33.3, 16.7]), "3 : 2 : 1");
    assert_eq!(measured["PriorityTiers::default()"][2], 0.0, "the second tier is for the case of need");
    Ok(())
}
