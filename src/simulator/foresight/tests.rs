//! The forecast against what then happens: the simulator answers both.

use std::time::Duration;

use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::Value;
use tokio::time::{Instant, advance, timeout};
use tower::ServiceExt;

use super::Foresight;
use crate::simulator::{Fault, InBand, Reason, Scenario, Simulator, What};

const PROMPT: &str = r#"[{"role":"user","content":"Hello"}]"#;

fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number)
}

fn simulator(toml: &str) -> Simulator {
    Simulator::new(Scenario::from_toml(toml).expect("a scenario")).expect("a simulator")
}

fn foresee(simulator: &Simulator, key: &str, model: &str, max_tokens: u64) -> Foresight {
    simulator.foresee(key, model, PROMPT.len().div_ceil(4) as u64, Some(max_tokens))
}

fn request(simulator: &Simulator, key: &str, model: &str, max_tokens: u64) -> http::Request<String> {
    let keys = simulator.keys();
    let key = keys.iter().find(|known| known.label == key).expect("a key");
    http::Request::post("/api/v1/chat/completions")
        .header("authorization", format!("Bearer {}", key.secret))
        .body(format!(r#"{{"model":"{model}","max_tokens":{max_tokens},"messages":{PROMPT}}}"#))
        .expect("a request")
}

/// Sends a request, and says whether a whole answer came.
async fn succeeds(simulator: &Simulator, key: &str, model: &str, max_tokens: u64) -> bool {
    let asked = async {
        let response = simulator.service().oneshot(request(simulator, key, model, max_tokens)).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        let body: Value = serde_json::from_slice(&body).ok()?;
        let error = body.get("error").is_some() || body["choices"][0].get("error").is_some();
        (status == 200 && !error).then_some(())
    };
    timeout(seconds(600.0), asked).await.ok().flatten().is_some()
}

/// One account, its key `k`, a paid and a free model at one provider, changed by what is put in place of the settings.
fn world(account: &str, key: &str, endpoint: &str) -> String {
    format!(
        r#"
        accounts = [{{ name = "a", credits = 10.0{account} }}]
        keys = [{{ label = "k", account = "a"{key} }}]
        models = [{{ id = "m/paid" }}, {{ id = "m/free:free" }}]
        endpoints = [
            {{ model = "m/paid", provider = "One", completion_price = 1000.0{endpoint} }},
            {{ model = "m/free:free", provider = "One" }},
        ]
        [reply]
        min_tokens = 100
        max_tokens = 100
        "#
    )
}

#[tokio::test(start_paused = true)]
async fn each_obstacle_is_foreseen_with_its_end() {
    const MIDNIGHT: f64 = 12.0 * 3600.0;
    let paid = "m/paid";
    for (account, key, endpoint, model, sent, opens) in [
        (", quota = { requests = 2, window_s = 10 }", "", "", paid, 2, Some(10.0)),
        (", quota = { requests = 2, window_s = 10, phase_s = 4 }", "", "", paid, 2, Some(6.0)),
        (", quota = { requests = 2, window_s = 10, kind = 'bucket' }", "", "", paid, 2, Some(5.0)),
        (", quota = { requests = 0, window_s = 10 }", "", "", paid, 0, None),
        (", free_per_minute = 3", "", "", "m/free:free", 3, Some(60.0)),
        (", free_per_day = 3", "", "", "m/free:free", 3, Some(MIDNIGHT)),
        ("", ", cap = 0.2, reset = 'daily'", "", paid, 2, Some(MIDNIGHT)),
        ("", ", cap = 0.2", "", paid, 2, None),
        (", used = 9.8", "", "", paid, 2, None),
        (", in_flight = { fraction = 0.02, settle_s = 7 }", "", "", paid, 1, Some(7.0)),
        ("", "", ", pool = { requests = 1, window_s = 30 }", paid, 1, Some(30.0)),
        ("", ", disabled = true", "", paid, 0, None),
        ("", ", management = true", "", paid, 0, None),
        ("", ", expires = '2026-01-15T12:00:00Z'", "", paid, 0, None),
        ("", "", "", "m/unknown", 0, None),
    ] {
        let simulator = simulator(&world(account, key, endpoint));
        let start = Instant::now();
        for number in 0..sent {
            assert_eq!(foresee(&simulator, "k", model, 100), Foresight::Now, "{account}{key}{endpoint}: {number}");
            assert!(succeeds(&simulator, "k", model, 100).await, "{account}{key}{endpoint}: {number}");
        }
        let wanted = opens.map_or(Foresight::Never, |after| Foresight::At(start + seconds(after)));
        assert_eq!(foresee(&simulator, "k", model, 100), wanted, "{account}{key}{endpoint}");
        assert!(!succeeds(&simulator, "k", model, 100).await, "{account}{key}{endpoint}");
    }
    assert_eq!(foresee(&simulator(&world("", "", "")), "nobody", paid, 1), Foresight::Never);
}

#[tokio::test(start_paused = true)]
async fn faults_that_are_certain_are_foreseen_and_those_of_chance_are_not() {
    let simulator = simulator(&world("", "", ""));
    let start = Instant::now();
    let at = |second: f64| Foresight::At(start + seconds(second));
    let paid = || foresee(&simulator, "k", "m/paid", 9);
    simulator.inject(Fault::new(What::Unauthorized).window(5.0, 5.0)).unwrap();
    simulator.inject(Fault::new(What::Status { status: 502, retry_after: None }).probability(0.99)).unwrap();
    assert_eq!(paid(), Foresight::Now, "the window has not begun");
    advance(seconds(6.0)).await;
    assert_eq!(paid(), at(10.0));
    simulator.inject(Fault::new(What::Unauthorized).window(2.0, 10.0)).unwrap();
    assert_eq!(paid(), at(18.0), "one follows the other");
    simulator.inject(Fault::new(What::Cut { after_tokens: 3, reset: true, half: false }).window(0.0, 20.0)).unwrap();
    assert_eq!(paid(), at(26.0), "an answer cut short is none");
    simulator.inject(Fault::new(What::Reset).key("k")).unwrap();
    assert_eq!(paid(), Foresight::Never);
}

#[tokio::test(start_paused = true)]
async fn the_earliest_of_the_providers_counts_and_a_slow_one_is_asked_when_it_is_reached() {
    let simulator = simulator(
        r#"
        accounts = [{ name = "a", credits = 10.0 }]
        keys = [{ label = "k", account = "a" }]
        models = [{ id = "m/paid" }]
        endpoints = [
            { model = "m/paid", provider = "One", accept_ms = 1000, pool = { requests = 1, window_s = 60 } },
            { model = "m/paid", provider = "Two", accept_ms = 3000, pool = { requests = 1, window_s = 20 } },
        ]
        "#,
    );
    let start = Instant::now();
    assert!(succeeds(&simulator, "k", "m/paid", 9).await && succeeds(&simulator, "k", "m/paid", 9).await);
    assert_eq!(start.elapsed(), seconds(5.0));
    // The one that refused is now asked last: three seconds at the second, and there at 20 s it is sent at 17 s.
    assert_eq!(foresee(&simulator, "k", "m/paid", 9), Foresight::At(start + seconds(17.0)));
    advance(seconds(12.0)).await;
    assert_eq!(foresee(&simulator, "k", "m/paid", 9), Foresight::Now);
    assert!(succeeds(&simulator, "k", "m/paid", 9).await);
}

#[tokio::test(start_paused = true)]
async fn requests_on_their_way_to_a_pool_have_their_place_in_it() {
    let simulator = simulator(&world("", "", ", accept_ms = 1000, pool = { requests = 3, window_s = 60 }"));
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..3 {
        assert_eq!(foresee(&simulator, "k", "m/paid", 9), Foresight::Now, "{number}");
        let simulator = simulator.clone();
        running.spawn(async move { succeeds(&simulator, "k", "m/paid", 9).await });
        tokio::task::yield_now().await;
    }
    assert_eq!(foresee(&simulator, "k", "m/paid", 9), Foresight::At(start + seconds(59.0)));
    running.abort_all();
    while running.join_next().await.is_some() {}
    assert_eq!(foresee(&simulator, "k", "m/paid", 9), Foresight::Now, "who has left takes no place");
}

#[tokio::test(start_paused = true)]
async fn neither_a_fast_request_nor_a_slow_one_gets_into_a_window_of_trouble() {
    let simulator = simulator(&world("", "", ", accept_ms = 1000, jitter = 0.5"));
    let start = Instant::now();
    simulator.inject(Fault::new(What::PoolFull { retry_after: None }).window(5.0, 5.0)).unwrap();
    for (until, opens) in [(3.499, None), (3.5, Some(9.5)), (9.4, Some(9.5)), (9.5, None)] {
        advance((start + seconds(until)).duration_since(Instant::now())).await;
        let wanted = opens.map_or(Foresight::Now, |at| Foresight::At(start + seconds(at)));
        assert_eq!(foresee(&simulator, "k", "m/paid", 9), wanted, "at {until} s");
    }
}

#[tokio::test(start_paused = true)]
async fn asking_changes_nothing() {
    let lucky = |asks: usize| async move {
        let simulator = simulator(&world(", quota = { requests = 50 }", "", ", jitter = 0.5, first_token_ms = 100"));
        simulator.inject(Fault::new(What::Unauthorized).probability(0.5)).unwrap();
        let mut seen = Vec::new();
        for _ in 0..20 {
            for _ in 0..asks {
                foresee(&simulator, "k", "m/paid", 9);
            }
            let start = Instant::now();
            seen.push((succeeds(&simulator, "k", "m/paid", 9).await, start.elapsed()));
        }
        (seen, simulator.counts())
    };
    assert_eq!(lucky(0).await, lucky(3).await);
}

#[derive(Clone, Debug)]
struct Step {
    pause_ms: u64,
    key: usize,
    model: usize,
    max_tokens: u64,
    /// Whether to go to the last millisecond of what was foreseen before asking.
    patient: bool,
    /// Whether the answer is left unread, and so stays in flight.
    kept: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (0..9_000_u64, 0..3_usize, 0..2_usize, 1..300_u64, any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(pause_ms, key, model, max_tokens, patient, kept)| Step { pause_ms, key, model, max_tokens, patient, kept },
    )
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        Just(What::Reset),
        Just(What::Unauthorized),
        Just(What::Html { status: 502 }),
        Just(What::Refuse { reason: Reason::InFlightBudget }),
        Just(What::PoolFull { retry_after: None }),
        Just(What::ProviderFails { status: 400 }),
        Just(What::ProviderFails { status: 503 }),
        Just(What::Slow { factor: 3.0, accept_ms: 700.0, first_token_ms: 0.0 }),
        Just(What::InBand { form: InBand::Standard, after_tokens: 0, code: 502 }),
        Just(What::Cut { after_tokens: 2, reset: false, half: false }),
        Just(What::Huge { bytes: 100 }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let whom = (prop::option::of(0..3_usize), prop::option::of(0..2_usize));
    (what(), 0..60_u64, 1..30_u64, whom).prop_map(|(what, at, length, (key, provider))| {
        // When a provider becomes faster or slower, or begins to fail, so that another is asked which is slower, a request may
        // overtake the forecast.
        let (at, length) = match what {
            What::Slow { .. } => (0, 1 << 30),
            What::PoolFull { .. } | What::ProviderFails { .. } => (0, length),
            _ => (at, length),
        };
        let fault = Fault::new(what).window(at as f64, length as f64);
        let fault = key.map_or(fault.clone(), |key| fault.key(["a1", "a2", "b1"][key]));
        provider.map_or(fault.clone(), |provider| fault.provider(["One", "Two"][provider]))
    })
}

fn settings() -> impl Strategy<Value = String> {
    let kind = || prop_oneof![Just("fixed"), Just("bucket")];
    let limit = || (1..6_u64, 2..20_u64, kind());
    (limit(), limit(), limit(), 1..8_u64, 1..6_u64, 1..40_u64, 0..2_000_u64).prop_map(
        |(quota, one, two, free, budget, cap, accept)| {
            let limit = |(requests, window, kind): (u64, u64, &str)| {
                format!(r#"{{ requests = {requests}, window_s = {window}, kind = "{kind}" }}"#)
            };
            format!(
                r#"
                start = "2026-01-15T23:59:00Z"
                accounts = [
                    {{ name = "a", credits = 5, quota = {} }},
                    {{ name = "b", credits = 5, free_per_minute = {free}, free_per_day = 9,
                       in_flight = {{ fraction = 0.{budget}, settle_s = 3.5 }} }},
                ]
                keys = [
                    {{ label = "a1", account = "a", cap = 0.{cap}, reset = "daily" }},
                    {{ label = "a2", account = "a", expires = "2026-01-16T00:00:20Z" }},
                    {{ label = "b1", account = "b" }},
                ]
                models = [{{ id = "m/paid" }}, {{ id = "m/free:free" }}]
                endpoints = [
                    {{ model = "m/paid", provider = "One", completion_price = 2000, pool = {} }},
                    {{ model = "m/paid", provider = "Two", completion_price = 3000, accept_ms = {accept}, pool = {} }},
                    {{ model = "m/free:free", provider = "One", accept_ms = {accept} }},
                ]
                [reply]
                min_tokens = 200
                max_tokens = 200
                "#,
                limit(quota),
                limit(one),
                limit(two)
            )
        },
    )
}

proptest! {
    /// Now is never refused; and until the instant that is named, or ever, always, unless troubles overlap: one may then begin
    /// that leads around another.
    #[test]
    fn what_is_foreseen_is_what_happens(
        settings in settings(),
        faults in prop::collection::vec(fault(), 0..4),
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let simulator = simulator(&settings);
            let exact = faults.len() < 2;
            faults.into_iter().for_each(|fault| simulator.inject(fault).unwrap());
            let mut kept = Vec::new();
            for step in steps {
                advance(Duration::from_millis(step.pause_ms)).await;
                let key = ["a1", "a2", "b1"][step.key];
                let model = ["m/paid", "m/free:free"][step.model];
                let foreseen = foresee(&simulator, key, model, step.max_tokens);
                if step.patient {
                    match foreseen {
                        Foresight::Now => {}
                        // a timer of the platform's own rings up to a millisecond late, so one is not enough
                        Foresight::At(at) => advance(at.duration_since(Instant::now()).saturating_sub(seconds(0.002))).await,
                        Foresight::Never => advance(seconds(7_200.0)).await,
                    }
                }
                if step.kept && foreseen == Foresight::Now {
                    let response = simulator.service().oneshot(request(&simulator, key, model, step.max_tokens)).await;
                    let response = response.unwrap();
                    prop_assert_eq!(response.status().as_u16(), 200);
                    kept.push(response);
                    continue;
                }
                let found = succeeds(&simulator, key, model, step.max_tokens).await;
                if exact || foreseen == Foresight::Now {
                    prop_assert_eq!(found, foreseen == Foresight::Now, "{:?} at {:?}: {:?}", step, simulator.wall_clock_ms(), foreseen);
                }
            }
            Ok(())
        })?;
    }
}
