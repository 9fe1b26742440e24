//! What a pick costs with 3, 100 and 10,000 keys, in time and on the heap.
//!
//! `cargo bench --bench pick` measures each pick twice: the proposal alone, and the whole way of a request through a
//! selector around a service that answers at once. It fails when a proposal allocates, or when selection with a pick that is
//! flat in the number of keys takes more than 1.2 times as long with 10,000 keys as with three.
//!
//! The keys are warm: each has served before, as in a pool that has run for a while. Time is wall time, so it holds what
//! 10,000 keys do to caches. A proposal of three nanoseconds cannot hide that, and its ratio is shown and not judged.
//!
//! `-- --only NAME KEYS TURNS` only runs so many turns of 448 requests through a selector with one of them, for a profiler.

#![allow(unreachable_pub, reason = "the module of a bench is its own")]

mod subject;

use std::{alloc::System, process::ExitCode};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use subject::{Make, subject};
use tower_openrouter::endpoint::Money;
use tower_openrouter::select::{
    Candidates, LeastInFlight, MostCredit, PeakEwma, PriorityTiers, Rendezvous, Rng, RoundRobin, SmoothWeighted,
    Sticky, WeightedRandom, pick_fn,
};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KEYS: [usize; 3] = [3, 100, 10_000];
/// The most that selection with 10,000 keys may cost, as a multiple of what it costs with three.
const MOST: f64 = 1.2;

/// Which session a request says it belongs to.
const NO_SESSION: fn(u64) -> Option<String> = |_| None;

fn subjects(keys: usize) -> Vec<(&'static str, Make)> {
    let equal: fn(usize) -> f64 = |_| 1.0;
    let first = |_: &Candidates<'_>, turn: usize, _: &mut Rng| turn;
    vec![
        subject("RoundRobin", keys, equal, NO_SESSION, RoundRobin::default()),
        subject("SmoothWeighted, equal weights", keys, equal, NO_SESSION, SmoothWeighted::default()),
        subject("SmoothWeighted, 3:2:1", keys, |index| (3 - index % 3) as f64, NO_SESSION, SmoothWeighted::default()),
        subject(
            "SmoothWeighted, odd weights",
            keys,
            |index| (2.0 + index as f64).sqrt(),
            NO_SESSION,
            SmoothWeighted::default(),
        ),
        subject("WeightedRandom", keys, |index| (2.0 + index as f64).sqrt(), NO_SESSION, WeightedRandom::default()),
        subject("LeastInFlight", keys, equal, NO_SESSION, LeastInFlight::default()),
        subject("PeakEwma", keys, equal, NO_SESSION, PeakEwma::default()),
        subject("MostCredit", keys, equal, NO_SESSION, MostCredit::default()),
        subject("Sticky", keys, equal, NO_SESSION, Sticky::new(Money::from_usd(1.0))),
        subject("PriorityTiers of RoundRobin", keys, equal, NO_SESSION, PriorityTiers::new(RoundRobin::default())),
        subject(
            "Rendezvous of RoundRobin, no session",
            keys,
            equal,
            NO_SESSION,
            Rendezvous::new(RoundRobin::default()),
        ),
        subject("pick_fn, always the first", keys, equal, NO_SESSION, pick_fn(first)),
        subject(
            "Rendezvous, a session",
            keys,
            equal,
            |n| Some(format!("session-{n}")),
            Rendezvous::new(RoundRobin::default()),
        ),
    ]
}

/// The picks whose cost is meant to grow with the number of keys.
const GROWING: [&str; 1] = ["Rendezvous, a session"];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let Some(only) = arguments.iter().position(|argument| argument == "--only") {
        let [name, keys, turns] = &arguments[only + 1..] else { panic!("give a name, the keys and the turns") };
        let [keys, turns] = [keys, turns].map(|number| number.parse().expect("keys and turns are numbers"));
        let (_, make) = subjects(keys).into_iter().find(|(other, _)| other == name).expect("a name of the table");
        let mut subject = make();
        for _ in 0..turns {
            subject.select();
        }
        return ExitCode::SUCCESS;
    }
    let rounds = if arguments.iter().any(|argument| argument == "--quick") { 60 } else { 1_000 };
    let mut held = true;
    println!(
        "| ns, median | proposal: 3 | 100 | 10,000 keys | ratio | selection: 3 | 100 | 10,000 keys | ratio | allocations |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut sizes = KEYS.map(|keys| subjects(keys).into_iter());
    while let [Some((name, few)), Some((_, some)), Some((_, many))] = sizes.each_mut().map(Iterator::next) {
        let mut sizes = [few(), some(), many()];
        let allocations: usize = sizes.iter_mut().map(|subject| subject.allocations(HEAP)).sum();
        let (proposals, selections) = subject::medians(&mut sizes, rounds);
        let (proposal, selection) = (proposals[2] / proposals[0], selections[2] / selections[0]);
        let [p3, p100, p10k] = proposals;
        let [s3, s100, s10k] = selections;
        println!(
            "| {name} | {p3:.1} | {p100:.1} | {p10k:.1} | {proposal:.2} | {s3:.0} | {s100:.0} | {s10k:.0} | {selection:.2} | {allocations} |"
        );
        if allocations > 0 {
            held = false;
            eprintln!("{name}: {allocations} allocations in proposals, and there should be none");
        }
        if selection > MOST && !GROWING.contains(&name) {
            held = false;
            eprintln!(
                "{name}: selection with 10,000 keys costs {selection:.2} times what it does with 3, above {MOST}"
            );
        }
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
