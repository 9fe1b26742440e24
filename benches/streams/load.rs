//! Clients that start by the clock, whatever becomes of those before them.

use std::{io, net::SocketAddr, time::Duration};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::upstream::now;

/// Streams at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) streams: usize,
    /// Of each stream; with no time between events, what the upstream may send at most.
    pub(crate) events: u64,
    pub(crate) every: Duration,
    /// Of each event.
    pub(crate) bytes: usize,
    /// Within which the streams start, evenly.
    pub(crate) ramp: Duration,
    /// A client that reads its first event, then nothing for so long, and leaves.
    pub(crate) stall: Option<Duration>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Microseconds from when each event was sent to when it was here, sorted.
    pub(crate) delays: Vec<u32>,
    /// Streams that did not end as they should.
    pub(crate) failed: usize,
}

impl Load {
    /// Puts it on whoever listens there.
    pub(crate) async fn run(self, target: SocketAddr) -> Seen {
        let start = Instant::now() + Duration::from_millis(50);
        let mut clients = JoinSet::new();
        for index in 0..self.streams {
            let at = start + self.ramp.mul_f64(index as f64 / self.streams as f64);
            clients.spawn(async move {
                sleep_until(at).await;
                // nobody waits for ever for one that hangs
                let patience =
                    self.every * self.events as u32 + self.stall.unwrap_or_default() + Duration::from_secs(30);
                timeout(patience, self.client(target)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            });
        }
        let mut seen = Seen::default();
        while let Some(client) = clients.join_next().await {
            match client {
                Ok(Ok(delays)) => seen.delays.extend(delays),
                Ok(Err(_)) | Err(_) => seen.failed += 1,
            }
        }
        seen.delays.sort_unstable();
        seen
    }

    async fn client(self, target: SocketAddr) -> io::Result<Vec<u32>> {
        let socket = TcpSocket::new_v4()?;
        let mut stream = socket.connect(target).await?;
        stream.set_nodelay(true)?;
        let order = format!("probe/{}/{}/{}", self.events, self.every.as_micros(), self.bytes);
        let body = format!(r#"{{"model":"{order}","stream":true,"messages":[{{"role":"user","content":"hi"}}]}}"#);
        let head = "POST /api/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
        let length = body.len();
        stream.write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes()).await?;

        let (needle, done) = (memmem::Finder::new("\"content\":\""), memmem::Finder::new("[DONE]"));
        let mut delays = Vec::with_capacity(if self.stall.is_none() { self.events as usize } else { 1 });
        let mut read = Vec::with_capacity(4096);
        loop {
            if stream.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let here = now();
            let mut used = 0;
            while let Some(at) = needle.find(&read[used..]) {
                let stamp = &read[used + at + needle.needle().len()..];
                let Some(end) = stamp.iter().position(|byte| !byte.is_ascii_digit()) else { break };
                let sent: u64 = std::str::from_utf8(&stamp[..end]).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                delays.push(u32::try_from(here.saturating_sub(sent) / 1000).unwrap_or(u32::MAX));
                used += at + needle.needle().len() + end;
            }
            if let (Some(stall), false) = (self.stall, delays.is_empty()) {
                sleep(stall).await;
                return Ok(delays);
            }
            read.drain(..used);
            if done.find(&read).is_some() {
                let whole = delays.len() as u64 == self.events;
                return if whole { Ok(delays) } else { Err(io::ErrorKind::InvalidData.into()) };
            }
        }
    }
}

impl Seen {
    /// The delay that this share of the events stays within.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let at = ((self.delays.len() as f64 * share).ceil() as usize).clamp(1, self.delays.len().max(1)) - 1;
        Duration::from_micros(self.delays.get(at).copied().unwrap_or(u32::MAX).into())
    }
}

/// What the upstream says to have sent.
pub(crate) async fn sent(upstream: SocketAddr) -> io::Result<u64> {
    let mut stream = TcpSocket::new_v4()?.connect(upstream).await?;
    stream.write_all(b"GET /sent HTTP/1.1\r\n\r\n").await?;
    let mut read = Vec::new();
    loop {
        stream.read_buf(&mut read).await?;
        let text = String::from_utf8_lossy(&read);
        if let Some(number) = text.split("\r\n\r\n").nth(1).and_then(|text| text.parse().ok()) {
            return Ok(number);
        }
    }
}
