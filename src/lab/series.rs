//! What of a run is drawn: how things went over time.

use super::{Ending, Run, Scenario, WatchedKey, figures::nearest_rank};

/// Into how many parts a run's length is cut, at least and at most.
const PARTS: (usize, usize) = (12, 60);

/// Each part should have so many requests, or a rate is more chance than fact.
const ENOUGH: usize = 30;

/// In how many steps a distribution is drawn.
const STEPS: usize = 200;

/// How a run went over time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// Requests that came, per second, in each part of the length.
    pub(super) offered: Vec<f64>,
    /// Those of them that were served, per second.
    pub(super) served: Vec<f64>,
    /// Attempts per second for each key, in each part.
    pub(super) traffic: Vec<Vec<f64>>,
    /// When each key was out of use by the stack's own decision.
    pub(super) bands: Vec<Vec<Band>>,
    /// Seconds since the start, and how many waited then; empty for a stack that cannot be watched.
    pub(super) waiting: Vec<(f64, usize)>,
    /// Seconds to the first output, and the part of all offered that had it by then, warm-up left out.
    pub(super) first_output: Vec<(f64, f64)>,
}

/// A time in which a key was out of use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Band {
    pub(super) from_s: f64,
    pub(super) until_s: f64,
    pub(super) why: Why,
}

/// Why a key was out of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It rested, or its account did.
    Rests,
    /// Its breaker was open or half-open.
    Open,
}

impl Series {
    pub(super) fn of(run: &Run, scenario: &Scenario) -> Self {
        let (length_s, parts) = (scenario.length_s, (run.samples.len() / ENOUGH).clamp(PARTS.0, PARTS.1));
        let arrivals = run.samples.iter().map(|sample| sample.at.as_secs_f64());
        let served = run.samples.iter().filter(|sample| sample.ending == Ending::Served);
        let asked = || run.sent.iter().filter(|sent| sent.request.is_some());
        let traffic = |key| asked().filter(move |sent| sent.key == Some(key)).map(|sent| sent.at.as_secs_f64());
        Self {
            offered: rate(arrivals, length_s, parts),
            served: rate(served.map(|sample| sample.at.as_secs_f64()), length_s, parts),
            traffic: (0..run.keys.len()).map(|key| rate(traffic(key), length_s, parts)).collect(),
            bands: (0..run.keys.len()).map(|key| bands(run, key)).collect(),
            waiting: run.watched.iter().map(|seen| (seen.at.as_secs_f64(), seen.waiting)).collect(),
            first_output: first_output(run, scenario),
        }
    }
}

/// Events per second in each part; those after the length, when the last requests end, are left out.
fn rate(times: impl Iterator<Item = f64>, length_s: f64, parts: usize) -> Vec<f64> {
    let part_s = length_s / parts as f64;
    let mut counts = vec![0_u32; parts];
    for at in times {
        if let Some(count) = counts.get_mut((at / part_s) as usize) {
            *count += 1;
        }
    }
    counts.into_iter().map(|count| f64::from(count) / part_s).collect()
}

/// A state seen at one instant is taken to have been there since the one before.
fn bands(run: &Run, key: usize) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    let mut before = 0.0;
    for seen in &run.watched {
        let at = seen.at.as_secs_f64();
        if let Some(why) = seen.keys.get(key).and_then(out_of_use) {
            match bands.last_mut() {
                Some(band) if band.until_s == before && band.why == why => band.until_s = at,
                _ => bands.push(Band { from_s: before, until_s: at, why }),
            }
        }
        before = at;
    }
    bands
}

/// An open breaker is told where both are: a rest ends by itself.
fn out_of_use(key: &WatchedKey) -> Option<Why> {
    if key.open {
        Some(Why::Open)
    } else if key.rests {
        Some(Why::Rests)
    } else {
        None
    }
}

fn first_output(run: &Run, scenario: &Scenario) -> Vec<(f64, f64)> {
    let counted = run.samples.iter().filter(|sample| sample.at.as_secs_f64() >= scenario.warm_up_s);
    let offered = counted.clone().count();
    let served = counted.filter(|sample| sample.ending == Ending::Served);
    let mut sorted: Vec<_> = served.filter_map(|sample| Some(sample.first_output?.saturating_sub(sample.at))).collect();
    sorted.sort_unstable();
    let part = |step: usize| step as f64 / STEPS as f64 * sorted.len() as f64 / offered as f64;
    let steps = (0..=STEPS).filter_map(|step| Some((nearest_rank(&sorted, step, STEPS)?.as_secs_f64(), part(step))));
    steps.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lab::{Sample, Watched};

    #[test]
    fn events_after_the_length_are_in_no_part() {
        let rates = rate([0.0, 0.5, 1.0, 59.9, 60.0, 75.0].into_iter(), 60.0, 60);
        assert_eq!((rates.len(), rates[0], rates[1], rates[59]), (60, 2.0, 1.0, 1.0));
        assert_eq!(rates.iter().sum::<f64>(), 4.0);
    }

    fn run(samples: Vec<Sample>, watched: Vec<Watched>) -> Run {
        Run {
            scenario: "s".into(),
            stack: "t".into(),
            seed: 1,
            keys: vec!["a-1".into()],
            samples,
            sent: Vec::new(),
            watched,
            spent: 0.0,
        }
    }

    #[test]
    fn looks_in_a_row_that_see_the_same_are_one_band() {
        let looks = [
            (1, false, false),
            (2, true, false),
            (3, true, false),
            (4, true, true),
            (5, false, false),
            (6, true, false),
        ];
        let look = |(at, rests, open)| Watched {
            at: Duration::from_secs(at),
            waiting: 0,
            keys: vec![WatchedKey { in_flight: 0, rests, open }],
        };
        let band = |from_s, until_s, why| Band { from_s, until_s, why };
        let expected = [band(1.0, 3.0, Why::Rests), band(3.0, 4.0, Why::Open), band(5.0, 6.0, Why::Rests)];
        assert_eq!(bands(&run(Vec::new(), looks.map(look).into()), 0), expected);
    }

    #[test]
    fn the_distribution_of_the_first_output_ends_at_the_part_that_was_served() {
        let sample = |at, output: Option<u64>| Sample {
            at: Duration::from_secs(at),
            first_output: output.map(|seconds| Duration::from_secs(at + seconds)),
            end: Duration::from_secs(at + 9),
            ending: if output.is_some() { Ending::Served } else { Ending::Failed(429) },
            cost: 0.0,
        };
        let scenario = "name = \"s\"\nlength_s = 60.0\nwarm_up_s = 5.0\n[world]";
        let samples =
            vec![sample(0, Some(8)), sample(10, Some(1)), sample(11, None), sample(12, Some(3)), sample(13, Some(2))];
        let points = first_output(&run(samples, Vec::new()), &Scenario::from_toml(scenario).unwrap());
        assert_eq!((points.first(), points.last()), (Some(&(1.0, 0.0)), Some(&(3.0, 0.75))));
    }
}
