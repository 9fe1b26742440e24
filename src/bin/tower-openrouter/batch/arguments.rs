//! The flags, and what the help tells beside them.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use tower_openrouter::stack::settings::Span;

use super::input::Format;
use crate::gateway;

const HELP: &str = r#"A line of a JSONL input is one of

  "Why is the sky blue?"                                           a prompt
  {"prompt": "…", "system": "…", "temperature": 0}                 a prompt, with anything else a chat request may have
  {"model": "…", "messages": [{"role": "user", "content": "…"}]}   the body of a chat request
  {"custom_id": "a-1", "url": "/v1/embeddings", "body": {…}}       a line of OpenAI's batch format

with "custom_id" in any of the objects. A CSV input (a name that ends with .csv, or --format csv) has a header with a column
prompt, and system, model and custom_id if wanted; other columns are left alone. An answer is always written whole: "stream"
is left out. An example of a configuration file is in the help of `gateway`. A row that is none of these is bad: it is told by its line, written as an error, and does not stop the rest.

A line of the output is one finished row, written at once when it is finished:

  {"row": 7, "custom_id": "a-1", "response": {"status_code": 200, "body": {…}}, "error": null,
   "key": "team-a", "attempts": 1, "seconds": 1.2, "cost": 0.00034, "mark": "…"}

"error" is null, or {"code": …, "message": …} where the row failed. "mark" stands for what the row asked: a run whose rows
ask something else than the output answers is refused, except that rows may be added at the end.

To go on after a stop or a crash, run the same command again. FILE.running, beside the output, says which rows were sent; it
keeps a second run out, and is gone when all is done. A row that was on its way when the process was killed is sent again
and may be billed twice; the summary says how many those are. The first ctrl-c takes nothing new and waits for what is on
its way, the second stops at once.

Exit codes:
  0    every row was answered
  1    it could not run: a bad setting, key, input or output, or a disk that is full
  2    unknown or missing arguments
  3    every row is finished, and some failed or were bad (--retry-failed asks for those again)
  4    stopped, as no key can serve: mend that, and run the same command again
  130  stopped by ctrl-c or SIGTERM: run the same command again to go on
"#;

/// Ask for many answers at once: rows of a JSONL or CSV file in, a line of JSON for each out.
///
/// Keys, upstream and balancing are those of the gateway: the same configuration file, variables and flags. Without any key,
/// an OpenRouter simulated inside this process answers, so that everything can be tried at no cost.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, mut_args(of_batch))]
#[group(skip)]
pub(crate) struct Arguments {
    /// File of rows, JSONL or CSV
    pub(super) input: PathBuf,

    /// File the answers are added to, one line a row, in the order in which they come
    #[arg(short, long, value_name = "FILE")]
    pub(super) out: PathBuf,

    /// How many rows are under way at once
    #[arg(short = 'n', long, value_name = "N", default_value = "32")]
    pub(super) concurrency: NonZeroUsize,

    /// Model of rows that name none
    #[arg(short, long, value_name = "MODEL")]
    pub(super) model: Option<String>,

    /// Most tokens of an answer, for rows that set no limit
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: Option<u64>,

    /// Put the output into the order of the input once every row is finished
    #[arg(long)]
    pub(super) sort: bool,

    /// Ask again for rows that an earlier run wrote as failed or bad
    #[arg(long)]
    pub(super) retry_failed: bool,

    /// How the input is written [default: csv for names that end with .csv, else jsonl]
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,

    /// How long a row is held back, and sent again, while keys or its provider are at their limits
    ///
    /// When no row is answered for so long, or no key can come back within it, the batch stops.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub(super) patience: Span,

    #[command(flatten)]
    pub(super) gateway: gateway::Arguments,
}

/// Hides what only a server can use.
fn of_batch(argument: clap::Arg) -> clap::Arg {
    let serves = argument.get_help_heading() == Some("Listeners") || argument.get_id() == "check";
    argument.hide(serves)
}
