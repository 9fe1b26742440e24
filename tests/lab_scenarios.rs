//! Scenarios: what is shipped, what a seed draws from them, and how mistakes are named.

use std::{collections::BTreeSet, time::Duration};

use sha2::{Digest, Sha256};
use tower_openrouter::{
    lab::{Ask, Scenario},
    request::Priority,
};

/// A scenario of so many seconds, with this in place of arrivals and mix.
fn scenario(length_s: f64, more: &str) -> Result<Scenario, String> {
    let text = format!(
        "name = \"small\"\nlength_s = {length_s:?}\n{more}\n[world]\nmodels = [{{ id = \"m/one\" }}, {{ id = \"m/two\" }}]\n"
    );
    Scenario::from_toml(&text).map_err(|error| error.to_string())
}

const MIX: &str = "mix = [{ model = \"m/one\", prompt_tokens = { kind = \"fixed\", tokens = 100 }, \
                   reply_tokens = { kind = \"fixed\", tokens = 10 } }]";

/// Requests that come at this rate.
fn asks(length_s: f64, arrivals: &str) -> Vec<Ask> {
    scenario(length_s, &format!("{MIX}\n[arrivals]\n{arrivals}")).unwrap().asks(1)
}

/// How many come in each of these spans, per second.
fn rates(asks: &[Ask], spans: &[(f64, f64)]) -> Vec<f64> {
    let within = |(from, until): &(f64, f64)| {
        asks.iter().filter(|ask| (*from..*until).contains(&ask.at.as_secs_f64())).count() as f64 / (until - from)
    };
    spans.iter().map(within).collect()
}

#[track_caller]
fn near(found: f64, wanted: f64, part: f64) {
    assert!((found - wanted).abs() <= wanted * part, "{found} for {wanted}");
}

/// Mean and coefficient of variation of the gaps, seconds.
fn gaps(asks: &[Ask]) -> (f64, f64) {
    let gaps: Vec<f64> = asks.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    (mean, variance.sqrt() / mean)
}

#[test]
fn at_least_twelve_scenarios_are_shipped_and_each_says_what_it_shows() {
    let shipped = Scenario::shipped();
    assert!(shipped.len() >= 12);
    let names: BTreeSet<_> = shipped.iter().map(|scenario| scenario.name.clone()).collect();
    assert_eq!(names.len(), shipped.len());
    for scenario in &shipped {
        let name = &scenario.name;
        assert!(scenario.about.len() > 150, "{name}");
        assert!(!scenario.world.keys.is_empty() && scenario.warm_up_s > 0.0, "{name}");
        let asks = scenario.asks(1);
        assert_eq!(asks, scenario.asks(1), "{name}");
        assert_ne!(asks, scenario.asks(2), "{name}");
        // enough for a figure, and few enough for a run in a second or two
        assert!((2_000..=20_000).contains(&asks.len()), "{name}: {}", asks.len());
        assert!(asks.is_sorted_by_key(|ask| ask.at), "{name}");
        let last = asks[asks.len() - 1].at.as_secs_f64();
        assert!(last < scenario.length_s && last > scenario.length_s * 0.95, "{name}: {last}");
        // a fault that strikes after the end, or before anything is counted, would show nothing
        for fault in &scenario.world.faults {
            assert!(fault.at_s == 0.0 || (scenario.warm_up_s..scenario.length_s).contains(&fault.at_s), "{name}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_requests_on_any_machine() {
    let every = r#"
        arrivals = { rate = { kind = "diurnal", low_per_s = 1, high_per_s = 5, period_s = 300, peak_s = 100 },
                     bursts = [{ at_s = 60, for_s = 5, factor = 9.5 }] }
        mix = [
            { model = "m/one", prompt_tokens = { kind = "log_normal", median = 300, sigma = 1 },
              reply_tokens = { kind = "uniform", min = 5, max = 500 }, stream = 0.5, sessions = 9, high = 0.3, low = 0.3 },
            { model = "m/two", weight = 0.3, prompt_tokens = { kind = "fixed", tokens = 7 }, deadline_s = 3.5,
              reply_tokens = { kind = "quantiles", parts = [0, 0.5, 1], tokens = [1, 20, 700] } },
        ]"#;
    let asks = scenario(600.0, every).unwrap().asks(1);
    let mut hash = Sha256::new();
    for ask in &asks {
        hash.update(format!("{ask:?}\n"));
    }
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((asks.len(), hash.as_str()), (0, ""));
}

#[test]
fn independent_clients_come_as_a_poisson_process_and_one_clock_evenly() {
    let poisson = asks(4_000.0, "rate = { kind = \"constant\", per_s = 5 }");
    let (mean, spread) = gaps(&poisson);
    near(mean, 0.2, 0.03);
    near(spread, 1.0, 0.03);
    let even = asks(100.0, "gaps = \"even\"\nrate = { kind = \"constant\", per_s = 4 }");
    assert_eq!(even.len(), 400);
    assert!(even.iter().enumerate().all(|(number, ask)| {
        ask.at.abs_diff(Duration::from_millis(125 + 250 * number as u64)) < Duration::from_micros(1)
    }));
}

#[test]
fn rates_follow_steps_bursts_and_the_time_of_day() {
    let steps = asks(1_200.0, "rate = { kind = \"steps\", every_s = 200, per_s = [10, 0, 30] }");
    for (found, wanted) in rates(&steps, &[(0.0, 200.0), (200.0, 400.0), (400.0, 600.0), (600.0, 800.0), (800.0, 1e3)])
        .into_iter()
        .zip([10.0, 0.0, 30.0, 10.0, 0.0])
    {
        near(found, wanted, 0.1);
    }
    let bursts = "bursts = [{ at_s = 100, for_s = 100, factor = 10 }, { at_s = 150, for_s = 100, factor = 0.5 }]";
    let bursts = asks(400.0, &format!("{bursts}\nrate = {{ kind = \"constant\", per_s = 20 }}"));
    let spans = [(0.0, 100.0), (100.0, 150.0), (150.0, 200.0), (200.0, 250.0), (250.0, 400.0)];
    for (found, wanted) in rates(&bursts, &spans).into_iter().zip([20.0, 200.0, 100.0, 10.0, 20.0]) {
        near(found, wanted, 0.15);
    }
    let day = "rate = { kind = \"diurnal\", low_per_s = 2, high_per_s = 18, period_s = 1000, peak_s = 250 }";
    let day = asks(4_000.0, day);
    let around =
        |second: f64| (0..4).map(|day| (second - 20.0 + 1e3 * f64::from(day), second + 20.0 + 1e3 * f64::from(day)));
    for (second, wanted) in [(250.0, 18.0), (500.0, 10.0), (750.0, 2.0)] {
        let found = rates(&day, &around(second).collect::<Vec<_>>()).iter().sum::<f64>() / 4.0;
        near(found, wanted, 0.2);
    }
    near(day.len() as f64, 40_000.0, 0.02);
}

#[test]
fn sizes_classes_and_models_are_spread_as_the_mix_says() {
    let mix = r#"
        arrivals = { rate = { kind = "constant", per_s = 100 } }
        mix = [
            { weight = 3, model = "m/one", prompt_tokens = { kind = "log_normal", median = 300, sigma = 1, max = 2000 },
              reply_tokens = { kind = "uniform", min = 50, max = 250 }, stream = 0.25, high = 0.1, low = 0.2, sessions = 5 },
            { weight = 1, model = "m/two", prompt_tokens = { kind = "fixed", tokens = 7 }, deadline_s = 3,
              reply_tokens = { kind = "quantiles", parts = [0, 0.5, 1], tokens = [10, 20, 100] } },
        ]"#;
    let asks = scenario(400.0, mix).unwrap().asks(3);
    let (one, two): (Vec<&Ask>, Vec<&Ask>) = asks.iter().partition(|ask| ask.model == "m/one");
    near(one.len() as f64, 30_000.0, 0.03);
    near(two.len() as f64, 10_000.0, 0.05);
    let quantile = |asks: &[&Ask], size: fn(&Ask) -> u64, part: f64| {
        let mut sizes: Vec<u64> = asks.iter().map(|ask| size(ask)).collect();
        sizes.sort_unstable();
        sizes[((sizes.len() - 1) as f64 * part) as usize] as f64
    };
    let (prompt, reply): (fn(&Ask) -> u64, fn(&Ask) -> u64) = (|ask| ask.prompt_tokens, |ask| ask.reply_tokens);
    for (part, wanted) in [(0.05, 58.0), (0.5, 300.0), (0.9, 1_080.0), (0.99, 2_000.0), (1.0, 2_000.0)] {
        near(quantile(&one, prompt, part), wanted, 0.05);
    }
    for (part, wanted) in [(0.0, 50.0), (0.5, 150.0), (1.0, 250.0)] {
        near(quantile(&one, reply, part), wanted, 0.03);
    }
    for (part, wanted) in [(0.25, 15.0), (0.5, 20.0), (0.75, 60.0), (1.0, 100.0)] {
        near(quantile(&two, reply, part), wanted, 0.05);
    }
    let share = |meant: &dyn Fn(&Ask) -> bool| one.iter().filter(|ask| meant(ask)).count() as f64 / one.len() as f64;
    near(share(&|ask| ask.stream), 0.25, 0.05);
    near(share(&|ask| ask.priority == Priority::High), 0.1, 0.1);
    near(share(&|ask| ask.priority == Priority::Low), 0.2, 0.1);
    let sessions: BTreeSet<_> = one.iter().map(|ask| ask.session.clone()).collect();
    assert!(sessions.len() == 5 && !sessions.contains(&None));
    assert!(two.iter().all(|ask| ask.deadline == Some(Duration::from_secs(3)) && ask.session.is_none()));
}

#[test]
fn an_entry_of_the_mix_does_not_change_the_requests_of_another() {
    let mix = |tokens: u32| {
        format!(
            "arrivals = {{ rate = {{ kind = \"constant\", per_s = 10 }} }}\nmix = [\n\
             {{ model = \"m/one\", prompt_tokens = {{ kind = \"log_normal\", median = 300, sigma = 1 }}, \
                reply_tokens = {{ kind = \"fixed\", tokens = 1 }} }},\n\
             {{ model = \"m/two\", prompt_tokens = {{ kind = \"log_normal\", median = {tokens}, sigma = 2 }}, \
                reply_tokens = {{ kind = \"fixed\", tokens = {tokens} }} }}]"
        )
    };
    let of_one = |tokens: u32| {
        let asks = scenario(100.0, &mix(tokens)).unwrap().asks(1);
        asks.into_iter().filter(|ask| ask.model == "m/one").collect::<Vec<_>>()
    };
    assert_eq!(of_one(10), of_one(9_000));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let entry = |more: &str| format!("[[mix]]\nmodel = \"m/one\"\n{more}");
    let sizes = "prompt_tokens = { kind = \"fixed\", tokens = 1 }\nreply_tokens = { kind = \"fixed\", tokens = 1 }";
    let rate = |rate: &str| format!("{MIX}\n[arrivals]\nrate = {rate}");
    for (length_s, more, problem) in [
        (0.0, String::new(), "length_s: 0 is not a finite number above 0"),
        (1e9, String::new(), "length_s: must be a year at most"),
        (10.0, "warm_up_s = 10".into(), "warm_up_s: must be below length_s"),
        (10.0, "patience = { deadline_s = 0 }".into(), "patience.deadline_s: 0 is not a finite number above 0"),
        (10.0, "arrivals = { rate = { kind = \"constant\", per_s = 1 } }".into(), "mix: must say what the requests"),
        (10.0, rate("{ kind = \"constant\", per_s = -1 }"), "arrivals.rate.per_s: -1 is not a finite number from 0 up"),
        (10.0, rate("{ kind = \"constant\", per_s = 1e6 }"), "arrivals: 10000000 requests are more than the 2000000"),
        (10.0, rate("{ kind = \"steps\", every_s = 1, per_s = [] }"), "arrivals.rate.per_s: must have between one"),
        (
            10.0,
            rate("{ kind = \"diurnal\", low_per_s = 2, high_per_s = 1, period_s = 1, peak_s = 0 }"),
            "arrivals.rate.high_per_s: must not be below low_per_s",
        ),
        (
            10.0,
            rate("{ kind = \"constant\", per_s = 1 }\nbursts = [{ at_s = 1, for_s = 0, factor = 2 }]"),
            "arrivals.bursts[0].for_s: 0 is not a finite number above 0",
        ),
        (10.0, entry(&format!("{sizes}\nweight = 0")), "mix[0].weight: 0 is not a finite number above 0"),
        (10.0, entry(&format!("{sizes}\nhigh = 0.6\nlow = 0.6")), "mix[0].low: must leave room for high"),
        (10.0, entry(sizes).replace("m/one", "m/three"), "mix[0].model: \"m/three\" is not in world.models"),
        (
            10.0,
            entry(&sizes.replacen("\"fixed\", tokens = 1", "\"uniform\", min = 5, max = 4", 1)),
            "mix[0].prompt_tokens: sizes must be from 0 to 1000000 and ascend",
        ),
        (
            10.0,
            entry(&sizes.replacen("\"fixed\", tokens = 1", "\"quantiles\", parts = [0, 0.5], tokens = [1, 2]", 1)),
            "mix[0].prompt_tokens.parts: must ascend from 0 to 1, as many as there are tokens",
        ),
    ] {
        let found = scenario(length_s, &more).expect_err(problem);
        assert!(found.starts_with(problem), "{found}\n{problem}");
    }
    // what serde and the simulator find
    let unknown = scenario(10.0, "patience = { max_wait = 5 }").unwrap_err();
    assert!(unknown.contains("line 3") && unknown.contains("unknown field `max_wait`"), "{unknown}");
    let world = "name = \"x\"\nlength_s = 1\n[world]\nkeys = [{ label = \"k\", account = \"nobody\" }]\n";
    let found = Scenario::from_toml(world).unwrap_err().to_string();
    assert_eq!(found, "world: scenario: keys[0].account: \"nobody\" is not in accounts");
    let named = Scenario::open("tests/data/absent.toml").unwrap_err().to_string();
    assert!(named.starts_with("tests/data/absent.toml: "), "{named}");
}

/// The figures of the trace it is fitted to, as `tests/lab_trace.rs` finds them in the trace itself.
#[test]
fn the_azure_hour_has_the_figures_of_the_trace() {
    let shipped = Scenario::shipped();
    let scenario = shipped.iter().find(|scenario| scenario.name == "azure-hour").unwrap();
    for seed in 1..=5 {
        let asks = scenario.asks(seed);
        near(asks.len() as f64, 19_366.0, 0.03);
        // a Poisson process whose rate changes every minute has a little less than the 1.09 of the trace
        near(gaps(&asks).1, 1.09, 0.04);
        let per = |seconds: f64| {
            let mut counts = vec![0; (scenario.length_s / seconds) as usize + 1];
            asks.iter().for_each(|ask| counts[(ask.at.as_secs_f64() / seconds) as usize] += 1);
            counts.into_iter().filter(|count| *count > 0).map(f64::from).collect::<Vec<_>>()
        };
        let most = |counts: &[f64]| counts.iter().copied().fold(0.0, f64::max);
        near(most(&per(60.0)), 507.0, 0.15);
        near(most(&per(1.0)), 16.0, 0.4);
        near(per(60.0).into_iter().fold(f64::MAX, f64::min), 37.0, 0.4);
        let table = |mut sizes: Vec<u64>, wanted: [f64; 8], mean: f64| {
            sizes.sort_unstable();
            for (part, wanted) in [0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0].into_iter().zip(wanted) {
                let found = sizes[((sizes.len() - 1) as f64 * part).round() as usize] as f64;
                near(found, wanted, if part == 1.0 { 0.15 } else { 0.08 });
            }
            near(sizes.iter().sum::<u64>() as f64 / sizes.len() as f64, mean, 0.03);
        };
        let prompts = [181.0, 396.0, 1_020.0, 1_189.0, 2_735.0, 4_083.0, 4_142.0, 14_050.0];
        table(asks.iter().map(|ask| ask.prompt_tokens).collect(), prompts, 1_155.0);
        let replies = [41.0, 85.0, 129.0, 395.0, 424.0, 451.0, 601.0, 1_000.0];
        table(asks.iter().map(|ask| ask.reply_tokens).collect(), replies, 211.0);
    }
}
