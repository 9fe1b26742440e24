//! What the lab makes of runs: figures, a comparison's table and file, and the report that `.ci/report` opens in a browser.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use tower_openrouter::{
    Balancer,
    lab::{self, Ask, Built, Comparison, Digest, Grid, Metric, Scenario, Setting, Stack, World, stacks::DefaultStack},
    request::Priority,
    select::RoundRobin,
};

const LIMITED: &str = r#"
    name = "quarter-over-quota"
    about = "Three accounts of 40 requests a minute are asked for 5 a second; <script> in a name is only text & \"quoted\"."
    length_s = 90.0
    warm_up_s = 10.0
    patience = { max_wait_s = 10.0, deadline_s = 30.0 }
    [world]
    accounts = [
      { name = "a", credits = 100.0, quota = { requests = 40, phase_s = 20.0 } },
      { name = "b", credits = 100.0, quota = { requests = 40, phase_s = 40.0 } },
      { name = "c", credits = 100.0, quota = { requests = 40, kind = "bucket" } },
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
    name = "lost-key"
    about = "One of six keys answers every request with 503 for a minute."
    length_s = 160.0
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
      { at_s = 40.0, for_s = 60.0, key = "a-3", what = { kind = "status", status = 503 } },
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
        deadline: None,
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
    scenarios: Vec<Scenario>,
    digests: Vec<Digest>,
}

/// All of it once for all tests here.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Ran> = OnceLock::new();
    RAN.get_or_init(|| {
        let mut digests = Vec::new();
        let scenarios = vec![Scenario::from_toml(LIMITED).unwrap(), Scenario::from_toml(LOST).unwrap()];
        for (scenario, per_second) in scenarios.iter().zip([5.0, 3.5]) {
            for (stack, seed) in stacks().iter().flat_map(|stack| [(stack, 1), (stack, 2)]) {
                let run = lab::run_asks(scenario, &**stack, seed, asks(scenario, per_second, seed)).unwrap();
                digests.push(Digest::of(&run, scenario));
            }
        }
        Ran { scenarios, digests }
    })
}

fn comparison(digests: impl IntoIterator<Item = Digest>) -> Comparison {
    let stacks = stacks();
    let mut comparison = Comparison::new(&ran().scenarios, stacks.iter().map(|stack| &**stack));
    comparison.extend(digests);
    comparison
}

#[test]
fn a_comparison_does_not_depend_on_the_order_in_which_runs_end() {
    let in_order = comparison(ran().digests.iter().cloned());
    let backwards = comparison(ran().digests.iter().rev().cloned());
    assert_eq!(in_order.json(), backwards.json());
    assert_eq!(in_order.html(), backwards.html());
    let fewer = comparison(ran().digests.iter().skip(1).cloned());
    assert_ne!(in_order.json(), fewer.json());
}

#[test]
fn the_file_has_every_run_by_scenario_stack_and_seed() {
    let file: serde_json::Value =
        serde_json::from_str(&comparison(ran().digests.iter().rev().cloned()).json()).unwrap();
    let mut told = Vec::new();
    for scenario in file["scenarios"].as_array().unwrap() {
        for stack in scenario["stacks"].as_array().unwrap() {
            for run in stack["runs"].as_array().unwrap() {
                told.push((
                    scenario["name"].clone(),
                    stack["stack"].clone(),
                    run["seed"].clone(),
                    run["served"].clone(),
                ));
            }
        }
    }
    let expected = ran().digests.iter().map(|digest| {
        let Digest { scenario, stack, seed, figures, .. } = digest;
        (scenario.as_str().into(), stack.as_str().into(), (*seed).into(), figures.served.into())
    });
    assert_eq!(told, expected.collect::<Vec<_>>());
}

#[test]
fn the_table_fits_a_terminal_of_120_columns() {
    let table = comparison(ran().digests.iter().cloned()).table();
    let widest = table.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 120, "{widest} columns:\n{table}");
    for (name, _) in [("quarter-over-quota", ()), ("lost-key", ()), ("default", ()), ("round-robin", ())] {
        assert!(table.contains(name), "no {name} in\n{table}");
    }
}

#[test]
fn figures_are_of_what_was_counted_on_both_sides() {
    for digest in &ran().digests {
        let figures = &digest.figures;
        assert_eq!(figures.served + figures.errors.total(), figures.offered, "{digest:?}");
        assert!(figures.attempts >= figures.served, "{digest:?}");
        assert!(figures.added_wait.p50 < figures.first_output.p50, "{digest:?}");
        assert!(figures.fairness.is_some_and(|fairness| fairness > 0.5 && fairness <= 1.0), "{digest:?}");
    }
    // three times 40 a minute let through 2 a second, and more at first, of the 5
    let limited = ran().digests.iter().find(|digest| digest.scenario == "quarter-over-quota").unwrap();
    assert!(limited.figures.goodput < 4.0, "{limited:?}");
    assert!(limited.figures.error_share.unwrap() > 0.05, "{limited:?}");
}

#[test]
fn a_lost_key_is_seen_to_be_lost_and_to_be_back() {
    for digest in ran().digests.iter().filter(|digest| digest.scenario == "lost-key") {
        let reaction = &digest.figures.reaction;
        assert_eq!((reaction.undetected, reaction.unrecovered), (0, 0), "{digest:?}");
        // a sixth of 3.5 a second is one attempt in two seconds
        assert!(reaction.detect_s.is_some_and(|seconds| seconds > 0.0 && seconds < 30.0), "{digest:?}");
        assert!(reaction.recover_s.is_some_and(|seconds| seconds < 60.0), "{digest:?}");
    }
}

/// Writes the report that `.ci/report` opens.
fn kept(name: &str, html: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ci");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), html).unwrap();
}

#[test]
fn the_report_is_one_file_without_a_script_in_which_names_are_text() {
    let html = comparison(ran().digests.iter().cloned()).html();
    kept("report.html", &html);
    assert!(html.contains("&lt;script&gt; in a name is only text &amp; &quot;quoted&quot;"));
    assert!(html.contains("unwatched &lt;b&gt;"));
    for foreign in ["<script", "http://", "https://", "NaN", "<b>&quot;", "unwatched <b>"] {
        // the namespace of SVG is a name, not an address
        let html = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!html.contains(foreign), "{foreign}");
    }
    // for each scenario: goodput, first output, waiting room, and the keys of each stack
    assert_eq!(html.matches("<figure>").count(), 2 * (3 + 3));
    assert_eq!(html.matches("<svg viewBox").count(), 2 * (3 + 3));
}

/// The same runs under the names of a sweep, each with a goodput of its own.
fn swept(settings: &[(&str, &[&str])]) -> Comparison {
    let base = &ran().digests[0];
    let mut points = vec![Vec::new()];
    for (_, values) in settings {
        points = points
            .iter()
            .flat_map(|point| (0..values.len()).map(move |value| [&point[..], &[value]].concat()))
            .collect();
    }
    let name = |point: &[usize]| {
        let parts = settings.iter().zip(point).map(|((name, values), value)| format!("{name}={}", values[*value]));
        parts.collect::<Vec<_>>().join(" ")
    };
    let stacks: Vec<Box<dyn Stack>> = points
        .iter()
        .map(|point| Box::new(lab::stack_fn(name(point), |world| DefaultStack.build(world))) as _)
        .collect();
    let settings = settings.iter().map(|(name, values)| Setting {
        name: (*name).to_owned(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    });
    let grid = Grid::new(
        Metric::named("goodput").unwrap(),
        settings.collect(),
        points.iter().map(|point| (name(point), point.clone())),
    );
    let mut comparison = Comparison::new(&ran().scenarios[..1], stacks.iter().map(|stack| &**stack)).sweep(grid);
    for point in &points {
        let distance: f64 = point.iter().zip([2.0, 1.0, 0.0]).map(|(at, best)| (*at as f64 - best).powi(2)).sum();
        for seed in 1..=3 {
            let mut digest = base.clone();
            (digest.stack, digest.seed) = (name(point), seed);
            digest.figures.goodput = 4.0 - 0.2 * distance + 0.05 * seed as f64;
            comparison.add(digest);
        }
    }
    comparison
}

#[test]
fn a_sweep_of_two_settings_is_a_map_and_of_one_bars_with_the_best_told() {
    let failures: (&str, &[&str]) = ("breaker.failures", &["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
    let learn: (&str, &[&str]) = ("pace.learn", &["true", "false"]);
    for (file, settings, best, charts) in [
        ("sweep-1.html", &[failures][..], "breaker.failures=3", 1),
        ("sweep-2.html", &[failures, learn], "breaker.failures=3 pace.learn=false", 1),
        (
            "sweep-3.html",
            &[failures, learn, ("hedge", &["off", "on"])],
            "breaker.failures=3 pace.learn=false hedge=off",
            2,
        ),
    ] {
        let comparison = swept(settings);
        let html = comparison.html();
        kept(file, &html);
        assert!(html.contains(&format!("The best setting is <b>{best}</b>")), "{best}");
        assert_eq!(html.matches("<figcaption>goodput").count(), charts);
        let file: serde_json::Value = serde_json::from_str(&comparison.json()).unwrap();
        assert_eq!(file["sweep"]["best"][0], best);
    }
}
