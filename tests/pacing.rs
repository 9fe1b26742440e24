//! Unknown quotas, spent by the whole stack on the simulator under virtual time, against an oracle that knows them.
//!
//! Three keys of three accounts may send 20, 40 and 80 requests in ten seconds, by fixed windows that begin when they like or
//! by token buckets, and refuse in the form of row 17b, with the reset or without. Requests come as a Poisson stream for ten
//! minutes; what is counted begins after 30 s. The oracle knows the quotas and not the arrivals, and has the same patience.
//!
//! `PACING_SEEDS=20 cargo test --release --test pacing -- --nocapture` prints the whole table; by default four of its sixteen
//! lines are run, with one seed.

use std::{
    cell::Cell,
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::ServiceExt;
use tower_openrouter::{
    ApiKey, Balancer, DeadlineLayer, OpenRouter,
    pace::PacePolicy,
    select::Pool,
    simulator::{PoolKind, Quota, Scenario, Simulator},
};

const MODEL: &str = "acme/swift-1";
const LIMITS: [u64; 3] = [20, 40, 80];
const WINDOW: f64 = 10.0;
const LENGTH: f64 = 600.0;
const WARM_UP: f64 = 30.0;
const MAX_WAIT: f64 = 30.0;
const DEADLINE: f64 = 60.0;
/// How long an answer takes.
const ANSWER: f64 = 0.15;

/// The lines that every run of the tests sees.
const SHORT: [(PoolKind, bool, f64); 4] = [
    (PoolKind::Fixed, true, 0.95),
    (PoolKind::Fixed, false, 1.5),
    (PoolKind::Bucket, true, 1.5),
    (PoolKind::Bucket, false, 0.95),
];

/// One line of the table.
#[derive(Debug, Clone, Copy)]
struct Line {
    kind: PoolKind,
    hints: bool,
    load: f64,
}

/// What came of a run, after the warm-up.
#[derive(Debug, Default, Clone)]
struct Found {
    served: usize,
    errors: usize,
    refused_upstream: u64,
    /// From arrival to sending, of the served.
    waits: Vec<f64>,
    /// From arrival to refusal.
    refusals: Vec<f64>,
}

fn p(share: f64, of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(((of.len() as f64 * share) as usize).min(of.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn arrivals(rng: &mut fastrand::Rng, load: f64) -> Vec<f64> {
    let rate = LIMITS.iter().sum::<u64>() as f64 / WINDOW * load;
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at -= (1.0 - rng.f64()).ln() / rate;
        (at < LENGTH).then_some(at)
    })
    .collect()
}

thread_local!(static WALL: Cell<Option<(Instant, i64)>> = const { Cell::new(None) });

/// The simulator's wall clock, so that the leaf reads its resets right.
fn wall() -> SystemTime {
    let (started, millis) = WALL.get().expect("set before the first request");
    UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs()) + started.elapsed()
}

fn scenario(line: Line, phases: [f64; 3]) -> Scenario {
    let mut scenario = Scenario::from_toml(&format!(
        r#"
        accounts = [{{ name = "a", credits = 1e6 }}, {{ name = "b", credits = 1e6 }}, {{ name = "c", credits = 1e6 }}]
        keys = [{{ label = "a", account = "a" }}, {{ label = "b", account = "b" }}, {{ label = "c", account = "c" }}]
        models = [{{ id = "{MODEL}" }}]
        endpoints = [{{ model = "{MODEL}", provider = "One", accept_ms = {} }}]
        [keep]
        log = 0
        requests = 0
        generations = 0
        "#,
        ANSWER * 1e3
    ))
    .unwrap();
    for ((account, requests), phase_s) in scenario.accounts.iter_mut().zip(LIMITS).zip(phases) {
        account.quota = Some(Quota { requests, window_s: WINDOW, kind: line.kind, phase_s, hints: line.hints });
    }
    scenario
}

/// The whole stack with a learned pace.
async fn ours(line: Line, phases: [f64; 3], arrivals: &[f64]) -> Found {
    let simulator = Simulator::new(scenario(line, phases)).unwrap();
    WALL.set(Some((Instant::now(), simulator.wall_clock_ms())));
    let keys =
        simulator.keys().into_iter().map(|key| ApiKey::new(&key.secret).unwrap().label(key.label).account(key.account));
    let balancer: Balancer<Full<Bytes>> = Balancer::builder(Pool::new(keys).unwrap())
        .pace(PacePolicy::default())
        .max_wait(Duration::from_secs_f64(MAX_WAIT))
        .deadline(DeadlineLayer::new(Duration::from_secs_f64(DEADLINE)).unwrap())
        .build(OpenRouter::builder().wall_clock(wall).build(simulator.service()).unwrap());
    let refused = |simulator: &Simulator| simulator.counts().by_status.get(&429).copied().unwrap_or_default();
    let start = Instant::now();
    let mut before = None;
    let mut running = tokio::task::JoinSet::new();
    let mut found = Found::default();
    let count = |found: &mut Found, (at, ended, ok): (f64, f64, bool)| {
        if ok && (WARM_UP..LENGTH).contains(&(ended - ANSWER)) {
            found.served += 1;
            found.waits.push(ended - ANSWER - at);
        } else if !ok && at >= WARM_UP {
            found.errors += 1;
            found.refusals.push(ended - at);
        }
    };
    for &at in arrivals {
        tokio::time::sleep_until(start + Duration::from_secs_f64(at)).await;
        if at >= WARM_UP && before.is_none() {
            before = Some(refused(&simulator));
        }
        while let Some(done) = running.try_join_next() {
            count(&mut found, done.unwrap());
        }
        let balancer = balancer.clone();
        running.spawn(async move {
            let body = format!(r#"{{"model":"{MODEL}","max_tokens":1,"messages":[{{"role":"user","content":"hi"}}]}}"#);
            let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
            let response = balancer.oneshot(request.body(Full::from(body)).unwrap()).await.unwrap();
            let ok = response.status() == 200;
            let whole = response.into_body().collect().await.is_ok();
            (at, start.elapsed().as_secs_f64(), ok && whole)
        });
    }
    tokio::time::sleep_until(start + Duration::from_secs_f64(LENGTH)).await;
    let after = refused(&simulator);
    while let Some(done) = running.join_next().await {
        count(&mut found, done.unwrap());
    }
    found.refused_upstream = after - before.unwrap_or_default();
    found
}

/// A quota as the oracle knows it: when each of its slots begins.
struct Known {
    kind: PoolKind,
    limit: u64,
    phase: f64,
    window: (u64, u64),
    full_at: f64,
}

impl Known {
    /// From when on there is room for one more.
    fn next(&self, now: f64) -> f64 {
        match self.kind {
            PoolKind::Fixed => {
                let window = ((now + self.phase) / WINDOW) as u64;
                let full = window == self.window.0 && self.window.1 >= self.limit;
                if full { (window + 1) as f64 * WINDOW - self.phase + 1e-6 } else { now }
            }
            PoolKind::Bucket => (self.full_at + WINDOW / self.limit as f64 - WINDOW).max(now),
        }
    }

    fn take(&mut self, now: f64) {
        let window = ((now + self.phase) / WINDOW) as u64;
        self.window = if window == self.window.0 { (window, self.window.1 + 1) } else { (window, 1) };
        self.full_at = self.full_at.max(now) + WINDOW / self.limit as f64;
    }
}

/// Serves in order of arrival from the quota that has room first, and refuses at once what would wait too long.
fn oracle(line: Line, phases: [f64; 3], arrivals: &[f64]) -> Found {
    let mut quotas: Vec<_> = (0..3)
        .map(|index| Known {
            kind: line.kind,
            limit: LIMITS[index],
            phase: phases[index],
            window: (0, 0),
            full_at: 0.0,
        })
        .collect();
    let (mut found, mut starts) = (Found::default(), VecDeque::<f64>::new());
    let mut latest = 0.0;
    for &at in arrivals {
        while starts.front().is_some_and(|start| *start <= at) {
            starts.pop_front();
        }
        let now = at.max(latest);
        let (first, start) = quotas
            .iter()
            .enumerate()
            .map(|(index, quota)| (index, quota.next(now)))
            .min_by(|one, other| one.1.total_cmp(&other.1))
            .unwrap();
        if start - at > MAX_WAIT.min(DEADLINE) {
            found.errors += usize::from(at >= WARM_UP);
            continue;
        }
        quotas[first].take(start);
        latest = start;
        starts.push_back(start);
        if (WARM_UP..LENGTH).contains(&start) {
            found.served += 1;
            found.waits.push(start - at);
        }
    }
    found
}

fn run(line: Line, seed: u64) -> (Found, Found) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let phases = [(); 3].map(|()| rng.f64() * WINDOW);
    let arrivals = arrivals(&mut rng, line.load);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ours = runtime.block_on(ours(line, phases, &arrivals));
    (ours, oracle(line, phases, &arrivals))
}

#[test]
fn quotas_nobody_told_us_are_spent_as_an_oracle_would() {
    let asked = std::env::var("PACING_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let seeds = asked.unwrap_or(1);
    let mut missed = Vec::new();
    println!(
        "quota   hints load | goodput of the oracle's  429s per success | errors ours oracle | refused after p50 p99 max, late | wait p99"
    );
    for kind in [PoolKind::Fixed, PoolKind::Bucket] {
        for hints in [true, false] {
            for load in [0.7, 0.95, 1.5, 3.0] {
                if asked.is_none() && !SHORT.contains(&(kind, hints, load)) {
                    continue;
                }
                let line = Line { kind, hints, load };
                let (mut ours, mut known) = (Found::default(), Found::default());
                for seed in 1..=seeds {
                    let (one, oracle) = run(line, seed);
                    for (sum, one) in [(&mut ours, one), (&mut known, oracle)] {
                        sum.served += one.served;
                        sum.errors += one.errors;
                        sum.refused_upstream += one.refused_upstream;
                        sum.waits.extend(one.waits);
                        sum.refusals.extend(one.refusals);
                    }
                }
                let goodput = ours.served as f64 / known.served as f64;
                let wasted = ours.refused_upstream as f64 / ours.served as f64;
                let refusals = [0.5, 0.99, 1.0].map(|share| p(share, &mut ours.refusals));
                let late = ours.refusals.iter().filter(|after| **after > 0.1).count();
                let wait = p(0.99, &mut ours.waits);
                println!(
                    "{kind:<7} {hints:<5} {load:<4} | {goodput:.4} {wasted:.4} | {} {} | {:.3} {:.3} {:.3}, {late} | {wait:.2}",
                    ours.errors,
                    known.errors,
                    refusals[0],
                    refusals[1],
                    refusals[2],
                    kind = format!("{kind:?}"),
                );
                let bound = if hints { 0.02 } else { 0.05 };
                let mut must = |holds: bool, what: &str| {
                    if !holds {
                        missed.push(format!("{line:?}: {what}"));
                    }
                };
                must(goodput >= 0.98, "goodput");
                must(wasted <= bound, "refused upstream");
                must(load > 1.0 || ours.errors <= known.errors, "client errors");
                // one whose turn would have come in time when it came may lose it to a refusal upstream
                must(late * 1_000 <= ours.refusals.len(), "late refusals");
                must(wait < MAX_WAIT, "waits");
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
