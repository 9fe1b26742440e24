//! Stacks set against each other: over scenarios and seeds, with what is chance told apart from what is not.
//!
//! One run says what happened once. Each stack therefore meets every scenario with several seeds, and all stacks meet the
//! same ones: the differences are taken seed by seed, so that what a seed makes of the traffic is not mistaken for what a
//! stack makes of it. [`Comparison`] takes runs one by one, in any order, as [`Digest`]s, which are small; what comes out
//! depends on neither the order nor the machine: scenarios and stacks stand as they were named, seeds by number.
//!
//! Ranked is by mean goodput, then by fewer upstream 429s per success, and, where these are equal, by the order in which the
//! stacks were named. The oracle is no rival but the mark, and stands without a rank. Means stand with the sample standard
//! deviation over seeds. For how differences are tested see [`Difference`].

mod json;
mod metric;
mod ranking;
mod statistics;
mod sweep;
mod table;

use std::collections::BTreeMap;

pub use metric::{Better, METRICS, Metric};
pub use ranking::{Difference, Standing};
pub use statistics::Spread;
pub use sweep::{Grid, Setting};

use super::{Figures, Run, Scenario, Stack, figures::Trouble, report, series::Series};

/// The stack that knows the quotas, and is the mark for all others.
pub(super) const ORACLE: &str = "oracle";

/// What a comparison keeps of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Digest {
    /// The scenario's name.
    pub scenario: String,
    /// The stack's name.
    pub stack: String,
    /// The seed.
    pub seed: u64,
    /// The figures.
    pub figures: Figures,
    series: Series,
}

impl Digest {
    /// What is kept of a run of this scenario.
    pub fn of(run: &Run, scenario: &Scenario) -> Self {
        Self {
            scenario: run.scenario.clone(),
            stack: run.stack.clone(),
            seed: run.seed,
            figures: Figures::of(run, scenario),
            series: Series::of(run, scenario),
        }
    }
}

/// Many runs, compared.
///
/// ```
/// use tower_openrouter::lab::{self, Comparison, Digest, Scenario, Stack, stacks::DefaultStack};
///
/// let scenario = Scenario::from_toml(
///     r#"
///     name = "two-keys"
///     length_s = 60.0
///     [world]
///     accounts = [{ name = "a" }]
///     keys = [{ label = "a-1", account = "a" }, { label = "a-2", account = "a" }]
///     models = [{ id = "acme/swift-1" }]
///     "#,
/// )?;
/// let mut comparison = Comparison::new([&scenario], [&DefaultStack as &dyn Stack]);
/// for seed in 1..=3 {
///     let run = lab::run(&scenario, &DefaultStack, seed)?;
///     comparison.add(Digest::of(&run, &scenario));
/// }
/// println!("{}", comparison.table());
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Comparison {
    pub(super) scenarios: Vec<About>,
    pub(super) stacks: Vec<(String, String)>,
    cells: BTreeMap<(usize, usize), Cell>,
    pub(super) sweep: Option<Grid>,
}

/// What a comparison knows of a scenario.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) length_s: f64,
    pub(super) warm_up_s: f64,
    pub(super) keys: Vec<String>,
    pub(super) troubles: Vec<Trouble>,
}

/// The runs of one stack in one scenario: the figures by seed, and how it went with the smallest one.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    pub(super) figures: BTreeMap<u64, Figures>,
    pub(super) series: Option<(u64, Series)>,
}

impl Comparison {
    /// Of these stacks in these scenarios; they stand in this order wherever rank does not decide.
    pub fn new<'a>(
        scenarios: impl IntoIterator<Item = &'a Scenario>,
        stacks: impl IntoIterator<Item = &'a dyn Stack>,
    ) -> Self {
        let about = |scenario: &Scenario| About {
            name: scenario.name.clone(),
            about: scenario.about.clone(),
            length_s: scenario.length_s,
            warm_up_s: scenario.warm_up_s,
            keys: scenario.world.keys.iter().map(|key| key.label.clone()).collect(),
            troubles: scenario.troubles(),
        };
        Self {
            scenarios: scenarios.into_iter().map(about).collect(),
            stacks: stacks.into_iter().map(|stack| (stack.name().to_owned(), stack.about().to_owned())).collect(),
            cells: BTreeMap::new(),
            sweep: None,
        }
    }

    /// Tells that the stacks are one stack under many settings.
    #[must_use]
    pub fn sweep(mut self, sweep: Grid) -> Self {
        self.sweep = Some(sweep);
        self
    }

    /// Adds a run. The same one twice counts once; one of a scenario or stack that was not named is left out.
    pub fn add(&mut self, digest: Digest) {
        let scenario = self.scenarios.iter().position(|scenario| scenario.name == digest.scenario);
        let stack = self.stacks.iter().position(|(name, _)| *name == digest.stack);
        let (Some(scenario), Some(stack)) = (scenario, stack) else { return };
        let cell = self.cells.entry((scenario, stack)).or_default();
        cell.figures.insert(digest.seed, digest.figures);
        if cell.series.as_ref().is_none_or(|(seed, _)| digest.seed < *seed) {
            cell.series = Some((digest.seed, digest.series));
        }
    }

    /// How the stacks stand in a scenario, by its place among those named: by rank, and last what has none.
    pub fn standings(&self, scenario: usize) -> Vec<Standing> {
        let cells = self.stacks.iter().enumerate().filter_map(|(stack, (name, _))| {
            let cell = self.cells.get(&(scenario, stack))?;
            Some((name.as_str(), &cell.figures))
        });
        ranking::rank(&cells.collect::<Vec<_>>())
    }

    /// A table for each scenario, for a terminal of 120 columns.
    pub fn table(&self) -> String {
        table::write(self)
    }

    /// Everything as JSON: the same bytes for the same runs.
    pub fn json(&self) -> String {
        json::write(self)
    }

    /// A report as one HTML file that needs nothing else.
    pub fn html(&self) -> String {
        report::html(self)
    }

    /// With how many seeds any pair ran at most.
    pub(super) fn seeds(&self) -> usize {
        self.cells.values().map(|cell| cell.figures.len()).max().unwrap_or(0)
    }

    pub(super) fn cell(&self, scenario: usize, stack: &str) -> Option<&Cell> {
        let stack = self.stacks.iter().position(|(name, _)| name == stack)?;
        self.cells.get(&(scenario, stack))
    }
}

impl Extend<Digest> for Comparison {
    fn extend<I: IntoIterator<Item = Digest>>(&mut self, digests: I) {
        digests.into_iter().for_each(|digest| self.add(digest));
    }
}
