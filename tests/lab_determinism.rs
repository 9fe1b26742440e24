//! R126, for what the lab ships: every scenario with every stack ends the same twice, and is told in the same words.

use std::thread;

use tower_openrouter::lab::{Comparison, Digest, Run, Scenario, Stack, run_asks, stacks};

/// So many requests a run; `LAB_DETERMINISM_REQUESTS=100000 cargo test --release --test lab_determinism` looks at whole runs.
fn requests() -> usize {
    std::env::var("LAB_DETERMINISM_REQUESTS").map_or(10, |requests| requests.parse().unwrap())
}

/// The scenarios that are shipped, and one in which everything goes wrong; each no longer than its first requests.
fn scenarios() -> Vec<Scenario> {
    let worst = Scenario::from_toml(include_str!("determinism/scenario.toml")).unwrap();
    let mut all: Vec<_> = Scenario::shipped().into_iter().chain([worst]).collect();
    for scenario in &mut all {
        let asks = scenario.asks(1);
        let last = asks.get(requests()).or(asks.last()).expect("a scenario has requests").at.as_secs_f64();
        (scenario.length_s, scenario.warm_up_s) = (scenario.length_s.min(last + 1.0), 0.0);
    }
    all
}

fn runs(scenario: &Scenario, stacks: &[Box<dyn Stack>]) -> Vec<Run> {
    let mut asks = scenario.asks(1);
    asks.truncate(requests());
    stacks.iter().map(|stack| run_asks(scenario, &**stack, 1, asks.clone()).unwrap()).collect()
}

#[test]
fn r126_every_scenario_with_every_stack_repeats_and_is_told_in_the_same_words() {
    let (scenarios, stacks) = (scenarios(), stacks::all());
    let named = || Comparison::new(&scenarios, stacks.iter().map(|stack| &**stack));
    let (mut one, mut other) = (named(), named());
    for scenario in &scenarios {
        let (first, second) = thread::scope(|scope| {
            let beside = scope.spawn(|| runs(scenario, &stacks));
            (runs(scenario, &stacks), beside.join().unwrap())
        });
        for (first, second) in first.iter().zip(&second) {
            let of = format!("scenario {}, stack {}", first.scenario, first.stack);
            for (number, (first, second)) in first.sent.iter().zip(&second.sent).enumerate() {
                assert_eq!(first, second, "{of}: what was sent, {number}");
            }
            for (number, (first, second)) in first.samples.iter().zip(&second.samples).enumerate() {
                assert_eq!(first, second, "{of}: request {number}");
            }
            // `==` would take 0.0 for -0.0, which are told apart where they are shown
            assert_eq!(format!("{first:?}"), format!("{second:?}"), "{of}");
        }
        first.iter().for_each(|run| one.add(Digest::of(run, scenario)));
        second.iter().rev().for_each(|run| other.add(Digest::of(run, scenario)));
    }
    assert_eq!(one.table(), other.table());
    assert_eq!(one.json(), other.json());
    assert_eq!(one.html(), other.html());
}
