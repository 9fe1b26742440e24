//! Files of lines that a killed process may have left torn, and files that change as a whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Opens a file to read and to append to; it is made if it is not there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

/// Gives each line, with its number from 1, where it starts, and its text, to `visit`; the last may have no end.
pub(super) fn lines<E: From<io::Error>>(
    file: &mut File,
    mut visit: impl FnMut(u64, u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let (mut number, mut start, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        number += 1;
        visit(number, start, &line)?;
        start += length as u64;
    }
}

/// Whether a line without an end may be what is left of one that began so, or what a disk makes of one at a power failure.
pub(super) fn is_torn(line: &[u8], began: &[u8]) -> bool {
    let length = began.len().min(line.len());
    !line.ends_with(b"\n") && (line[..length] == began[..length] || line.iter().all(|byte| *byte == 0))
}

/// Replaces a file by some of its own pieces, each a start and a length: whoever looks, and whatever happens, finds either
/// the file as it was or all of the new one.
pub(super) fn replace(path: &Path, from: &mut File, pieces: impl IntoIterator<Item = (u64, u64)>) -> io::Result<File> {
    let temporary = beside(path, ".tmp");
    let mut to = BufWriter::new(File::create(&temporary)?);
    // the same people may read it
    to.get_ref().set_permissions(from.metadata()?.permissions())?;
    for (start, length) in pieces {
        from.seek(SeekFrom::Start(start))?;
        if io::copy(&mut Read::by_ref(from).take(length), &mut to)? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)?;
    open(path)
}

/// Makes sure that a name in a folder is on the disk too.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// A file's name with something after it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a whole line by a single call, as far as the system takes it.
pub(super) fn append(mut file: &File, line: &[u8]) -> io::Result<()> {
    file.write_all(line)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A path of its own for a test, gone afterwards.
    pub(in crate::batch) struct Scratch(pub(in crate::batch) PathBuf);

    impl Scratch {
        pub(in crate::batch) fn new(name: &str, content: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("tower-openrouter-batch-{}-{name}", std::process::id()));
            fs::write(&path, content).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_torn_line_is_told_from_one_of_somebody_else() {
        for torn in ["{", "{\"row\"", "{\"row\":12,\"custom", "\0\0\0"] {
            assert!(is_torn(torn.as_bytes(), b"{\"row\":"), "{torn:?}");
        }
        for other in ["hello", "{\"id\":1", "{\"row\":12}\n", "{\0\0"] {
            assert!(!is_torn(other.as_bytes(), b"{\"row\":"), "{other:?}");
        }
    }

    #[test]
    fn a_file_is_replaced_by_pieces_of_itself() {
        let scratch = Scratch::new("pieces", b"one\ntwo\nthree\n");
        let mut file = open(&scratch.0).unwrap();
        let mut found = Vec::new();
        lines(&mut file, |number, start, line| {
            found.push((number, start, line.len() as u64));
            Ok::<_, io::Error>(())
        })
        .unwrap();
        assert_eq!(found, [(1, 0, 4), (2, 4, 4), (3, 8, 6)]);
        let new = replace(&scratch.0, &mut file, [(8, 6), (0, 4)]).unwrap();
        append(&new, b"four\n").unwrap();
        assert_eq!(fs::read(&scratch.0).unwrap(), b"three\none\nfour\n");
        assert!(!beside(&scratch.0, ".tmp").exists());
        replace(&scratch.0, &mut open(&scratch.0).unwrap(), [(0, 99)]).unwrap_err();
        assert_eq!(fs::read(&scratch.0).unwrap(), b"three\none\nfour\n", "it stays as it was");
        fs::remove_file(beside(&scratch.0, ".tmp")).unwrap();
    }
}
