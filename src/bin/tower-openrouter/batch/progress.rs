//! How far it is: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{ask::Held, summary::dollars};

/// How often a line is written where there is no terminal.
const LINES_EVERY: Duration = Duration::from_secs(10);

/// A batch's progress, shown on standard error.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    /// Counts and estimates, shown or not.
    bar: ProgressBar,
    is_shown: bool,
    failed: u64,
    next_line: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let is_shown = io::stderr().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{wide_bar} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        Self { bar, is_shown, failed: 0, next_line: Instant::now() }
    }

    /// Starts with some rows finished by earlier runs.
    pub(super) fn start(&mut self, rows: u64, finished: u64) {
        self.bar.set_length(rows);
        self.bar.set_position(finished);
        self.bar.reset_eta();
        self.next_line = Instant::now() + LINES_EVERY;
    }

    /// A row is finished.
    pub(super) fn finished(&mut self, is_good: bool) {
        self.failed += u64::from(!is_good);
        self.bar.inc(1);
    }

    /// Shows what is known now.
    pub(super) fn show(&mut self, cost: f64, held: &Held) {
        if self.is_shown {
            self.bar.set_message(self.text(cost, held));
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINES_EVERY;
            self.say(&self.text(cost, held));
        }
    }

    fn text(&self, cost: f64, held: &Held) -> String {
        let (rows, of, rate) = (self.bar.position(), self.bar.length().unwrap_or(0), self.bar.per_sec());
        let mut text = format!("{rows}/{of} rows, {} failed, {}, {rate:.1}/s", self.failed, dollars(cost));
        if rate > 0.0 && rows < of {
            text += &format!(", {} left", span(self.bar.eta()));
        }
        if let Some((count, why)) = held.now() {
            // a line that breaks would stay where the bar was
            let why: String = why.chars().take(60).collect();
            text += &format!("; {count} held back: {why}");
        }
        text
    }

    /// Says something above the bar.
    pub(super) fn say(&self, text: &str) {
        // nobody may be reading
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{text}")));
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The log goes above the bar too.
impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bar.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A length of time as people say it.
pub(super) fn span(span: Duration) -> String {
    match span.as_secs() {
        0..10 => format!("{:.1}s", span.as_secs_f64()),
        seconds @ 10..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_to_read() {
        for (millis, text) in [(0, "0.0s"), (9_940, "9.9s"), (59_999, "59s"), (61_000, "1m01s"), (7_260_000, "2h01m")] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }
}
