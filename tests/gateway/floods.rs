//! HTTP/2 connections that are out for harm: what they can make the gateway hold is bounded, and others are served.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use super::{frames::*, support::*, world::*};

const MIB: u64 = 1 << 20;
const HEADS: u8 = END_HEADERS;

/// An upstream that is asked and never answers.
fn silent() -> Upstream {
    Upstream::start(|_, stream| drop(rest(stream)))
}

/// What `flood` makes the gateway grow by, in bytes, while others are served.
fn growth(gateway: &Gateway, flood: impl FnOnce()) -> u64 {
    assert_eq!(gateway.chat("").status, 200);
    let before = gateway.memory();
    flood();
    let after = gateway.memory();
    assert_eq!(gateway.chat("").status, 200, "others are served");
    after.saturating_sub(before)
}

#[test]
fn r109_streams_at_once_are_capped() {
    let upstream = silent();
    let gateway = Gateway::before(&upstream, &[]);
    let mut client = Http2::connect(gateway.api);
    let settings = client.until(|frame| frame.kind == SETTINGS && frame.flags == 0).pop().unwrap();
    let cap = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("a cap is told");
    let cap = u32::from_be_bytes(cap[2..].try_into().unwrap());
    assert_eq!(cap, 200);
    let head = block(&chat(&[]));
    let streams: Vec<_> =
        (0..cap + 50).flat_map(|number| frame(HEADERS, HEADS | END_STREAM, 2 * number + 1, &head)).collect();
    assert!(client.send(&streams));
    for _ in 0..50 {
        let refused = client.until(|frame| frame.kind == RST_STREAM).pop().unwrap();
        assert_eq!(refused.code(), Some(REFUSED_STREAM));
        assert!(refused.stream > 2 * cap - 1, "the first {cap} are served");
    }
    while upstream.seen().len() < cap as usize {
        thread::yield_now();
    }
    // and these are all: what was refused would have come in the meantime
    let other = Http2::connect(gateway.api);
    drop(other);
    assert_eq!(upstream.seen().len(), cap as usize);
}

/// Sends frames until the gateway has had enough, which it says.
#[cfg(target_os = "linux")]
fn is_told_to_go(mut client: Http2, frames: Vec<u8>) {
    let mut writing = client.0.try_clone().unwrap();
    let writer = thread::spawn(move || drop(writing.write_all(&frames)));
    let answers = client.rest();
    writer.join().unwrap();
    let goaway = answers.iter().find(|frame| frame.kind == GOAWAY).expect("it is told to go");
    assert_eq!(goaway.code(), Some(ENHANCE_YOUR_CALM));
}

#[cfg(target_os = "linux")]
#[test]
fn r109_streams_that_are_reset_as_fast_as_they_are_opened_end_the_connection() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let head = block(&chat(&[]));
    let grown = growth(&gateway, || {
        for _ in 0..5 {
            let client = Http2::connect(gateway.api);
            let pairs: Vec<_> = (0..20_000)
                .flat_map(|number| {
                    let stream = 2 * number + 1;
                    [frame(HEADERS, HEADS | END_STREAM, stream, &head), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                })
                .flatten()
                .collect();
            is_told_to_go(client, pairs);
        }
    });
    assert!(grown <= 32 * MIB, "{grown}");
    let asked = upstream.seen().len();
    assert!(asked <= 1000, "of 100000 requests {asked} were begun");
}

#[cfg(target_os = "linux")]
#[test]
fn r109_streams_that_the_gateway_is_made_to_reset_end_the_connection() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let head = block(&chat(&[]));
    let grown = growth(&gateway, || {
        let client = Http2::connect(gateway.api);
        let pairs: Vec<_> = (0..20_000)
            .flat_map(|number| {
                let stream = 2 * number + 1;
                // a window beyond what can be is an error of the stream, which the server must reset
                [
                    frame(HEADERS, HEADS | END_STREAM, stream, &head),
                    frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]),
                ]
            })
            .flatten()
            .collect();
        is_told_to_go(client, pairs);
    });
    assert!(grown <= 32 * MIB, "{grown}");
}

#[cfg(target_os = "linux")]
#[test]
fn r109_headers_without_end_end_the_connection() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    let long = "x".repeat(8000);
    for piece in [vec![], block(&[("x-more", "1")]), block(&[("x-more", &long), ("x-even-more", &long)])] {
        let grown = growth(&gateway, || {
            let mut client = Http2::connect(gateway.api);
            assert!(client.send(&frame(HEADERS, END_STREAM, 1, &block(&chat(&[])))));
            client.send(&frame(CONTINUATION, 0, 1, &piece).repeat(20_000));
            let start = Instant::now();
            client.rest();
            assert!(start.elapsed() < Duration::from_secs(5), "it waits for more");
        });
        assert!(grown <= 32 * MIB, "{grown}");
    }
    // what is too long, but has an end, is answered
    let mut client = Http2::connect(gateway.api);
    let (first, second) = (block(&chat(&[("x-more", &long)])), block(&[("x-more", &long), ("x-even-more", &long)]));
    client.send(&frame(HEADERS, END_STREAM, 1, &first));
    client.send(&frame(CONTINUATION, END_HEADERS, 1, &second));
    let answer = client.until(|frame| frame.stream == 1).pop().unwrap();
    // `:status` and 431, as it is compressed
    assert_eq!((answer.kind, &*answer.payload), (HEADERS, &[0x48, 0x83, 0x69, 0x90, 0xff][..]));
    // and so is a target
    let path = format!("/v1/models?{long}{}", "x".repeat(200));
    let head = block(&[(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", &path)]);
    client.send(&frame(HEADERS, HEADS | END_STREAM, 3, &head));
    let answer = client.until(|frame| frame.stream == 3).pop().unwrap();
    // 414
    assert_eq!((answer.kind, &answer.payload[..5]), (HEADERS, &[0x48, 0x83, 0x68, 0x2d, 0x7f][..]));
}

#[cfg(target_os = "linux")]
#[test]
fn r109_who_asks_for_answers_and_reads_none_costs_little() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    for (what, flood) in [("pings", frame(PING, 0, 0, &[0; 8])), ("settings", frame(SETTINGS, 0, 0, &[]))] {
        let grown = growth(&gateway, || {
            let mut client = Http2::connect(gateway.api);
            let many = flood.repeat(1000);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) && client.send(&many) {}
        });
        assert!(grown <= 32 * MIB, "{what}: {grown}");
    }
}

#[test]
fn r103_a_request_of_http2_cannot_become_two_of_http1() {
    let world = World::plain();
    let gateway = world.gateway(&["--header-timeout", "1s"]);
    let smuggled = "x\r\n\r\nPOST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n";
    let path = format!("/v1/chat/completions HTTP/1.1\r\n{smuggled}");
    let length = CHAT.len().to_string();
    let own = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost")];
    for headers in [
        chat(&[("transfer-encoding", "chunked")]),
        chat(&[("connection", "content-length")]),
        chat(&[("content-length", "0")]),
        chat(&[("content-length", "5")]),
        chat(&[("content-length", "9999")]),
        chat(&[("content-length", &length), ("content-length", "0")]),
        chat(&[("x-title", smuggled)]),
        chat(&[("x-title", "a\nb: c")]),
        chat(&[("x-title", "a\0b")]),
        chat(&[(smuggled, "x")]),
        chat(&[("x title", "x")]),
        chat(&[("x-title:", "x")]),
        chat(&[("X-Title", "x")]),
        chat(&[(":path", "/v1/embeddings")]),
        chat(&[("x-title", "x"), (":authority", "localhost")]),
        [&own[..], &[(":path", &*path)]].concat(),
        [&own[..], &[(":path", "/v1/chat/completions /v1/embeddings")]].concat(),
        [&own[..], &[(":path", "")]].concat(),
        own.to_vec(),
        [&[(":method", smuggled), (":path", "/v1/chat/completions")], &own[1..]].concat(),
        [&[(":method", "CONNECT"), (":path", "/v1/chat/completions")], &own[1..]].concat(),
    ] {
        let mut client = Http2::connect(gateway.api);
        client.send(&frame(HEADERS, HEADS, 1, &block(&headers)));
        client.send(&frame(DATA, END_STREAM, 1, CHAT.as_bytes()));
        // the head of an answer, the end of the stream, or that of the connection
        while let Some(frame) = client.next() {
            if frame.kind == GOAWAY || frame.stream == 1 && frame.kind != WINDOW_UPDATE {
                break;
            }
        }
    }
    assert_eq!(gateway.chat("").status, 200);
    for seen in world.simulator.requests() {
        assert!(seen.uri.path() == "/api/v1/chat/completions" && seen.body == CHAT, "{seen:?}");
        let told: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        assert!(
            !told.contains(&"transfer-encoding") && !format!("{:?}", seen.headers).contains("embeddings"),
            "{told:?}"
        );
    }
}

#[test]
fn r107_an_http2_connection_that_asks_nothing_more_is_closed_in_time() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &["--header-timeout", "700ms"]);
    let asked = |more: &[u8]| {
        let mut client = Http2::connect(gateway.api);
        client.send(&frame(HEADERS, HEADS | END_STREAM, 1, &block(&chat(&[]))));
        client.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0);
        let start = Instant::now();
        client.send(more);
        // answered, so that nobody takes it for gone
        while let Some(came) = client.next() {
            if came.kind == PING && came.flags == 0 {
                client.send(&frame(PING, ACK, 0, &came.payload));
            }
        }
        start.elapsed()
    };
    let half = frame(HEADERS, END_STREAM, 3, &block(&chat(&[])));
    for took in [asked(&[]), asked(&half)] {
        assert!(took > Duration::from_millis(300) && took < Duration::from_millis(1700), "{took:?}");
    }
}

#[test]
fn r107_an_http2_client_that_is_gone_without_a_word_is_let_go_with_what_runs_for_it() {
    let upstream = silent();
    let gateway = Gateway::before(&upstream, &["--header-timeout", "400ms"]);
    let mut client = Http2::connect(gateway.api);
    client.send(&frame(HEADERS, HEADS | END_STREAM, 1, &block(&chat(&[]))));
    let start = Instant::now();
    client.rest();
    let took = start.elapsed();
    assert!(took > Duration::from_millis(600) && took < Duration::from_millis(1800), "{took:?}");
}
