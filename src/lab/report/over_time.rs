//! Goodput and the depth of the waiting room over time, all stacks in one chart.

use plotters::prelude::*;

use super::{
    drawing::{Clock, Failed, line, mesh, px, svg, tick},
    palette::{self, Role},
};
use crate::lab::series::Series;

/// How opaque the field of what was offered is.
pub(super) const SHADE: f64 = 0.22;

const HEIGHT: u32 = 230;

/// Stacks with their colours and how they went.
pub(super) type Drawn<'a> = [(&'a str, Role, &'a Series)];

/// Served requests per second over time, by the time they came, before the field of what was offered.
pub(super) fn goodput(scenario: &str, length_s: f64, stacks: &Drawn<'_>) -> String {
    let clock = Clock::of(length_s);
    let points = |rates: &[f64]| -> Vec<_> {
        let part_s = length_s / rates.len().max(1) as f64;
        rates.iter().enumerate().map(|(part, rate)| (clock.at(part_s * (part as f64 + 0.5)), *rate)).collect()
    };
    let top = stacks.iter().flat_map(|(_, _, series)| &series.offered).copied().fold(0.0, f64::max);
    let lines: Vec<Line> = stacks.iter().map(|(_, role, series)| (*role, points(&series.served))).collect();
    let field = stacks.first().map(|(_, _, series)| points(&series.offered));
    let axes = Axes { length: clock.at(length_s), top, x: clock.name, y: "served, requests/s", y_tick: tick };
    svg(&format!("{scenario}: goodput over time"), HEIGHT, |area| draw(area, &axes, field, &lines))
}

/// How many requests wait for a key over time. Nothing where no stack can be watched.
pub(super) fn waiting(scenario: &str, length_s: f64, stacks: &Drawn<'_>) -> Option<String> {
    let clock = Clock::of(length_s);
    let watched = stacks.iter().filter(|(_, _, series)| !series.waiting.is_empty());
    let points = |series: &Series| series.waiting.iter().map(|(at, count)| (clock.at(*at), *count as f64)).collect();
    let lines: Vec<Line> = watched.map(|(_, role, series)| (*role, points(series))).collect();
    let top = lines.iter().flat_map(|(_, points)| points).map(|(_, count)| *count).fold(0.0, f64::max);
    let axes = Axes { length: clock.at(length_s), top, x: clock.name, y: "waiting for a key, requests", y_tick: whole };
    let title = format!("{scenario}: waiting-room depth over time");
    (!lines.is_empty()).then(|| svg(&title, HEIGHT, |area| draw(area, &axes, None, &lines)))
}

type Line = (Role, Vec<(f64, f64)>);

struct Axes {
    length: f64,
    top: f64,
    x: &'static str,
    y: &'static str,
    y_tick: fn(f64) -> String,
}

fn draw(
    area: &super::drawing::Area<'_>,
    axes: &Axes,
    field: Option<Vec<(f64, f64)>>,
    lines: &[Line],
) -> Result<(), Failed> {
    let top = if axes.top > 0.0 { axes.top * 1.08 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(px(6))
        .margin_right(px(12))
        .x_label_area_size(px(38))
        .y_label_area_size(px(48))
        .build_cartesian_2d(0.0..axes.length, 0.0..top)?;
    mesh(&mut chart, axes.x, axes.y, axes.y_tick)?;
    if let Some(points) = field
        && let (Some((first, _)), Some((last, _))) = (points.first(), points.last())
    {
        let outline: Vec<_> = [(*first, 0.0)].into_iter().chain(points.iter().copied()).chain([(*last, 0.0)]).collect();
        chart.draw_series([Polygon::new(outline, palette::OFFERED.color().mix(SHADE))])?;
    }
    for (role, points) in lines {
        chart.draw_series([PathElement::new(points.clone(), line(*role, 7))])?;
    }
    Ok(())
}

/// A count at a tick; nothing between counts.
fn whole(value: f64) -> String {
    if value.fract() == 0.0 { tick(value) } else { String::new() }
}
