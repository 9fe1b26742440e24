//! `tower-openrouter batch`: a file of prompts in, a file of answers out, over many OpenRouter keys.

use std::{
    collections::HashMap,
    error::Error,
    io::{self, Write},
    num::NonZeroUsize,
    path::PathBuf,
    pin::pin,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Args;
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tower::service_fn;
use tower_openrouter::Batch;
use tracing_subscriber::EnvFilter;

mod ask;
mod file;
mod input;
mod journal;
mod object;
mod output;
mod progress;
mod row;
mod stack;
mod summary;

use crate::gateway::{self, Signals, Span};
use ask::{Answer, Desk, Held, Stop};
use input::{Format, Input, Rows};
use journal::Journal;
use output::{Kind, Line, Output, Written};
use progress::Progress;
use row::{Defaults, Row};
use stack::Stack;
use summary::{Summary, count};

/// How often the progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// How many bad rows are named before the rest is only counted.
const NAMED: u64 = 10;

/// Everything was answered.
const DONE: u8 = 0;
/// All rows are finished, and some failed or were bad.
const SOME_FAILED: u8 = 3;
/// No key can serve; the rest is to come.
const NO_KEY: u8 = 4;
/// As of a shell, for what ctrl-c ended.
const INTERRUPTED: u8 = 130;

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
    input: PathBuf,

    /// File the answers are added to, one line a row, in the order in which they come
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// How many rows are under way at once
    #[arg(short = 'n', long, value_name = "N", default_value = "32")]
    concurrency: NonZeroUsize,

    /// Model of rows that name none
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// Most tokens of an answer, for rows that set no limit
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,

    /// Put the output into the order of the input once every row is finished
    #[arg(long)]
    sort: bool,

    /// Ask again for rows that an earlier run wrote as failed or bad
    #[arg(long)]
    retry_failed: bool,

    /// How the input is written [default: csv for names that end with .csv, else jsonl]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// How long a row is held back, and sent again, while keys or its provider are at their limits
    ///
    /// When no row is answered for so long, or no key can come back within it, the batch stops.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    patience: Span,

    #[command(flatten)]
    gateway: gateway::Arguments,
}

/// Hides what only a server can use.
fn of_batch(argument: clap::Arg) -> clap::Arg {
    let serves = argument.get_help_heading() == Some("Listeners") || argument.get_id() == "check";
    argument.hide(serves)
}

/// Runs until every row is finished, or as many as can be.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let progress = Progress::new();
    let log = progress.clone();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(move || log.clone())
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(batch(arguments, progress));
    // a name look-up that hangs must not hold up the end
    runtime.shutdown_background();
    outcome.map(ExitCode::from)
}

async fn batch(arguments: Arguments, mut progress: Progress) -> Result<u8, Box<dyn Error>> {
    let Arguments { out, concurrency, sort, retry_failed, patience: Span(patience), .. } = arguments;
    let concurrency = concurrency.get();
    let stack = Stack::open(&arguments.gateway, concurrency)?;
    let defaults =
        Defaults { model: arguments.model.or_else(|| stack.simulated.clone()), max_tokens: arguments.max_tokens };
    let input = Input::new(arguments.input, arguments.format, defaults);
    let mut rows = input.rows()?;
    let place = Output::place(&out)?;
    if input.path().canonicalize().is_ok_and(|path| path == place) {
        return Err(format!("--out {} is the input: choose another name", out.display()).into());
    }
    let journal = Journal::open(&place)?;
    let (mut output, mut written) = Output::open(&place)?;
    if retry_failed && written.values().any(|written| written.kind != Kind::Answered) {
        for (row, _) in written.iter().filter(|(row, written)| written.kind == Kind::Failed && journal.has(**row)) {
            journal.take_back(*row)?;
        }
        output.retain(&mut written, |written| written.kind == Kind::Answered)?;
    }
    let lost = journal.lost(|row| written.contains_key(&row));
    let total = look_over(&mut rows, &input, &written, &out.display().to_string(), &progress)?;

    if stack.simulated.is_some() {
        progress.say(
            "SIMULATED inside this process, because no key was given: answers are made up and cost nothing. To use \
             OpenRouter, set OPENROUTER_API_KEY, and choose another --out.",
        );
    }
    let finished = written.len() as u64;
    if finished > 0 {
        let next = if finished == total { "nothing is left to ask" } else { "going on from there" };
        progress.say(&format!("{} has {finished} of {total} rows: {next}", out.display()));
    }
    progress.start(total, finished);
    let desk = Arc::new(Desk {
        balancer: stack.balancer,
        handle: stack.handle,
        journal,
        patience,
        stop: watch::Sender::new(None),
        held: Held::default(),
        answered: Mutex::default(),
    });
    let run = Run { desk: desk.clone(), output: &output, input: &input, concurrency, start: Instant::now() };
    let mut tally = Tally::of(&written);
    run.all(&written, &mut tally, &mut progress).await?;
    progress.clear();

    output.sync()?;
    let stop = desk.stop.borrow().clone();
    let took = run.start.elapsed();
    let snapshot = desk.handle.snapshot();
    let is_done = tally.sum() == total;
    if is_done {
        if sort {
            output.sort()?;
        }
        desk.journal.remove()?;
    }
    let Tally { answered, failed, bad } = tally;
    let out = out.display().to_string();
    let summary =
        Summary { rows: total, answered, failed, bad, finished: tally.sum() - finished, took, lost, snapshot, out };
    // nobody may be reading
    let _ = write!(io::stdout(), "{summary}").and_then(|()| io::stdout().flush());
    Ok(match stop {
        Some(Stop::Journal(what)) => return Err(what.into()),
        _ if is_done && failed + bad == 0 => DONE,
        _ if is_done => {
            progress.say("what failed is in the output with its error; --retry-failed asks for it again");
            SOME_FAILED
        }
        Some(Stop::NoKey(why)) => {
            progress.say(&format!("stopped, as no key can serve: {why}; mend that, and run the same command again"));
            NO_KEY
        }
        _ => {
            progress.say("stopped; run the same command again to go on");
            INTERRUPTED
        }
    })
}

/// Reads the input once: counts its rows, names the bad ones, and makes sure that what is written answers them.
fn look_over(
    rows: &mut Rows,
    input: &Input,
    written: &HashMap<u64, Written>,
    out: &str,
    progress: &Progress,
) -> Result<u64, String> {
    let name = input.name();
    let (mut total, mut bad) = (0, 0);
    for row in rows {
        let Row { number, line, ask, mark, .. } = row?;
        total = number;
        match (written.get(&number), ask) {
            (Some(written), _) if written.mark != mark => {
                return Err(format!(
                    "{out} line {} answers row {number}, but {name} line {line} now asks something else (the row changed, or \
                     --model or --max-tokens): undo that, or choose another --out{}",
                    written.line,
                    if written.kind == Kind::Answered { "" } else { ", or give --retry-failed" }
                ));
            }
            (None, Err(what)) => {
                bad += 1;
                if bad <= NAMED {
                    progress.say(&format!("{name} line {line}: {what}"));
                }
            }
            _ => {}
        }
    }
    if total == 0 {
        return Err(format!("{name}: there is no row in it"));
    }
    if bad > NAMED {
        progress.say(&format!(
            "and {} more; each is written to {out} as an error",
            count(bad - NAMED, "bad row", "bad rows")
        ));
    }
    match written.keys().max() {
        Some(last) if *last > total => Err(format!(
            "{out} line {} answers row {last}, but {name} has only {}: give all rows back, or choose another --out",
            written[last].line,
            count(total, "row", "rows")
        )),
        _ => Ok(total),
    }
}

/// How many rows of the output ended how.
#[derive(Debug, Default)]
struct Tally {
    answered: u64,
    failed: u64,
    bad: u64,
}

impl Tally {
    fn of(written: &HashMap<u64, Written>) -> Self {
        let mut tally = Self::default();
        written.values().for_each(|written| tally.add(written.kind));
        tally
    }

    fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Answered => self.answered += 1,
            Kind::Failed => self.failed += 1,
            Kind::Bad => self.bad += 1,
        }
    }

    fn sum(&self) -> u64 {
        self.answered + self.failed + self.bad
    }
}

/// A run over the rows that are not written yet.
struct Run<'a> {
    desk: Arc<Desk>,
    output: &'a Output,
    input: &'a Input,
    concurrency: usize,
    start: Instant,
}

impl Run<'_> {
    async fn all(
        &self,
        written: &HashMap<u64, Written>,
        tally: &mut Tally,
        progress: &mut Progress,
    ) -> Result<(), Box<dyn Error>> {
        let mut signals = Signals::new()?;
        let broken = Mutex::new(None::<String>);
        let rows = self.input.rows()?.map_while(|row| match row {
            Ok(_) if self.desk.is_over() => None,
            Ok(row) => Some(row),
            Err(what) => {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
                None
            }
        });
        let rows = rows.filter(|row| !written.contains_key(&row.number));
        let ask = service_fn(|row| {
            let desk = self.desk.clone();
            async move { Ok::<_, std::convert::Infallible>(desk.ask(row).await) }
        });
        let mut answers = pin!(Batch::new(ask, rows, self.concurrency)?.as_they_come());
        let mut show = interval(SHOW_EVERY);
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = signals.next() => {
                    if self.desk.is_over() {
                        return Ok(());
                    }
                    self.desk.end(Stop::Asked);
                    progress.say("stopping: what is on its way is waited for; ctrl-c again stops at once");
                }
                answer = answers.next() => match answer {
                    None => break,
                    Some((_, Ok(answer))) if answer.is_unsent => {}
                    Some((_, Ok(answer))) => {
                        let kind = self.write(answer)?;
                        tally.add(kind);
                        progress.finished(kind == Kind::Answered);
                    }
                },
                _ = show.tick() => {
                    self.desk.look_at_keys();
                    let total = self.desk.handle.snapshot().total;
                    progress.show(total.cost_usd, &self.desk.held);
                }
            }
        }
        let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        broken.map_or(Ok(()), |what| Err(what.into()))
    }

    fn write(&self, answer: Answer) -> Result<Kind, String> {
        let Answer { row, response, error, key, attempts, took, cost, .. } = answer;
        let kind = match (&row.ask, &error) {
            (Err(_), _) => Kind::Bad,
            (Ok(_), Some(_)) => Kind::Failed,
            (Ok(_), None) => Kind::Answered,
        };
        self.output.append(&Line {
            row: row.number,
            custom_id: row.custom_id.as_deref(),
            response,
            error,
            key,
            attempts,
            seconds: (took.as_secs_f64() * 1e3).round() / 1e3,
            cost,
            mark: row.mark.to_string(),
        })?;
        Ok(kind)
    }
}
