//! How long a burst is felt after it has ended.

use std::time::Duration;

use super::latency::nearest_rank;
use crate::lab::{Ending, Run, Sample, Scenario};

/// Requests in a row whose median is judged.
const WINDOW: usize = 20;

/// What is normal: up to so much of the median before the burst.
const NORMAL: f64 = 1.1;

/// From the end of each burst of the scenario until the median time to first output of the next 20 requests is within 10 % of
/// that before the burst, seconds, as a mean over bursts, and how many were felt to the end of the run. Who is not served
/// waits for ever.
pub(super) fn calm(run: &Run, scenario: &Scenario) -> (Option<f64>, usize) {
    let bursts = scenario.arrivals.iter().flat_map(|arrivals| &arrivals.bursts);
    let over = bursts.filter(|burst| burst.factor > 1.0 && burst.at_s + burst.for_s < scenario.length_s);
    let between = |from: f64, until: f64| {
        let at = |sample: &Sample| sample.at.as_secs_f64();
        let first = run.samples.partition_point(|sample| at(sample) < from);
        &run.samples[first..run.samples.partition_point(|sample| at(sample) < until).max(first)]
    };
    let (mut sum, mut calmed, mut felt) = (0.0, 0_u32, 0);
    for burst in over {
        let Some(before) = median(between(scenario.warm_up_s, burst.at_s)).filter(|before| *before < Duration::MAX)
        else {
            continue;
        };
        let end = burst.at_s + burst.for_s;
        let limit = before.mul_f64(NORMAL);
        let mut windows = between(end, f64::INFINITY).windows(WINDOW);
        match windows.find(|window| median(window).is_some_and(|median| median <= limit)) {
            Some(window) => (sum, calmed) = (sum + window[0].at.as_secs_f64() - end, calmed + 1),
            None => felt += 1,
        }
    }
    ((calmed > 0).then(|| sum / f64::from(calmed)), felt)
}

fn median(samples: &[Sample]) -> Option<Duration> {
    let wait = |sample: &Sample| match (sample.ending, sample.first_output) {
        (Ending::Served, Some(output)) => output.saturating_sub(sample.at),
        _ => Duration::MAX,
    };
    let mut sorted: Vec<_> = samples.iter().map(wait).collect();
    sorted.sort_unstable();
    nearest_rank(&sorted, 50, 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two requests a second for ten minutes, with a burst from 100 s to 110 s that is felt as `slow` says.
    fn calmed(slow: impl Fn(f64) -> bool) -> (Option<f64>, usize) {
        let scenario = Scenario::from_toml(
            r#"
            name = "burst"
            length_s = 600.0
            arrivals = { rate = { kind = "constant", per_s = 2 }, bursts = [{ at_s = 100, for_s = 10, factor = 10 }] }
            mix = [{ model = "acme/swift-1", prompt_tokens = { kind = "fixed", tokens = 100 }, reply_tokens = { kind = "fixed", tokens = 10 } }]
            [world]
            accounts = [{ name = "a" }]
            keys = [{ label = "a-1", account = "a" }]
            models = [{ id = "acme/swift-1" }]
            "#,
        )
        .unwrap();
        let sample = |number: u64| {
            let at = Duration::from_millis(500 * number);
            let output = at + Duration::from_millis(if slow(at.as_secs_f64()) { 900 } else { 300 });
            Sample { at, first_output: Some(output), end: output, ending: Ending::Served, cost: 0.0 }
        };
        let run = Run {
            scenario: "burst".into(),
            stack: "s".into(),
            seed: 1,
            keys: vec!["a-1".into()],
            samples: (0..1200).map(sample).collect(),
            sent: Vec::new(),
            watched: Vec::new(),
            spent: 0.0,
        };
        calm(&run, &scenario)
    }

    #[test]
    fn a_burst_is_felt_until_half_of_the_next_are_as_fast_as_before() {
        assert_eq!(calmed(|at| (100.0..110.0).contains(&at)), (Some(0.0), 0));
        // ten of the twenty from 145 s on come after 150 s
        assert_eq!(calmed(|at| (100.0..150.0).contains(&at)), (Some(35.0), 0));
        assert_eq!(calmed(|at| at > 100.0), (None, 1));
    }
}
