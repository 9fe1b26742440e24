//! Which rows were sent: so that a run after a crash can say how many may be billed twice, and so that two runs cannot write
//! one output.
//!
//! Beside `answers.jsonl` there is `answers.jsonl.running` while not all of it is written. A run holds a lock on it, which the
//! system takes back however the process ends. `+7` is written before row 7 is sent, `-7` when it turned out that nothing was
//! run for it; a row whose answer stands in the output needs no more.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use fs4::{FileExt, TryLockError};

use super::file;

/// The journal of an output, locked.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    sent: HashMap<u64, u64>,
}

impl Journal {
    /// Locks the journal of `out`, and reads what an earlier run left there.
    pub(super) fn open(out: &Path) -> Result<Self, String> {
        let path = file::beside(out, ".running");
        let trouble = |error: io::Error| {
            format!(
                "{}: {error}; it is kept beside --out while a batch runs: choose an --out that can have it",
                path.display()
            )
        };
        let mut file = loop {
            let file = file::open(&path).map_err(trouble)?;
            match FileExt::try_lock(&file) {
                // another run may have ended, and removed it, in between
                Ok(()) if is_at(&file, &path) => break file,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(format!(
                        "{}: another run is writing it: wait for its end, or choose another --out",
                        out.display()
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(trouble(error)),
            }
        };
        let (mut sent, mut torn) = (HashMap::<u64, u64>::new(), None);
        file::lines(&mut file, |_, start, line| {
            if file::is_torn(line, b"+") || file::is_torn(line, b"-") {
                torn = Some(start);
                return Ok(());
            }
            let line = line.trim_ascii();
            let row = line.get(1..).and_then(|row| std::str::from_utf8(row).ok()?.parse().ok());
            match (line.first(), row) {
                (Some(b'+'), Some(row)) => *sent.entry(row).or_default() += 1,
                (Some(b'-'), Some(row)) => {
                    let times = sent.entry(row).or_default();
                    *times = times.saturating_sub(1);
                }
                _ => return Err(io::Error::other("a line in it is not ours")),
            }
            Ok(())
        })
        .and_then(|()| torn.map_or(Ok(()), |start| file.set_len(start)))
        .map_err(trouble)?;
        Ok(Self { file, path, sent })
    }

    /// How many requests were sent whose answer nobody kept; `is_finished` tells of a row whether the output has it.
    pub(super) fn lost(&self, is_finished: impl Fn(u64) -> bool) -> u64 {
        self.sent.iter().map(|(row, times)| times.saturating_sub(u64::from(is_finished(*row)))).sum()
    }

    /// Notes that a row is about to be sent.
    pub(super) fn sending(&self, row: u64) -> Result<(), String> {
        self.write(format!("+{row}\n"))
    }

    /// Notes that a row that was sent has not run, or that its answer was thrown away on purpose.
    pub(super) fn take_back(&self, row: u64) -> Result<(), String> {
        self.write(format!("-{row}\n"))
    }

    fn write(&self, line: String) -> Result<(), String> {
        file::append(&self.file, line.as_bytes())
            .map_err(|error| format!("{}: {error}; mend that, and run the same command again", self.path.display()))
    }

    /// Whether no earlier run has left anything to remember.
    pub(super) fn is_blank(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether a row was sent.
    pub(super) fn has(&self, row: u64) -> bool {
        self.sent.get(&row).is_some_and(|times| *times > 0)
    }

    /// Every row is written: there is nothing to remember.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Elsewhere a file that somebody has open cannot be replaced.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::file::tests::Scratch;

    #[test]
    fn rows_that_were_sent_and_not_answered_are_counted_over_all_runs() {
        let out = Scratch::new("journal", b"");
        let journal = Journal::open(&out.0).unwrap();
        for row in [1, 2, 3, 4] {
            journal.sending(row).unwrap();
        }
        journal.take_back(4).unwrap();
        drop(journal);
        let journal = Journal::open(&out.0).unwrap();
        assert_eq!(journal.lost(|row| row == 1), 2);
        assert!(journal.has(1) && !journal.has(4) && !journal.has(5));
        journal.sending(2).unwrap();
        file::append(&journal.file, b"+3").unwrap();
        drop(journal);
        let journal = Journal::open(&out.0).unwrap();
        assert_eq!(journal.lost(|row| row < 3), 2, "row 2 once, row 3 once; the torn line says nothing");
        journal.remove().unwrap();
        let journal = Journal::open(&out.0).unwrap();
        assert_eq!(journal.lost(|_| false), 0);
        journal.remove().unwrap();
    }

    #[test]
    fn a_second_run_on_the_same_output_is_refused() {
        let out = Scratch::new("locked", b"");
        let journal = Journal::open(&out.0).unwrap();
        let trouble = Journal::open(&out.0).unwrap_err();
        assert!(trouble.contains("locked") && trouble.contains("another run is writing it"), "{trouble}");
        journal.remove().unwrap();
    }

    #[test]
    fn a_file_that_is_not_a_journal_is_left_alone() {
        let out = Scratch::new("foreign", b"");
        let other = Scratch(file::beside(&out.0, ".running"));
        fs::write(&other.0, "hello\n").unwrap();
        let trouble = Journal::open(&out.0).unwrap_err();
        assert!(trouble.contains("a line in it is not ours"), "{trouble}");
        assert_eq!(fs::read(&other.0).unwrap(), b"hello\n");
    }
}
