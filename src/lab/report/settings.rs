//! A sweep: the objective over the values of the settings, with the best one marked.
//!
//! One setting gives bars, two give a map of cells, and any more a map for each combination of their values.

use std::collections::BTreeMap;

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    drawing::{Area, Failed, WIDTH, anchored, line, px, svg},
    html::figure,
    palette,
};
use crate::lab::{
    Comparison, Grid, Setting, Spread,
    written::{short, shortened},
};

/// The strongest colour a cell has, so that its number can be read on it.
const STRONGEST: f64 = 0.62;

type Cells = BTreeMap<(usize, usize), Option<Spread>>;

/// What the drawings of one scenario have in common.
struct Plan<'a> {
    title: String,
    unit: String,
    columns: &'a Setting,
    rows: Option<&'a Setting>,
    /// The least and the greatest mean of all drawings.
    range: (f64, f64),
    best: Option<f64>,
}

/// The charts of a sweep in a scenario.
pub(super) fn charts(comparison: &Comparison, sweep: &Grid, scenario: usize) -> String {
    let values: Vec<_> = sweep.values(comparison, scenario).collect();
    let means = || values.iter().filter_map(|(_, spread)| spread.map(|spread| spread.mean));
    let range = (means().fold(f64::INFINITY, f64::min), means().fold(f64::NEG_INFINITY, f64::max));
    let Some(columns) = sweep.settings().first().filter(|_| range.0 <= range.1) else { return String::new() };
    let best = sweep.best(comparison, scenario).map(|(_, spread)| spread.mean);
    let mut facets: BTreeMap<&[usize], Cells> = BTreeMap::new();
    for (places, spread) in &values {
        let row = places.get(1).copied().unwrap_or(0);
        facets.entry(places.get(2..).unwrap_or(&[])).or_default().insert((places[0], row), *spread);
    }
    let objective = sweep.objective();
    let unit = if objective.unit.is_empty() { String::new() } else { format!(", {}", objective.unit) };
    let draw = |(rest, cells): (&&[usize], &Cells)| {
        let fixed = sweep.settings().iter().skip(2).zip(rest.iter());
        let fixed = fixed.map(|(setting, place)| format!(", {} = {}", setting.name, setting.values[*place]));
        let title = format!("{}{}", objective.name, fixed.collect::<String>());
        let plan = Plan {
            title: format!("{}: {title}", comparison.scenarios[scenario].name),
            unit: format!("{}{unit}", objective.name),
            columns,
            rows: sweep.settings().get(1),
            range,
            best,
        };
        figure(&title, &if plan.rows.is_some() { map(&plan, cells) } else { bars(&plan, cells) })
    };
    facets.iter().map(draw).collect()
}

/// Left of the cells, and below them.
const MARGIN: (u32, u32) = (84, 46);

fn map(plan: &Plan<'_>, cells: &Cells) -> String {
    let rows = plan.rows.map_or(1, |rows| rows.values.len()) as u32;
    let height = rows * 30 + MARGIN.1 + 26;
    svg(&plan.title, height, |area| {
        let width = (WIDTH - MARGIN.0 - 10) / plan.columns.values.len().max(1) as u32;
        for ((column, row), spread) in cells {
            let (left, top) = (MARGIN.0 + *column as u32 * width, 24 + *row as u32 * 30);
            cell(area, plan, *spread, (left, top), (width, 30))?;
        }
        labels(area, plan, width, 24 + rows * 30)?;
        let names = plan.rows.map_or(&[][..], |rows| &rows.values);
        for (row, name) in names.iter().enumerate() {
            let at = (px(MARGIN.0 - 6) as i32, px(24 + row as u32 * 30 + 15) as i32);
            area.draw(&Text::new(shortened(name, 12), at, anchored(11, palette::FAINT, HPos::Right)))?;
        }
        let name = plan.rows.map_or("", |rows| &rows.name);
        let (least, most) = plan.range;
        let over =
            format!("{} · {}: {} (pale) to {}", shortened(name, 20), plan.unit, short(Some(least)), short(Some(most)));
        area.draw(&Text::new(over, (px(6) as i32, px(11) as i32), anchored(11, palette::INK, HPos::Left)))
    })
}

fn cell(
    area: &Area<'_>,
    plan: &Plan<'_>,
    spread: Option<Spread>,
    (left, top): (u32, u32),
    (width, height): (u32, u32),
) -> Result<(), Failed> {
    let corners = |inset: u32| {
        let (right, bottom) = (px(left + width) - inset, px(top + height) - inset);
        [((px(left) + inset) as i32, (px(top) + inset) as i32), (right as i32, bottom as i32)]
    };
    let Some(mean) = spread.map(|spread| spread.mean) else {
        return area.draw(&Rectangle::new(corners(2), line(palette::GRID, 4)));
    };
    let strength = 0.06 + plan.place(mean) * (STRONGEST - 0.06);
    area.draw(&Rectangle::new(corners(2), palette::VALUE.color().mix(strength).filled()))?;
    if plan.best == Some(mean) {
        area.draw(&PathElement::new(outline(corners(5)), line(palette::INK, 8)))?;
    }
    let middle = (px(left + width / 2) as i32, px(top + height / 2) as i32);
    let size = if width < 34 { 9 } else { 11 };
    // where a number has no room, the colour has to do
    if width < 24 {
        return Ok(());
    }
    area.draw(&Text::new(short(Some(mean)), middle, anchored(size, palette::INK, HPos::Center)))
}

fn outline([(left, top), (right, bottom)]: [(i32, i32); 2]) -> Vec<(i32, i32)> {
    vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
}

fn bars(plan: &Plan<'_>, cells: &Cells) -> String {
    const HEIGHT: u32 = 150;
    svg(&plan.title, HEIGHT + MARGIN.1 + 40, |area| {
        let width = (WIDTH - MARGIN.0 - 10) / plan.columns.values.len().max(1) as u32;
        let highest = cells.values().flatten().map(|spread| spread.mean + spread.sd.unwrap_or(0.0)).fold(0.0, f64::max);
        let floor = 40 + HEIGHT;
        let height =
            |value: f64| px(floor) as i32 - (value.max(0.0) / highest.max(1e-12) * f64::from(px(HEIGHT))) as i32;
        for ((column, _), spread) in cells {
            let Some(Spread { mean, sd, .. }) = *spread else { continue };
            let (left, middle) =
                (MARGIN.0 + *column as u32 * width, px(MARGIN.0 + *column as u32 * width + width / 2) as i32);
            let corners = [(px(left + 2) as i32, height(mean)), (px(left + width - 2) as i32, px(floor) as i32)];
            area.draw(&Rectangle::new(corners, palette::VALUE.color().mix(STRONGEST).filled()))?;
            if plan.best == Some(mean) {
                area.draw(&PathElement::new(outline(corners), line(palette::INK, 8)))?;
            }
            let spread = sd.unwrap_or(0.0);
            let whisker = vec![(middle, height(mean - spread)), (middle, height(mean + spread))];
            area.draw(&PathElement::new(whisker, line(palette::INK, 5)))?;
            let above = (middle, height(mean + spread) - px(8) as i32);
            area.draw(&Text::new(short(Some(mean)), above, anchored(11, palette::INK, HPos::Center)))?;
        }
        let axis = vec![(px(MARGIN.0) as i32, px(floor) as i32), (px(WIDTH - 10) as i32, px(floor) as i32)];
        area.draw(&PathElement::new(axis, line(palette::FAINT, 3)))?;
        labels(area, plan, width, floor)?;
        let over = format!("{} (± standard deviation over seeds)", plan.unit);
        area.draw(&Text::new(over, (px(6) as i32, px(11) as i32), anchored(11, palette::INK, HPos::Left)))
    })
}

/// The values of the setting along the horizontal axis, and its name.
fn labels(area: &Area<'_>, plan: &Plan<'_>, width: u32, floor: u32) -> Result<(), Failed> {
    // a label takes six pixels a character, or so
    let longest = plan.columns.values.iter().map(|value| value.chars().count()).max().unwrap_or(1).min(12) as u32;
    let every = (longest * 6 + 6).div_ceil(width.max(1)).max(1) as usize;
    for (column, value) in plan.columns.values.iter().enumerate().step_by(every) {
        let at = (px(MARGIN.0 + column as u32 * width + width / 2) as i32, px(floor + 10) as i32);
        area.draw(&Text::new(shortened(value, 12), at, anchored(11, palette::FAINT, HPos::Center)))?;
    }
    let middle = (px((MARGIN.0 + WIDTH - 10) / 2) as i32, px(floor + 30) as i32);
    area.draw(&Text::new(plan.columns.name.clone(), middle, anchored(11, palette::INK, HPos::Center)))
}

impl Plan<'_> {
    /// Where a value lies between the least and the greatest, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let (least, most) = self.range;
        if most > least { (value - least) / (most - least) } else { 0.5 }
    }
}
