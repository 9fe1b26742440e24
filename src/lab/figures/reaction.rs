//! How fast a stack sees that a key gives nothing, and that it gives again.
//!
//! Every policy tries a lost key now and then, and any share of traffic is uneven for a while by chance. So traffic is
//! judged over the time in which the key's fair share comes to [`WINDOW`] requests, by the arrivals of clients, whatever the
//! stack makes of them: long enough to tell, and the same for all stacks.

use serde::Serialize;

use super::{Trouble, fair};
use crate::lab::{Run, Scenario};

/// Requests of a key's fair share, over which its traffic is judged.
const WINDOW: f64 = 10.0;

/// A key has stopped getting traffic when it gets no more attempts than this in a window, a tenth of its share.
const STOPPED: usize = 1;

/// A key's traffic is back when this many succeed in a window, 90 % of its share.
const BACK: usize = 9;

/// How fast troubles of single keys were seen, and forgotten, as means over keys in trouble; see [`Scenario::troubles`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Reaction {
    /// From the beginning of a trouble to the last attempt before the key got no more than a tenth of its fair share, seconds.
    pub detect_s: Option<f64>,
    /// Attempts made in that time.
    pub detect_attempts: Option<f64>,
    /// How many keys in trouble went on to get more than that to the trouble's end.
    pub undetected: usize,
    /// From the end of a trouble until 90 % of the key's fair share are served on it again, seconds.
    pub recover_s: Option<f64>,
    /// How many keys did not get there before the run's end.
    pub unrecovered: usize,
}

impl Reaction {
    pub(super) fn of(run: &Run, scenario: &Scenario) -> Self {
        let troubles = scenario.troubles();
        if troubles.is_empty() {
            return Self::default();
        }
        let seen = Seen::of(run, scenario);
        let (mut detected, mut recovered) = (Vec::new(), Vec::new());
        for trouble in &troubles {
            detected.extend(seen.detection(trouble, scenario.length_s));
            recovered.extend(seen.recovery(trouble));
        }
        let found: Vec<_> = detected.iter().flatten().collect();
        let back: Vec<_> = recovered.iter().flatten().collect();
        Self {
            detect_s: mean(found.iter().map(|(seconds, _)| *seconds)),
            detect_attempts: mean(found.iter().map(|(_, attempts)| *attempts as f64)),
            undetected: detected.len() - found.len(),
            recover_s: mean(back.iter().map(|seconds| **seconds)),
            unrecovered: recovered.len() - back.len(),
        }
    }
}

/// When what came, seconds since the start, in order.
struct Seen {
    arrivals: Vec<f64>,
    /// For each key, how many arrivals make its window.
    windows: Vec<Option<usize>>,
    attempts: Vec<Vec<f64>>,
    successes: Vec<Vec<f64>>,
}

impl Seen {
    fn of(run: &Run, scenario: &Scenario) -> Self {
        let arrivals: Vec<_> = run.samples.iter().map(|sample| sample.at.as_secs_f64()).collect();
        let total = arrivals.len() as f64;
        let windows = fair::shares(scenario, total, scenario.length_s).into_iter();
        let windows = windows.map(|share| (share > 0.0).then(|| (WINDOW * total / share).ceil() as usize));
        let mut attempts = vec![Vec::new(); run.keys.len()];
        let mut successes = attempts.clone();
        for sent in run.sent.iter().filter(|sent| sent.request.is_some()) {
            let Some(key) = sent.key else { continue };
            attempts[key].push(sent.at.as_secs_f64());
            if sent.status == Some(200) {
                successes[key].push(sent.at.as_secs_f64());
            }
        }
        Self { arrivals, windows: windows.collect(), attempts, successes }
    }

    /// The end of the key's window that begins at `from`, if it lies within the run.
    fn window_end(&self, key: usize, from: f64) -> Option<f64> {
        let before = self.arrivals.partition_point(|at| *at <= from);
        self.arrivals.get(before + self.windows[key]? - 1).copied()
    }

    /// After how many seconds and attempts the key stopped getting traffic, or that it did not; nothing if it was never tried.
    fn detection(&self, trouble: &Trouble, length_s: f64) -> Option<Option<(f64, usize)>> {
        let until = trouble.until_s.unwrap_or(length_s);
        let attempts = between(&self.attempts[trouble.key], trouble.from_s, until);
        let stopped = |(index, at): (usize, &f64)| {
            let end = self.window_end(trouble.key, *at).filter(|end| *end <= until)?;
            let later = attempts[index + 1..].partition_point(|at| *at <= end);
            (later <= STOPPED).then_some((at - trouble.from_s, index + 1))
        };
        (!attempts.is_empty()).then(|| attempts.iter().enumerate().find_map(stopped))
    }

    /// After how many seconds the key's traffic was back, or that it was not; nothing if the trouble stays.
    fn recovery(&self, trouble: &Trouble) -> Option<Option<f64>> {
        let until = trouble.until_s?;
        let successes = between(&self.successes[trouble.key], until, f64::INFINITY);
        let back = |(index, at): (usize, &f64)| {
            let end = self.window_end(trouble.key, *at)?;
            let count = successes[index..].partition_point(|at| *at <= end);
            (count >= BACK).then_some(at - until)
        };
        Some(successes.iter().enumerate().find_map(back))
    }
}

fn between(sorted: &[f64], from: f64, until: f64) -> &[f64] {
    &sorted[sorted.partition_point(|at| *at < from)..sorted.partition_point(|at| *at < until)]
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lab::{Ending, Sample, Sent};

    /// Two keys are asked in turn, twice a second for ten minutes. The first is lost from 100 s to 200 s.
    fn scenario() -> Scenario {
        Scenario::from_toml(
            r#"
            name = "one-of-two"
            length_s = 600.0
            [world]
            accounts = [{ name = "a" }]
            keys = [{ label = "a-1", account = "a" }, { label = "a-2", account = "a" }]
            faults = [{ at_s = 100.0, for_s = 100.0, key = "a-1", what = { kind = "reset" } }]
            "#,
        )
        .unwrap()
    }

    /// A stack that asks the first key in turn but where `spares` says so.
    fn run(spares: impl Fn(f64) -> bool) -> Run {
        let sample = |number: u64| {
            let at = Duration::from_millis(500 * number);
            Sample { at, first_output: Some(at), end: at, ending: Ending::Served, cost: 0.0 }
        };
        let samples: Vec<_> = (0..1200).map(sample).collect();
        let sent = samples.iter().enumerate().map(|(number, sample)| {
            let at = sample.at.as_secs_f64();
            let key = if number % 2 == 1 || spares(at) { 1 } else { 0 };
            let lost = key == 0 && (100.0..200.0).contains(&at);
            let status = if lost { 503 } else { 200 };
            Sent { request: Some(number), key: Some(key), at: sample.at, answered: None, status: Some(status) }
        });
        Run {
            scenario: "one-of-two".into(),
            stack: "s".into(),
            seed: 1,
            keys: vec!["a-1".into(), "a-2".into()],
            sent: sent.collect(),
            samples,
            watched: Vec::new(),
            spent: 0.0,
        }
    }

    #[test]
    fn a_key_is_seen_to_be_lost_with_its_last_attempt_but_one_and_to_be_back_with_its_first() {
        let reaction = Reaction::of(&run(|at| at > 104.0 && at < 230.0), &scenario());
        // one in a window is what a probe would be
        assert_eq!((reaction.detect_s, reaction.detect_attempts), (Some(3.0), Some(4.0)));
        assert_eq!((reaction.recover_s, reaction.undetected, reaction.unrecovered), (Some(30.0), 0, 0));
    }

    #[test]
    fn a_probe_now_and_then_is_no_traffic() {
        let reaction = Reaction::of(&run(|at| at > 104.0 && at < 230.0 && at % 15.0 != 0.0), &scenario());
        assert_eq!((reaction.detect_s, reaction.recover_s), (Some(4.0), Some(30.0)));
    }

    #[test]
    fn a_key_that_is_asked_as_before_is_not_seen_and_one_that_never_is_again_is_not_back() {
        let reaction = Reaction::of(&run(|_| false), &scenario());
        assert_eq!((reaction.detect_s, reaction.undetected, reaction.recover_s), (None, 1, Some(0.0)));
        let reaction = Reaction::of(&run(|at| at > 104.0), &scenario());
        assert_eq!((reaction.detect_s, reaction.recover_s, reaction.unrecovered), (Some(3.0), None, 1));
    }

    #[test]
    fn a_key_that_was_not_asked_has_nothing_to_be_seen() {
        let reaction = Reaction::of(&run(|at| at > 90.0 && at < 230.0), &scenario());
        assert_eq!((reaction.detect_s, reaction.undetected), (None, 0));
    }
}
