//! `--record FILE`: a line of JSON for each request, from which the lab can play the traffic again.
//!
//! Which stack suits one's traffic can only be tried on that traffic, and nobody may keep what people write to a model. So a
//! line says when a request came, what it asked for and how large it was, and what became of it: sizes, times, causes and the
//! labels of keys, which are names and no secrets. No prompt, no answer, no key, no token, and in place of a session's id a
//! hash of it under a key that nobody knows, drawn anew at each start.
//!
//! Requests never wait for the disk: a line goes into a bounded queue, which a thread of its own writes out. When that is
//! full, or the disk is, lines are lost, and the next one says how many.

use std::{
    collections::hash_map::RandomState,
    fs::{File, OpenOptions},
    hash::BuildHasher,
    io::{self, Write},
    mem,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fs4::{FileExt, TryLockError};
use tokio::time::Instant;
use tracing::{info, warn};

mod entry;
mod line;

pub(super) use entry::Entry;
use line::Line;

/// How many lines may wait for the disk: some seconds of what one core can serve, in a few megabytes.
const QUEUE: usize = 16 * 1024;
/// How much is written at once.
const BATCH: usize = 64 * 1024;
/// How long the end of the process may wait for the disk.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Where requests are recorded. Clones write into the same file.
#[derive(Debug, Clone)]
pub(super) struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Message>,
    /// Lines for which there was no room.
    lost: Arc<AtomicU64>,
    /// When this began, by either clock.
    started: (Instant, u64),
    sessions: RandomState,
}

enum Message {
    Line(Box<Line>),
    /// Everything before it is in the file once this is answered.
    Flush(SyncSender<()>),
}

impl Recorder {
    /// Opens the file, to be appended to. Only its owner may read one that is made here.
    ///
    /// # Errors
    /// When the file cannot be written, or another process records into it.
    pub(super) fn start(path: &Path) -> Result<Self, String> {
        let trouble = |what| format!("record: {}: {what}", path.display());
        let file = open(path).map_err(trouble)?;
        Self::into(file, QUEUE).map_err(|error| trouble(format!("{error}; choose a file that can be written")))
    }

    /// Records into `to`, with room for so many lines that wait for it.
    fn into(file: impl Sink, queue: usize) -> io::Result<Self> {
        let lost = Arc::<AtomicU64>::default();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = (Instant::now(), millis(since_1970));
        let (queue, messages) = sync_channel(queue);
        let batch = Batch::default();
        let writer = Writer { file, lost: lost.clone(), told: 0, batch, failing: false };
        thread::Builder::new().name("record".into()).spawn(move || writer.run(&messages))?;
        Ok(Self(Arc::new(Shared { queue, lost, started, sessions: RandomState::new() })))
    }

    /// Milliseconds since 1970, by a clock that is not set while it runs.
    fn at(&self, instant: Instant) -> u64 {
        let (started, since_1970) = self.0.started;
        since_1970 + millis(instant.saturating_duration_since(started))
    }

    /// What stands for a session's id here.
    fn session(&self, id: &[u8]) -> u64 {
        self.0.sessions.hash_one(id)
    }

    fn push(&self, line: Line) {
        if self.0.queue.try_send(Message::Line(Box::new(line))).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything so far is in the file, unless the disk takes too long.
    pub(super) fn flush(&self) {
        let (end, (answer, answered)) = (Instant::now() + LAST_LINES, sync_channel(1));
        let mut message = Message::Flush(answer);
        while let Err(TrySendError::Full(back)) = self.0.queue.try_send(message)
            && Instant::now() < end
        {
            message = back;
            thread::sleep(Duration::from_millis(1));
        }
        if answered.recv_timeout(end.saturating_duration_since(Instant::now())).is_err() {
            warn!("the disk takes too long: the last lines of the recording are lost");
        }
    }
}

fn open(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| format!("{error}; choose a file that can be written"))?;
    match FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err("another gateway records into it: give each a file of its own".into()),
        Err(TryLockError::Error(error)) => Err(format!("{error}; choose a file that can be locked")),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What is written into.
trait Sink: Send + 'static {
    /// Appends all of this, or nothing of it.
    fn append(&mut self, lines: &[u8]) -> io::Result<()>;
}

impl Sink for File {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let before = self.metadata()?.len();
        self.write_all(lines).inspect_err(|_| {
            // half a line would spoil the one after it; what is no regular file cannot be cut
            let _ = self.set_len(before);
        })
    }
}

/// Lines to be written.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    /// How many requests it tells of, and of how many that were lost.
    lines: u64,
    lost: u64,
}

/// The thread's side.
struct Writer<F> {
    file: F,
    lost: Arc<AtomicU64>,
    /// How many of the lost ones are told of.
    told: u64,
    batch: Batch,
    failing: bool,
}

impl<F: Sink> Writer<F> {
    /// Writes until nobody can send any more.
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let mut next = Ok(first);
            loop {
                match next {
                    Ok(Message::Line(line)) => self.push(*line),
                    Ok(Message::Flush(answer)) => {
                        self.write_out();
                        // who asked may not wait any more
                        let _ = answer.try_send(());
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
                if self.batch.text.len() >= BATCH {
                    self.write_out();
                }
                next = messages.try_recv();
            }
            self.write_out();
        }
    }

    fn push(&mut self, mut line: Line) {
        let lost = self.lost.load(Ordering::Relaxed);
        line.lost_before = lost - self.told;
        // numbers and strings: there is nothing in them that could fail
        if serde_json::to_writer(&mut self.batch.text, &line).is_ok() {
            self.batch.text.push(b'\n');
            self.batch.lines += 1;
            self.batch.lost += line.lost_before;
            self.told = lost;
        }
    }

    /// Writes what there is. What cannot be written is lost.
    fn write_out(&mut self) {
        let Batch { text, lines, lost } = &mut self.batch;
        if *lines == 0 {
            return;
        }
        match self.file.append(text) {
            Ok(()) => {
                if *lost > 0 {
                    warn!(requests = *lost, "some requests were not recorded");
                }
                if mem::take(&mut self.failing) {
                    info!("requests are recorded again");
                }
            }
            Err(error) => {
                self.lost.fetch_add(*lines, Ordering::Relaxed);
                self.told -= *lost;
                if !mem::replace(&mut self.failing, true) {
                    warn!(%error, "requests cannot be recorded for now");
                }
            }
        }
        text.clear();
        (*lines, *lost) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::channel};

    use super::*;

    /// A disk whose every write is what the test lets it be.
    struct Disk {
        next: Receiver<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Sink for Disk {
        fn append(&mut self, lines: &[u8]) -> io::Result<()> {
            self.next.recv().unwrap_or(Ok(()))?;
            self.written.lock().unwrap().extend_from_slice(lines);
            Ok(())
        }
    }

    /// The lines of a file: how many requests it tells of, and how many it says are missing.
    fn told(text: &[u8]) -> (u64, u64) {
        let lines = std::str::from_utf8(text).unwrap().lines();
        lines.fold((0, 0), |(recorded, lost), line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (recorded + 1, lost + line["lost_before"].as_u64().unwrap_or(0))
        })
    }

    #[test]
    fn whatever_the_disk_does_every_request_is_recorded_or_counted_as_missing() {
        let (disk, next) = channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let recorder = Recorder::into(Disk { next, written: written.clone() }, 8).unwrap();
        // the disk takes nothing while these come, and its first write of them fails
        for _ in 0..100 {
            recorder.push(Line::default());
        }
        disk.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        drop(disk);
        recorder.flush();
        recorder.push(Line::default());
        recorder.flush();
        let (recorded, lost) = told(&written.lock().unwrap());
        assert_eq!(recorded + lost, 101);
        assert!((1..=9).contains(&recorded) && lost >= 92, "{recorded} recorded, {lost} lost");
    }
}
