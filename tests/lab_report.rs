//! What the lab makes of runs: figures, a comparison's table and file, and the report that `.ci/report` opens in a browser.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use tower_openrouter::{
    Balancer,
    lab::{
        self, Ask, Built, Comparison, Digest, Grid, METRICS, Metric, Scenario, Setting, Stack, World,
        stacks::DefaultStack,
    },
    request::Priority,
    select::RoundRobin,
};

const LIMITED: &str = r#"
    name = "a quarter over quota"
    about = "Three accounts of 120 requests a minute are asked for 7.5 a second; <script> in a name is only text & \"quoted\"."
    length_s = 300.0
    warm_up_s = 30.0
    patience = { max_wait_s = 10.0, deadline_s = 30.0 }
    [world]
    accounts = [
      { name = "a", credits = 100.0, quota = { requests = 120, phase_s = 20.0 } },
      { name = "b", credits = 100.0, quota = { requests = 120, phase_s = 40.0 } },
      { name = "c", credits = 100.0, quota = { requests = 120, kind = "bucket" } },
    ]
    keys = [
      { label = "a-1", account = "a" }, { label = "b-1", account = "b" }, { label = "b-2", account = "b" },
      { label = "c-1", account = "c" },
    ]
    models = [{ id = "acme/swift-1" }]
    endpoints = [
      { model = "acme/swift-1", provider = "One", completion_price = 1.0, accept_ms = 50, first_token_ms = 200, tokens_per_second = 100, jitter = 0.5 },
    ]
    [world.reply]
    max_tokens = 1000
"#;

const LOST: &str = r#"
    name = "a key is lost for two minutes"
    about = "One of six keys answers every request with 503 from minute 2 to 4."
    length_s = 420.0
    patience = { max_wait_s = 10.0, deadline_s = 30.0 }
    [world]
    accounts = [{ name = "a", credits = 100.0 }]
    keys = [
      { label = "a-1", account = "a" }, { label = "a-2", account = "a" }, { label = "a-3", account = "a" },
      { label = "a-4", account = "a" }, { label = "a-5", account = "a" }, { label = "a-6", account = "a" },
    ]
    models = [{ id = "acme/swift-1" }]
    endpoints = [
      { model = "acme/swift-1", provider = "One", completion_price = 1.0, accept_ms = 50, first_token_ms = 300, tokens_per_second = 100, jitter = 0.5 },
    ]
    faults = [
      { at_s = 120.0, for_s = 120.0, key = "a-3", what = { kind = "status", status = 503 } },
    ]
    [world.reply]
    max_tokens = 1000
"#;

/// Requests at even intervals but for what the seed makes of them.
fn asks(scenario: &Scenario, per_second: f64, seed: u64) -> Vec<Ask> {
    let mut random = fastrand::Rng::with_seed(seed);
    let count = (scenario.length_s * per_second) as u64;
    let ask = |number| Ask {
        at: Duration::from_secs_f64((number as f64 + random.f64()) / per_second),
        model: "acme/swift-1".into(),
        prompt_tokens: 100,
        reply_tokens: random.u64(20..60),
        stream: number % 3 != 0,
        session: None,
        priority: Priority::Normal,
    };
    (0..count).map(ask).collect()
}

fn stacks() -> Vec<Box<dyn Stack>> {
    let in_turn = lab::stack_fn("round-robin", |world: &World| {
        let balancer = Balancer::builder(world.pool()?).pick(RoundRobin::default()).build(world.leaf());
        let handle = balancer.handle().clone();
        Ok(Built::new(balancer).watch(handle))
    });
    let unwatched = lab::stack_fn("unwatched <b>", |world: &World| {
        Ok(Built::new(Balancer::builder(world.pool()?).build(world.leaf())))
    });
    vec![Box::new(DefaultStack), Box::new(in_turn), Box::new(unwatched)]
}

struct Ran {
    scenarios: Vec<(Scenario, f64)>,
    digests: Vec<Digest>,
}

/// All of it once for all tests here.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Ran> = OnceLock::new();
    RAN.get_or_init(|| {
        let scenarios = vec![(Scenario::from_toml(LIMITED).unwrap(), 7.5), (Scenario::from_toml(LOST).unwrap(), 6.0)];
        let mut digests = Vec::new();
        for (scenario, per_second) in &scenarios {
            for stack in &stacks() {
                for seed in 1..=3 {
                    let run = lab::run_asks(scenario, &**stack, seed, asks(scenario, *per_second, seed)).unwrap();
                    digests.push(Digest::of(&run, scenario));
                }
            }
        }
        Ran { scenarios, digests }
    })
}

fn comparison(digests: impl IntoIterator<Item = Digest>) -> Comparison {
    let stacks = stacks();
    let mut comparison =
        Comparison::new(ran().scenarios.iter().map(|(scenario, _)| scenario), stacks.iter().map(|stack| &**stack));
    comparison.extend(digests);
    comparison
}

#[test]
fn t() {
    let c = comparison(ran().digests.iter().cloned());
    println!("{}", c.table());
    println!("{}", &c.json()[..6000]);
}
