//! When requests come.
//!
//! Clients do not agree with each other, so requests come as a Poisson process, whose rate may be constant, follow a table or
//! the time of day, and rise in bursts. Every rate is made piecewise constant, which lets arrivals be drawn exactly: unit
//! exponentials, laid out along the sum of the rate.

use std::time::Duration;

use serde::Deserialize;

use super::ScenarioError;
use crate::simulator::draw;

/// The most requests of a run that are expected.
const MOST: f64 = 2_000_000.0;

/// In how many steps the time of day goes round.
const STEPS: u32 = 96;

/// When requests come, as the table `[arrivals]` has it.
///
/// ```toml
/// [arrivals]
/// rate = { kind = "constant", per_s = 10 }
/// bursts = [{ at_s = 300, for_s = 10, factor = 10 }]
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// How many come.
    pub rate: Rate,
    /// How far apart. Default Poisson.
    #[serde(default)]
    pub gaps: Gaps,
    /// When more of them come, or fewer. Default never.
    #[serde(default)]
    pub bursts: Vec<Burst>,
}

/// How many requests come, per second.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Rate {
    /// Always the same.
    Constant {
        /// Requests per second.
        per_s: f64,
    },
    /// One after the other, each for as long; after the last the first again.
    Steps {
        /// How long each lasts, seconds.
        every_s: f64,
        /// Requests per second.
        per_s: Vec<f64>,
    },
    /// Up and down as the day goes, a cosine.
    Diurnal {
        /// The least, requests per second.
        low_per_s: f64,
        /// The most, requests per second.
        high_per_s: f64,
        /// From one peak to the next, seconds.
        period_s: f64,
        /// The first peak, seconds from the start.
        peak_s: f64,
    },
    /// Those of a recorded trace, which tells sizes too; see [`Scenario::with_trace`](super::Scenario::with_trace).
    Trace {
        /// The file, from where the scenario's file is.
        file: String,
    },
}

/// How far apart requests come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gaps {
    /// As independent clients send them: a Poisson process.
    #[default]
    Poisson,
    /// Evenly, as from one clock.
    Even,
}

/// A while in which the rate is another.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Its beginning, seconds from the start.
    pub at_s: f64,
    /// How long it lasts, seconds.
    pub for_s: f64,
    /// The rate is multiplied by this, and by those of all bursts of the same time.
    pub factor: f64,
}

impl Arrivals {
    pub(super) fn validate(&self, length_s: f64) -> Result<(), ScenarioError> {
        match &self.rate {
            Rate::Constant { per_s } => not_negative("arrivals.rate.per_s", *per_s)?,
            Rate::Steps { every_s, per_s } => {
                positive("arrivals.rate.every_s", *every_s)?;
                if per_s.is_empty() || length_s / every_s > 1e6 {
                    return Err(wrong("arrivals.rate.per_s", "must have between one and a million steps in the run"));
                }
                per_s.iter().try_for_each(|rate| not_negative("arrivals.rate.per_s", *rate))?;
            }
            Rate::Diurnal { low_per_s, high_per_s, period_s, peak_s } => {
                not_negative("arrivals.rate.low_per_s", *low_per_s)?;
                not_negative("arrivals.rate.high_per_s", high_per_s - low_per_s)
                    .map_err(|_| wrong("arrivals.rate.high_per_s", "must not be below low_per_s"))?;
                positive("arrivals.rate.period_s", *period_s)?;
                not_negative("arrivals.rate.peak_s", *peak_s)?;
                if length_s / period_s > 1e4 {
                    return Err(wrong("arrivals.rate.period_s", "must come at most ten thousand times in the run"));
                }
            }
            Rate::Trace { .. } => return Ok(()),
        }
        for (index, burst) in self.bursts.iter().enumerate() {
            not_negative(&format!("arrivals.bursts[{index}].at_s"), burst.at_s)?;
            positive(&format!("arrivals.bursts[{index}].for_s"), burst.for_s)?;
            not_negative(&format!("arrivals.bursts[{index}].factor"), burst.factor)?;
        }
        let expected: f64 = self.pieces(length_s).map(|piece| (piece.until - piece.from) * piece.rate).sum();
        if expected > MOST {
            return Err(wrong("arrivals", format!("{expected:.0} requests are more than the {MOST:.0} of one run")));
        }
        Ok(())
    }

    /// The instants at which requests come, in order.
    pub(super) fn draw(&self, seed: u64, length_s: f64) -> Vec<Duration> {
        let mut rng = draw::rng(seed, "arrivals", 0);
        let mut gap = || match self.gaps {
            Gaps::Poisson => -libm::log(1.0 - rng.f64()),
            Gaps::Even => 1.0,
        };
        let mut times = Vec::new();
        // how much of the rate's sum is left until the next one comes
        let mut left = if self.gaps == Gaps::Even { 0.5 } else { gap() };
        for Piece { from, until, rate } in self.pieces(length_s) {
            let mut at = from;
            while rate > 0.0 && left <= (until - at) * rate {
                at += left / rate;
                if at >= length_s {
                    break;
                }
                times.push(Duration::from_secs_f64(at));
                left = gap();
            }
            left = (left - (until - at) * rate).max(0.0);
        }
        times
    }

    /// The rate, piece by piece.
    fn pieces(&self, length_s: f64) -> impl Iterator<Item = Piece> {
        let step = match &self.rate {
            Rate::Constant { .. } | Rate::Trace { .. } => length_s,
            Rate::Steps { every_s, .. } => *every_s,
            Rate::Diurnal { period_s, .. } => period_s / f64::from(STEPS),
        };
        let (mut from, mut steps) = (0.0, 1_u32);
        std::iter::from_fn(move || {
            while f64::from(steps) * step <= from && from < length_s {
                steps += 1;
            }
            let edges = self.bursts.iter().flat_map(|burst| [burst.at_s, burst.at_s + burst.for_s]);
            let until = edges.filter(|edge| *edge > from).fold((f64::from(steps) * step).min(length_s), f64::min);
            let piece = Piece { from, until, rate: self.at(f64::midpoint(from, until)) };
            from = until;
            (piece.from < length_s).then_some(piece)
        })
    }

    /// The rate at one instant, of the piece in whose middle that is.
    fn at(&self, second: f64) -> f64 {
        let rate = match &self.rate {
            Rate::Constant { per_s } => *per_s,
            Rate::Steps { every_s, per_s } => per_s[(second / every_s) as usize % per_s.len()],
            Rate::Diurnal { low_per_s, high_per_s, period_s, peak_s } => {
                let turn = (second - peak_s) / period_s * std::f64::consts::TAU;
                low_per_s + (high_per_s - low_per_s) * f64::midpoint(libm::cos(turn), 1.0)
            }
            Rate::Trace { .. } => 0.0,
        };
        let now = |burst: &&Burst| (burst.at_s..burst.at_s + burst.for_s).contains(&second);
        rate * self.bursts.iter().filter(now).map(|burst| burst.factor).product::<f64>()
    }
}

/// A while with one rate.
struct Piece {
    from: f64,
    until: f64,
    rate: f64,
}

pub(super) fn wrong(field: &str, problem: impl std::fmt::Display) -> ScenarioError {
    ScenarioError(format!("{field}: {problem}"))
}

pub(super) fn not_negative(field: &str, value: f64) -> Result<(), ScenarioError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(wrong(field, format!("{value} is not a finite number from 0 up")))
}

pub(super) fn positive(field: &str, value: f64) -> Result<(), ScenarioError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(wrong(field, format!("{value} is not a finite number above 0")))
}

pub(super) fn part(field: &str, value: f64) -> Result<(), ScenarioError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(wrong(field, format!("{value} is not between 0 and 1")))
}
