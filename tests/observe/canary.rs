//! R99 in bulk: whatever happens to a request, no part of a key shows anywhere.
//!
//! The full run, which takes some minutes:
//!
//! ```text
//! CANARY_REQUESTS=100000 cargo test --test observe canary -- --nocapture
//! ```

use std::{
    collections::HashSet,
    env, fmt,
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::time::{sleep, timeout};
use tower::{Layer, Service, ServiceExt};
use tower_openrouter::{
    AccountPoller, ApiKey, Balancer, ExplainLayer, HedgeLayer, ObserveLayer, OpenRouter,
    explain::Trace,
    observe,
    select::{CreditLimit, Pool},
    simulator::{Fault, Scenario, Simulator, What},
};
use tracing_subscriber::{filter::LevelFilter, fmt::format::FmtSpan};

/// So many characters in a row of what is private in a key give it away.
const RUN: usize = 8;
const REQUESTS: usize = 2_000;

/// Looks through all that is written for any run of a key, plain, in hex, or in base64 at any offset.
#[derive(Clone, Default)]
struct Watcher(Arc<Watching>);

#[derive(Default)]
struct Watching {
    runs: HashSet<[u8; RUN]>,
    /// Whether any run begins with these two bytes: nearly all places are done with by one look.
    begins: Vec<bool>,
    seen: AtomicU64,
    found: Mutex<Vec<String>>,
}

fn pair(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

impl Watcher {
    fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut runs = HashSet::new();
        for secret in secrets {
            let private = secret.trim_start_matches("sk-or-v1-").as_bytes();
            let hex: String = private.iter().map(|byte| format!("{byte:02x}")).collect();
            let forms = [private.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
            let coded = (0..3).map(|offset| base64(&private[offset..]).into_bytes());
            for form in forms.into_iter().chain(coded) {
                runs.extend(form.windows(RUN).map(|run| <[u8; RUN]>::try_from(run).unwrap()));
            }
        }
        let mut begins = vec![false; 1 << 16];
        runs.iter().for_each(|run| begins[pair(run)] = true);
        Self(Arc::new(Watching { runs, begins, ..Watching::default() }))
    }

    fn look(&self, bytes: &[u8]) {
        self.0.seen.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        for run in bytes.windows(RUN) {
            if self.0.begins[pair(run)] && self.0.runs.contains(run) {
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
        "337a4c", // too short
    ] {
        let watcher = Watcher::new([secret.to_owned()]);
        watcher.look(shown.as_bytes());
        assert_eq!(watcher.0.found.lock().unwrap().len(), usize::from(shown.len() > 6), "{shown}");
    }
    let watcher = Watcher::new([secret.to_owned()]);
    watcher.look(b"sk-or-v1- and 64-bit, tower_openrouter::spans");
    assert!(watcher.0.found.lock().unwrap().is_empty());
}

fn chat(body: String) -> Request<Full<Bytes>> {
    Request::post("/v1/chat/completions").header("content-type", "application/json").body(Full::from(body)).unwrap()
}

/// Requests of all kinds, in turn.
fn mixed(number: usize) -> Request<Full<Bytes>> {
    let model = ["acme/swift-1", "acme/deep-2", "acme/swift-1:free", "no/such"][number % 4];
    let stream = number.is_multiple_of(3);
    let messages = r#"[{"role":"user","content":"hello"}]"#;
    let mut request = match number % 11 {
        9 => chat("{ not json".into()),
        10 => Request::get("/v1/models").body(Full::default()).unwrap(),
        _ => chat(format!(r#"{{"model":"{model}","max_tokens":4,"messages":{messages},"stream":{stream}}}"#)),
    };
    if number.is_multiple_of(5) {
        request.headers_mut().insert("x-balancer-explain", "1".parse().unwrap());
    }
    request
}

#[tokio::test(start_paused = true)]
async fn r099_no_part_of_a_key_shows_in_logs_spans_metrics_figures_or_answers() {
    let count = env::var("CANARY_REQUESTS").map_or(REQUESTS, |count| count.parse().expect("a number of requests"));
    let simulator = Simulator::new(Scenario::default()).unwrap();
    let mut keys: Vec<_> = simulator.keys().into_iter().map(|key| (key.label, key.secret)).collect();
    keys.push(("dead".into(), "sk-or-v1-Hn4Rt8Jp1MsDw6GaUy0E".into()));
    let watcher = Watcher::new(keys.iter().map(|(_, secret)| secret.clone()));
    let writer = watcher.clone();
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
        .with_writer(move || writer.clone());
    let _log = tracing::subscriber::set_default(log.finish());
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    observe::describe();

    for what in [
        What::Unauthorized,
        What::Reset,
        What::Html { status: 502 },
        What::Status { status: 429, retry_after: Some(1) },
        What::Raw { status: 200, content_type: "application/json".into(), body: "{ cut".into() },
    ] {
        simulator.inject(Fault::new(what).probability(0.03)).unwrap();
    }
    let keys = keys.into_iter().map(|(label, secret)| ApiKey::new(secret).unwrap().label(label));
    let pool = Pool::new(keys).unwrap();
    let leaf = OpenRouter::new(simulator.service());
    let poller = tokio::spawn(AccountPoller::new(&pool, leaf.clone()).run());
    let balancer = Balancer::builder(pool)
        .credit(CreditLimit::new())
        .max_wait(Duration::from_secs(5))
        .hedge(HedgeLayer::new())
        .build(leaf);
    let handle = balancer.handle().clone();
    let mut service = ExplainLayer::new().all().layer(ObserveLayer::new().layer(balancer));
    watcher.look_at(&service);

    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for number in 0..count {
        let answer = service.ready().await.unwrap().call(mixed(number));
        let patience = Duration::from_millis(if number % 13 == 0 { 100 } else { 600_000 });
        if let Ok(Ok(answer)) = timeout(patience, answer).await {
            *statuses.entry(answer.status().as_u16()).or_default() += 1;
            watcher.look_at(answer.headers());
            let trace = answer.extensions().get::<Trace>().unwrap().clone();
            match answer.into_body().collect().await {
                Ok(body) => watcher.look(&body.to_bytes()),
                Err(error) => watcher.look(format!("{error} {error:?}").as_bytes()),
            }
            watcher.look(&serde_json::to_vec(&trace).unwrap());
        }
        // so that limits by the minute let most requests through, and keys that were struck come back
        sleep(Duration::from_secs(2)).await;
        if number.is_multiple_of(5) {
            for endpoint in handle.pool().endpoints().iter() {
                handle.pool().reset(endpoint.key().name());
                if let Some(breaker) = handle.breaker(endpoint) {
                    breaker.reset();
                }
            }
        }
        if number % 500 == 0 {
            watcher.look_at(&handle);
            watcher.look(&serde_json::to_vec(&handle.snapshot()).unwrap());
            handle.record_metrics();
            watcher.look(recorder.handle().render().as_bytes());
        }
    }
    poller.abort();
    let (seen, found) = (watcher.0.seen.load(Ordering::Relaxed), watcher.0.found.lock().unwrap());
    println!("{count} requests, {statuses:?}: {} hits in {} MB", found.len(), seen >> 20);
    assert!(statuses.len() >= 3 && statuses[&200] > count / 3, "{statuses:?}");
    assert!(seen > 1000 * count as u64, "nothing was logged to look into: {seen} bytes");
    assert_eq!(found.first(), None);
}
