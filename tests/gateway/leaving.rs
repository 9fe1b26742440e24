//! Who leaves, or falls silent, is let go on the other side too: on real sockets, as the upstream sees it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use super::support::*;

const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";
/// What R70 and R77 allow.
const SOON: Duration = Duration::from_millis(100);

/// What the upstream sees of one exchange.
struct Seen {
    /// It has said all it will.
    said: Instant,
    /// The connection was closed on it.
    closed: Instant,
}

/// An upstream that says this in answer to each request, and then waits to be left.
fn waiting(said: String) -> (Upstream, Receiver<Instant>, Receiver<Seen>) {
    let ((tell, told), (see, seen)) = (channel(), channel());
    let upstream = Upstream::start(move |_, stream| {
        stream.write_all(said.as_bytes()).unwrap();
        let said = Instant::now();
        let _ = tell.send(said);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // the end of the connection, or its reset
        let mut rest = [0; 64];
        while stream.read(&mut rest).is_ok_and(|read| read > 0) {}
        let _ = see.send(Seen { said, closed: Instant::now() });
    });
    (upstream, told, seen)
}

fn streamed() -> String {
    request("POST", "/v1/chat/completions", "", &CHAT.replace("\"messages\"", "\"stream\":true,\"messages\""))
}

fn ask(gateway: &Gateway) -> TcpStream {
    let mut client = connect(gateway.api);
    client.write_all(streamed().as_bytes()).unwrap();
    client
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Waits until `/stats` says this of all attempts.
fn until_stats(gateway: &Gateway, is: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let start = Instant::now();
    loop {
        let total = get(gateway.admin, "/stats", "").json()["total"].clone();
        if is(&total) {
            return total;
        }
        assert!(start.elapsed() < PATIENCE, "{total}");
    }
}

/// 100 clients one after the other for each of three moments, on a key that takes one request at a time and waits for it no
/// longer than the promise: a permit that came back late would be a 429.
#[test]
fn r077_a_client_that_leaves_is_gone_from_the_upstream_and_from_the_books_within_100_ms() {
    let chunked = |events: &str| format!("{STREAM_HEAD}{}", chunk(events));
    for (moment, said, reads) in [
        ("before the head", String::new(), ""),
        ("after the head, before any output", chunked(COMMENT), ""),
        ("in the stream", chunked(&token("a")), "\"content\""),
    ] {
        let (upstream, told, seen) = waiting(said);
        let gateway = Gateway::before(&upstream, &["--max-in-flight", "1", "--max-wait", "100ms"]);
        let mut times = Vec::new();
        for _ in 0..100 {
            let mut client = ask(&gateway);
            told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{moment}: not asked: {}", gateway.log()));
            if !reads.is_empty() {
                until(&mut client, reads);
            }
            let left = Instant::now();
            drop(client);
            let seen = seen.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{moment}: never closed"));
            times.push(seen.closed - left);
        }
        let (worst, p99) = (*times.iter().max().unwrap(), p99(times));
        println!("{moment}: p99 {p99:?}, worst {worst:?}");
        assert!(p99 <= SOON, "{moment}: p99 {p99:?}, worst {worst:?}");
        let total = until_stats(&gateway, |total| total["in_flight"] == 0);
        assert_eq!(
            (&total["attempts"], &total["outcomes"]["client_gone"]),
            (&100.into(), &100.into()),
            "{moment}: {total}"
        );
    }
}

#[test]
fn r070_a_silent_upstream_is_closed_and_its_permit_is_back_within_the_limit_and_100_ms() {
    let limit = Duration::from_millis(400);
    let text = "[timeouts]\nheaders = \"400ms\"\nfirst_output = \"400ms\"\ngap = \"400ms\"\n\n[retry]\nattempts = 1\n";
    let file = File::new("silence", text);
    let chunked = |events: &str| format!("{STREAM_HEAD}{}", chunk(events));
    for (silence, said) in [
        ("headers_timeout", String::new()),
        ("first_output_timeout", chunked(COMMENT)),
        ("gap_timeout", chunked(&token("a"))),
    ] {
        let (upstream, _told, seen) = waiting(said);
        let gateway = Gateway::before(&upstream, &[&file.flag()[..], &["--max-in-flight", "1"]].concat());
        for attempt in 1..=3 {
            let mut client = ask(&gateway);
            let answer = rest(&mut client);
            assert!(!answer.ends_with("0\r\n\r\n") || answer.contains("504"), "{silence}: no clean end: {answer:?}");
            let seen = seen.recv_timeout(PATIENCE).unwrap();
            let after = seen.closed - seen.said;
            // the limits count from our call, which is before the upstream speaks
            assert!(after <= limit + SOON, "{silence}: {after:?}");
            assert!(after >= limit - SOON, "{silence}: {after:?} is too soon");
            let total = until_stats(&gateway, |total| total["in_flight"] == 0);
            assert_eq!(total["outcomes"][silence], attempt, "{silence}: {total}");
        }
    }
}

#[test]
fn an_answer_is_heard_out_for_a_client_that_left_where_that_is_asked_for() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"cost\":0.25}}\n\n";
    let end = format!("{}{}0\r\n\r\n", chunk(usage), chunk("data: [DONE]\n\n"));
    for (text, cost, way) in [("", 0.0, "client_gone"), ("[timeouts]\nhear_out = \"5s\"\n", 0.25, "complete")] {
        let (let_go, may_go) = channel::<()>();
        let (may_go, end) = (std::sync::Mutex::new(may_go), end.clone());
        let upstream = Upstream::start(move |_, stream| {
            stream.write_all(format!("{STREAM_HEAD}{}", chunk(&token("a"))).as_bytes()).unwrap();
            may_go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            // whoever has closed does not hear it
            let _ = stream.write_all(end.as_bytes());
        });
        let file = File::new(way, text);
        let gateway = Gateway::before(&upstream, &file.flag());
        let mut client = ask(&gateway);
        until(&mut client, "\"content\"");
        drop(client);
        if cost == 0.0 {
            until_stats(&gateway, |total| total["in_flight"] == 0);
        }
        let_go.send(()).unwrap();
        let total = until_stats(&gateway, |total| total["in_flight"] == 0);
        assert_eq!((&total["cost_usd"], &total["outcomes"][way]), (&cost.into(), &1.into()), "{total}");
    }
}
