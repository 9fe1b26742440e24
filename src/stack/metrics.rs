//! What a balancer's stages count, told to the `metrics` facade when somebody reads it, so that no request pays for it.

use std::collections::BTreeMap;

use metrics::{Label, counter, gauge};
use tokio::time::Instant;

use super::BalancerHandle;
use crate::{
    breaker::BreakerState,
    endpoint::{Endpoint, Spendable},
    observe::name,
    outcome::Cause,
    select::WideRest,
};

/// What the keys of one label have done; several may share it.
#[derive(Debug, Default)]
struct Figures {
    started: u64,
    succeeded: u64,
    refused: u64,
    left: u64,
    failed: BTreeMap<&'static str, u64>,
    in_flight: u64,
    input: u64,
    output: u64,
    cost: u64,
    first_output: f64,
    up: bool,
    rest: f64,
    breaker: f64,
    trips: u64,
    spendable: Option<f64>,
}

/// How a key stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Standing {
    Up,
    Resting(Cause),
    Shut,
}

impl BalancerHandle {
    /// Tells the `metrics` recorder in place what every key did and how it stands, why requests went to other keys, and who
    /// waits: the second and third table of [`observe`](crate::observe#metrics). Counters are set to what they are.
    ///
    /// Call it whenever figures are read. The facade cannot take back what it was told, so a recorder that lives on shows
    /// keys that were removed as they last were, unless its exporter forgets what is idle. With a recorder of its own for each
    /// reading there is nothing to take back:
    ///
    /// ```
    /// use metrics_exporter_prometheus::PrometheusBuilder;
    /// use tower_openrouter::{observe, stack::BalancerHandle};
    ///
    /// fn page(balancer: &BalancerHandle) -> String {
    ///     let recorder = PrometheusBuilder::new().build_recorder();
    ///     metrics::with_local_recorder(&recorder, || {
    ///         observe::describe();
    ///         balancer.record_metrics();
    ///     });
    ///     recorder.handle().render()
    /// }
    /// # use tower_openrouter::{ApiKey, Balancer, OpenRouter, select::Pool};
    /// # let balancer = Balancer::builder(Pool::new([ApiKey::new("sk-or-v1-a")?.label("a")])?);
    /// # assert!(page(&balancer.handle()).contains("tower_openrouter_key_up{key=\"a\"} 1"));
    /// # Ok::<(), tower_openrouter::KeyError>(())
    /// ```
    pub fn record_metrics(&self) {
        self.record_keys();
        let retry = self.retry.stats();
        for (cause, count) in retry.failovers {
            counter!(name::ROTATIONS, "error_type" => cause).absolute(count);
        }
        for (cause, count) in retry.retries {
            counter!(name::RETRIES, "error_type" => cause).absolute(count);
        }
        for (why, count) in retry.give_ups {
            counter!(name::GIVEN_UP, "reason" => why).absolute(count);
        }
        counter!(name::BUDGET_REFUSALS).absolute(retry.budget_refusals);
        if let Some(hedge) = self.hedge.as_ref().map(|hedge| hedge.stats()) {
            counter!(name::HEDGES).absolute(hedge.hedges);
            counter!(name::HEDGES_WON).absolute(hedge.won);
        }
        counter!(name::PANIC_PICKS).absolute(self.pool.panic_picks());
        let rests = self.pool.rests();
        for scope in WideRest::SCOPES {
            let count = rests.iter().filter(|rest| rest.whose.scope == scope).count();
            gauge!(name::RESTS, "scope" => scope.as_str()).set(count as f64);
        }
        for (class, waiting) in self.pool.waiting() {
            gauge!(name::WAITING, "priority" => class.as_str()).set(waiting as f64);
        }
    }

    fn record_keys(&self) {
        let now = Instant::now();
        let (mut keys, mut resting) = (BTreeMap::<Box<str>, Figures>::new(), [0_u32; Cause::ALL.len()]);
        let (mut up, mut shut) = (0_u32, 0_u32);
        for endpoint in self.pool.endpoints().iter() {
            let standing = self.read(endpoint, keys.entry(endpoint.key().name().into()).or_default(), now);
            match standing {
                Standing::Up => up += 1,
                Standing::Resting(cause) => resting[cause.index()] += 1,
                Standing::Shut => shut += 1,
            }
        }
        let rest = resting.iter().sum();
        for (state, count) in [("up", up), ("resting", rest), ("shut", shut)] {
            gauge!(name::KEYS, "state" => state).set(count);
        }
        for cause in Cause::ALL {
            gauge!(name::KEYS_RESTING, "error_type" => cause.as_str()).set(resting[cause.index()]);
        }
        for (key, figures) in keys {
            figures.write(&Label::new("key", String::from(key)));
        }
    }

    /// Adds what one key did, and says how it stands.
    fn read(&self, endpoint: &Endpoint, sum: &mut Figures, now: Instant) -> Standing {
        let figures = endpoint.figures();
        // ends before starts, so that each end's start is among them
        sum.succeeded += figures.succeeded();
        sum.refused += figures.refused();
        sum.left += figures.cancelled();
        for (cause, count) in figures.failed_by_name() {
            *sum.failed.entry(cause).or_default() += count;
        }
        sum.in_flight += u64::from(figures.in_flight());
        sum.started += figures.started();
        let usage = figures.usage();
        sum.input += usage.prompt_tokens;
        sum.output += usage.completion_tokens;
        sum.cost += (usage.cost * 1e9).round() as u64;
        let first_output = figures.recent_first_byte(now).map_or(0.0, |span| span.as_secs_f64());
        sum.first_output = sum.first_output.max(first_output);
        if let Some(credit) = endpoint.counted_credit() {
            let usd = match credit.spendable(now) {
                Spendable::Unknown => None,
                Spendable::Unlimited => Some(f64::INFINITY),
                Spendable::Money(money) => Some(money.usd()),
            };
            sum.spendable = usd.map(|usd| usd + sum.spendable.unwrap_or(0.0)).or(sum.spendable);
        }
        let breaker = self.breaker(endpoint).map(|breaker| breaker.snapshot());
        sum.trips += breaker.map_or(0, |breaker| breaker.trips);
        let state = match breaker.map(|breaker| breaker.state) {
            None | Some(BreakerState::Closed) => 0.0,
            Some(BreakerState::HalfOpen { .. }) => 1.0,
            Some(BreakerState::Open { .. }) => 2.0,
            Some(BreakerState::Isolated) => 3.0,
            Some(BreakerState::Disabled) => -1.0,
        };
        if state != 0.0 {
            sum.breaker = state;
        }
        let resting = self.pool.resting(endpoint);
        let standing = match resting {
            Some(resting) => Standing::Resting(resting.cause),
            None if endpoint.shut_until(now).is_some() => Standing::Shut,
            None => Standing::Up,
        };
        sum.up |= standing == Standing::Up;
        let left = resting.map_or(0.0, |rest| rest.until.saturating_duration_since(now).as_secs_f64());
        sum.rest = sum.rest.max(left);
        standing
    }
}

impl Figures {
    fn write(&self, key: &Label) {
        let with = |more: &[(&'static str, &'static str)]| -> Vec<Label> {
            let more = more.iter().map(|(name, value)| Label::from_static_parts(name, value));
            [key.clone()].into_iter().chain(more).collect()
        };
        counter!(name::ATTEMPTS, with(&[])).absolute(self.started);
        let whole =
            [("success", "", self.succeeded), ("refused", "", self.refused), ("left", "client_gone", self.left)];
        let failed = self.failed.iter().map(|(cause, count)| ("failed", *cause, *count));
        for (outcome, error, count) in whole.into_iter().chain(failed).filter(|(.., count)| *count > 0) {
            counter!(name::ATTEMPTS_ENDED, with(&[("outcome", outcome), ("error_type", error)])).absolute(count);
        }
        for (kind, count) in [("input", self.input), ("output", self.output)] {
            counter!(name::KEY_TOKENS, with(&[("type", kind)])).absolute(count);
        }
        counter!(name::KEY_COST, with(&[])).absolute(self.cost);
        counter!(name::BREAKER_TRIPS, with(&[])).absolute(self.trips);
        for (name, value) in [
            (name::ATTEMPTS_IN_FLIGHT, Some(self.in_flight as f64)),
            (name::KEY_FIRST_OUTPUT, Some(self.first_output)),
            (name::KEY_UP, Some(f64::from(u8::from(self.up)))),
            (name::KEY_REST, Some(self.rest)),
            (name::BREAKER_STATE, Some(self.breaker)),
            (name::SPENDABLE, self.spendable),
        ] {
            if let Some(value) = value {
                gauge!(name, with(&[])).set(value);
            }
        }
    }
}
