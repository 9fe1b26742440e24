//! Where the figures of requests are written: handles, made once for each set of labels.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge, Histogram, Label};

use super::name;
use crate::{
    error::Why,
    outcome::{Cause, Usage},
    request::Operation,
    spans::Upshot,
    sync::lock_std,
};

/// The longest name of a model that is kept: a client may send anything.
const LONGEST_MODEL: usize = 256;
/// Success, each cause, each reason, and that the caller left.
const UPSHOTS: usize = 1 + Cause::ALL.len() + Why::ALL.len() + 1;

/// The figures of all requests of a layer.
pub(super) struct Figures {
    /// How many models may have a series of their own.
    most: usize,
    known: AtomicUsize,
    /// Held by who adds one.
    adding: Mutex<()>,
    in_flight: OnceLock<Gauge>,
    of: [OfOperation; Operation::ALL.len()],
}

/// Those of one operation.
#[derive(Default)]
struct OfOperation {
    models: ArcSwap<HashMap<Box<str>, Arc<Series>>>,
    none: OnceLock<Arc<Series>>,
    other: OnceLock<Arc<Series>>,
    /// Of what did not succeed: failed, refused, left.
    failed: [OnceLock<Histogram>; 3],
}

/// Those of one model.
struct Series {
    labels: [Label; 2],
    requests: [OnceLock<Counter>; UPSHOTS],
    duration: OnceLock<Histogram>,
    first_output: OnceLock<Histogram>,
    tokens: OnceLock<[Counter; 2]>,
    cost: OnceLock<Counter>,
}

/// Where one request is counted.
pub(super) struct Told {
    figures: Arc<Figures>,
    series: Option<Arc<Series>>,
}

impl Figures {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            known: AtomicUsize::new(0),
            adding: Mutex::new(()),
            in_flight: OnceLock::new(),
            of: Default::default(),
        }
    }

    pub(super) fn start(self: &Arc<Self>) -> Told {
        self.in_flight().increment(1.0);
        Told { figures: self.clone(), series: None }
    }

    fn in_flight(&self) -> &Gauge {
        self.in_flight.get_or_init(|| metrics::gauge!(name::IN_FLIGHT))
    }

    fn series(&self, operation: Operation, model: Option<&str>) -> Arc<Series> {
        let of = &self.of[operation as usize];
        let shared = |slot: &OnceLock<Arc<Series>>, name| slot.get_or_init(|| Series::new(operation, name)).clone();
        let Some(model) = model else { return shared(&of.none, "none") };
        if let Some(series) = of.models.load().get(model) {
            return series.clone();
        }
        let is_full = || self.known.load(Ordering::Relaxed) >= self.most;
        if is_full() || model.len() > LONGEST_MODEL {
            return shared(&of.other, "other");
        }
        let _adding = lock_std(&self.adding);
        let models = of.models.load_full();
        if let Some(series) = models.get(model) {
            return series.clone();
        }
        if is_full() {
            return shared(&of.other, "other");
        }
        let series = Series::new(operation, model);
        let mut more = HashMap::clone(&models);
        more.insert(model.into(), series.clone());
        of.models.store(Arc::new(more));
        self.known.fetch_add(1, Ordering::Relaxed);
        series
    }
}

impl Series {
    fn new(operation: Operation, model: &str) -> Arc<Self> {
        Arc::new(Self {
            labels: [Label::from_static_parts("operation", operation.as_str()), Label::new("model", model.to_owned())],
            requests: [const { OnceLock::new() }; UPSHOTS],
            duration: OnceLock::new(),
            first_output: OnceLock::new(),
            tokens: OnceLock::new(),
            cost: OnceLock::new(),
        })
    }

    /// The labels, and more of them.
    fn with<const N: usize>(&self, more: [(&'static str, &'static str); N]) -> Vec<Label> {
        let more = more.map(|(name, value)| Label::from_static_parts(name, value));
        self.labels.iter().cloned().chain(more).collect()
    }
}

impl Told {
    /// What was asked is known.
    pub(super) fn asked(&mut self, operation: Operation, model: Option<&str>) {
        self.series = Some(self.figures.series(operation, model));
    }

    /// It is over.
    pub(super) fn over(
        &self,
        operation: Operation,
        upshot: &Upshot,
        took: Duration,
        first_output: Option<Duration>,
        usage: Option<Usage>,
    ) {
        let Some(series) = &self.series else { return };
        let requests = series.requests[index(upshot)].get_or_init(|| {
            let labels = [("outcome", upshot.outcome()), ("error_type", upshot.error_type().unwrap_or_default())];
            metrics::counter!(name::REQUESTS, series.with(labels))
        });
        requests.increment(1);
        let failed = match upshot {
            Upshot::Success => {
                let first_output = first_output.unwrap_or(took);
                let times = [
                    (&series.duration, name::DURATION, took),
                    (&series.first_output, name::FIRST_OUTPUT, first_output),
                ];
                for (slot, name, time) in times {
                    slot.get_or_init(|| metrics::histogram!(name, series.with([]))).record(time);
                }
                None
            }
            Upshot::Failed(_) => Some(0),
            Upshot::Refused(_) => Some(1),
            Upshot::Left => Some(2),
        };
        if let Some(which) = failed {
            let slot = &self.figures.of[operation as usize].failed[which];
            let labels = [("operation", operation.as_str()), ("outcome", upshot.outcome())];
            slot.get_or_init(|| metrics::histogram!(name::FAILED_DURATION, &labels)).record(took);
        }
        if let Some(usage) = usage {
            let of = |kind| metrics::counter!(name::TOKENS, series.with([("type", kind)]));
            let [input, output] = series.tokens.get_or_init(|| ["input", "output"].map(of));
            input.increment(usage.prompt_tokens);
            output.increment(usage.completion_tokens);
            let cost = series.cost.get_or_init(|| metrics::counter!(name::COST, series.with([])));
            // a cast from f64 saturates, so no answer can overflow it
            cost.increment((usage.cost.max(0.0) * 1e9) as u64);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.figures.in_flight().decrement(1.0);
    }
}

fn index(upshot: &Upshot) -> usize {
    match upshot {
        Upshot::Success => 0,
        Upshot::Failed(fault) => 1 + fault.cause.index(),
        Upshot::Refused(why) => 1 + Cause::ALL.len() + *why as usize,
        Upshot::Left => UPSHOTS - 1,
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").field("known", &self.known).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Fault, Scope};

    #[test]
    fn each_upshot_is_counted_apart() {
        let failed = Cause::ALL.map(|cause| Upshot::Failed(Fault::new(cause, Scope::Key)));
        let refused = Why::ALL.map(Upshot::Refused);
        let all = [Upshot::Success].into_iter().chain(failed).chain(refused).chain([Upshot::Left]);
        assert!(all.map(|upshot| index(&upshot)).eq(0..UPSHOTS));
    }

    #[test]
    fn r082_so_many_models_have_a_series_and_the_others_share_one() {
        let figures = Figures::new(2);
        let label = |operation, model: &str| figures.series(operation, Some(model)).labels[1].value().to_owned();
        assert_eq!(label(Operation::Chat, "a"), "a");
        assert_eq!(label(Operation::Chat, &"x".repeat(LONGEST_MODEL + 1)), "other");
        assert_eq!(label(Operation::Embeddings, "b"), "b");
        assert_eq!(label(Operation::Chat, "b"), "other", "two are known, whatever is done with them");
        assert_eq!(label(Operation::Chat, "a"), "a");
        let series = figures.series(Operation::Chat, None);
        assert_eq!(series.labels[1].value(), "none");
        assert!(Arc::ptr_eq(&figures.series(Operation::Chat, Some("c")), &figures.series(Operation::Chat, Some("d"))));
    }
}
