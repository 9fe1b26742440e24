//! The output: one line for each finished row, in the order in which they finished.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{file, row::Mark};

/// A finished row as it is written. The two members that hold an answer are those of OpenAI's batch files.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    pub(super) row: u64,
    pub(super) custom_id: Option<&'a RawValue>,
    pub(super) response: Option<Response>,
    pub(super) error: Option<Failure>,
    /// The key that answered, by label.
    pub(super) key: Option<Box<str>>,
    pub(super) attempts: usize,
    pub(super) seconds: f64,
    pub(super) cost: Option<f64>,
    pub(super) mark: String,
}

/// What came back.
#[derive(Debug, Serialize)]
pub(super) struct Response {
    pub(super) status_code: u16,
    /// As it came, or as a string if it was no JSON.
    pub(super) body: Box<RawValue>,
}

/// Why a row has no good answer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Failure {
    pub(super) code: Box<str>,
    pub(super) message: String,
}

/// The code of rows that could not be sent.
pub(super) const BAD_ROW: &str = "bad_row";

impl Line<'_> {
    /// The line, with its end.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // strings, numbers and JSON always serialise
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// What is known of a row that has been written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) mark: Mark,
    pub(super) line: u64,
    pub(super) kind: Kind,
    start: u64,
    length: u64,
}

/// How a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Answered,
    Failed,
    Bad,
}

/// An output file.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    /// The file an output is in, which is made if it is not there. Links are followed, so that one file has one journal.
    pub(super) fn place(path: &Path) -> Result<PathBuf, String> {
        let place = file::open(path).and_then(|file| match file.metadata()?.is_file() {
            true => path.canonicalize(),
            false => Err(io::Error::other("it is no regular file")),
        });
        place.map_err(|error| {
            format!("--out {}: {error}; give a file that can be written, in a folder that exists", path.display())
        })
    }

    /// Opens an output, reads which rows it has, and cuts a torn last line.
    pub(super) fn open(path: &Path) -> Result<(Self, HashMap<u64, Written>), String> {
        let name = path.display();
        let trouble = |error: io::Error| format!("--out {name}: {error}");
        let mut file = file::open(path).map_err(trouble)?;
        let (rows, torn) = Self::read(&mut file, &name.to_string())?;
        if let Some(start) = torn {
            file.set_len(start).map_err(trouble)?;
        }
        Ok((Self { file, path: path.to_owned() }, rows))
    }

    /// The rows of a file, and where a torn last line starts.
    fn read(file: &mut File, name: &str) -> Result<(HashMap<u64, Written>, Option<u64>), String> {
        #[derive(Deserialize)]
        struct Head {
            row: u64,
            mark: String,
            error: Option<Code>,
        }
        #[derive(Deserialize)]
        struct Code {
            code: String,
        }
        struct Trouble(String);
        impl From<io::Error> for Trouble {
            fn from(error: io::Error) -> Self {
                Self(error.to_string())
            }
        }
        let (mut rows, mut torn) = (HashMap::new(), None);
        let read = file::lines(file, |line, start, text| {
            if file::is_torn(text, b"{\"row\":") {
                torn = Some(start);
                return Ok(());
            }
            let head = serde_json::from_slice::<Head>(text).ok();
            let Some((mark, head)) = head.and_then(|head| Some((Mark::parse(&head.mark)?, head))) else {
                return Err(Trouble(format!("line {line} is not an answer of this command")));
            };
            let kind = match &head.error {
                None => Kind::Answered,
                Some(error) if error.code == BAD_ROW => Kind::Bad,
                Some(_) => Kind::Failed,
            };
            let written = Written { mark, line, kind, start, length: text.len() as u64 };
            match rows.insert(head.row, written) {
                None => Ok(()),
                Some(first) => Err(Trouble(format!("lines {} and {line} both answer row {}", first.line, head.row))),
            }
        });
        read.map_err(|Trouble(what)| format!("--out {name}: {what}: remove that line, or choose another --out"))?;
        Ok((rows, torn))
    }

    /// Writes a finished row.
    pub(super) fn append(&self, line: &Line<'_>) -> Result<(), String> {
        file::append(&self.file, &line.to_bytes()).map_err(|error| {
            format!(
                "{}: {error}; what is written so far is good: mend that, and run the same command again",
                self.path.display()
            )
        })
    }

    /// Makes sure that what was written is on the disk.
    pub(super) fn sync(&self) -> Result<(), String> {
        self.file.sync_all().map_err(|error| format!("{}: {error}", self.path.display()))
    }

    /// Takes out the rows that are not to be kept.
    pub(super) fn retain(
        &mut self,
        rows: &mut HashMap<u64, Written>,
        keep: impl Fn(&Written) -> bool,
    ) -> Result<(), String> {
        rows.retain(|_, written| keep(written));
        let mut kept: Vec<_> = rows.values().map(|written| (written.start, written.length)).collect();
        kept.sort_unstable();
        self.replace(kept)
    }

    /// Puts the rows into the order of the input.
    pub(super) fn sort(&mut self) -> Result<(), String> {
        let (rows, _) = Self::read(&mut self.file, &self.path.display().to_string())?;
        let mut rows: Vec<_> = rows.into_iter().map(|(row, written)| (row, written.start, written.length)).collect();
        rows.sort_unstable();
        self.replace(rows.into_iter().map(|(_, start, length)| (start, length)).collect())
    }

    fn replace(&mut self, pieces: Vec<(u64, u64)>) -> Result<(), String> {
        self.file = file::replace(&self.path, &mut self.file, pieces)
            .map_err(|error| format!("{}: rewriting it: {error}; it is as it was", self.path.display()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{file::tests::Scratch, row};

    fn line(row: u64, code: Option<&str>) -> String {
        let error = code.map(|code| Failure { code: code.into(), message: "no".into() });
        let mark = row::from_json(row, row, b"bad", &row::Defaults::default()).mark.to_string();
        let line = Line {
            row,
            custom_id: None,
            response: None,
            error,
            key: None,
            attempts: 1,
            seconds: 0.5,
            cost: None,
            mark,
        };
        String::from_utf8(line.to_bytes()).unwrap()
    }

    #[test]
    fn rows_are_found_again_sorted_and_dropped() {
        let lines = [line(3, None), line(1, Some("no_credit")), line(2, Some(BAD_ROW))];
        let scratch = Scratch::new("output", (lines.concat() + "{\"row\":4,").as_bytes());
        let (mut output, mut rows) = Output::open(&scratch.0).unwrap();
        let mut kinds: Vec<_> = rows.iter().map(|(row, written)| (*row, written.line, written.kind)).collect();
        kinds.sort_by_key(|(row, ..)| *row);
        assert_eq!(kinds, [(1, 2, Kind::Failed), (2, 3, Kind::Bad), (3, 1, Kind::Answered)]);
        output.sort().unwrap();
        let text = std::fs::read_to_string(&scratch.0).unwrap();
        assert_eq!(text, [&*lines[1], &*lines[2], &*lines[0]].concat());
        drop(output);
        let mut output;
        (output, rows) = Output::open(&scratch.0).unwrap();
        output.retain(&mut rows, |written| written.kind == Kind::Answered).unwrap();
        assert_eq!(std::fs::read_to_string(&scratch.0).unwrap(), lines[0]);
        assert_eq!(rows.len(), 1);
    }

    #[test]
    fn what_is_no_output_of_ours_is_refused_and_left_alone() {
        for (number, (content, said)) in [
            ("{\"answer\":42}\n".to_owned(), "line 1 is not an answer of this command"),
            ("a letter without an end".to_owned(), "line 1 is not an answer of this command"),
            (line(1, None) + "\n", "line 2 is not an answer"),
            ([line(1, None), line(2, None), line(1, None)].concat(), "lines 1 and 3 both answer row 1"),
        ]
        .into_iter()
        .enumerate()
        {
            let scratch = Scratch::new(&format!("foreign-{number}"), content.as_bytes());
            let trouble = Output::open(&scratch.0).unwrap_err();
            assert!(trouble.contains(said) && trouble.contains("another --out"), "{trouble}");
            assert_eq!(std::fs::read_to_string(&scratch.0).unwrap(), content);
        }
    }
}
