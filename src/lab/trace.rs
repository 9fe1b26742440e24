//! Recorded traffic: who asked for how much when, read from a file to be replayed.
//!
//! Two formats are read, and told apart by their first line: our own JSONL, one [`Record`] a line, which the gateway writes
//! with `--record`; and the CSV of the Azure LLM inference traces, `TIMESTAMP,ContextTokens,GeneratedTokens`. Neither holds
//! content. Files are read line by line, a line is bounded and so is their number, and every mistake is named with its line.

mod azure;
mod record;

pub use record::Record;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    time::Duration,
};

/// The longest line that is read, bytes.
const MAX_LINE: usize = 64 * 1024;

/// The most requests that are read, far more than a run is good for.
const MAX_RECORDS: usize = 2_000_000;

/// The latest arrival: a year after the first.
const MAX_MS: f64 = 366.0 * 86_400e3;

/// The longest prompt or reply, tokens.
const MAX_TOKENS: u64 = 10_000_000;

/// Requests of the past, in order of arrival, the first of them at 0.
///
/// ```
/// use tower_openrouter::lab::trace::Trace;
///
/// let jsonl = r#"{"at_ms": 60500, "prompt_tokens": 120, "reply_tokens": 40, "stream": true, "status": 200}
/// {"at_ms": 60000, "model": "acme/swift-1", "prompt_tokens": 900, "max_tokens": 500}
/// "#;
/// let trace = Trace::read(jsonl.as_bytes())?;
/// assert_eq!((trace.records().len(), trace.records()[0].prompt_tokens, trace.records()[1].at_ms), (2, 900, 500.0));
///
/// let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,396,x\n";
/// assert_eq!(
///     Trace::read(csv.as_bytes()).unwrap_err().to_string(),
///     "trace: line 3: GeneratedTokens: \"x\" is not a whole number from 0 to 10000000",
/// );
/// # Ok::<(), tower_openrouter::lab::trace::TraceError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Trace(Vec<Record>);

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when there is no such file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let file = File::open(path)
            .map_err(|error| TraceError { line: 0, problem: format!("{}: {error}", path.display()) })?;
        Self::read(BufReader::new(file))
    }

    /// Reads JSONL or CSV.
    ///
    /// # Errors
    /// When a line is neither, holds something impossible or is longer than 64 KiB; when there are more than two million,
    /// or none.
    pub fn read(source: impl BufRead) -> Result<Self, TraceError> {
        let mut lines = Lines { source, line: Vec::new(), number: 0 };
        let mut csv: Option<azure::Rows> = None;
        let mut records = Vec::new();
        while lines.advance()? {
            let text = str::from_utf8(&lines.line).map_err(|_| lines.error("is not UTF-8"))?.trim();
            if text.is_empty() {
                continue;
            }
            if records.is_empty() && csv.is_none() && text.eq_ignore_ascii_case(azure::HEADER) {
                csv = Some(azure::Rows::default());
                continue;
            }
            let record = match &mut csv {
                Some(rows) => rows.read(text),
                None => record::read(text),
            };
            let record = record.and_then(checked).map_err(|problem| lines.error(problem))?;
            if records.len() == MAX_RECORDS {
                return Err(lines.error(format!("there are more than {MAX_RECORDS} requests; replay a part of them")));
            }
            records.push(record);
        }
        let problem = if records.is_empty() { "there is no request in it" } else { "it is longer than a year" };
        Self::of(records).ok_or_else(|| lines.error(problem))
    }

    /// From requests in any order. None when there is none, or the last comes a year after the first.
    pub fn of(mut records: Vec<Record>) -> Option<Self> {
        // a recorder writes a request when it is over, so they come in the order in which they ended
        records.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        let first = records.first()?.at_ms;
        records.iter_mut().for_each(|record| record.at_ms -= first);
        records.iter().all(|record| (0.0..=MAX_MS).contains(&record.at_ms)).then_some(Self(records))
    }

    /// The requests.
    pub fn records(&self) -> &[Record] {
        &self.0
    }

    /// From the first arrival to the last.
    pub fn span(&self) -> Duration {
        self.0.last().map_or(Duration::ZERO, Record::at)
    }
}

fn checked(record: Record) -> Result<Record, String> {
    // milliseconds since 1970 are as good as any
    if record.at_ms.abs() > 1e15 {
        return Err(format!("at_ms: {} is not within thirty thousand years", record.at_ms));
    }
    let tokens = [
        ("prompt_tokens", Some(record.prompt_tokens)),
        ("reply_tokens", record.reply_tokens),
        ("max_tokens", record.max_tokens),
    ];
    for (name, tokens) in tokens {
        if let Some(tokens) = tokens.filter(|tokens| *tokens > MAX_TOKENS) {
            return Err(format!("{name}: {tokens} is more than {MAX_TOKENS}"));
        }
    }
    Ok(record)
}

/// Lines of a file, one at a time and never a long one.
struct Lines<R> {
    source: R,
    line: Vec<u8>,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line; false at the end.
    fn advance(&mut self) -> Result<bool, TraceError> {
        self.line.clear();
        self.number += 1;
        let bounded = &mut self.source;
        let read = bounded.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut self.line);
        let read = read.map_err(|error: io::Error| self.error(error.to_string()))?;
        if read > MAX_LINE {
            return Err(self.error(format!("is longer than {MAX_LINE} bytes")));
        }
        Ok(read > 0)
    }

    fn error(&self, problem: impl Into<String>) -> TraceError {
        TraceError { line: self.number, problem: problem.into() }
    }
}

/// Why a trace cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceError {
    /// Counted from 1; 0 when there is no file.
    line: usize,
    problem: String,
}

impl TraceError {
    /// The line at fault, counted from 1; 0 when the file could not be opened.
    pub fn line(&self) -> usize {
        self.line
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "trace: {}", self.problem),
            line => write!(f, "trace: line {line}: {}", self.problem),
        }
    }
}

impl std::error::Error for TraceError {}
