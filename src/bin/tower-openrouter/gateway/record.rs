//! `--record FILE`: a line of JSON for each request, from which the lab can play the traffic again.
//!
//! Which stack suits one's traffic can only be tried on that traffic, and nobody may keep what people write to a model. So a
//! line says when a request came, what it asked for and how large it was, and what became of it: sizes, times, causes and the
//! labels of keys, which are names and no secrets. No prompt, no answer, no key, no token, and in place of a session's id a
//! hash of it under a key that nobody knows, drawn anew at each start.
//!
//! Requests never wait for the disk: a line goes into a bounded queue, which a thread of its own writes out. When that is
//! full, or the disk is, lines are lost, and the file says how many.

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
use serde::Serialize;
use tokio::time::Instant;
use tower_openrouter::simulator::utc_date;
use tracing::{info, warn};

mod entry;
mod line;

pub(super) use entry::Entry;
use line::{Gap, Head, Record};

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
    started: Instant,
    sessions: RandomState,
}

enum Message {
    Line(Record),
    /// Everything before it is in the file once this is answered.
    Flush(SyncSender<()>),
}

impl Recorder {
    /// Opens the file, to be appended to, and says in it when this recording began. Only its owner may read a file made here.
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
        let started = Instant::now();
        let (queue, messages) = sync_channel(queue);
        let mut writer =
            Writer { file, lost: lost.clone(), told: 0, started, batch: Vec::new(), lines: 0, failing: false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        writer.push(&Head { recording: 1, date: utc_date(i64::try_from(now.as_millis()).unwrap_or(i64::MAX)) });
        writer.write()?;
        thread::Builder::new().name("record".into()).spawn(move || writer.run(&messages))?;
        Ok(Self(Arc::new(Shared { queue, lost, started, sessions: RandomState::new() })))
    }

    /// Milliseconds of the recording at that instant.
    fn at(&self, instant: Instant) -> u64 {
        millis(instant.saturating_duration_since(self.0.started))
    }

    /// What stands for a session's id here.
    fn session(&self, id: &[u8]) -> u64 {
        self.0.sessions.hash_one(id)
    }

    fn push(&self, record: Record) {
        if self.0.queue.try_send(Message::Line(record)).is_err() {
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

/// The thread's side.
struct Writer<F> {
    file: F,
    lost: Arc<AtomicU64>,
    /// How many of the lost ones the file tells of.
    told: u64,
    started: Instant,
    /// Lines to be written, and how many requests they tell of.
    batch: Vec<u8>,
    lines: u64,
    failing: bool,
}

impl<F: Sink> Writer<F> {
    /// Writes until nobody can send any more.
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let mut next = Ok(first);
            loop {
                match next {
                    Ok(Message::Line(record)) => {
                        self.push(&record);
                        self.lines += 1;
                    }
                    Ok(Message::Flush(answer)) => {
                        self.write_out();
                        // who asked may not wait any more
                        let _ = answer.try_send(());
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
                if self.batch.len() >= BATCH {
                    self.write_out();
                }
                next = messages.try_recv();
            }
            self.write_out();
        }
    }

    fn push(&mut self, line: &impl Serialize) {
        // numbers and strings: there is nothing in them that could fail
        if serde_json::to_writer(&mut self.batch, line).is_ok() {
            self.batch.push(b'\n');
        }
    }

    /// Writes what there is, and after it how much is missing. What cannot be written is missing too.
    fn write_out(&mut self) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > self.told {
            let at_ms = millis(self.started.elapsed());
            self.push(&Gap { lost: lost - self.told, at_ms });
        }
        let lines = mem::take(&mut self.lines);
        match self.write() {
            Ok(()) => {
                if lost > self.told {
                    warn!(lines = lost - self.told, "requests were not recorded");
                }
                self.told = lost;
                if mem::take(&mut self.failing) {
                    info!("requests are recorded again");
                }
            }
            Err(error) => {
                self.lost.fetch_add(lines, Ordering::Relaxed);
                if !mem::replace(&mut self.failing, true) {
                    warn!(%error, "requests cannot be recorded for now");
                }
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let written = if self.batch.is_empty() { Ok(()) } else { self.file.append(&self.batch) };
        self.batch.clear();
        written
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::channel};

    use super::*;

    fn record(number: u64) -> Record {
        Record {
            at_ms: number,
            model: None,
            request_bytes: None,
            prompt_tokens: None,
            reply_tokens: None,
            max_tokens: None,
            stream: false,
            session: None,
            priority: "normal",
            status: Some(200),
            cause: None,
            attempts: 1,
            key: None,
            head_ms: None,
            first_output_ms: None,
            total_ms: 0,
        }
    }

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
            (recorded + u64::from(line.get("total_ms").is_some()), lost + line["lost"].as_u64().unwrap_or(0))
        })
    }

    #[test]
    fn whatever_the_disk_does_every_request_is_recorded_or_counted_as_missing() {
        let (disk, next) = channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        disk.send(Ok(())).unwrap();
        let recorder = Recorder::into(Disk { next, written: written.clone() }, 8).unwrap();
        // the disk takes nothing while these come, and its first write of them fails
        for number in 0..100 {
            recorder.push(record(number));
        }
        disk.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        drop(disk);
        recorder.flush();
        recorder.push(record(100));
        recorder.flush();
        let (recorded, lost) = told(&written.lock().unwrap());
        assert_eq!(recorded + lost, 101);
        assert!((1..=9).contains(&recorded) && lost >= 92, "{recorded} recorded, {lost} lost");
        assert!(written.lock().unwrap().starts_with(b"{\"recording\":1,\"date\":\"20"));
    }
}
