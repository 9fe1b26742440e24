//! What each layer, and the whole stack, costs above the bare call, and what tower's own parts cost that do as much.
//!
//! `cargo bench --bench overhead` runs criterion over each of them, then measures them in turns, prints a table, and fails
//! when the whole stack costs more than it may: with three keys at most 0.4 times what tower's own parts cost, and with
//! 10,000 keys at most 1.2 times what it costs with three. `-- --quick` leaves criterion out; `-- --only NAME REQUESTS` only
//! runs so many requests through one of them, for a profiler.

#![allow(unreachable_pub, reason = "the modules of a bench are its own")]

mod exchange;
mod measure;
mod stacks;

use std::process::ExitCode;

use criterion::Criterion;
use exchange::{Asking, Leaf};
use measure::{Measured, Subject};
use tower::{Layer, ServiceBuilder};
use tower_openrouter::{
    BufferLayer, CircuitBreakerLayer, ConcurrencyLimitLayer, DeadlineLayer, ExplainLayer, LoadMonitorLayer, OpenRouter,
    RespondLayer, RetryLayer, breaker::BreakerPolicy, openrouter::AuthorizeLayer,
};

/// The most the whole stack with three keys may cost, as a share of what tower's own parts cost.
const MOST_OF_TOWERS: f64 = 0.4;
/// The most the whole stack with 10,000 keys may cost, as a multiple of what it costs with three.
const MOST_OF_MANY: f64 = 1.2;

const BARE: &str = "bare call";
const WHOLE: &str = "whole stack, 3 keys";
const MANY: &str = "whole stack, 10,000 keys";
const TOWERS: &str = "tower: retry + buffer + p2c of 3 + limit";

fn subjects() -> Vec<Box<dyn Subject>> {
    let (key, endpoint) = stacks::endpoint();
    let authorize = AuthorizeLayer::new(&key);
    let bare_authorize = authorize.clone();
    let limit = ConcurrencyLimitLayer::new(1 << 20).expect("the cap is not 0");
    let breaker = CircuitBreakerLayer::new(BreakerPolicy::default()).endpoint(&endpoint);
    vec![
        measure::subject(BARE, |_| Leaf::new()),
        measure::subject(TOWERS, |_| stacks::towers()),
        measure::subject(WHOLE, |_| stacks::ours(3)),
        measure::subject(MANY, |_| stacks::ours(10_000)),
        measure::subject("whole stack, boxed, 3 keys", |_| stacks::boxed(3)),
        measure::subject("whole stack, 3 keys, explain off", |_| ExplainLayer::new().layer(stacks::ours(3))),
        measure::subject("whole stack, 3 keys, explained", |_| ExplainLayer::new().all().layer(stacks::ours(3))),
        measure::subject("respond", |leaf| RespondLayer::new().layer(leaf)),
        measure::subject("deadline", |leaf| DeadlineLayer::default().layer(leaf)),
        measure::subject("buffer", |leaf| BufferLayer::new().layer(leaf)),
        measure::subject("retry", |leaf| RetryLayer::new().layer(leaf)),
        measure::subject("select, 3 keys", |_| stacks::select(3)),
        measure::subject("monitor", move |leaf| LoadMonitorLayer::endpoint(&endpoint).layer(leaf)),
        measure::subject("breaker", move |leaf| breaker.layer(leaf)),
        measure::subject("limit", move |leaf| limit.layer(leaf)),
        measure::subject("authorize", move |leaf| bare_authorize.layer(leaf)),
        measure::subject("openrouter", OpenRouter::new),
        measure::subject("openrouter behind authorize", move |leaf| {
            ServiceBuilder::new().layer(authorize).service(OpenRouter::new(leaf))
        }),
    ]
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let (asking, mut subjects) = (Asking::new(), subjects());
    if let Some(only) = arguments.iter().position(|argument| argument == "--only") {
        let [name, requests] = &arguments[only + 1..] else { panic!("give a name and a number of requests") };
        let subject = subjects.iter_mut().find(|subject| subject.name() == name).expect("a name of the table");
        subject.run(&asking, requests.parse().expect("a number of requests"));
        return ExitCode::SUCCESS;
    }
    if !quick {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group("overhead");
        for subject in &mut subjects {
            subject.bench(&mut group, &asking);
        }
        group.finish();
        criterion.final_summary();
    }
    let measured = Measured::of(&mut subjects, &asking, if quick { 400 } else { 4_000 });
    measured.print(BARE);

    let (whole, many, towers) = (measured.above(WHOLE), measured.above(MANY), measured.above(TOWERS));
    let mut held = true;
    for (what, ratio, most) in [
        ("3 keys, of tower's own parts", whole / towers, MOST_OF_TOWERS),
        ("10,000 keys, of 3 keys", many / whole, MOST_OF_MANY),
    ] {
        let verdict = if ratio <= most { "holds" } else { "MISSED" };
        println!("{what}: {ratio:.2} (at most {most}: {verdict})");
        held &= ratio <= most;
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
