//! What each key was asked over time under one stack, and when the stack held it back.
//!
//! One row for each key, so that cause and effect stand together: the trouble that befell it, the attempts that met it, the
//! rest or the open breaker that followed, and the traffic that came back. All rows, and those of the other stacks, have one
//! scale.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    drawing::{Clock, Failed, anchored, line, mesh_x, px, svg},
    palette::{self, Role},
};
use crate::lab::{
    compare::About,
    series::{Series, Why},
    written::{short, shortened},
};

/// How opaque a band is.
pub(super) const BAND: f64 = 0.55;

/// Rows of more keys than this get thinner.
const ROWS: usize = 12;

/// A stack's keys, each in a row whose height is `top` attempts per second.
pub(super) fn rows(about: &About, stack: &str, role: Role, series: &Series, top: f64) -> String {
    let keys = about.keys.len().max(1);
    let row = (24 * ROWS).div_ceil(keys).clamp(5, 24) as u32;
    let title = format!("{}: traffic per key under {stack}", about.name);
    svg(&title, keys as u32 * row + 50, |area| draw(area, about, role, series, top, row))
}

/// The most attempts per second of any key in any part, over all these, but no more than four times an even share of what was
/// offered: a storm of retries fills its rows, and the others can still be read.
pub(super) fn top<'a>(keys: usize, all: impl Iterator<Item = &'a Series>) -> f64 {
    let (mut most, mut offered) = (0.0_f64, 0.0_f64);
    for series in all {
        most = series.traffic.iter().flatten().copied().fold(most, f64::max);
        offered = series.offered.iter().copied().fold(offered, f64::max);
    }
    most.min(4.0 * offered / keys.max(1) as f64)
}

fn draw(
    area: &super::drawing::Area<'_>,
    about: &About,
    role: Role,
    series: &Series,
    top: f64,
    row: u32,
) -> Result<(), Failed> {
    let clock = Clock::of(about.length_s);
    let keys = about.keys.len();
    let mut chart = ChartBuilder::on(area)
        .margin(px(6))
        .margin_right(px(12))
        .x_label_area_size(px(38))
        .y_label_area_size(px(76))
        .build_cartesian_2d(0.0..clock.at(about.length_s), 0.0..keys as f64)?;
    mesh_x(&mut chart, &format!("{} · full height: {} attempts/s or more", clock.name, short(Some(top))))?;
    let height = if top > 0.0 { top } else { 1.0 };
    for (key, (traffic, bands)) in series.traffic.iter().zip(&series.bands).enumerate() {
        let floor = (keys - key) as f64 - 0.97;
        let ceiling = floor + 0.89;
        chart.draw_series(bands.iter().map(|band| {
            let role = match band.why {
                Why::Rests => palette::RESTS,
                Why::Open => palette::OPEN,
            };
            let corners = [(clock.at(band.from_s), ceiling), (clock.at(band.until_s), floor)];
            Rectangle::new(corners, role.color().mix(BAND).filled())
        }))?;
        let parts = traffic.len();
        let edge = |part: usize| clock.at(about.length_s * part as f64 / parts as f64);
        let level = |rate: f64| floor + (rate / height).min(1.0) * (ceiling - floor);
        let steps = traffic.iter().enumerate();
        let steps = steps.flat_map(|(part, rate)| [(edge(part), level(*rate)), (edge(part + 1), level(*rate))]);
        let outline = [(edge(0), floor)].into_iter().chain(steps).chain([(edge(parts), floor)]);
        chart.draw_series([Polygon::new(outline.collect::<Vec<_>>(), role.color().mix(0.85))])?;
        let troubles = about.troubles.iter().filter(|trouble| trouble.key == key);
        chart.draw_series(troubles.map(|trouble| {
            let until = trouble.until_s.unwrap_or(about.length_s);
            let ends = vec![(clock.at(trouble.from_s), floor), (clock.at(until), floor)];
            PathElement::new(ends, line(palette::TROUBLE, 10))
        }))?;
    }
    // labels of thin rows stand at every so many
    let every = 12_u32.div_ceil(row) as usize;
    for (key, name) in about.keys.iter().enumerate().step_by(every) {
        let (x, y) = chart.backend_coord(&(0.0, (keys - key) as f64 - 0.5));
        let style = anchored(11, palette::FAINT, HPos::Right);
        area.draw(&Text::new(shortened(name, 12), (x - px(5) as i32, y), style))?;
    }
    Ok(())
}
