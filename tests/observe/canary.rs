//! R99 in bulk: whatever happens to a request, no part of a key shows anywhere.
//!
//! The full run, which takes some ten minutes:
//!
//! ```text
//! CANARY_REQUESTS=100000 cargo test --test observe canary -- --nocapture
//! ```

mod mix;

use std::{
    collections::{BTreeMap, HashSet},
    env, fmt,
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt};
use tower_openrouter::{
    AccountPoller, ApiKey, Balancer, BufferLayer, ExplainLayer, HedgeLayer, ObserveLayer, OpenRouter, TimeoutsLayer,
    breaker::BreakerState,
    explain::{Explain, Trace},
    observe::{self, Observe},
    outcome::Cause,
    select::{CreditLimit, Pool},
    simulator::Simulator,
    stack::BalancerHandle,
};
use tracing_subscriber::{filter::LevelFilter, fmt::format::FmtSpan};

use crate::prometheus::Page;

/// So many characters in a row of what is private in a key give it away.
const RUN: usize = 8;
const REQUESTS: usize = 2_000;
/// One in so many requests is struck by a fault.
const STRUCK: usize = 4;
/// What rests for everybody has to be waited for.
const REST: Duration = Duration::from_secs(60);
/// After so many requests many come at once.
const BURST: usize = 200;
/// What no request here can meet: only a pool tells the first, and only a connection has the second.
const UNMET: [Cause; 2] = [Cause::PlatformAuth, Cause::Connect];

/// Looks through all that is written for any run of a key, plain, in hex, or in base64 at any offset.
#[derive(Clone, Default)]
struct Watcher(Arc<Watching>);

#[derive(Default)]
struct Watching {
    /// Of one length or, in hex, the double.
    runs: HashSet<Box<[u8]>>,
    /// Whether any run begins with these three bytes: nearly all places are done with by one look.
    begins: Vec<bool>,
    seen: AtomicU64,
    found: Mutex<Vec<String>>,
}

fn triple(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

impl Watcher {
    fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut runs = HashSet::new();
        for secret in secrets {
            let private = secret.trim_start_matches("sk-or-v1-").as_bytes();
            let hex: String = private.iter().map(|byte| format!("{byte:02x}")).collect();
            let coded = (0..3).map(|offset| base64(&private[offset..]).into_bytes());
            for form in [private.to_vec()].into_iter().chain(coded) {
                runs.extend(form.windows(RUN).map(Box::from));
            }
            for form in [hex.to_uppercase(), hex] {
                runs.extend(form.as_bytes().windows(2 * RUN).map(Box::from));
            }
        }
        let mut begins = vec![false; 1 << 24];
        runs.iter().for_each(|run| begins[triple(run)] = true);
        Self(Arc::new(Watching { runs, begins, ..Watching::default() }))
    }

    fn look(&self, bytes: &[u8]) {
        self.0.seen.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        for (at, begin) in bytes.windows(3).enumerate() {
            if !self.0.begins[triple(begin)] {
                continue;
            }
            let run = |length| bytes.get(at..at + length).is_some_and(|run| self.0.runs.contains(run));
            if run(RUN) || run(2 * RUN) {
                self.0.found.lock().unwrap().push(String::from_utf8_lossy(bytes).into());
                return;
            }
        }
    }

    fn look_at(&self, shown: impl fmt::Debug) {
        self.look(format!("{shown:?}").as_bytes());
    }
}

impl Write for Watcher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.look(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whole groups only, so that what stands does not depend on what follows.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks_exact(3).flat_map(|group| {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        (0..4).map(move |digit| DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char)
    });
    groups.collect()
}

#[test]
fn the_watcher_sees_what_it_looks_for() {
    let secret = "sk-or-v1-3fQz7Lk9WcVb2NxTe5Yh";
    for shown in [
        "key 7Lk9WcVb.",
        &base64(format!("x{secret}").as_bytes()),
        &base64(format!("Bearer {secret}").as_bytes()),
        &base64(secret.as_bytes()),
        "of 374c6b3957635662", // 7Lk9WcVb
        "OF 374C6B3957635662",
        "7Lk9WcV 374c6b39576356", // too short
    ] {
        let watcher = Watcher::new([secret.to_owned()]);
        watcher.look(shown.as_bytes());
        let is_long = !shown.starts_with("7Lk9WcV ");
        assert_eq!(watcher.0.found.lock().unwrap().len(), usize::from(is_long), "{shown}");
    }
    let watcher = Watcher::new([secret.to_owned()]);
    watcher.look(b"sk-or-v1- and 64-bit, tower_openrouter::spans");
    assert!(watcher.0.found.lock().unwrap().is_empty());
}

type Watched = Explain<Observe<Balancer<mix::Body>>>;

/// Sends a request and looks at all of its answer, unless the caller leaves before, and says so.
async fn one(service: Watched, number: usize, watcher: &Watcher) {
    let patience = Duration::from_millis(if number.is_multiple_of(13) { 100 } else { 600_000 });
    let Ok(Ok(answer)) = timeout(patience, service.oneshot(mix::request(number))).await else { return };
    watcher.look_at(answer.headers());
    let trace = answer.extensions().get::<Trace>().unwrap().clone();
    let mut body = answer.into_body();
    if number.is_multiple_of(29) {
        // and leaves with the rest of it
        drop(body.frame().await);
    } else {
        match body.collect().await {
            Ok(body) => watcher.look(&body.to_bytes()),
            Err(error) => watcher.look(format!("{error} {error:?}").as_bytes()),
        }
    }
    watcher.look(&serde_json::to_vec(&trace).unwrap());
}

/// Puts keys that were struck back into service, as an operator would.
fn mend(balancer: &BalancerHandle) {
    for endpoint in balancer.pool().endpoints().iter() {
        let is_open =
            balancer.breaker(endpoint).is_some_and(|breaker| breaker.snapshot().state != BreakerState::Closed);
        if is_open || balancer.pool().resting(endpoint).is_some() {
            balancer.reset(endpoint.key().name());
        }
    }
}

/// How often each outcome of a figure came.
fn outcomes(page: &Page, name: &str) -> BTreeMap<String, u64> {
    let mut outcomes = BTreeMap::new();
    for sample in page.samples().filter(|sample| sample.name == name) {
        let [outcome, error] = ["outcome", "error_type"].map(|label| sample.labels[label].as_str());
        let what = if error.is_empty() { outcome.to_owned() } else { format!("{outcome}: {error}") };
        *outcomes.entry(what).or_default() += sample.value as u64;
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn r099_no_part_of_a_key_shows_in_logs_spans_metrics_figures_or_answers() {
    let count = env::var("CANARY_REQUESTS").map_or(REQUESTS, |count| count.parse().expect("a number of requests"));
    let simulator = Simulator::new(mix::platform()).unwrap();
    let mut keys: Vec<_> = simulator.keys().into_iter().map(|key| (key.label, key.secret)).collect();
    keys.push(("dead".into(), mix::unknown()));
    let watcher = Watcher::new(keys.iter().map(|(_, secret)| secret.clone()));
    let writer = watcher.clone();
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
        .with_writer(move || writer.clone());
    let _log = tracing::subscriber::set_default(log.finish());
    let recorder = PrometheusBuilder::new().set_buckets(&observe::BUCKETS).unwrap().build_recorder();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    observe::describe();

    let keys = keys.into_iter().map(|(label, secret)| ApiKey::new(secret).unwrap().label(label));
    let pool = Pool::new(keys).unwrap();
    let leaf = OpenRouter::new(simulator.service());
    let poller = AccountPoller::new(&pool, leaf.clone()).interval(Duration::from_secs(3600)).unwrap();
    let poller = tokio::spawn(poller.run());
    let [headers, first, gap] = [1, 2, 4].map(Duration::from_secs);
    let timeouts = TimeoutsLayer::default().headers(headers).unwrap().first_output(first).unwrap().gap(gap).unwrap();
    let balancer = Balancer::builder(pool)
        .credit(CreditLimit::new())
        .buffer(BufferLayer::new().body_limit(mix::BODY_LIMIT as u64))
        .timeouts(timeouts)
        .max_in_flight(1)
        .unwrap()
        .max_waiters(5)
        .max_wait(Duration::from_secs(2))
        .hedge(HedgeLayer::new())
        .build(leaf);
    let handle = balancer.handle().clone();
    let service = ExplainLayer::new().all().layer(ObserveLayer::new().layer(balancer));
    watcher.look_at(&service);

    let faults = mix::faults();
    let mut number = 0;
    while number < count {
        match number % STRUCK {
            0 => simulator.inject(faults[number / STRUCK % faults.len()].clone()).unwrap(),
            1 => {
                simulator.clear_faults();
                sleep(REST).await;
                mend(&handle);
            }
            _ => {}
        }
        // more than the keys, each with one, and the line take together
        let at_once = if number % BURST == 2 { 40.min(count - number) } else { 1 };
        join_all((number..number + at_once).map(|number| one(service.clone(), number, &watcher))).await;
        if number % 500 < at_once {
            watcher.look_at(&handle);
            watcher.look(&serde_json::to_vec(&handle.snapshot()).unwrap());
            handle.record_metrics();
            watcher.look(recorder.handle().render().as_bytes());
        }
        number += at_once;
        sleep(Duration::from_millis(200)).await;
    }
    poller.abort();
    handle.record_metrics();
    let page = recorder.handle().render();
    watcher.look(page.as_bytes());
    let page = Page::parse(&page);
    let requests = outcomes(&page, "tower_openrouter_requests_total");
    let attempts = outcomes(&page, "tower_openrouter_attempts_ended_total");
    let (seen, found) = (watcher.0.seen.load(Ordering::Relaxed), watcher.0.found.lock().unwrap());
    println!("requests {requests:?}\nattempts {attempts:?}");
    println!("{count} requests: {} hits in {} MB", found.len(), seen >> 20);
    assert_eq!(found.first(), None);
    assert!(seen > 1000 * count as u64, "nothing was logged to look into: {seen} bytes");
    assert_eq!(requests.values().sum::<u64>(), count as u64, "each has one outcome");
    assert!(requests["success"] > count as u64 / 3, "too few are served");
    for cause in Cause::ALL.iter().filter(|cause| !UNMET.contains(cause)) {
        assert!(attempts.contains_key(&format!("failed: {cause}")), "no attempt failed by {cause}");
    }
    for kind in [
        "left: client_gone",
        "refused: no_key",
        "refused: queue_full",
        "refused: body_too_large",
        "refused: body_broken",
        "refused: deadline",
    ] {
        assert!(requests.contains_key(kind), "no request was {kind}");
    }
}
