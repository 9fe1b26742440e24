//! A load that keeps its own time: so many requests a second, whether or not the answers keep up.
//!
//! A client that sends its next request when it has the answer to the one before sends less to whom it measures as slow. Here
//! each connection has a schedule. A request that is late because the answer before it was late counts from when it was due;
//! one that is late because this process was woken late counts from when it was sent.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

pub(crate) fn put(target: &str, path: &str, body: &str, numbers: [&str; 3]) -> io::Result<()> {
    let Ok([rate, seconds, connections]) = numbers
        .map(str::parse::<f64>)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map(|numbers| [numbers[0], numbers[1], numbers[2]])
    else {
        return Err(io::Error::other("RATE, SECONDS and CONNECTIONS are numbers"));
    };
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\nauthorization: Bearer of-the-client\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let every = Duration::from_secs_f64(connections / rate);
    let (start, count) = (Instant::now() + Duration::from_millis(200), connections as u32);
    let threads: Vec<_> = (0..count)
        .map(|number| {
            let (target, request) = (target.to_owned(), request.clone());
            thread::spawn(move || {
                // spread evenly, so that they do not all send at once
                let begin = start + every * number / count;
                connection(&target, request.as_bytes(), begin, every, begin + Duration::from_secs_f64(seconds))
            })
        })
        .collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| io::Error::other("a thread panicked"))??);
    }
    times.sort_unstable();
    let quantile =
        |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default().as_nanos();
    println!("{} {} {}", times.len(), quantile(0.5), quantile(0.99));
    Ok(())
}

/// Sends on one connection by its schedule; how long each answer took.
fn connection(
    target: &str,
    request: &[u8],
    begin: Instant,
    every: Duration,
    end: Instant,
) -> io::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut times, mut due, mut buffer) = (Vec::new(), begin, vec![0; 64 * 1024]);
    while due < end {
        let early = due.checked_duration_since(Instant::now());
        if let Some(early) = early {
            thread::sleep(early);
        }
        let from = if early.is_some() { Instant::now() } else { due };
        stream.write_all(request)?;
        answer(&mut stream, &mut buffer)?;
        times.push(from.elapsed());
        due += every;
    }
    Ok(times)
}

/// Reads one answer to its end.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut read = 0;
    loop {
        let count = stream.read(&mut buffer[read..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read += count;
        let Some(head) = buffer[..read].windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).map_err(io::Error::other)?;
        if !text.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(text.lines().next().unwrap_or_default().to_owned()));
        }
        let mut headers = text.lines().filter_map(|line| line.split_once(':'));
        let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let whole = match length {
            Some((_, length)) => read >= head + 4 + length.trim().parse().unwrap_or(0),
            None => buffer[..read].ends_with(b"0\r\n\r\n"),
        };
        if whole {
            return Ok(());
        }
    }
}
