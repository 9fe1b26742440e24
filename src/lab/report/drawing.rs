//! What all charts share: a title, axes with units, and an SVG that scales with the page.
//!
//! Sizes are in pixels of a chart that stands on a narrow page as it is. The backend draws whole pixels only, so it is given
//! [`SCALE`] times as many, and the page scales the drawing back.

use std::io;

use plotters::{
    coord::{Shift, ranged1d::ValueFormatter},
    prelude::*,
    style::{
        TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{
    html::escaped,
    palette::{self, Role},
};

/// Pixels of a drawing for each of the page.
pub(super) const SCALE: u32 = 4;

/// How wide charts are.
pub(super) const WIDTH: u32 = 380;

pub(super) type Failed = DrawingAreaErrorKind<io::Error>;
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Pixels of a chart as pixels of the drawing.
pub(super) const fn px(pixels: u32) -> u32 {
    pixels * SCALE
}

/// A chart of this height, as an SVG element that says what it shows.
pub(super) fn svg(title: &str, height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), Failed>) -> String {
    let (width, height) = (px(WIDTH), px(height));
    let mut drawn = String::new();
    {
        let area = SVGBackend::with_string(&mut drawn, (width, height)).into_drawing_area();
        draw(&area).and_then(|()| area.present()).expect("a string takes all that is written");
    }
    let title = escaped(title);
    let inside = drawn.split_once('>').map_or("", |(_, inside)| inside);
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>{inside}")
}

/// Text of this size in pixels.
pub(super) fn text<'a>(size: u32, role: Role) -> TextStyle<'a> {
    // the backend writes a font size that is smaller by this factor
    let mut style = TextStyle::from(("sans-serif", f64::from(px(size)) * 1.24).into_font());
    style.color = role.color().to_backend_color();
    style
}

/// The same, set from a point to the side.
pub(super) fn anchored<'a>(size: u32, role: Role, side: HPos) -> TextStyle<'a> {
    text(size, role).pos(Pos::new(side, VPos::Center))
}

pub(super) fn line(role: Role, width: u32) -> ShapeStyle {
    // a quarter of a pixel is the unit
    role.color().stroke_width(width * SCALE / 4)
}

/// Time along an axis: minutes where there are many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    unit_s: f64,
    pub(super) name: &'static str,
}

impl Clock {
    pub(super) fn of(length_s: f64) -> Self {
        match length_s {
            length if length > 4.0 * 3600.0 => Self { unit_s: 3600.0, name: "time, h" },
            length if length > 240.0 => Self { unit_s: 60.0, name: "time, min" },
            _ => Self { unit_s: 1.0, name: "time, s" },
        }
    }

    pub(super) fn at(self, seconds: f64) -> f64 {
        seconds / self.unit_s
    }
}

/// A number at a tick, without zeros that say nothing.
pub(super) fn tick(value: f64) -> String {
    let text = format!("{value:.3}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Grid, axes and their labels, in the look of all charts.
pub(super) fn mesh<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'_>, Cartesian2d<X, Y>>,
    x: &str,
    y: &str,
    y_tick: fn(f64) -> String,
) -> Result<(), Failed>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| y_tick(*value))
        .label_style(text(11, palette::FAINT))
        .axis_desc_style(text(11, palette::INK))
        .axis_style(line(palette::FAINT, 3))
        .bold_line_style(line(palette::GRID, 4))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(3))
        .draw()
}

/// The same without labels and lines for the vertical axis, whose rows say themselves what they are.
pub(super) fn mesh_x<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    x: &str,
) -> Result<(), Failed>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(x)
        .x_labels(6)
        .x_label_formatter(&|value| tick(*value))
        .disable_y_mesh()
        .y_labels(0)
        .label_style(text(11, palette::FAINT))
        .axis_desc_style(text(11, palette::INK))
        .axis_style(line(palette::FAINT, 3))
        .bold_line_style(line(palette::GRID, 4))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(3))
        .draw()
}
