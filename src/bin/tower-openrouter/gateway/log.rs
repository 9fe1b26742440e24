//! The log on standard error: an entry is a line.
//!
//! What clients and upstreams send finds its way into entries. A line break in it would begin what looks like an entry of our
//! own, and an escape sequence would speak to the terminal of whoever reads the file. Whether a field is escaped depends on how
//! it is written down where it is logged, in this crate and in those below it; so everything is escaped here once more.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use tracing_subscriber::fmt::MakeWriter;

/// Writes entries to standard error, each in one line.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneLine {
    /// Whether entries are coloured, by escape sequences.
    pub(super) colours: bool,
}

impl Default for OneLine {
    /// Coloured on a terminal.
    fn default() -> Self {
        Self { colours: io::stderr().is_terminal() }
    }
}

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for OneLine {
    /// Takes a whole entry at a time, as the subscriber gives them.
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&line(entry, self.colours))?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn line(entry: &[u8], colours: bool) -> Vec<u8> {
    let (entry, end) = match entry.strip_suffix(b"\n") {
        Some(entry) => (entry, "\n"),
        None => (entry, ""),
    };
    let is_escaped = |char: char| char.is_control() && char != '\t' && !(colours && char == '\x1b');
    let mut line = String::with_capacity(entry.len() + 1);
    for char in String::from_utf8_lossy(entry).chars() {
        if is_escaped(char) {
            let _infallible = write!(line, "{}", char.escape_default());
        } else {
            line.push(char);
        }
    }
    (line + end).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r113_an_entry_is_a_line_whatever_is_in_it() {
        for (entry, written) in [
            ("plain é\n", "plain é\n"),
            ("a\nb\r\nc\n", "a\\nb\\r\\nc\n"),
            ("tab\there\u{85}\u{9b}2J\0\n", "tab\there\\u{85}\\u{9b}2J\\u{0}\n"),
            ("\u{1b}[2J\n", "\\u{1b}[2J\n"),
            ("no end", "no end"),
            ("\n\n", "\\n\n"),
        ] {
            assert_eq!(line(entry.as_bytes(), false), written.as_bytes());
        }
        assert_eq!(line(b"\x1b[31mred\x1b[0m\nnot\n", true), b"\x1b[31mred\x1b[0m\\nnot\n");
        assert_eq!(line(b"\xff\n", false), "\u{fffd}\n".as_bytes());
    }
}
