//! What the page is told: the state of every key, and what it did of late, as plain data.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::Instant;
use tower_openrouter::{
    Snapshot, breaker::BreakerState, endpoint::Endpoint, explain::Explanation, monitor::CreditSnapshot,
    retry::RetryStats, select::WideRest,
};

use super::{
    super::{
        admin::Admin,
        traces::{Explained, Kept},
    },
    history::{self, Bucket, History, Total},
};

/// How many keys are told of; of more, those in trouble first, then the busiest.
const MOST_KEYS: usize = 200;
/// How many rests that no key has are told of, the widest first.
const MOST_RESTS: usize = 20;
/// How many requests are told of.
const REQUESTS: usize = 20;
/// The most attempts of one request that are told, the last ones.
const MOST_ATTEMPTS: usize = 4;
/// The longest name of a model that is told: a client may send anything.
const LONGEST_MODEL: usize = 100;
/// The mean time to the first output is that of so many buckets, a minute.
const MINUTE: u64 = 60 / history::BUCKET;

/// The picture at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Picture<'a> {
    /// Counts ticks.
    tick: u64,
    /// Whether it has all buckets, rather than the last two.
    full: bool,
    bucket: u64,
    bucket_s: u64,
    buckets: u64,
    version: &'static str,
    simulated: bool,
    can_act: bool,
    explain: Explained,
    draining: bool,
    keys: Vec<Key<'a>>,
    keys_in_all: usize,
    usable: usize,
    in_flight: u64,
    all: Vec<Total>,
    causes: Vec<Trouble<'a>>,
    rests: Vec<WideRest>,
    rests_in_all: usize,
    waiting: BTreeMap<&'static str, usize>,
    retry: RetryStats,
    requests: Vec<Request>,
}

#[derive(Debug, Serialize)]
struct Key<'a> {
    key: &'a str,
    account: Option<&'a str>,
    admin: &'static str,
    /// Whether it would take a request now, as far as its own state says.
    usable: bool,
    rest: Option<Rest>,
    breaker: Option<Breaker>,
    in_flight: u32,
    attempts: u64,
    first_output_ms: Option<f64>,
    failed: BTreeMap<&'static str, u64>,
    credit: Option<CreditSnapshot>,
    cost_usd: f64,
    tokens: u64,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Serialize)]
struct Rest {
    cause: &'static str,
    ms: u64,
}

#[derive(Debug, Serialize)]
struct Breaker {
    state: &'static str,
    ms: Option<u64>,
    trips: u64,
}

/// What failed for one cause in the last minutes.
#[derive(Debug, Serialize)]
struct Trouble<'a> {
    cause: &'static str,
    count: u64,
    /// How many keys met it, and the one that met it most often.
    keys: usize,
    most: &'a str,
}

#[derive(Debug, Serialize)]
struct Request {
    id: Box<str>,
    age_ms: u64,
    #[serde(flatten)]
    told: Explanation,
}

fn millis(now: Instant, until: Instant) -> u64 {
    u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
}

/// Reads everything, and writes it down; `full` with all that is remembered.
pub(super) fn write(admin: &Admin, history: &History, tick: u64, full: bool) -> String {
    let (now, pool) = (Instant::now(), admin.balancer.pool());
    let endpoints = pool.endpoints();
    let usable = |endpoint: &Endpoint| {
        endpoint.is_in_service() && pool.resting(endpoint).is_none() && endpoint.shut_until(now).is_none()
    };
    let (mut open, mut causes) = (Bucket::default(), BTreeMap::<&str, (u64, usize, u64, &str)>::new());
    let recent: Vec<_> = endpoints.iter().map(|endpoint| history.of(endpoint)).collect();
    for (endpoint, recent) in endpoints.iter().zip(&recent) {
        recent.buckets.iter().filter(|bucket| bucket.number == history.bucket()).for_each(|bucket| open.add(bucket));
        for (cause, count) in &recent.faults {
            let (all, keys, most, whose) = causes.entry(cause).or_default();
            (*all, *keys) = (*all + count, *keys + 1);
            if count > most {
                (*most, *whose) = (*count, endpoint.key().name());
            }
        }
    }
    let mut shown: Vec<_> = (0..endpoints.len()).collect();
    if shown.len() > MOST_KEYS {
        let busy = |at: &usize| recent[*at].buckets.iter().map(|bucket| bucket.succeeded + bucket.failed).sum::<u64>();
        shown.sort_by_key(|at| (usable(&endpoints[*at]), std::cmp::Reverse(busy(at))));
        shown.truncate(MOST_KEYS);
    }
    let measured = Snapshot::of(shown.iter().map(|at| &endpoints[*at]));
    let since = if full { 0 } else { history.bucket().saturating_sub(1) };
    let keys = shown.iter().zip(measured.endpoints).map(|(at, measured)| {
        let (endpoint, recent) = (&endpoints[*at], &recent[*at]);
        let breaker = admin.balancer.breaker(endpoint).map(|breaker| {
            let snapshot = breaker.snapshot();
            let (state, ms) = match snapshot.state {
                BreakerState::Closed => ("closed", None),
                BreakerState::Open { until } => ("open", Some(millis(now, until))),
                BreakerState::HalfOpen { .. } => ("half_open", None),
                BreakerState::Isolated => ("isolated", None),
                BreakerState::Disabled => ("disabled", None),
                _ => ("other", None),
            };
            Breaker { state, ms, trips: snapshot.trips }
        });
        let minute = recent.buckets.iter().filter(|bucket| bucket.number + MINUTE > history.bucket());
        Key {
            key: endpoint.key().name(),
            account: endpoint.account(),
            admin: endpoint.admin_state().as_str(),
            usable: usable(endpoint),
            rest: pool.resting(endpoint).map(|rest| Rest { cause: rest.cause.as_str(), ms: millis(now, rest.until) }),
            breaker,
            in_flight: endpoint.figures().in_flight(),
            attempts: measured.measures.attempts,
            first_output_ms: history::mean_ms(minute),
            failed: recent.faults.clone(),
            credit: measured.credit,
            cost_usd: measured.measures.cost_usd,
            tokens: measured.measures.prompt_tokens + measured.measures.completion_tokens,
            buckets: recent.buckets.iter().filter(|bucket| bucket.number >= since).copied().collect(),
        }
    });
    let mut causes: Vec<_> =
        causes.into_iter().map(|(cause, (count, keys, _, most))| Trouble { cause, count, keys, most }).collect();
    causes.sort_by_key(|trouble| std::cmp::Reverse(trouble.count));
    let mut rests = pool.rests();
    let rests_in_all = rests.len();
    rests.truncate(MOST_RESTS);
    let mut all = history.all(open);
    all.retain(|total| total.bucket.number >= since);
    let picture = Picture {
        tick,
        full,
        bucket: history.bucket(),
        bucket_s: history::BUCKET,
        buckets: history::BUCKETS,
        version: env!("CARGO_PKG_VERSION"),
        simulated: admin.simulated,
        can_act: admin.access.0.is_some(),
        explain: admin.explain,
        draining: admin.drain.is_draining(),
        keys: keys.collect(),
        keys_in_all: endpoints.len(),
        usable: endpoints.iter().filter(|endpoint| usable(endpoint)).count(),
        in_flight: endpoints.iter().map(|endpoint| u64::from(endpoint.figures().in_flight())).sum(),
        all,
        causes,
        rests,
        rests_in_all,
        waiting: pool.waiting().into_iter().map(|(class, count)| (class.as_str(), count)).collect(),
        retry: admin.balancer.retry_stats(),
        requests: admin.traces.latest(REQUESTS).into_iter().map(|kept| request(kept, now)).collect(),
    };
    // numbers and strings: there is nothing in them that could fail
    serde_json::to_string(&picture).unwrap_or_default()
}

/// A request's trace within bounds.
fn request(Kept { id, at, trace }: Kept, now: Instant) -> Request {
    let mut told = trace.explanation();
    let older = told.attempts.len().saturating_sub(MOST_ATTEMPTS);
    told.attempts.drain(..older);
    told.left_out += older;
    for attempt in &mut told.attempts {
        let earlier = attempt.looks.len().saturating_sub(1);
        attempt.looks.drain(..earlier);
        if let Some(model) = &mut attempt.model
            && model.chars().count() > LONGEST_MODEL
        {
            *model = model.chars().take(LONGEST_MODEL).chain(['…']).collect::<String>().into();
        }
    }
    Request { id, age_ms: millis(at, now), told }
}
