//! One stack under many settings: which value is best.

use super::{Better, Comparison, METRICS, Metric, Spread};

/// That the stacks of a comparison are one stack under many settings.
#[derive(Debug, Clone)]
pub struct Grid {
    objective: &'static Metric,
    settings: Vec<Setting>,
    /// For each stack by name, the place of its value in each setting.
    points: Vec<(String, Vec<usize>)>,
}

/// A setting and the values it takes in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, as `--sweep` has it.
    pub name: String,
    /// Its values, as `--sweep` has them.
    pub values: Vec<String>,
}

impl Grid {
    /// Over these settings, judged by `objective`. Each stack is told by name, with its value's place in each setting.
    pub fn new(
        objective: &'static Metric,
        settings: Vec<Setting>,
        points: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Self {
        Self { objective, settings, points: points.into_iter().collect() }
    }

    /// By what the settings are judged.
    pub fn objective(&self) -> &'static Metric {
        self.objective
    }

    /// The settings.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Every combination of values, by the places of the values, with the objective in a scenario where it has a value.
    pub(in crate::lab) fn values<'a>(
        &'a self,
        comparison: &'a Comparison,
        scenario: usize,
    ) -> impl Iterator<Item = (&'a [usize], Option<Spread>)> {
        let place = METRICS.iter().position(|metric| metric.id == self.objective.id);
        let standings = comparison.standings(scenario);
        self.points.iter().map(move |(name, places)| {
            let standing = standings.iter().find(|standing| standing.stack == *name);
            let spread = standing.and_then(|standing| standing.spreads[place?]);
            (&**places, spread)
        })
    }

    /// The best stack of the sweep in a scenario, by the objective's mean, and the objective; the first of equals.
    pub fn best(&self, comparison: &Comparison, scenario: usize) -> Option<(&str, Spread)> {
        let values: Vec<_> = self.values(comparison, scenario).map(|(_, value)| value).collect();
        let mut best: Option<(usize, Spread)> = None;
        for (index, value) in values.into_iter().enumerate() {
            let Some(value) = value else { continue };
            let better = |best: &Spread| match self.objective.better {
                Better::Higher => value.mean > best.mean,
                Better::Lower => value.mean < best.mean,
            };
            if best.as_ref().is_none_or(|(_, best)| better(best)) {
                best = Some((index, value));
            }
        }
        best.map(|(index, spread)| (&*self.points[index].0, spread))
    }
}
