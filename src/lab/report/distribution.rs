//! How long the first output took: for each time, the part of all requests that had it by then.
//!
//! Those that were not served never had it, so a line that ends below 1 shows how many were not, and no stack looks fast for
//! having refused those that would have waited.

use plotters::prelude::*;

use super::{
    drawing::{Failed, line, mesh, px, svg, tick},
    over_time::Drawn,
};

/// The distribution of the time to first output, all stacks in one chart. Nothing where none served anything.
pub(super) fn first_output(scenario: &str, stacks: &Drawn<'_>) -> Option<String> {
    let points = || stacks.iter().flat_map(|(_, _, series)| &series.first_output);
    let times = || points().map(|(seconds, _)| seconds.max(0.001));
    let (least, most) = (times().fold(f64::INFINITY, f64::min), times().fold(0.0, f64::max));
    let title = format!("{scenario}: distribution of the time to first output");
    (most > 0.0).then(|| svg(&title, 230, |area| draw(area, least * 0.9, most * 1.1, stacks)))
}

fn draw(area: &super::drawing::Area<'_>, least: f64, most: f64, stacks: &Drawn<'_>) -> Result<(), Failed> {
    let mut chart = ChartBuilder::on(area)
        .margin(px(6))
        .margin_right(px(12))
        .x_label_area_size(px(38))
        .y_label_area_size(px(48))
        .build_cartesian_2d((least..most).log_scale().base(2.0), 0.0..1.03)?;
    mesh(&mut chart, "time to first output, s (log scale)", "part of requests offered", tick)?;
    for (_, role, series) in stacks {
        let points = series.first_output.iter().map(|(seconds, part)| (seconds.max(0.001), *part));
        chart.draw_series([PathElement::new(points.collect::<Vec<_>>(), line(*role, 7))])?;
    }
    Ok(())
}
