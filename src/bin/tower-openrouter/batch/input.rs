//! The input: rows out of a JSONL or a CSV file, one at a time.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use super::row::{Cells, Defaults, Row, broken, from_json};

/// How the input is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// One JSON value a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
}

/// A file of rows.
#[derive(Debug, Clone)]
pub(super) struct Input {
    path: PathBuf,
    format: Format,
    defaults: Defaults,
}

impl Input {
    pub(super) fn new(path: PathBuf, format: Option<Format>, defaults: Defaults) -> Self {
        let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let format = format.unwrap_or(if is_csv { Format::Csv } else { Format::Jsonl });
        Self { path, format, defaults }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The rows from the first on.
    pub(super) fn rows(&self) -> Result<Rows, String> {
        let name = self.name();
        let file =
            File::open(&self.path).map_err(|error| format!("{name}: {error}; give the path of a file of rows"))?;
        let source = match self.format {
            Format::Jsonl => Source::Lines { file: BufReader::new(file), line: 0, text: Vec::new() },
            Format::Csv => Source::csv(file).map_err(|what| format!("{name} line 1: {what}"))?,
        };
        Ok(Rows { source, name, number: 0, defaults: self.defaults.clone() })
    }
}

/// The rows of a file. An error is the file's, and the last that comes.
#[derive(Debug)]
pub(super) struct Rows {
    source: Source,
    name: String,
    number: u64,
    defaults: Defaults,
}

#[derive(Debug)]
enum Source {
    Lines { file: BufReader<File>, line: u64, text: Vec<u8> },
    Csv { reader: Box<csv::Reader<File>>, columns: Columns, record: csv::ByteRecord },
    Over,
}

/// Where the columns are that mean something here; the others are left alone.
#[derive(Debug, Clone, Copy)]
struct Columns {
    prompt: usize,
    system: Option<usize>,
    model: Option<usize>,
    custom_id: Option<usize>,
    count: usize,
}

impl Source {
    fn csv(file: File) -> Result<Self, String> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
        let header = reader.byte_headers().map_err(|error| error.to_string())?;
        let names: Vec<_> = header.iter().map(|name| String::from_utf8_lossy(name).trim().to_lowercase()).collect();
        let at = |name: &str| names.iter().position(|found| found == name);
        let Some(prompt) = at("prompt") else {
            let found = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(format!(
                "it has no column `prompt`, only {found}: name one so, and separate columns by commas"
            ));
        };
        let (system, model, custom_id) = (at("system"), at("model"), at("custom_id"));
        let columns = Columns { prompt, system, model, custom_id, count: names.len() };
        Ok(Self::Csv { reader: Box::new(reader), columns, record: csv::ByteRecord::new() })
    }
}

impl Rows {
    fn read(&mut self) -> Result<Option<Row>, String> {
        let (number, defaults) = (self.number + 1, &self.defaults);
        let row = match &mut self.source {
            Source::Over => None,
            Source::Lines { file, line, text } => loop {
                text.clear();
                if file.read_until(b'\n', text).map_err(|error| error.to_string())? == 0 {
                    break None;
                }
                *line += 1;
                let mark: &[u8] = if *line == 1 { b"\xef\xbb\xbf" } else { b"" };
                let text = text.strip_prefix(mark).unwrap_or(text).trim_ascii();
                if !text.is_empty() {
                    break Some(from_json(number, *line, text, defaults));
                }
            },
            Source::Csv { reader, columns, record } => {
                let more = reader.read_byte_record(record).map_err(|error| error.to_string())?;
                more.then(|| columns.row(number, record, defaults))
            }
        };
        self.number += u64::from(row.is_some());
        Ok(row)
    }
}

impl Iterator for Rows {
    type Item = Result<Row, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.read().map_err(|what| format!("{}: {what}", self.name)).transpose();
        if !matches!(row, Some(Ok(_))) {
            self.source = Source::Over;
        }
        row
    }
}

impl Columns {
    fn row(&self, number: u64, record: &csv::ByteRecord, defaults: &Defaults) -> Row {
        let line = record.position().map_or(0, csv::Position::line);
        let broken = |what| broken(number, line, record.as_slice(), what);
        if record.len() != self.count {
            let (columns, header) = (record.len(), self.count);
            let what = format!("it has {columns} columns and the header {header}: quote what holds a comma");
            return broken(what);
        }
        let Ok(cells) = record.iter().map(std::str::from_utf8).collect::<Result<Vec<_>, _>>() else {
            return broken("it is not UTF-8 text".into());
        };
        let cell = |at: usize| cells[at];
        let optional = |at: Option<usize>| at.map_or("", cell).trim();
        let cells = Cells {
            prompt: cell(self.prompt),
            system: optional(self.system),
            model: optional(self.model),
            custom_id: optional(self.custom_id),
        };
        cells.row(number, line, defaults)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row's number, its line, and what it holds or what is wrong with it.
    type Told = (u64, u64, Result<String, String>);

    fn rows(name: &str, content: &[u8]) -> Result<Vec<Told>, String> {
        let path = std::env::temp_dir().join(format!("tower-openrouter-rows-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        let defaults = Defaults { model: Some("a/b".into()), ..Defaults::default() };
        let rows = Input::new(path.clone(), None, defaults).rows();
        let _ = std::fs::remove_file(&path);
        let rows = rows.map_err(|said| said.split_once(name).unwrap().1.to_owned())?;
        rows.map(|row| {
            let Row { number, line, ask, .. } = row?;
            Ok((number, line, ask.map(|ask| String::from_utf8_lossy(&ask.body).into_owned())))
        })
        .collect()
    }

    #[test]
    fn lines_are_counted_as_an_editor_does_and_empty_ones_are_no_rows() {
        let rows = rows("a.jsonl", b"\xef\xbb\xbf\"one\"\r\n\r\n  \nbad\n\"two\"").unwrap();
        let places: Vec<_> = rows.iter().map(|(number, line, ask)| (*number, *line, ask.is_ok())).collect();
        assert_eq!(places, [(1, 1, true), (2, 4, false), (3, 5, true)]);
        assert!(rows[2].2.as_ref().unwrap().contains("\"content\":\"two\""));
    }

    #[test]
    fn a_csv_file_needs_a_prompt_and_its_rows_may_go_over_lines() {
        let text = "\u{feff}custom_id,Prompt,note\n1,\"two\nlines, and a comma\",x\n2,one, two\n3,a,b,c\n4, ,\n";
        let rows = rows("b.csv", text.as_bytes()).unwrap();
        let places: Vec<_> = rows.iter().map(|(number, line, ask)| (*number, *line, ask.is_ok())).collect();
        assert_eq!(places, [(1, 2, true), (2, 4, true), (3, 5, false), (4, 6, false)]);
        assert!(rows[0].2.as_ref().unwrap().contains(r#""content":"two\nlines, and a comma""#), "{:?}", rows[0]);
        assert!(rows[2].2.as_ref().unwrap_err().starts_with("it has 4 columns and the header 3"));
        assert_eq!(rows[3].2.as_ref().unwrap_err(), "its prompt is empty");
    }

    #[test]
    fn a_csv_file_without_a_prompt_is_refused_with_what_it_has() {
        let trouble = rows("c.csv", b"id;prompt\n1;Hi\n").unwrap_err();
        assert!(trouble.starts_with(" line 1: it has no column `prompt`, only `id;prompt`"), "{trouble}");
        assert!(rows("d.csv", b"").unwrap_err().contains("no column `prompt`"));
        assert_eq!(rows("e.csv", b"prompt\n\xff\n").unwrap()[0].2.as_ref().unwrap_err(), "it is not UTF-8 text");
    }

    proptest! {
        #[test]
        fn r119_any_bytes_are_rows_or_say_what_is_wrong(
            pieces in proptest::collection::vec(prop_oneof![
                prop::sample::select(&[
                    "prompt", "custom_id,prompt,model\n", "\"", "\"\"", ",", "\n", "\r\n", "\u{feff}", "{", "}",
                    "{\"prompt\":\"Hi\"}\n", "{\"custom_id\":1,\"body\":{\"messages\":[]},\"url\":\"/v1/messages\"}\n",
                ][..]).prop_map(|text| text.as_bytes().to_vec()),
                proptest::collection::vec(any::<u8>(), 0..8),
            ], 0..16),
            is_csv: bool,
        ) {
            let name = if is_csv { "fuzz.csv" } else { "fuzz.jsonl" };
            let content = if is_csv { [b"prompt,x\n".to_vec(), pieces.concat()].concat() } else { pieces.concat() };
            let lines = content.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64 + 1;
            for (number, told) in (1..).zip(rows(name, &content).into_iter().flatten()) {
                prop_assert!(told.0 == number && told.1 <= lines);
            }
        }
    }
}
