//! What a client's connection carries when the upstream's stream breaks off.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::support::{CHAT, Gateway, Reply, STREAM_HEAD, Upstream, chunk, connect, request, rest, until};

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const HALF: &str = "event: half\ndata: {\"choices\":[{\"del";

/// How the upstream goes, after an event and half of another.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// It closes the connection within its chunks.
    Closed,
    /// As if all were well.
    InGoodOrder,
    /// It says nothing more, until the gateway's deadline.
    Silent,
}

fn upstream(cut: Cut) -> Upstream {
    Upstream::start(move |_, stream| {
        write(stream, &format!("{STREAM_HEAD}{}{}", chunk(EVENT), chunk(HALF)));
        match cut {
            Cut::Closed => {}
            Cut::InGoodOrder => write(stream, "0\r\n\r\n"),
            Cut::Silent => drop(rest(stream)),
        }
        let _ = stream.shutdown(Shutdown::Both);
    })
}

fn write(stream: &mut TcpStream, text: &str) {
    let _gone = stream.write_all(text.as_bytes());
}

/// The data of chunks, and whether the last one came that ends them.
fn joined(body: &str) -> (String, bool) {
    let (mut data, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return (data, true);
        }
        data.push_str(&after[..length]);
        rest = &after[length + 2..];
    }
    (data, false)
}

#[test]
fn r075_the_error_event_is_on_the_wire_before_the_unclean_end() {
    for (cut, reason) in [(Cut::Closed, "truncated"), (Cut::InGoodOrder, "truncated"), (Cut::Silent, "deadline")] {
        let upstream = upstream(cut);
        let gateway = Gateway::before(&upstream, &["--deadline", "700ms"]);
        let start = Instant::now();
        for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"] {
            let mut client = connect(gateway.api);
            client.write_all(request("POST", path, "", CHAT).as_bytes()).unwrap();
            let reply = Reply::parse(&rest(&mut client));
            assert_eq!(reply.status, 200);
            let (data, is_clean) = joined(&reply.body);
            assert!(!is_clean, "{cut:?} {path}: {data}");
            let told = data.strip_prefix(EVENT).unwrap_or_else(|| panic!("{cut:?} {path}: {data}"));
            let (name, event) = told.strip_suffix("\n\n").unwrap().split_once("data: ").unwrap();
            let named = matches!(path, "/v1/responses" | "/v1/messages");
            assert_eq!(name, if named { "event: error\n" } else { "" }, "{cut:?} {path}");
            let event: serde_json::Value = serde_json::from_str(event).unwrap();
            assert!(event["error"]["message"].is_string() && event.to_string().contains(reason), "{cut:?}: {event}");
        }
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

#[test]
fn r075_a_client_that_reads_late_gets_the_error_too() {
    let upstream = upstream(Cut::Closed);
    let gateway = Gateway::before(&upstream, &[]);
    let mut client = connect(gateway.api);
    client.write_all(request("POST", "/v1/chat/completions", "", CHAT).as_bytes()).unwrap();
    // all is over long before anybody looks
    thread::sleep(Duration::from_millis(300));
    let head = until(&mut client, "data: ");
    assert!((head + &rest(&mut client)).contains("\"reason\":\"truncated\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn r075_over_http2_the_error_event_comes_before_the_reset() {
    let upstream = upstream(Cut::Closed);
    let gateway = Gateway::before(&upstream, &[]);
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<bytes::Bytes>>();
    for _ in 0..50 {
        let request = http::Request::post(format!("http://{}/v1/chat/completions", gateway.api));
        let mut body = client.request(request.body(Full::from(CHAT)).unwrap()).await.unwrap().into_body();
        let mut data = Vec::new();
        let error = loop {
            match body.frame().await {
                Some(Ok(frame)) => data.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(error)) => break error,
                None => panic!("a clean end"),
            }
        };
        let data = String::from_utf8(data).unwrap();
        assert!(data.contains("\"reason\":\"truncated\""), "{error}: {data}");
    }
}

/// What a client sees of a document that breaks off after so many bytes.
fn broken_document(bytes: usize) -> String {
    let upstream = Upstream::start(move |_, stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
        write(stream, &format!("{head}{{\"id\":\"{}", "x".repeat(bytes)));
        let _ = stream.shutdown(Shutdown::Both);
    });
    let gateway = Gateway::before(&upstream, &[]);
    let mut client = connect(gateway.api);
    client.write_all(request("POST", "/v1/chat/completions", "", CHAT).as_bytes()).unwrap();
    rest(&mut client)
}

#[test]
fn r110_a_document_that_breaks_off_while_its_head_is_held_is_an_error_and_no_silence() {
    let reply = Reply::parse(&broken_document(1000));
    assert_eq!((reply.status, &reply.json()["error"]["metadata"]["reason"]), (502, &"truncated".into()), "{reply:?}");
}

#[test]
fn a_document_that_breaks_off_later_ends_uncleanly() {
    let text = broken_document(200_000);
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("xxx"), "{text}");
    assert!(!text.contains("\r\n0\r\n\r\n") && !text.contains("error"), "{text}");
}
