//! Every recipe shows the weakness it is known for, each in a world that brings it out.
//!
//! `LAB_STACKS=1 cargo test --release --test lab_stacks -- --nocapture` prints the table of three unknown quotas.

use std::time::Duration;

use tower_openrouter::{
    lab::{Ask, Ending, Run, Scenario, run_asks, stacks},
    request::Priority,
};

const MODEL: &str = "acme/swift-1";
const LENGTH: f64 = 600.0;

/// Requests as a Poisson stream of so many a second.
fn poisson(rate: f64, length: f64, seed: u64) -> Vec<Ask> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let times = std::iter::from_fn(|| {
        at -= (1.0 - rng.f64()).ln() / rate;
        (at < length).then_some(at)
    });
    let ask = |at: f64| Ask {
        at: Duration::from_secs_f64(at),
        model: MODEL.into(),
        prompt_tokens: 5,
        reply_tokens: 1,
        stream: false,
        session: None,
        priority: Priority::Normal,
        deadline: None,
    };
    times.map(ask).collect()
}

/// A scenario of three accounts with a key each, and what is put in for their settings and for faults.
fn world([a, b, c]: [&str; 3], faults: &str) -> Scenario {
    Scenario::from_toml(&format!(
        r#"
        name = "inline"
        length_s = {LENGTH}
        [world]
        accounts = [
            {{ name = "a", credits = 1e6{a} }}, {{ name = "b", credits = 1e6{b} }}, {{ name = "c", credits = 1e6{c} }},
        ]
        keys = [{{ label = "a", account = "a" }}, {{ label = "b", account = "b" }}, {{ label = "c", account = "c" }}]
        models = [{{ id = "{MODEL}" }}]
        endpoints = [{{ model = "{MODEL}", provider = "One", accept_ms = 150 }}]
        faults = [{faults}]
        [world.keep]
        log = 0
        requests = 0
        generations = 0
        "#
    ))
    .unwrap()
}

/// Quotas of 20, 40 and 80 requests in ten seconds, and requests for this multiple of that.
fn three_quotas(load: f64, hints: bool, seed: u64) -> (Scenario, Vec<Ask>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let quota = |requests: u64, phase: f64| {
        format!(", quota = {{ requests = {requests}, window_s = 10, phase_s = {phase}, hints = {hints} }}")
    };
    let quotas = [20, 40, 80].map(|requests| quota(requests, rng.f64() * 10.0));
    (world(quotas.each_ref().map(String::as_str), ""), poisson(14.0 * load, LENGTH, rng.u64(..)))
}

fn ran(stack: &str, (scenario, asks): (Scenario, Vec<Ask>)) -> Run {
    let stack = stacks::by_name(stack).unwrap_or_else(|| panic!("no stack {stack}"));
    run_asks(&scenario, &*stack, 1, asks).unwrap()
}

fn served(run: &Run) -> usize {
    run.samples.iter().filter(|sample| sample.ending == Ending::Served).count()
}

/// How many attempts the upstream refused with a 429 for each request that was served.
fn refused_per_success(run: &Run) -> f64 {
    run.sent.iter().filter(|sent| sent.status == Some(429)).count() as f64 / served(run) as f64
}

/// The share of requests that were not served.
fn failed(run: &Run) -> f64 {
    1.0 - served(run) as f64 / run.samples.len() as f64
}

#[test]
fn the_table_of_three_unknown_quotas() {
    if std::env::var_os("LAB_STACKS").is_none() {
        return;
    }
    for stack in stacks::all() {
        let mut line = format!("{:<16}", stack.name());
        for load in [0.95, 1.5, 3.0] {
            let start = std::time::Instant::now();
            let run = ran(stack.name(), three_quotas(load, true, 1));
            line += &format!(
                " | {:.2}/success, {:.1} % failed, {} served {:?}",
                refused_per_success(&run),
                failed(&run) * 100.0,
                served(&run),
                start.elapsed()
            );
        }
        println!("{line}");
    }
}
