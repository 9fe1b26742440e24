//! Clients that take their time, and clients that send too much.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{support::*, world::*};

const TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that sends a byte now and again.
struct Dribble {
    stream: TcpStream,
    bytes: Vec<u8>,
    sent: usize,
    told: Vec<u8>,
    closed: Option<Duration>,
}

impl Dribble {
    /// Sends the first `at_once` bytes now.
    fn new(gateway: &Gateway, text: &str, at_once: usize) -> Self {
        let mut stream = connect(gateway.api);
        stream.write_all(&text.as_bytes()[..at_once]).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, bytes: text.into(), sent: at_once, told: Vec::new(), closed: None }
    }

    fn step(&mut self, start: Instant) {
        if self.closed.is_some() {
            return;
        }
        let byte = self.bytes.get(self.sent).copied().unwrap_or(b'x');
        self.sent += self.stream.write(&[byte]).unwrap_or(0);
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(read @ 1..) => self.told.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _closed_or_reset => {
                    self.closed = Some(start.elapsed());
                    return;
                }
            }
        }
    }
}

#[test]
fn r107_a_thousand_connections_that_dribble_are_closed_in_time_and_others_are_served() {
    let world = World::plain();
    let gateway = world.gateway(&["--header-timeout", "1s"]);
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n", "x".repeat(8000));
    let body = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000\r\n\r\n{{{}",
        " ".repeat(7000)
    );
    let chunk = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1000\r\n{}",
        " ".repeat(4096)
    );
    // more than is kept, so that it is passed on as it comes
    let large =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{{", 20 << 20);
    let start = Instant::now();
    let mut dribbles = Vec::new();
    for number in 0..1000 {
        let (text, at_once) = match number % 10 {
            0 => (&head, 0),
            1..4 => (&head, 60),
            4..7 => (&body, body.find('{').unwrap() + 1),
            7..9 => (&chunk, chunk.find("1000").unwrap()),
            _ => (&large, large.len()),
        };
        dribbles.push(Dribble::new(&gateway, text, at_once));
    }
    let opened = start.elapsed();
    // how long it took to open them says how busy the machine is with other things
    let slack = opened.max(Duration::from_secs(1));
    let healthy = thread::scope(|scope| {
        let healthy = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while start.elapsed() < opened + TIMEOUT {
                let start = Instant::now();
                assert_eq!(gateway.chat("").status, 200);
                slowest = slowest.max(start.elapsed());
            }
            slowest
        });
        while dribbles.iter().any(|dribble| dribble.closed.is_none()) {
            assert!(start.elapsed() < opened + PATIENCE, "some are never closed");
            dribbles.iter_mut().for_each(|dribble| dribble.step(start));
            thread::sleep(Duration::from_millis(20));
        }
        healthy.join().unwrap()
    });
    for (number, dribble) in dribbles.iter().enumerate() {
        let took = dribble.closed.unwrap();
        assert!(took <= opened + TIMEOUT + slack, "{number}: {took:?}, opened by {opened:?}");
        let told = String::from_utf8_lossy(&dribble.told);
        let is_late_body = number % 10 >= 4;
        assert_eq!(told.starts_with("HTTP/1.1 408 "), is_late_body, "{number}: {told}");
        assert_eq!(told.contains("\"reason\":\"body_too_slow\""), is_late_body, "{number}: {told}");
    }
    assert!(healthy < slack, "others waited for {healthy:?}");
    let unfinished = world.simulator.counts();
    assert_eq!(
        (unfinished.in_flight, unfinished.by_status.keys().collect::<Vec<_>>()),
        (0, vec![&200]),
        "{unfinished:?}"
    );
}

#[test]
fn r107_a_slow_body_that_keeps_coming_is_served() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--header-timeout", "300ms"]);
    let mut client = connect(gateway.api);
    let body = format!("{{\"model\":\"acme/swift-1\",\"messages\":[],\"user\":\"{}\"}}", "x".repeat(4000));
    let text = request("POST", "/v1/chat/completions", "", &body);
    // 500 bytes each 150 ms, for four times as long as a head may take
    for piece in text.as_bytes().chunks(500) {
        client.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(Reply::parse(&rest(&mut client)).status, 200);
}

#[test]
fn r108_a_head_or_a_target_beyond_what_is_taken_is_refused_and_the_connection_closed() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let long = |length| "x".repeat(length);
    let many = |count| (0..count).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let post = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";
    for (head, status) in [
        (format!("{post}x-long: {}\r\n\r\n", long(17 << 10)), 431),
        (format!("{post}{}: y\r\n\r\n", long(17 << 10)), 431),
        (format!("{post}{}\r\n", many(101)), 431),
        (format!("{post}{}\r\n", many(2000)), 431),
        // a target of more than 8 KiB, in a head of no more than 16
        (format!("GET /v1/models?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", long((8 << 10) - 10)), 414),
        (format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", long(8 << 10)), 414),
        (format!("GET http://{}/v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n", long(8 << 10)), 414),
        (format!("POST /v1/messages?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", long(15 << 10)), 414),
        // whatever makes a head longer than that, a target beyond what hyper takes among it
        (format!("GET /v1/models?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", long(17 << 10)), 431),
        (format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", long(70 << 10)), 431),
        (format!("{} /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n", long(17 << 10)), 431),
    ] {
        let mut client = connect(gateway.api);
        // in a piece that is read before it is refused, or the answer would be lost with the rest of it
        let _ = client.write_all(&head.as_bytes()[..head.len().min(16 << 10)]);
        let _ = client.write_all(&head.as_bytes()[head.len().min(16 << 10)..]);
        let told = until_closed(&mut client).expect("closed");
        if status == 414 {
            let reply = Reply::parse(&told);
            assert_eq!((reply.status, reply.header("connection")), (414, Some("close")), "{} -> {told}", &head[..80]);
            assert!(reply.json()["error"]["message"].as_str().unwrap().contains("8192 bytes"), "{told}");
            continue;
        }
        assert!(told.is_empty() || Reply::parse(&told).status == status, "{} -> {told}", &head[..80]);
    }
    let fits = format!("x-long: {}\r\n{}", long(14 << 10), many(90));
    assert_eq!(gateway.chat(&fits).status, 200);
    assert_eq!(get(gateway.api, &format!("/v1/models?{}", long((8 << 10) - 11)), "").status, 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn r108_heads_without_end_cost_little() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    assert_eq!(gateway.chat("").status, 200);
    let before = gateway.memory();
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let mut client = connect(gateway.api);
            client.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = client.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-long: ");
            // half of them stay just below what is refused
            let most = if number % 2 == 0 { 15 << 10 } else { 10 << 20 };
            let piece = [b'x'; 1024];
            let mut sent = 0;
            while sent < most && client.write_all(&piece).is_ok() {
                sent += piece.len();
            }
            client
        })
        .collect();
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 50 << 20, "{grown} bytes for {} connections", clients.len());
    assert_eq!(gateway.chat("").status, 200);
}
