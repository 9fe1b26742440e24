//! The figures by name, so that tables, files and sweeps can go through them.

use crate::lab::Figures;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// More is.
    Higher,
    /// Less is.
    Lower,
}

/// One of the [`Figures`].
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in JSON, and by which `--objective` finds it.
    pub id: &'static str,
    /// Its name in the report.
    pub name: &'static str,
    /// Its unit; empty for a plain number.
    pub unit: &'static str,
    /// Which way it is better.
    pub better: Better,
    get: fn(&Figures) -> Option<f64>,
}

impl Metric {
    /// Its value in a run, where it has one.
    pub fn of(&self, figures: &Figures) -> Option<f64> {
        (self.get)(figures)
    }

    /// The one with this name.
    pub fn named(id: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.id == id)
    }
}

const fn metric(
    id: &'static str,
    name: &'static str,
    unit: &'static str,
    better: Better,
    get: fn(&Figures) -> Option<f64>,
) -> Metric {
    Metric { id, name, unit, better, get }
}

use Better::{Higher, Lower};

/// All that are compared.
pub static METRICS: [Metric; 21] = [
    metric("goodput", "goodput", "requests/s", Higher, |f| Some(f.goodput)),
    metric("served_share", "served, of those offered", "", Higher, |f| f.served_share),
    metric("error_share", "client errors, of those offered", "", Lower, |f| f.error_share),
    metric("upstream_429_per_success", "upstream 429s per success", "", Lower, |f| f.upstream_429_per_success),
    metric("attempts_per_request", "attempts per request", "", Lower, |f| f.attempts_per_request),
    metric("added_wait_mean", "added wait, mean", "s", Lower, |f| f.added_wait.mean),
    metric("added_wait_p50", "added wait, p50", "s", Lower, |f| f.added_wait.p50),
    metric("added_wait_p95", "added wait, p95", "s", Lower, |f| f.added_wait.p95),
    metric("added_wait_p99", "added wait, p99", "s", Lower, |f| f.added_wait.p99),
    metric("first_output_p50", "time to first output, p50", "s", Lower, |f| f.first_output.p50),
    metric("first_output_p95", "time to first output, p95", "s", Lower, |f| f.first_output.p95),
    metric("first_output_p99", "time to first output, p99", "s", Lower, |f| f.first_output.p99),
    metric("fairness", "fairness between keys", "", Higher, |f| f.fairness),
    metric("detect_s", "time to detect", "s", Lower, |f| f.reaction.detect_s),
    metric("detect_attempts", "attempts until detected", "", Lower, |f| f.reaction.detect_attempts),
    metric("recover_s", "time to recover", "s", Lower, |f| f.reaction.recover_s),
    metric("calm_s", "time to calm after a burst", "s", Lower, |f| f.calm_s),
    metric("spent", "charged", "USD", Lower, |f| Some(f.spent)),
    metric("spent_per_success", "charged per success", "USD", Lower, |f| {
        (f.served > 0).then(|| f.spent / f.served as f64)
    }),
    metric("wasted", "wasted", "USD", Lower, |f| Some(f.wasted)),
    metric("wasted_share", "wasted, of what was charged", "", Lower, |f| f.wasted_share),
];
