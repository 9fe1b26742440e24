//! A comparison as JSON.
//!
//! The bytes are a promise: the same runs give the same file on any machine, so that a hash of it says whether anything
//! changed. So fields stand in a fixed order, numbers are as they were computed, and nothing tells of when or where it was.

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Comparison, METRICS, Spread, Standing};
use crate::lab::{Figures, figures::Trouble};

/// Counts up when a reader of the file would have to know.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct File<'a> {
    format: u32,
    scenarios: Vec<Scenario<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<Grid<'a>>,
}

#[derive(Serialize)]
struct Scenario<'a> {
    name: &'a str,
    about: &'a str,
    length_s: f64,
    warm_up_s: f64,
    keys: &'a [String],
    troubles: &'a [Trouble],
    stacks: Vec<Stack<'a>>,
}

/// In the order in which the stacks were named.
#[derive(Serialize)]
struct Stack<'a> {
    #[serde(flatten)]
    standing: &'a Standing,
    figures: Means<'a>,
    runs: Vec<Run<'a>>,
}

#[derive(Serialize)]
struct Run<'a> {
    seed: u64,
    #[serde(flatten)]
    figures: &'a Figures,
}

#[derive(Serialize)]
struct Grid<'a> {
    objective: &'a str,
    settings: Vec<(&'a str, &'a [String])>,
    best: Vec<Option<&'a str>>,
}

/// Spreads by the names of the figures.
struct Means<'a>(&'a [Option<Spread>]);

impl Serialize for Means<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(METRICS.len()))?;
        for (metric, spread) in METRICS.iter().zip(self.0) {
            map.serialize_entry(metric.id, spread)?;
        }
        map.end()
    }
}

pub(super) fn write(comparison: &Comparison) -> String {
    let all: Vec<_> = (0..comparison.scenarios.len()).map(|scenario| comparison.standings(scenario)).collect();
    let mut scenarios = Vec::with_capacity(all.len());
    for (index, (about, standings)) in comparison.scenarios.iter().zip(&all).enumerate() {
        let stacks = comparison.stacks.iter().filter_map(|(name, _)| {
            let standing = standings.iter().find(|standing| standing.stack == *name)?;
            let runs = comparison.cell(index, name)?.figures.iter().map(|(seed, figures)| Run { seed: *seed, figures });
            Some(Stack { standing, figures: Means(&standing.spreads), runs: runs.collect() })
        });
        scenarios.push(Scenario {
            name: &about.name,
            about: &about.about,
            length_s: about.length_s,
            warm_up_s: about.warm_up_s,
            keys: &about.keys,
            troubles: &about.troubles,
            stacks: stacks.collect(),
        });
    }
    let sweep = comparison.sweep.as_ref().map(|sweep| Grid {
        objective: sweep.objective().id,
        settings: sweep.settings().iter().map(|setting| (&*setting.name, &*setting.values)).collect(),
        best: (0..all.len()).map(|scenario| sweep.best(comparison, scenario).map(|(stack, _)| stack)).collect(),
    });
    let file = File { format: FORMAT, scenarios, sweep };
    let mut text = serde_json::to_string_pretty(&file).expect("names and numbers can be written");
    text.push('\n');
    text
}
