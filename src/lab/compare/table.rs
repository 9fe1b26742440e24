//! A comparison for the terminal, in 120 columns.

use std::fmt::Write;

use super::{Comparison, Standing};
use crate::lab::written::{part, short, shortened, sign};

/// Heading, unit, width, and what stands there.
type Column = (&'static str, &'static str, usize, fn(&Standing) -> String);

const COLUMNS: [Column; 15] = [
    ("goodput", "/s  ±sd", 13, |s| match s.spread("goodput") {
        Some(spread) => format!("{} ±{}", short(Some(spread.mean)), short(spread.sd)),
        None => sign(),
    }),
    ("", "", 1, |s| if s.goodput_to_best.is_some_and(|to| to.significant) { "*".into() } else { " ".into() }),
    ("of", "oracle", 6, |s| part(s.goodput_to_oracle)),
    ("client", "errors", 6, |s| part(mean(s, "error_share"))),
    ("429/", "ok", 5, |s| short(mean(s, "upstream_429_per_success"))),
    ("tries", "/req", 5, |s| short(mean(s, "attempts_per_request"))),
    ("wait", "p95 s", 5, |s| short(mean(s, "added_wait_p95"))),
    ("first", "p50 s", 5, |s| short(mean(s, "first_output_p50"))),
    ("out-", "p95 s", 5, |s| short(mean(s, "first_output_p95"))),
    ("put", "p99 s", 5, |s| short(mean(s, "first_output_p99"))),
    ("fair", "Jain", 4, |s| short(mean(s, "fairness"))),
    ("detect", "s", 7, |s| missed(mean(s, "detect_s"), s.undetected)),
    ("recover", "s", 7, |s| missed(mean(s, "recover_s"), s.unrecovered)),
    ("cost", "USD", 6, |s| short(mean(s, "spent"))),
    ("was-", "ted", 6, |s| part(mean(s, "wasted_share"))),
];

/// Columns of the stack's name.
const NAME: usize = 15;

fn mean(standing: &Standing, id: &str) -> Option<f64> {
    standing.spread(id).map(|spread| spread.mean)
}

/// A mean time, with a mark where it is not that of all.
fn missed(seconds: Option<f64>, missed: usize) -> String {
    match (seconds, missed) {
        (None, 0) => sign(),
        (None, _) => "never".into(),
        (seconds, 0) => short(seconds),
        (seconds, _) => format!("{}+", short(seconds)),
    }
}

pub(super) fn write(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (index, about) in comparison.scenarios.iter().enumerate() {
        let standings = comparison.standings(index);
        if !standings.is_empty() {
            scenario(&mut text, &about.name, &about.about, &standings);
        }
    }
    text.push_str(
        "± standard deviation over seeds · * goodput differs from the first's, paired t test over seeds, Holm, 5 %\n\
         + not counting those never seen or never back · of oracle: goodput over the oracle's · wait: added wait\n",
    );
    text
}

fn scenario(text: &mut String, name: &str, about: &str, standings: &[Standing]) {
    let seeds = standings.iter().filter_map(|standing| standing.spread("goodput")).map(|spread| spread.seeds).max();
    let seeds = seeds.unwrap_or(0);
    let _ = writeln!(text, "{name} ({seeds} seed{})", if seeds == 1 { "" } else { "s" });
    for line in wrapped(about, 118) {
        let _ = writeln!(text, "  {line}");
    }
    let mut headings = (format!("    {:NAME$}", ""), format!("  # {:NAME$}", "stack"));
    for (heading, unit, width, _) in COLUMNS {
        let _ = write!(headings.0, " {heading:>width$}");
        let _ = write!(headings.1, " {unit:>width$}");
    }
    let _ = writeln!(text, "{}\n{}", headings.0.trim_end(), headings.1.trim_end());
    for standing in standings {
        let rank = standing.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
        let mut line = format!("{rank:>3} {:NAME$}", shortened(&standing.stack, NAME));
        for (_, _, width, value) in COLUMNS {
            let _ = write!(line, " {:>width$}", value(standing));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push('\n');
}

/// Lines of at most `width` columns, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
