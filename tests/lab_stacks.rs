//! Every recipe shows the weakness it is known for, in a world that brings it out; and the oracle none.

use std::time::Duration;

use tower_openrouter::{
    lab::{Ask, Ending, Run, Sample, Scenario, run_asks, stacks},
    request::Priority,
};

const MODEL: &str = "acme/swift-1";
const OTHER: &str = "acme/other";
/// For how long requests come, seconds.
const LENGTH: f64 = 120.0;
const LIMITS: [u64; 3] = [20, 40, 80];
const WINDOW: f64 = 10.0;

fn ask(at: f64, model: &str) -> Ask {
    Ask {
        at: Duration::from_secs_f64(at),
        model: model.into(),
        prompt_tokens: 5,
        reply_tokens: 1,
        stream: false,
        session: None,
        priority: Priority::Normal,
        deadline: None,
    }
}

/// So many requests a second, as they please.
fn poisson(rate: f64, seed: u64) -> Vec<Ask> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let times = std::iter::from_fn(|| {
        at -= (1.0 - rng.f64()).ln() / rate;
        (at < LENGTH).then_some(at)
    });
    times.map(|at| ask(at, MODEL)).collect()
}

/// Three accounts with a key each, with these settings added to them, and faults.
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
        models = [{{ id = "{MODEL}" }}, {{ id = "{OTHER}" }}]
        endpoints = [
            {{ model = "{MODEL}", provider = "One", accept_ms = 150 }},
            {{ model = "{OTHER}", provider = "Two", accept_ms = 150 }},
        ]
        faults = [{faults}]
        "#
    ))
    .unwrap()
}

/// How much of each window has gone by at the start.
const PHASES: [f64; 3] = [3.3, 7.1, 0.4];

/// Quotas of 20, 40 and 80 requests in ten seconds, and requests for this multiple of that.
fn three_quotas(load: f64) -> (Scenario, Vec<Ask>) {
    let quota = |index: usize| {
        let (requests, phase) = (LIMITS[index], PHASES[index]);
        format!(", quota = {{ requests = {requests}, window_s = {WINDOW}, phase_s = {phase} }}")
    };
    let quotas = [quota(0), quota(1), quota(2)];
    (world(quotas.each_ref().map(String::as_str), ""), poisson(14.0 * load, 7))
}

fn ran(stack: &str, (scenario, asks): (Scenario, Vec<Ask>)) -> Run {
    let stack = stacks::by_name(stack).unwrap_or_else(|| panic!("no stack is called {stack}"));
    run_asks(&scenario, &*stack, 1, asks).unwrap()
}

fn served(run: &Run) -> usize {
    run.samples.iter().filter(|sample| sample.ending == Ending::Served).count()
}

/// The share of requests that were not served.
fn failed(run: &Run) -> f64 {
    1.0 - served(run) as f64 / run.samples.len() as f64
}

/// How many attempts met a 429 upstream.
fn refused(run: &Run) -> usize {
    run.sent.iter().filter(|sent| sent.status == Some(429)).count()
}

fn refused_per_success(run: &Run) -> f64 {
    refused(run) as f64 / served(run) as f64
}

/// The share of attempts that were sent with the first key.
fn on_the_first_key(run: &Run) -> f64 {
    run.sent.iter().filter(|sent| sent.key == Some(0)).count() as f64 / run.sent.len() as f64
}

/// How many of these a service of unlimited foresight starts within a wait of 30 s, in order of arrival.
fn could_start(asks: &[Ask]) -> usize {
    let mut windows = [(0, 0); 3];
    let (mut latest, mut started) = (0.0_f64, 0);
    for ask in asks {
        let (at, now) = (ask.at.as_secs_f64(), latest.max(ask.at.as_secs_f64()));
        let opens = |index: usize| {
            let window = ((now + PHASES[index]) / WINDOW) as u64;
            let full = windows[index] == (window, LIMITS[index]);
            if full { (window + 1) as f64 * WINDOW - PHASES[index] + 1e-6 } else { now }
        };
        let (index, start) = (0..3).map(|index| (index, opens(index))).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        if start - at > 30.0 {
            continue;
        }
        let window = ((start + PHASES[index]) / WINDOW) as u64;
        windows[index] = (window, if windows[index].0 == window { windows[index].1 + 1 } else { 1 });
        latest = start;
        started += 1;
    }
    started
}

#[test]
fn stacks_are_found_by_their_names_and_say_what_they_do() {
    let all = stacks::all();
    let names: Vec<_> = all.iter().map(|stack| stack.name()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"default"), Some(&"oracle")));
    for name in &names {
        let stack = stacks::by_name(name).unwrap();
        assert!(!stack.about().is_empty());
        assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
    }
    assert!(stacks::by_name("nobody").is_none());
}

#[test]
fn round_robin_fails_requests_while_other_keys_have_room() {
    let run = ran("round-robin", three_quotas(0.95));
    assert!(failed(&run) > 0.1, "{}", failed(&run));
    assert_eq!(run.sent.len(), run.samples.len());
}

#[test]
fn immediate_retries_with_a_cooldown_provoke_several_refusals_for_each_success() {
    let run = ran("cooldown", three_quotas(1.5));
    assert!(refused_per_success(&run) > 2.0, "{}", refused_per_success(&run));
}

#[test]
fn the_first_healthy_key_gets_everything_and_the_others_what_it_loses() {
    let calm = ran("first-healthy", (world(["", "", ""], ""), poisson(5.0, 1)));
    assert_eq!((on_the_first_key(&calm), failed(&calm)), (1.0, 0.0));
    let run = ran("first-healthy", three_quotas(0.95));
    assert!(failed(&run) > 0.2, "{}", failed(&run));
}

#[test]
fn shuffling_with_a_short_cooldown_fails_clients_below_capacity() {
    let run = ran("shuffle", three_quotas(0.95));
    assert!(failed(&run) > 0.01, "{}", failed(&run));
    assert!(refused_per_success(&run) < 0.2, "{}", refused_per_success(&run));
}

#[test]
fn those_who_wait_for_the_reset_all_send_at_once() {
    let run = ran("wait-then-all", three_quotas(1.5));
    assert!(refused_per_success(&run) > 2.0, "{}", refused_per_success(&run));
}

#[test]
fn a_dead_key_draws_the_traffic_of_towers_balance() {
    let dead = world(["", "", ""], r#"{ key = "a", what = { kind = "unauthorized" } }"#);
    let run = ran("tower-balance", (dead, poisson(20.0, 1)));
    assert!(on_the_first_key(&run) > 0.5, "{}", on_the_first_key(&run));
    let handed_on = run.samples.iter().filter(|sample| sample.ending == Ending::Failed(401)).count();
    assert!(handed_on * 20 > run.samples.len(), "{handed_on}");
}

#[test]
fn the_oracle_serves_what_can_be_served_and_is_never_refused() {
    for load in [0.95, 1.5, 3.0] {
        let (scenario, asks) = three_quotas(load);
        let possible = could_start(&asks) as f64;
        let run = ran("oracle", (scenario, asks));
        assert_eq!(refused(&run), 0, "{load}");
        assert!((served(&run) as f64 / possible - 1.0).abs() < 0.01, "{load}: {} of {possible}", served(&run));
        let late = |sample: &&Sample| {
            matches!(sample.ending, Ending::Failed(_)) && sample.end > sample.at + Duration::from_millis(100)
        };
        let late: Vec<_> = run.samples.iter().filter(late).collect();
        assert!(late.is_empty(), "{load}: who is refused is refused at once: {late:?}");
    }
}

#[test]
fn the_default_is_within_two_hundredths_of_the_oracle() {
    // with the quotas learned, and while requests come: a longer line goes on for longer after them
    let counted = Duration::from_secs(30)..Duration::from_secs_f64(LENGTH);
    let in_time = |run: &Run| {
        let ended = |sample: &&Sample| sample.ending == Ending::Served && counted.contains(&sample.end);
        run.samples.iter().filter(ended).count() as f64
    };
    for load in [0.95, 1.5] {
        let (mark, found) = (ran("oracle", three_quotas(load)), ran("default", three_quotas(load)));
        assert!(in_time(&found) > 0.98 * in_time(&mark), "{load}: {} {}", in_time(&found), in_time(&mark));
        assert!(refused_per_success(&found) < 0.05, "{load}: {}", refused_per_success(&found));
    }
}

#[test]
fn the_oracle_waits_out_what_is_certain_and_tries_again_what_is_chance() {
    let chance = r#"{ probability = 0.5, what = { kind = "status", status = 502 } }"#;
    let storm = r#"{ at_s = 20, for_s = 15, what = { kind = "unauthorized" } }"#;
    let run = ran("oracle", (world(["", "", ""], &format!("{chance}, {storm}")), poisson(5.0, 1)));
    // of ten attempts in a row one in a thousand fails
    assert!(failed(&run) < 0.01, "{}", failed(&run));
    assert!(run.sent.iter().any(|sent| sent.status == Some(502)));
    assert!(run.sent.iter().all(|sent| sent.status != Some(401)));
    assert!(run.samples.iter().any(|sample| sample.end > sample.at + Duration::from_secs(10)));
}

#[test]
fn the_oracle_lets_other_models_pass_one_that_must_wait() {
    let full = format!(r#"{{ model = "{MODEL}", for_s = 20, what = {{ kind = "pool_full" }} }}"#);
    let asks = (0..20).map(|number| ask(f64::from(number) / 10.0, if number % 2 == 0 { MODEL } else { OTHER }));
    let run = ran("oracle", (world(["", "", ""], &full), asks.collect()));
    assert_eq!((served(&run), run.sent.len()), (20, 20));
    for (number, sample) in run.samples.iter().enumerate() {
        let waited = sample.end - sample.at > Duration::from_secs(15);
        assert_eq!(waited, number % 2 == 0, "{number}: {sample:?}");
    }
}
