//! Which stacks are drawn, and in which colour: the same one in every chart.

use super::{
    html::escaped,
    palette::{self, Role},
};
use crate::lab::{Comparison, compare::ORACLE, stacks};

/// More stacks than this are too many lines for one chart.
const MANY: usize = 12;

/// Then so many of each scenario are drawn, by rank, and the oracle.
const BEST: usize = 6;

/// The colours of the stacks that are drawn.
#[derive(Debug)]
pub(super) struct Looks<'a> {
    stacks: Vec<(&'a str, Role)>,
    /// For each scenario, the stacks to draw.
    drawn: Vec<Vec<&'a str>>,
    pub(super) all: bool,
}

impl<'a> Looks<'a> {
    pub(super) fn of(comparison: &'a Comparison) -> Self {
        let names = || comparison.stacks.iter().map(|(name, _)| &**name);
        let all = comparison.stacks.len() <= MANY;
        let drawn: Vec<Vec<&str>> = (0..comparison.scenarios.len())
            .map(|scenario| {
                let standings = comparison.standings(scenario);
                let standing = |name: &str| standings.iter().find(|standing| standing.stack == name);
                let rank = |name: &str| standing(name).map(|standing| standing.rank.is_none_or(|rank| rank <= BEST));
                names().filter(|name| rank(name).is_some_and(|best| all || best)).collect()
            })
            .collect();
        let stacks = names().filter(|name| drawn.iter().any(|drawn| drawn.contains(name)));
        Self { stacks: colored(stacks), drawn, all }
    }

    /// The stacks to draw in a scenario, the oracle beneath all others, in the order in which they were named.
    pub(super) fn in_scenario(&self, scenario: usize) -> Vec<(&'a str, Role)> {
        let (oracle, rivals): (Vec<_>, Vec<_>) = self
            .stacks
            .iter()
            .copied()
            .filter(|(name, _)| self.drawn[scenario].contains(name))
            .partition(|(name, _)| *name == ORACLE);
        oracle.into_iter().chain(rivals).collect()
    }

    /// A line in a stack's colour, where it has one.
    pub(super) fn swatch(&self, stack: &str) -> String {
        self.stacks.iter().find(|(name, _)| *name == stack).map(|(_, role)| sample(*role)).unwrap_or_default()
    }
}

/// The stacks that come with the lab have the same colour in every report; others have those that are left.
fn colored<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(&'a str, Role)> {
    let shipped: Vec<_> =
        stacks::all().iter().map(|stack| stack.name().to_owned()).filter(|name| name != ORACLE).collect();
    let names: Vec<_> = names.collect();
    let place = |name: &str| shipped.iter().position(|shipped| shipped == name);
    let taken: Vec<_> = names.iter().filter_map(|name| place(name)).collect();
    let mut left = (0..palette::SLOTS).filter(|slot| !taken.contains(slot)).cycle();
    let mut role = |name: &str| match place(name) {
        _ if name == ORACLE => palette::stack(None),
        Some(slot) => palette::stack(Some(slot)),
        None => palette::stack(left.next()),
    };
    names.iter().map(|name| (*name, role(name))).collect()
}

/// A line as charts have it.
fn sample(role: Role) -> String {
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 112 32\" aria-hidden=\"true\"><line x1=\"0\" y1=\"16\" x2=\"112\" y2=\"16\" stroke=\"{}\" stroke-width=\"10\"/></svg>",
        role.hex()
    )
}

/// A filled field as charts have it.
fn field(role: Role, opacity: f64) -> String {
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 112 32\" aria-hidden=\"true\"><rect width=\"112\" height=\"32\" fill=\"{}\" opacity=\"{opacity}\"/></svg>",
        role.hex()
    )
}

/// What the lines of a scenario's charts are.
pub(super) fn lines(stacks: &[(&str, Role)]) -> String {
    let stack = |(name, role): &(&str, Role)| format!("<li>{}{}</li>", sample(*role), escaped(name));
    let offered = format!("<li>{}offered</li>", field(palette::OFFERED, super::over_time::SHADE));
    let items: String = stacks.iter().map(stack).collect();
    format!("<ul class=\"legend\" aria-label=\"Legend\">{items}{offered}</ul>\n")
}

/// What the bands of a key are.
pub(super) fn bands() -> String {
    let item = |swatch: String, name: &str| format!("<li>{swatch}{name}</li>");
    let items = [
        item(field(palette::OFFERED, 0.7), "attempts, in the stack’s colour"),
        item(field(palette::RESTS, super::keys::BAND), "the key rests"),
        item(field(palette::OPEN, super::keys::BAND), "its breaker is open or half-open"),
        item(sample(palette::TROUBLE), "the key is in trouble"),
    ];
    format!("<ul class=\"legend\" aria-label=\"Legend\">{}</ul>\n", items.concat())
}
