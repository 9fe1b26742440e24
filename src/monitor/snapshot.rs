use std::collections::BTreeMap;

use histogram::SampleQuantiles;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::credit::CreditSnapshot;
use crate::endpoint::{Endpoint, Figures, Summed, Times};

/// What was measured up to one moment, to be serialised: each endpoint, all together, and what else is put in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Each endpoint, in the order given.
    pub endpoints: Vec<EndpointSnapshot>,
    /// All of them together.
    pub total: Measures,
    /// What other stages report, such as retries.
    #[serde(flatten)]
    pub parts: BTreeMap<&'static str, Value>,
}

/// One endpoint's part of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// The key, by label.
    pub key: Box<str>,
    /// The account it belongs to, where known.
    pub account: Option<Box<str>>,
    /// Its share of all attempts, 0 to 1.
    pub share: f64,
    /// What it may spend, where a poller, a filter or a pick looks at that; else left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit: Option<CreditSnapshot>,
    /// What was measured.
    #[serde(flatten)]
    pub measures: Measures,
}

/// What was measured on one endpoint, or on several.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Measures {
    /// Attempts started: those that ended and those in flight.
    pub attempts: u64,
    /// Attempts whose body has not ended.
    pub in_flight: u64,
    /// How the others ended: `complete`, `refused` by a layer of our own, `client_gone`, or the cause of the fault. What
    /// never happened is left out.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Faults among attempts that ended complete or in a fault, 0 to 1.
    pub error_share: f64,
    /// From start to the first byte of real output, of successes; `null` before the first.
    pub first_byte_ms: Option<Spread>,
    /// From start to the end of the body, of successes; `null` before the first.
    pub total_ms: Option<Spread>,
    /// Mean time of attempts that ended in a fault.
    pub fault_mean_ms: Option<f64>,
    /// Mean time after which callers left.
    pub client_gone_mean_ms: Option<f64>,
    /// Mean time of refusals.
    pub refused_mean_ms: Option<f64>,
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// What was charged, in US dollars.
    pub cost_usd: f64,
}

/// How times are spread, in milliseconds. The mean is exact, the rest within 3 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the times are at most this.
    pub p50: f64,
    /// 95 % of the times are at most this.
    pub p95: f64,
    /// 99 % of the times are at most this.
    pub p99: f64,
}

impl Snapshot {
    /// Reads these endpoints: a few microseconds and allocations for each, and no lock that a request waits for but, where
    /// money is counted, each purse's for as long as it takes to read a number.
    pub fn of<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Self {
        let (mut all, mut times_of_all, now) = (Reading::default(), None, Instant::now());
        // one after the other, so that the histograms, which are larger than all the rest, are held of one key at a time
        let mut endpoints: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| {
                let (reading, times) = (Reading::of(endpoint.figures()), endpoint.figures().times());
                all.merge(&reading);
                if let Some(times) = &times {
                    let all = times_of_all.get_or_insert_with(<[Summed; 2]>::default);
                    all.iter_mut().zip(times).for_each(|(all, times)| all.add(times));
                }
                EndpointSnapshot {
                    key: endpoint.key().name().into(),
                    account: endpoint.account().map(Into::into),
                    share: 0.0,
                    credit: endpoint.counted_credit().map(|credit| CreditSnapshot::of(credit, now)),
                    measures: reading.measures(spreads(&times)),
                }
            })
            .collect();
        for endpoint in &mut endpoints {
            endpoint.share = ratio(endpoint.measures.attempts, all.started);
        }
        let spreads = times_of_all.map_or([None, None], |all| all.map(|all| Spread::of(all.sum, &all.histogram)));
        Self { endpoints, total: all.measures(spreads), parts: BTreeMap::new() }
    }

    /// Adds what another stage reports under `name`, such as the retry layer's statistics; what cannot be written as JSON
    /// becomes `null`.
    #[must_use]
    pub fn with(mut self, name: &'static str, part: impl Serialize) -> Self {
        self.parts.insert(name, serde_json::to_value(part).unwrap_or_default());
        self
    }
}

impl Measures {
    /// Reads these figures.
    pub fn of(figures: &Figures) -> Self {
        Reading::of(figures).measures(spreads(&figures.times()))
    }
}

/// A copy of figures that can be added up.
#[derive(Debug, Default)]
struct Reading {
    succeeded: u64,
    cancelled: Timed,
    refused: Timed,
    failed: Timed,
    causes: BTreeMap<&'static str, u64>,
    started: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost: f64,
}

/// How many, and how many milliseconds together.
#[derive(Debug, Default, Clone, Copy)]
struct Timed {
    count: u64,
    millis: f64,
}

impl Timed {
    fn new(count: u64, mean: Option<std::time::Duration>) -> Self {
        Self { count, millis: mean.map_or(0.0, |mean| mean.as_secs_f64() * 1e3 * count as f64) }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.millis += other.millis;
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.millis / self.count as f64)
    }
}

impl Reading {
    fn of(figures: &Figures) -> Self {
        let causes = figures.failed_by_name();
        let failed = causes.values().sum();
        let usage = figures.usage();
        Self {
            succeeded: figures.succeeded(),
            cancelled: Timed::new(figures.cancelled(), figures.mean_cancelled_time()),
            refused: Timed::new(figures.refused(), figures.mean_refused_time()),
            failed: Timed::new(failed, figures.mean_failed_time()),
            causes,
            // after all ends, so that each end's start is among them
            started: figures.started(),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cost: usage.cost,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.cancelled.add(other.cancelled);
        self.refused.add(other.refused);
        self.failed.add(other.failed);
        for (cause, count) in &other.causes {
            *self.causes.entry(cause).or_default() += count;
        }
        self.started += other.started;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cost += other.cost;
    }

    fn measures(&self, [first_byte_ms, total_ms]: [Option<Spread>; 2]) -> Measures {
        let mut outcomes = self.causes.clone();
        let ways =
            [("complete", self.succeeded), ("refused", self.refused.count), ("client_gone", self.cancelled.count)];
        outcomes.extend(ways.into_iter().filter(|(_, count)| *count > 0));
        Measures {
            attempts: self.started,
            in_flight: self.started.saturating_sub(outcomes.values().sum()),
            outcomes,
            error_share: ratio(self.failed.count, self.failed.count + self.succeeded),
            first_byte_ms,
            total_ms,
            fault_mean_ms: self.failed.mean(),
            client_gone_mean_ms: self.cancelled.mean(),
            refused_mean_ms: self.refused.mean(),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            cost_usd: self.cost,
        }
    }
}

fn spreads(times: &Option<[Times; 2]>) -> [Option<Spread>; 2] {
    let of = |times: &Times| Spread::of(times.sum, &times.histogram);
    times.as_ref().map_or([None, None], |times| times.each_ref().map(of))
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole > 0 { part as f64 / whole as f64 } else { 0.0 }
}

impl Spread {
    /// Of microseconds and their sum.
    fn of(sum: u64, times: &impl SampleQuantiles) -> Option<Self> {
        let found = times.quantiles(&[0.5, 0.95, 0.99]).ok()??;
        let mut middles = found.entries().values().map(|bucket| (bucket.start() + bucket.end()) as f64 / 2e3);
        let [p50, p95, p99] = std::array::from_fn(|_| middles.next());
        let count = found.total_count();
        Some(Self { mean: sum as f64 / count.max(1) as f64 / 1e3, p50: p50?, p95: p95?, p99: p99? })
    }
}
