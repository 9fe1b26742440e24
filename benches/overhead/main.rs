//! What each layer, and the whole stack, costs above the bare call, and what tower's parts and tower-resilience's cost.
//!
//! `cargo bench --bench overhead` runs criterion over each of them, then measures them in turns, prints a table, and fails
//! when the whole stack costs more than it may: with three keys at most 0.4 times what tower's own parts cost, and with
//! 10,000 keys at most 1.2 times what it costs with three. `-- --quick` leaves criterion out; `-- --only NAME REQUESTS` only
//! runs so many requests through one of them, for a profiler, or with `"a snapshot of keys: 20"` reads so many of these.

#![allow(unreachable_pub, reason = "the modules of a bench are its own")]

mod contention;
mod exchange;
mod measure;
mod reading;
mod resilience;
mod stacks;
mod subjects;

use std::process::ExitCode;

use criterion::Criterion;
use exchange::Asking;
use measure::Measured;
use subjects::{BARE, FEW_BOXES, MANY, MANY_BOXES, TOWERS, WHOLE, subjects};

/// What reads the figures of so many keys, to `--only`.
const SNAPSHOT: &str = "a snapshot of keys: ";
/// The most the whole stack with three keys may cost, as a share of what tower's own parts cost.
const MOST_OF_TOWERS: f64 = 0.4;
/// The most the whole stack with 10,000 keys may cost, as a multiple of what it costs with three.
const MOST_OF_MANY: f64 = 1.2;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let (asking, mut subjects) = (Asking::new(), subjects());
    if let Some(only) = arguments.iter().position(|argument| argument == "--only") {
        let [name, requests] = &arguments[only + 1..] else { panic!("give a name and a number of requests") };
        let times = requests.parse().expect("a number of requests");
        if let Some(keys) = name.strip_prefix(SNAPSHOT) {
            reading::only(keys.parse().expect("a number of keys"), &asking, times);
            return ExitCode::SUCCESS;
        }
        let subject = subjects.iter_mut().find(|subject| subject.name() == name).expect("a name of the table");
        subject.run(&asking, times);
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

    let rounds = if quick { 31 } else { 49 };
    println!("two threads that share a stack, time of a request, of one thread's alone:");
    println!("- whole stack, 3 keys: {:.2}", contention::of(|| stacks::ours(3), &asking, rounds));
    println!("- {TOWERS}: {:.2}", contention::of(stacks::towers, &asking, rounds));
    println!("- tower-resilience's: {:.2}\n", contention::of(resilience::stack, &asking, rounds));

    println!("a thread beside that looks on, time of a request, of one while it looks at something else:");
    println!("- one counter of each of 20 keys: {}", reading::counters(20, &asking, rounds));
    for keys in [20, 1_000] {
        println!("- a snapshot of {keys} keys: {}", reading::snapshots(keys, &asking, rounds));
    }
    println!("- changes told to who never reads, of changes told to nobody: {}\n", reading::changes(&asking, rounds));

    let (whole, many, towers) = (measured.above(WHOLE), measured.above(MANY), measured.above(TOWERS));
    let floor = measured.above(MANY_BOXES) - measured.above(FEW_BOXES);
    println!(
        "10,000 keys cost {:.0} ns more than 3 keys; 10,000 boxed services {floor:.0} ns more than 3",
        many - whole
    );
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
