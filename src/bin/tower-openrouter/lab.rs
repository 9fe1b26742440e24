//! `tower-openrouter lab`: stacks of policies compared on a simulated upstream, in virtual time.

mod choose;
mod progress;

use std::{error::Error, fs, num::NonZeroUsize, path::PathBuf, thread, time::Instant};

use clap::{Args, value_parser};
use tower_openrouter::lab::{Comparison, Digest, Grid, METRICS, Matrix, Metric, Scenario, stacks};

use self::{
    choose::{Stacks, choose_scenarios, choose_stacks},
    progress::Progress,
};

/// Compare stacks of policies on a simulated upstream: an hour of traffic in seconds, the same to the byte each time.
///
/// Without options every shipped scenario is run with every shipped stack and one seed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tower-openrouter lab --list\n  \
    tower-openrouter lab --scenario quotas-1.5x --seeds 5 --html report.html\n  \
    tower-openrouter lab --stack mine.toml --stack default --stack oracle\n  \
    tower-openrouter lab --scenario dead-key --sweep breaker.failures=1..5 --sweep pace.learn=true,false")]
pub(crate) struct Arguments {
    /// A shipped scenario, a file of one's own, or all; may be given more than once.
    #[arg(long, value_name = "NAME|FILE|all")]
    scenario: Vec<String>,

    /// A shipped stack, a file of one's own, or all; may be given more than once.
    #[arg(long, value_name = "NAME|FILE|all")]
    stack: Vec<String>,

    /// How many seeds each stack meets in each scenario, from 1 on.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    seeds: u64,

    /// Write all figures as JSON; the same bytes for the same scenarios, stacks and seeds.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,

    /// Write the report, one HTML file that needs nothing else.
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,

    /// Recorded traffic in place of the scenario's: what `gateway --record` writes, or an Azure LLM inference trace (CSV).
    /// Without --scenario the world is that of azure-hour.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// How many runs at once; as many as there are cores unless given.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,

    /// A setting of the stack, and values to try: `breaker.failures=1..10`, `pace.learn=true,false`. More than one: all
    /// combinations.
    #[arg(long, value_name = "SETTING=VALUES")]
    sweep: Vec<String>,

    /// By which figure the best setting of a sweep is named.
    #[arg(long, value_name = "FIGURE", default_value = "goodput", value_parser = objective)]
    objective: &'static Metric,

    /// Name the shipped scenarios and stacks, and what they show.
    #[arg(long)]
    list: bool,
}

fn objective(name: &str) -> Result<&'static Metric, String> {
    Metric::named(name).ok_or_else(|| {
        let known: Vec<_> = METRICS.iter().map(|metric| metric.id).collect();
        format!("there is no such figure: choose one of {}", known.join(", "))
    })
}

/// Runs what was asked for, and prints and writes how it compares.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if arguments.list {
        list();
        return Ok(());
    }
    let scenarios = choose_scenarios(&arguments.scenario, arguments.trace.as_deref())?;
    let Stacks { stacks, sweep } = choose_stacks(&arguments.stack, &arguments.sweep)?;
    let mut comparison = Comparison::new(&scenarios, stacks.iter().map(|stack| &**stack));
    if let Some((settings, points)) = sweep {
        comparison = comparison.sweep(Grid::new(arguments.objective, settings, points));
    }
    let matrix = Matrix { scenarios: &scenarios, stacks: &stacks, seeds: arguments.seeds };
    let jobs = match arguments.jobs {
        Some(jobs) => jobs,
        None => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let (begun, progress) = (Instant::now(), Progress::new(matrix.len()));
    let told = matrix.run(jobs, |done, run| {
        progress.done(done, &run);
        if let Some(scenario) = scenarios.iter().find(|scenario| scenario.name == run.scenario) {
            comparison.add(Digest::of(&run, scenario));
        }
    });
    progress.end();
    told.map_err(|error| error.to_string())?;
    print!("{}", comparison.table());
    println!("{} runs in {:.1} s, {jobs} at once", matrix.len(), begun.elapsed().as_secs_f64());
    for (path, text) in [(&arguments.json, Comparison::json as fn(&_) -> _), (&arguments.html, Comparison::html)] {
        if let Some(path) = path {
            fs::write(path, text(&comparison)).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            println!("{} written", path.display());
        }
    }
    Ok(())
}

fn list() {
    let scenarios = Scenario::shipped();
    println!("scenarios:");
    for scenario in &scenarios {
        println!("  {:<22} {}", scenario.name, scenario.about);
    }
    println!("stacks:");
    for stack in stacks::all() {
        println!("  {:<22} {}", stack.name(), stack.about());
    }
}
