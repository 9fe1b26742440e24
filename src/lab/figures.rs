//! What a run comes to in numbers.
//!
//! Two stacks can serve as many requests and differ in all else: how often they ran into a limit, how long who was served
//! waited, whether one key did all the work, what was paid for and thrown away. Each of these is a figure here, by a
//! definition that stands beside it, from what clients and upstream saw; nothing is taken from the stack's own books.
//!
//! Counted is who came after the warm-up, with all attempts made for them, whenever those were made. Percentiles are by
//! nearest rank: the smallest value that at least so many percent do not exceed, so always one that occurred. What cannot be
//! said, such as the latency of nobody, is `None`.

mod calm;
mod fair;
mod latency;
mod reaction;
mod trouble;

use std::time::Duration;

use serde::Serialize;

pub use latency::Latency;
pub(super) use latency::nearest_rank;
pub use reaction::Reaction;
pub use trouble::Trouble;

use super::{Ending, Run, Sample, Scenario};

/// The figures of one run. Times are seconds, money is USD.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// How many requests came.
    pub offered: usize,
    /// How many of them got a whole answer.
    pub served: usize,
    /// Served per second of the time after the warm-up.
    pub goodput: f64,
    /// The part of those offered that was served.
    pub served_share: Option<f64>,
    /// How the others ended.
    pub errors: Errors,
    /// Their part of those offered.
    pub error_share: Option<f64>,
    /// Attempts the upstream saw.
    pub attempts: usize,
    /// Attempts for each request offered.
    pub attempts_per_request: Option<f64>,
    /// Attempts that the upstream answered with 429.
    pub upstream_429: usize,
    /// The same for each request served.
    pub upstream_429_per_success: Option<f64>,
    /// From arrival to the start of the attempt that served (the last one answered with 200), of those served.
    pub added_wait: Latency,
    /// From arrival to the first token of a stream, or the first byte of JSON, of those served.
    pub first_output: Latency,
    /// How evenly the keys were used: Jain's index, from one over their number to 1, of each key's successful attempts over
    /// its max-min fair share of all of them. A key's share is bounded by its part of what its account's quota lets through.
    ///
    /// The index is that of Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource
    /// Allocation in Shared Computer Systems", DEC-TR-301, 1984, section 3, in which what each got is set against what would
    /// be fair; max-min fairness is as in Bertsekas and Gallager, "Data Networks", 2nd edition, section 6.5.2.
    pub fairness: Option<f64>,
    /// How fast troubles of single keys were seen, and forgotten.
    pub reaction: Reaction,
    /// From the end of a burst until the median time to first output of 20 requests is within 10 % of what it was before the
    /// burst, as a mean over the bursts of the scenario's arrivals.
    pub calm_s: Option<f64>,
    /// How many bursts were felt to the end of the run.
    pub uncalmed: usize,
    /// What all accounts were charged, warm-up included, USD.
    pub spent: f64,
    /// What of it was for no whole answer: attempts that failed, were given up or were one too many, USD.
    pub wasted: f64,
    /// The same as a part of all that was charged.
    pub wasted_share: Option<f64>,
}

/// How requests that were not served ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Errors {
    /// Refused with 429.
    pub refused_429: usize,
    /// Refused with 503.
    pub refused_503: usize,
    /// Failed with another status.
    pub failed: usize,
    /// Broke after the 200.
    pub broken: usize,
    /// The client left, since its patience was at an end.
    pub left: usize,
    /// No answer at all.
    pub error: usize,
}

impl Errors {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Self {
        let mut errors = Self::default();
        for sample in samples {
            match sample.ending {
                Ending::Served => {}
                Ending::Failed(429) => errors.refused_429 += 1,
                Ending::Failed(503) => errors.refused_503 += 1,
                Ending::Failed(_) => errors.failed += 1,
                Ending::Broken => errors.broken += 1,
                Ending::Left => errors.left += 1,
                Ending::Error => errors.error += 1,
            }
        }
        errors
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.refused_429 + self.refused_503 + self.failed + self.broken + self.left + self.error
    }
}

impl Figures {
    /// Works out the figures of a run of this scenario.
    pub fn of(run: &Run, scenario: &Scenario) -> Self {
        let counts = |sample: &Sample| sample.at.as_secs_f64() >= scenario.warm_up_s;
        let counted = || run.samples.iter().filter(|sample| counts(sample));
        let served = || counted().filter(|sample| sample.ending == Ending::Served);
        let (offered_count, served_count) = (counted().count(), served().count());
        let errors = Errors::of(counted());
        let span = scenario.length_s - scenario.warm_up_s;

        let sent = || run.sent.iter().filter(|sent| sent.request.and_then(|n| run.samples.get(n)).is_some_and(counts));
        let upstream_429 = sent().filter(|sent| sent.status == Some(429)).count();
        let mut successes = vec![0_usize; run.keys.len()];
        let mut began: Vec<Option<Duration>> = vec![None; run.samples.len()];
        for sent in sent().filter(|sent| sent.status == Some(200)) {
            if let Some(count) = sent.key.and_then(|key| successes.get_mut(key)) {
                *count += 1;
            }
            if let Some(began) = sent.request.and_then(|number| began.get_mut(number)) {
                *began = Some(sent.at);
            }
        }
        let waits =
            run.samples.iter().zip(&began).filter(|(sample, _)| counts(sample) && sample.ending == Ending::Served);
        let waits = waits.filter_map(|(sample, began)| Some(began.as_ref()?.saturating_sub(sample.at)));
        let outputs = served().filter_map(|sample| Some(sample.first_output?.saturating_sub(sample.at)));

        let (calm_s, uncalmed) = calm::calm(run, scenario);
        let received: f64 = run.samples.iter().filter(|s| s.ending == Ending::Served).map(|s| s.cost).sum();
        // adding leaves a little below zero behind, too
        let wasted = if run.spent > received { nano_dollars(run.spent - received) } else { 0.0 };
        Self {
            offered: offered_count,
            served: served_count,
            goodput: if span > 0.0 { served_count as f64 / span } else { 0.0 },
            served_share: over(served_count as f64, offered_count as f64),
            errors,
            error_share: over(errors.total() as f64, offered_count as f64),
            attempts: sent().count(),
            attempts_per_request: over(sent().count() as f64, offered_count as f64),
            upstream_429,
            upstream_429_per_success: over(upstream_429 as f64, served_count as f64),
            added_wait: Latency::of(waits),
            first_output: Latency::of(outputs),
            fairness: fair::jain(&successes, &fair::shares(scenario, successes.iter().sum::<usize>() as f64, span)),
            reaction: Reaction::of(run, scenario),
            calm_s,
            uncalmed,
            spent: nano_dollars(run.spent),
            wasted,
            wasted_share: over(wasted, run.spent),
        }
    }
}

/// A quotient, where there is something to divide by.
fn over(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// To the nearest billionth: below it is only what adding leaves behind.
fn nano_dollars(amount: f64) -> f64 {
    (amount * 1e9).round() / 1e9
}
