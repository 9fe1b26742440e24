//! `tower-openrouter batch`: a file of prompts in, a file of answers out, over many OpenRouter keys.

use std::{
    collections::HashMap,
    error::Error,
    fs,
    io::{self, Write},
    pin::pin,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tower::service_fn;
use tower_openrouter::{Batch, stack::settings::Span};
use tracing_subscriber::EnvFilter;

mod arguments;
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

pub(crate) use arguments::Arguments;

use crate::gateway::Signals;
use ask::{Answer, Desk, Held, Stop};
use input::{Input, Rows};
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
    let Stack { balancer, handle, simulated, polling: _polling } = Stack::open(&arguments.gateway, concurrency)?;
    let is_simulated = simulated.is_some();
    let defaults =
        Defaults { model: arguments.model.or(simulated), max_tokens: arguments.max_tokens, simulated: is_simulated };
    let input = Input::new(arguments.input, arguments.format, defaults);
    let mut rows = input.rows()?;
    let place = Output::place(&out)?;
    if input.path().canonicalize().is_ok_and(|path| path == place) {
        return Err(format!("--out {} is the input: choose another name", out.display()).into());
    }
    let journal = Journal::open(&place)?;
    let ready = Output::open(&place).and_then(|(mut output, mut written)| {
        let lost = journal.lost(|row| written.contains_key(&row));
        if retry_failed {
            drop_failed(&mut output, &mut written, &journal)?;
        }
        let total = look_over(&mut rows, &input, &written, &out.display().to_string(), &progress)?;
        Ok((output, written, lost, total))
    });
    let (mut output, written, lost, total) = match ready {
        Ok(ready) => ready,
        Err(what) => {
            // nothing is left behind of a run that was none
            if journal.is_blank() {
                journal.remove()?;
            }
            if fs::metadata(&place).is_ok_and(|file| file.len() == 0) {
                fs::remove_file(&place)?;
            }
            return Err(what.into());
        }
    };

    if is_simulated {
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
    let start = Instant::now();
    let desk = Arc::new(Desk {
        balancer,
        handle,
        journal,
        patience,
        stop: watch::Sender::new(None),
        held: Held::default(),
        turns: tokio::sync::Mutex::new(start),
        start,
        answered: Mutex::default(),
    });
    let run = Run { desk: desk.clone(), output: &output, input: &input, concurrency };
    let mut tally = Tally::of(&written);
    run.all(&written, &mut tally, &mut progress).await?;
    progress.clear();

    output.sync()?;
    let stop = desk.stop.borrow().clone();
    let took = start.elapsed();
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

/// Takes out what is not answered, so that it is asked again.
fn drop_failed(output: &mut Output, written: &mut HashMap<u64, Written>, journal: &Journal) -> Result<(), String> {
    if written.values().all(|written| written.kind == Kind::Answered) {
        return Ok(());
    }
    for (row, _) in written.iter().filter(|(row, written)| written.kind == Kind::Failed && journal.has(**row)) {
        journal.take_back(*row)?;
    }
    output.retain(written, |written| written.kind == Kind::Answered)
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
                    "{out} line {} answers row {number}, but {name} line {line} now asks something else: the row changed, or \
                     --model or --max-tokens, or one of both is simulated; undo that, or choose another --out{}",
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
                    progress.show(self.desk.cost(), &self.desk.held);
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
