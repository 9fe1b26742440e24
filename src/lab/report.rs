//! A comparison as one HTML file that needs nothing else: no network, no script, no other file.
//!
//! Tables say who is ahead; pictures say why. Each scenario has small charts that can be laid side by side: what was served,
//! how long it took, who waited, and what each stack asked of which key while it rested, broke or was in trouble.
//! Everything is text and SVG, and what looks differ between day, night and paper is in the stylesheet.

mod distribution;
mod drawing;
mod html;
mod keys;
mod looks;
mod over_time;
mod palette;
mod settings;
mod tables;

use std::fmt::Write;

use self::{
    html::{escaped, figure},
    looks::Looks,
};
use super::Comparison;

const STYLE: &str = include_str!("report/style.css");

/// The whole file.
pub(super) fn html(comparison: &Comparison) -> String {
    let looks = Looks::of(comparison);
    let (scenarios, stacks) = (comparison.scenarios.len(), comparison.stacks.len());
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>Policy lab: {stacks} stacks, {scenarios} scenarios</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n",
        palette::css(drawing::SCALE),
    );
    let _ = write!(
        page,
        "<header><h1>Policy lab</h1><p>{}, {}, each pair with {}: the stacks as they are deployed, before a simulated \
         upstream, in virtual time.</p></header>\n<main>\n<section><h2>Summary</h2>\n",
        count(stacks, "stack"),
        count(scenarios, "scenario"),
        count(comparison.seeds(), "seed"),
    );
    page.push_str(&tables::summary(comparison, &looks));
    page.push_str(
        "<p class=\"note\">Small numbers are ranks: by goodput, then by fewer upstream 429s per success. \
         ≠ differs significantly from the best.</p>\n",
    );
    let _ = writeln!(page, "<details><summary>What the figures mean</summary>{}</details>", tables::glossary());
    page.push_str(&abouts(comparison, &looks));
    page.push_str("</section>\n");
    for index in 0..scenarios {
        scenario(&mut page, comparison, &looks, index);
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What each stack does.
fn abouts(comparison: &Comparison, looks: &Looks<'_>) -> String {
    let told = comparison.stacks.iter().filter(|(_, about)| !about.is_empty());
    let item = |(name, about): &(String, String)| {
        format!("<div><dt>{}{}</dt><dd>{}</dd></div>", looks.swatch(name), escaped(name), escaped(about))
    };
    let items: String = told.map(item).collect();
    match items.is_empty() {
        true => String::new(),
        false => format!("<details><summary>What the stacks do</summary><dl>{items}</dl></details>\n"),
    }
}

fn scenario(page: &mut String, comparison: &Comparison, looks: &Looks<'_>, index: usize) {
    let about = &comparison.scenarios[index];
    let _ = writeln!(page, "<section id=\"scenario-{index}\"><h2>{}</h2>", escaped(&about.name));
    if !about.about.is_empty() {
        let _ = writeln!(page, "<p>{}</p>", escaped(&about.about));
    }
    if let Some(sweep) = &comparison.sweep {
        let best = sweep.best(comparison, index).map(|(stack, _)| stack);
        let best = best.map(|stack| format!("<p>The best setting is <b>{}</b>, outlined.</p>\n", escaped(stack)));
        page.push_str(&best.unwrap_or_default());
        let _ = writeln!(page, "<div class=\"charts\">{}</div>", settings::charts(comparison, sweep, index));
    }
    page.push_str(&tables::figures(comparison, index, looks));
    let seen = |name: &str| comparison.cell(index, name)?.series.as_ref();
    let colored = looks.in_scenario(index);
    let drawn: Vec<_> = colored.iter().filter_map(|(name, role)| Some((*name, *role, &seen(name)?.1))).collect();
    let Some((_, role_seed)) = colored.first().and_then(|(name, _)| Some((name, seen(name)?.0))) else {
        page.push_str("</section>\n");
        return;
    };
    let which = if looks.all { "" } else { " The best stacks only." };
    let _ = writeln!(page, "<p class=\"note\">Charts are of seed {role_seed}, warm-up included.{which}</p>");
    page.push_str(&looks::lines(&colored));
    page.push_str("<div class=\"charts\">\n");
    page.push_str(&figure("Goodput over time", &over_time::goodput(&about.name, about.length_s, &drawn)));
    if let Some(drawing) = distribution::first_output(&about.name, &drawn) {
        page.push_str(&figure("Time to first output", &drawing));
    }
    if let Some(drawing) = over_time::waiting(&about.name, about.length_s, &drawn) {
        page.push_str(&figure("Waiting-room depth", &drawing));
    }
    page.push_str("</div>\n<details open><summary>Traffic per key, stack by stack</summary>\n");
    page.push_str(&looks::bands());
    page.push_str("<div class=\"charts\">\n");
    let top = keys::top(about.keys.len(), drawn.iter().map(|(_, _, series)| *series));
    for (name, role, series) in &drawn {
        page.push_str(&figure(name, &keys::rows(about, name, *role, series, top)));
    }
    page.push_str("</div></details>\n</section>\n");
}
