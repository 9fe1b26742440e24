//! What is said at the end.

use std::{fmt, time::Duration};

use tower_openrouter::Snapshot;

use super::progress::span;

/// The figures of a run, and of the output as a whole.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) out: String,
    pub(super) rows: u64,
    /// In the output now, with what earlier runs wrote.
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) bad: u64,
    /// Finished by this run.
    pub(super) finished: u64,
    pub(super) took: Duration,
    /// Sent by runs that were killed before the answer came.
    pub(super) lost: u64,
    pub(super) snapshot: Snapshot,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { out, rows, answered, failed, bad, finished, .. } = self;
        write!(f, "{out}: {answered} of {rows} rows answered, {failed} failed, {bad} bad")?;
        match rows - answered - failed - bad {
            0 => writeln!(f)?,
            left => writeln!(f, ", {left} to come")?,
        }
        let rate = *finished as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE);
        let cost = self.snapshot.total.cost_usd;
        writeln!(
            f,
            "this run: {} in {}, {rate:.1}/s, {}",
            count(*finished, "row", "rows"),
            span(self.took),
            dollars(cost)
        )?;
        if self.lost > 0 {
            writeln!(
                f,
                "{} sent by earlier runs that were killed before the answer came: they may be billed twice",
                count(self.lost, "row was", "rows were")
            )?;
        }
        if self.snapshot.total.attempts > 0 {
            writeln!(f)?;
            self.table(f)?;
        }
        Ok(())
    }
}

impl Summary {
    /// One line a key.
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |key: &str, account: &str, measures: &tower_openrouter::monitor::Measures| {
            let ended = |name: &str| measures.outcomes.get(name).copied().unwrap_or(0);
            let faults: u64 = measures.outcomes.values().sum::<u64>()
                - ["complete", "client_gone", "refused"].into_iter().map(ended).sum::<u64>();
            let median = measures.total_ms.map_or("-".into(), |times| span(Duration::from_secs_f64(times.p50 / 1e3)));
            [
                key.to_owned(),
                account.to_owned(),
                measures.attempts.to_string(),
                ended("complete").to_string(),
                faults.to_string(),
                measures.prompt_tokens.to_string(),
                measures.completion_tokens.to_string(),
                median,
                dollars(measures.cost_usd),
            ]
        };
        let head = ["key", "account", "attempts", "answered", "failed", "tokens in", "tokens out", "median", "cost"];
        let mut lines = vec![head.map(str::to_owned)];
        for key in &self.snapshot.endpoints {
            lines.push(line(&key.key, key.account.as_deref().unwrap_or("-"), &key.measures));
        }
        lines.push(line("all", "", &self.snapshot.total));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 9] = std::array::from_fn(width);
        for line in &lines {
            write!(f, "{:<1$}  {2:<3$}", line[0], widths[0], line[1], widths[1])?;
            for column in 2..line.len() {
                write!(f, "  {:>1$}", line[column], widths[column])?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// An amount of money, small ones to the millionth, as prices are.
pub(super) fn dollars(amount: f64) -> String {
    if amount < 0.1 { format!("${amount:.6}") } else { format!("${amount:.2}") }
}

/// A number with the right form of what is counted.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
