//! The report's tables.

use std::fmt::Write;

use super::{
    html::{escaped, scrolling},
    looks::Looks,
};
use crate::lab::{
    Better, Comparison, Metric, Spread, Standing,
    written::{part, short},
};

/// A row for each stack, a column for each scenario: goodput against the oracle's, or what was served where none ran.
pub(super) fn summary(comparison: &Comparison, looks: &Looks<'_>) -> String {
    let standings: Vec<_> = (0..comparison.scenarios.len()).map(|scenario| comparison.standings(scenario)).collect();
    let oracle = standings.iter().flatten().any(|standing| standing.goodput_to_oracle.is_some());
    let what = if oracle { "goodput, of the oracle’s" } else { "served, of the requests offered" };
    let mut table = format!(
        "<table class=\"summary\"><caption><span>Each stack in each scenario: {what}</span></caption><thead><tr>"
    );
    table.push_str("<th scope=\"col\" class=\"name\">stack</th>");
    for (index, about) in comparison.scenarios.iter().enumerate() {
        let _ = write!(table, "<th scope=\"col\"><a href=\"#scenario-{index}\">{}</a></th>", escaped(&about.name));
    }
    table.push_str("</tr></thead><tbody>\n");
    for (stack, _) in &comparison.stacks {
        let _ = write!(table, "<tr>{}", name(stack, looks));
        for standings in &standings {
            let standing = standings.iter().find(|standing| standing.stack == *stack);
            table.push_str(&standing.map_or("<td>–</td>".to_owned(), |standing| cell(standing, oracle)));
        }
        table.push_str("</tr>\n");
    }
    table.push_str("</tbody></table>");
    scrolling("Summary", &table)
}

/// The heading of a stack's row. Only a long name may be broken into lines.
fn name(stack: &str, looks: &Looks<'_>) -> String {
    let class = if stack.chars().count() > 22 { " class=\"long\"" } else { "" };
    format!("<th scope=\"row\"{class}>{}{}</th>", looks.swatch(stack), escaped(stack))
}

fn cell(standing: &Standing, oracle: bool) -> String {
    let share = if oracle { standing.goodput_to_oracle } else { mean(standing, "served_share") };
    let differs = standing.goodput_to_best.is_some_and(|to| to.significant);
    let mark = match (standing.rank, differs) {
        (None, _) => return format!("<td class=\"mark\">{}</td>", part(share)),
        (Some(1), _) => "<b title=\"the best\">1st</b>".to_owned(),
        (Some(rank), true) => format!("<span title=\"rank; differs significantly from the best\">{rank} ≠</span>"),
        (Some(rank), false) => format!("<span title=\"rank; no significant difference to the best\">{rank}</span>"),
    };
    format!("<td>{} <small>{mark}</small></td>", part(share))
}

fn mean(standing: &Standing, id: &str) -> Option<f64> {
    standing.spread(id).map(|spread| spread.mean)
}

/// What a value is written as.
type Written = fn(Option<f64>) -> String;

/// What stands where there is no value.
const NONE: &str = "–";

/// Heading, the figure, and how it is written.
const COLUMNS: [(&str, &str, Written); 17] = [
    ("goodput, requests/s", "goodput", short),
    ("client errors", "error_share", part),
    ("upstream 429s per success", "upstream_429_per_success", short),
    ("attempts per request", "attempts_per_request", short),
    ("added wait mean, s", "added_wait_mean", short),
    ("added wait p50, s", "added_wait_p50", short),
    ("added wait p95, s", "added_wait_p95", short),
    ("added wait p99, s", "added_wait_p99", short),
    ("first output p50, s", "first_output_p50", short),
    ("first output p95, s", "first_output_p95", short),
    ("first output p99, s", "first_output_p99", short),
    ("fairness, Jain", "fairness", short),
    ("time to detect, s", "detect_s", short),
    ("time to recover, s", "recover_s", short),
    ("time to calm, s", "calm_s", short),
    ("charged, USD", "spent", short),
    ("wasted, of charged", "wasted_share", part),
];

/// All figures of a scenario, a row for each stack.
pub(super) fn figures(comparison: &Comparison, scenario: usize, looks: &Looks<'_>) -> String {
    let standings = comparison.standings(scenario);
    let seeds = standings.iter().filter_map(|standing| standing.spread("goodput")).map(|spread| spread.seeds).max();
    let seeds = seeds.unwrap_or(0);
    let oracle = standings.iter().any(|standing| standing.goodput_to_oracle.is_some());
    let mut table = format!(
        "<table><caption><span>Mean over {seeds} {}, ± standard deviation; the best of each column in bold</span></caption><thead><tr>\
         <th scope=\"col\">#</th><th scope=\"col\" class=\"name\">stack</th>{}\
         <th scope=\"col\">against the best, requests/s</th>",
        if seeds == 1 { "seed" } else { "seeds" },
        if oracle { "<th scope=\"col\">of the oracle</th>" } else { "" },
    );
    // what no stack has a value of, such as the time to calm without a burst, has no column
    let told = |(_, id, written): &&(&str, &str, Written)| {
        standings.iter().any(|standing| value(standing, id, *written, None) != NONE)
    };
    let columns: Vec<_> = COLUMNS.iter().filter(told).collect();
    for (heading, ..) in &columns {
        let _ = write!(table, "<th scope=\"col\">{heading}</th>");
    }
    table.push_str("</tr></thead><tbody>\n");
    let bests: Vec<_> = columns.iter().map(|(_, id, written)| best(&standings, id, *written)).collect();
    for standing in &standings {
        let rank = standing.rank.map_or_else(|| "–".to_owned(), |rank| rank.to_string());
        let _ = write!(
            table,
            "<tr><td>{rank}</td>{}{}<td>{}</td>",
            name(&standing.stack, looks),
            if oracle { format!("<td>{}</td>", part(standing.goodput_to_oracle)) } else { String::new() },
            against(standing),
        );
        for ((_, id, written), best) in columns.iter().zip(&bests) {
            let _ = write!(table, "<td>{}</td>", value(standing, id, *written, best.as_deref()));
        }
        table.push_str("</tr>\n");
    }
    table.push_str("</tbody></table>");
    scrolling(&format!("Figures of {}", comparison.scenarios[scenario].name), &table)
}

/// The best of a column as it is written; none where all are written the same.
fn best(standings: &[Standing], id: &str, written: Written) -> Option<String> {
    let better = Metric::named(id)?.better;
    let means = || standings.iter().filter_map(|standing| mean(standing, id));
    let (least, most) = (means().reduce(f64::min)?, means().reduce(f64::max)?);
    let (least, most) = (written(Some(least)), written(Some(most)));
    let differ = least != most;
    differ.then_some(if better == Better::Higher { most } else { least })
}

fn against(standing: &Standing) -> String {
    let Some(to) = standing.goodput_to_best else { return "–".to_owned() };
    let sign = if to.spread.mean < 0.0 { "−" } else { "+" };
    let size = short(Some(to.spread.mean.abs()));
    let verdict = match (to.chance, to.significant) {
        (None, _) => "too few seeds to tell".to_owned(),
        (Some(chance), true) => format!("differs, p {}", chance_of(chance)),
        (Some(chance), false) => format!("no clear difference, p {}", chance_of(chance)),
    };
    format!("{sign}{size} <small>{verdict}</small>")
}

fn chance_of(chance: f64) -> String {
    if chance < 0.001 { "&lt; 0.001".to_owned() } else { format!("= {chance:.3}") }
}

fn value(standing: &Standing, id: &str, written: Written, best: Option<&str>) -> String {
    let Some(Spread { mean, sd, .. }) = standing.spread(id) else { return missed(standing, id, NONE) };
    let plain = written(Some(mean));
    let text = if best == Some(&plain) { format!("<b>{}</b>", escaped(&plain)) } else { escaped(&plain) };
    // a spread that is written as next to nothing says nothing
    let sd = sd.map(|sd| written(Some(sd))).filter(|sd| !["~0", "0.00", "0.0%", "<0.1%"].contains(&&**sd));
    let sd = sd.map(|sd| format!(" <small>±{sd}</small>")).unwrap_or_default();
    missed(standing, id, &format!("{text}{sd}"))
}

/// With a note on the keys a time is not told of.
fn missed(standing: &Standing, id: &str, text: &str) -> String {
    let (count, what) = match id {
        "detect_s" => (standing.undetected, "not seen"),
        "recover_s" => (standing.unrecovered, "not back"),
        "calm_s" => (standing.uncalmed, "felt to the end"),
        _ => (0, ""),
    };
    match count {
        0 => text.to_owned(),
        count => format!("{text} <small>{count}× {what}</small>"),
    }
}

/// What each figure means, for those who did not write it.
pub(super) fn glossary() -> String {
    let mut list = String::from("<dl>");
    for (term, meaning) in [
        ("goodput", "requests served, per second of the time after the warm-up; a stream that broke off is not served"),
        (
            "client errors",
            "requests offered that were not served: refused, failed, broken off, or left by a client out of patience",
        ),
        ("upstream 429s per success", "attempts that the upstream refused with 429, for each request served"),
        ("added wait", "from a request’s arrival to the start of the attempt that served it, of those served"),
        ("first output", "from arrival to the first token of a stream, or the first byte of JSON, of those served"),
        (
            "fairness",
            "Jain’s index of each key’s successful attempts over its max-min fair share under the quotas; 1 is even",
        ),
        (
            "time to detect",
            "from the beginning of a key’s trouble until it gets no more than a tenth of its fair share",
        ),
        ("time to recover", "from its end until 90 % of the fair share are served on the key again"),
        (
            "time to calm",
            "from the end of a burst until the median time to first output is within 10 % of what it was before",
        ),
        ("wasted", "what was charged for no whole answer"),
        ("differs", "paired t test over the seeds, two-sided, Holm’s correction over the stacks, at 5 %"),
    ] {
        let _ = write!(list, "<div><dt>{term}</dt><dd>{meaning}</dd></div>");
    }
    list + "</dl>"
}

/// Names of figures in one place must be those of the other.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::METRICS;

    #[test]
    fn every_column_is_a_figure() {
        for (_, id, _) in COLUMNS {
            assert!(METRICS.iter().any(|metric| metric.id == id), "{id}");
        }
    }
}
