//! An upstream that streams as it is told, each event stamped with the time it is sent.
//!
//! The model of a request is its order: `probe/EVENTS/MICROS/BYTES`, so many events so far apart, padded to so many bytes. No
//! time between them means as fast as the other side takes them.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{MissedTickBehavior, interval},
};

/// Nanoseconds by the clock that all processes of the machine share.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A listener whose connections keep little in the kernel, so that who does not read is noticed.
pub(crate) fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(32 * 1024)?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener = socket.listen(4096)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves for ever. What it has sent in all is told at `/sent`.
pub(crate) async fn serve(listener: TcpListener) -> io::Result<()> {
    let sent = Arc::<AtomicU64>::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sent = sent.clone();
        // its end is the other side's doing, and noticed there
        tokio::spawn(async move { connection(stream, &sent).await });
    }
}

async fn connection(mut stream: TcpStream, sent: &AtomicU64) -> io::Result<()> {
    while let Some(request) = request(&mut stream).await? {
        if request.starts_with("GET /sent") {
            let text = sent.load(Ordering::Relaxed).to_string();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            stream.write_all(answer.as_bytes()).await?;
            continue;
        }
        let order = request.split("probe/").nth(1).unwrap_or_default();
        let numbers: Vec<u64> =
            order.split(|c: char| !c.is_ascii_digit()).map_while(|text| text.parse().ok()).collect();
        let [events, micros, bytes] = numbers[..] else { return Ok(()) };
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        let mut ticks = interval(Duration::from_micros(micros.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..events {
            if micros > 0 {
                ticks.tick().await;
            }
            let event = event(bytes as usize);
            stream.write_all(&chunk(&event)).await?;
            sent.fetch_add(event.len() as u64, Ordering::Relaxed);
        }
        stream.write_all(&chunk("data: [DONE]\n\n")).await?;
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

fn event(bytes: usize) -> String {
    let stamp = now();
    let event = |pad: &str| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{stamp}{pad}\"}}}}]}}\n\n");
    let bare = event("").len();
    event(&" ".repeat(bytes.saturating_sub(bare)))
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

/// The next request on a connection; `None` when it was closed.
async fn request(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut read = Vec::new();
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .to_ascii_lowercase()
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.lines().next().and_then(|length| length.trim().parse().ok()).unwrap_or(0));
        if body.len() >= length {
            return Ok(Some(text.into_owned()));
        }
    }
}
