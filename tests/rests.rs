//! What rests of a whole upstream must not do: outlive its trouble, or burn the attempts of those who wait for its end.

use std::time::Duration;

use tower_openrouter::lab::{Ending, Run, Scenario, Sent, run, stacks};

/// Requests at `per_s` for two minutes, with four keys of four accounts.
fn world(per_s: f64, last_key: &str, faults: &str) -> Scenario {
    Scenario::from_toml(&format!(
        r#"
        name = "inline"
        length_s = 120
        arrivals = {{ rate = {{ kind = "constant", per_s = {per_s} }} }}
        mix = [{{ model = "acme/swift-1", prompt_tokens = {{ kind = "fixed", tokens = 5 }}, reply_tokens = {{ kind = "fixed", tokens = 1 }} }}]
        [world]
        accounts = [
            {{ name = "a", credits = 1e6 }}, {{ name = "b", credits = 1e6 }},
            {{ name = "c", credits = 1e6 }}, {{ name = "d", credits = 1e6 }},
        ]
        keys = [
            {{ label = "a", account = "a" }}, {{ label = "b", account = "b" }},
            {{ label = "c", account = "c" }}, {{ label = "d", account = "d"{last_key} }},
        ]
        models = [{{ id = "acme/swift-1" }}]
        endpoints = [{{ model = "acme/swift-1", provider = "One", accept_ms = 400 }}]
        faults = [{faults}]
        "#
    ))
    .unwrap()
}

fn ran(scenario: &Scenario) -> Run {
    run(scenario, &*stacks::by_name("default").unwrap(), 1).unwrap()
}

fn seconds(at: Duration) -> f64 {
    at.as_secs_f64()
}

#[test]
fn a_dead_key_does_not_turn_a_short_incident_into_an_outage() {
    let storm = r#"{ at_s = 30, for_s = 2, what = { kind = "unauthorized" } }"#;
    let run = ran(&world(20.0, ", disabled = true", storm));
    let late: Vec<_> = run.samples.iter().filter(|sample| seconds(sample.at) > 45.0).collect();
    assert!(late.len() > 1_000);
    let lost = late.iter().filter(|sample| sample.ending != Ending::Served).count();
    assert_eq!(lost, 0, "of {} that came when the storm was long over", late.len());
    let served = run.samples.iter().filter(|sample| sample.ending == Ending::Served).count();
    assert_eq!(served, run.samples.len(), "nor are those lost who came in the storm: they wait");
}

#[test]
fn stray_faults_of_providers_and_the_edge_cost_a_retry_each_and_rest_nobody() {
    let strays = r#"
        { probability = 0.03, what = { kind = "provider_fails", status = 503 } },
        { probability = 0.02, what = { kind = "html", status = 502 } }"#;
    let run = ran(&world(60.0, "", strays));
    let waits: Vec<_> = run.sent.windows(2).map(|two| two[1].at.saturating_sub(two[0].at)).collect();
    let longest = waits.iter().max().unwrap();
    assert!(*longest < Duration::from_millis(500), "nothing was sent for {longest:?}");
    let served = run.samples.iter().filter(|sample| sample.ending == Ending::Served).count();
    assert!(served * 1_000 >= run.samples.len() * 998, "{served} of {} were served", run.samples.len());
}

#[test]
fn those_who_wait_for_a_failing_upstream_send_a_scout_and_come_as_soon_as_it_is_back() {
    let run = ran(&world(50.0, "", r#"{ at_s = 30, for_s = 20, what = { kind = "status", status = 503 } }"#));
    let served = run.samples.iter().filter(|sample| sample.ending == Ending::Served).count();
    assert!(served * 100 >= run.samples.len() * 99, "{served} of {} were served", run.samples.len());
    let during = |sent: &&Sent| (32.0..49.5).contains(&seconds(sent.at));
    let scouts = run.sent.iter().filter(during).count();
    assert!((3..=40).contains(&scouts), "{scouts} attempts while nothing could be served");
    let first =
        run.sent.iter().filter(|sent| sent.status == Some(200) && seconds(sent.at) > 32.0).map(|sent| sent.at).min();
    assert!(seconds(first.unwrap()) < 55.0, "it was well at 50 s, and asked at {first:?}");
    // a herd would be all of the thousand who wait at one instant
    let mut at: Vec<_> = run.sent.iter().map(|sent| sent.at).filter(|at| seconds(*at) > 50.0).collect();
    at.sort_unstable();
    let soon = at.partition_point(|at| *at <= first.unwrap() + Duration::from_millis(500));
    assert!(soon < 700, "{soon} came within half a second of the news");
}
