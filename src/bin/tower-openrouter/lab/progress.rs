//! How far it is: a bar on a terminal, nothing elsewhere.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tower_openrouter::lab::Run;

/// The progress of many runs, shown on standard error.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(runs: usize) -> Self {
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(runs as u64), target);
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} runs, {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Self(bar)
    }

    /// So many are done, this one last of those in order.
    pub(super) fn done(&self, runs: usize, last: &Run) {
        self.0.set_position(runs as u64);
        self.0.set_message(format!("{}: {}", last.scenario, last.stack));
    }

    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
