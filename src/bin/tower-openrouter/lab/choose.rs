//! Which scenarios and stacks: by name, from a file, or all.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use tower_openrouter::lab::{
    Scenario, Setting, Stack, Sweep,
    stacks::{self, Composed},
    sweep::{Swept, product},
    trace::Trace,
};

/// The world in which recorded traffic is replayed unless another is asked for.
const REPLAYED_IN: &str = "azure-hour";

/// What is compared.
pub(super) struct Stacks {
    pub(super) stacks: Vec<Box<dyn Stack>>,
    /// The settings of a sweep, and which of their values each stack has.
    pub(super) sweep: Option<(Vec<Setting>, Points)>,
}

/// For each stack by name, the place of its value in each setting.
type Points = Vec<(String, Vec<usize>)>;

/// A name, or a file.
enum Named<'a> {
    Name(&'a str),
    File(PathBuf),
}

/// What ends in `.toml`, or is a path, is a file.
fn named(text: &str) -> Named<'_> {
    let path = Path::new(text);
    let is_file = path.extension().is_some_and(|extension| extension == "toml") || path.components().count() > 1;
    if is_file { Named::File(path.to_owned()) } else { Named::Name(text) }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The scenarios asked for, each once; with recorded traffic in place of their own where there is some.
pub(super) fn choose_scenarios(asked: &[String], recorded: Option<&Path>) -> Result<Vec<Scenario>, Box<dyn Error>> {
    let shipped = Scenario::shipped();
    let mut chosen = Vec::new();
    for text in asked {
        match named(text) {
            Named::Name("all") => chosen.extend(shipped.iter().cloned()),
            Named::Name(name) => {
                let found = shipped.iter().find(|scenario| scenario.name == name);
                chosen.push(
                    found.ok_or_else(|| unknown("scenario", name, shipped.iter().map(|one| &*one.name)))?.clone(),
                );
            }
            Named::File(path) => chosen.push(Scenario::open(path)?),
        }
    }
    if chosen.is_empty() {
        let all = |scenario: &&Scenario| recorded.is_none() || scenario.name == REPLAYED_IN;
        chosen.extend(shipped.iter().filter(all).cloned());
    }
    let mut names = BTreeSet::new();
    chosen.retain(|scenario| names.insert(scenario.name.clone()));
    let Some(path) = recorded else { return Ok(chosen) };
    let trace = Trace::open(path)?;
    Ok(chosen.into_iter().map(|scenario| scenario.with_trace(trace.clone())).collect::<Result<_, _>>()?)
}

/// The stacks asked for, each once; or one under all settings of the sweeps.
pub(super) fn choose_stacks(asked: &[String], sweeps: &[String]) -> Result<Stacks, Box<dyn Error>> {
    if !sweeps.is_empty() {
        return swept(asked, sweeps);
    }
    let mut chosen: Vec<Box<dyn Stack>> = Vec::new();
    for text in asked {
        match named(text) {
            Named::Name("all") => chosen.extend(stacks::all()),
            Named::Name(name) => {
                let all = stacks::all();
                let names: Vec<_> = all.iter().map(|stack| stack.name().to_owned()).collect();
                let found = all.into_iter().find(|stack| stack.name() == name);
                chosen.push(found.ok_or_else(|| unknown("stack", name, names.iter().map(|name| &**name)))?);
            }
            Named::File(path) => chosen.push(Box::new(composed(&path)?)),
        }
    }
    if chosen.is_empty() {
        chosen = stacks::all();
    }
    let mut names = BTreeSet::new();
    chosen.retain(|stack| names.insert(stack.name().to_owned()));
    Ok(Stacks { stacks: chosen, sweep: None })
}

fn composed(path: &Path) -> Result<Composed, Box<dyn Error>> {
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    Ok(Composed::from_toml(&name, &read(path)?).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// The default stack, or that of one file, with every combination of the values.
fn swept(asked: &[String], sweeps: &[String]) -> Result<Stacks, Box<dyn Error>> {
    let base = match asked {
        [] => Composed::from_toml("default", "")?,
        [one] => match named(one) {
            Named::Name("default") => Composed::from_toml("default", "")?,
            Named::File(path) => composed(&path)?,
            Named::Name(name) => {
                return Err(format!("{name} has no settings to sweep: --stack is default or a file then").into());
            }
        },
        _ => return Err("a sweep is over the settings of one stack: give --stack once".into()),
    };
    let sweeps = sweeps.iter().map(|text| text.parse()).collect::<Result<Vec<Sweep>, _>>()?;
    let settings = sweeps
        .iter()
        .map(|sweep| Setting { name: sweep.setting().to_owned(), values: sweep.values().to_vec() })
        .collect();
    let (mut stacks, mut points) = (Vec::<Box<dyn Stack>>::new(), Vec::new());
    for Swept { values, stack } in product(&base, &sweeps)? {
        let places =
            sweeps.iter().zip(&values).map(|(sweep, value)| sweep.values().iter().position(|one| one == value));
        points.push((stack.name().to_owned(), places.map(Option::unwrap_or_default).collect()));
        stacks.push(Box::new(stack));
    }
    Ok(Stacks { stacks, sweep: Some((settings, points)) })
}

fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.collect();
    format!("there is no {kind} {name}: name one of {}, or a .toml file", known.join(", "))
}
