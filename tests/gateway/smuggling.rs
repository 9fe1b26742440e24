//! Two requests in the clothes of one: whoever stands before the gateway must not be made to disagree with it about where a
//! request ends.

use std::io::Write;

use super::{support::*, world::*};

/// What nobody may see, sent in the body of another request or behind it.
const SMUGGLED: &str = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 37\r\n\r\n{\"model\":\"acme/swift-1\",\"input\":\"x\"}\r\n";

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// Heads of which somebody could read the length of the body otherwise, each with a body that suits one way to read it.
fn ambiguous() -> Vec<(String, String)> {
    let (length, chunks, empty) = (CHAT.len(), chunked(CHAT), "0\r\n\r\n".to_owned());
    let mut cases = Vec::new();
    for value in [
        format!("{length}\r\ncontent-length: 0"),
        format!("0\r\ncontent-length: {length}"),
        format!("{length}, {length}"),
        format!("{length}, 0"),
        format!("+{length}"),
        format!("-{length}"),
        format!("{length:#x}"),
        format!("{length} {length}"),
        format!("{length}\u{b}"),
        format!("{length}.0"),
        format!("{length};"),
        "1e2".to_owned(),
        String::new(),
        "18446744073709551616".to_owned(),
        "99999999999999999999999999".to_owned(),
    ] {
        cases.push((format!("content-length: {value}\r\n"), CHAT.to_owned()));
    }
    for value in [
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, identity",
        "chunked, chunked",
        "chunked\r\ntransfer-encoding: chunked",
        "gzip\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: identity",
        "xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "\u{b}chunked",
        "chunked\0",
        "chunk ed",
        ", chunked",
        "",
    ] {
        for body in [&chunks, &empty] {
            cases.push((format!("transfer-encoding: {value}\r\n"), body.clone()));
        }
    }
    for body in [&chunks, &empty] {
        for length in [0, 4, body.len(), body.len() + SMUGGLED.len()] {
            for coding in ["chunked", "Chunked", "identity", "gzip, chunked"] {
                cases.push((format!("content-length: {length}\r\ntransfer-encoding: {coding}\r\n"), body.clone()));
                cases.push((format!("transfer-encoding: {coding}\r\ncontent-length: {length}\r\n"), body.clone()));
            }
        }
    }
    for head in [
        "transfer-encoding : chunked\r\n",
        " transfer-encoding: chunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "x: y\r\n\ttransfer-encoding: chunked\r\n",
        "x: y\rtransfer-encoding: chunked\r\n",
        "x: y\0\r\ntransfer-encoding: chunked\r\n",
        "transfer\0encoding: chunked\r\n",
        "transfer-encoding\r\n",
        ": chunked\r\n",
    ] {
        cases.push((format!("content-length: {length}\r\n{head}"), CHAT.to_owned()));
        cases.push((head.to_owned(), chunks.clone()));
    }
    cases
}

/// Chunks that are none, or of which somebody could take more or less for the body.
fn broken_chunks() -> Vec<String> {
    let length = CHAT.len();
    let mut cases: Vec<_> = [
        format!("0x{length:x}"),
        format!("+{length:x}"),
        format!("-{length:x}"),
        format!(" {length:x}"),
        format!("{length:x}g"),
        format!("{length:x}\r"),
        format!("{length:x};a=b\nc"),
        format!("{length:x};a=b\rc"),
        format!("{length:x} {length:x}"),
        format!("1000000000000000{length:x}"),
        format!("ffffffffffffffff{length:x}"),
        String::new(),
        ";".to_owned(),
        "\u{b}5".to_owned(),
    ]
    .map(|size| format!("{size}\r\n{CHAT}\r\n0\r\n\r\n"))
    .into();
    cases.push(format!("{length:x}\n{CHAT}\r\n0\r\n\r\n"));
    cases.push(format!("{length:x}\r\n{CHAT}0\r\n\r\n"));
    cases.push(format!("{length:x}\r\n{CHAT}\n0\r\n\r\n"));
    cases.push(format!("{length:x}\r\n{CHAT}xx0\r\n\r\n"));
    cases.push(format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", length + 1));
    cases.push(format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", length - 1));
    cases.push(format!("{length:x}\r\n{CHAT}\r\n0\r\nx: y\rz\r\n\r\n"));
    cases.push(format!("{length:x};{}\r\n{CHAT}\r\n0\r\n\r\n", "x".repeat(1 << 20)));
    cases
}

/// Chunks behind whose end an LF alone is the end of the request for some, and for hyper the begin of trailers.
fn trailers_for_some() -> Vec<String> {
    let length = CHAT.len();
    ["\n", "x: y\n\n", "\nGET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"]
        .map(|end| format!("{length:x}\r\n{CHAT}\r\n0\r\n{end}"))
        .into()
}

/// Sends it with another request behind; the connection must be closed, and the upstream have seen one request at most.
fn at_most_one(world: &World, gateway: &Gateway, request: &str) -> String {
    let before = world.paths().len();
    let mut client = connect(gateway.api);
    // closed before all of it was read, writing may fail
    let _ = client.write_all(format!("{request}{SMUGGLED}").as_bytes());
    let told = until_closed(&mut client).unwrap_or_else(|| panic!("still open after {request:?}"));
    let seen = &world.paths()[before..];
    assert!(seen.len() <= 1 && !seen.iter().any(|path| path.ends_with("embeddings")), "{request:?} -> {seen:?}");
    assert!(told.matches("HTTP/1.1 ").count() <= 1, "{request:?} -> {told}");
    let status = told.is_empty() || told.starts_with("HTTP/1.1 ");
    assert!(status && (seen.len() == 1 || !told.starts_with("HTTP/1.1 2")), "{request:?} -> {told}");
    told
}

#[test]
fn r103_where_the_length_is_ambiguous_the_upstream_sees_one_request_or_none_and_the_connection_ends() {
    let world = World::plain();
    let gateway = world.gateway(&["--header-timeout", "500ms"]);
    for (head, body) in ambiguous() {
        let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{head}\r\n{body}");
        at_most_one(&world, &gateway, &request);
    }
    for version in ["1.0", "0.9", "2.0", "1.2", "9.9"] {
        let head = "host: localhost\r\ntransfer-encoding: chunked\r\n";
        let request = format!("POST /v1/chat/completions HTTP/{version}\r\n{head}\r\n{}", chunked(CHAT));
        at_most_one(&world, &gateway, &request);
    }
    assert_eq!(gateway.chat("").status, 200, "and others are served");
}

#[test]
fn r103_an_ambiguous_request_ends_the_connection_whatever_it_asks_for_and_whoever_asks() {
    let world = World::plain();
    let gateway = world.gateway(&["--header-timeout", "500ms"]);
    let locked = world.gateway(&["--header-timeout", "500ms", "--access-token", "let-me-in"]);
    for coding in ["gzip, chunked", "chunked\r\ntransfer-encoding: chunked", "gzip\r\ntransfer-encoding: chunked"] {
        for asked in ["POST /nowhere", "GET /v1/chat/completions", "DELETE /v1/models", "GET /v1/models"] {
            for gateway in [&gateway, &locked] {
                let head = format!("host: localhost\r\ntransfer-encoding: {coding}\r\n");
                let told = at_most_one(&world, gateway, &format!("{asked} HTTP/1.1\r\n{head}\r\n{}", chunked(CHAT)));
                assert!(told.starts_with("HTTP/1.1 501 "), "{asked} {coding:?} -> {told}");
            }
        }
    }
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[test]
fn r103_behind_what_some_take_for_trailers_nothing_is_a_request() {
    let world = World::plain();
    let gateway = world.gateway(&["--header-timeout", "500ms"]);
    let head = "host: localhost\r\ntransfer-encoding: chunked\r\n";
    for path in ["/v1/chat/completions", "/nowhere"] {
        for body in trailers_for_some() {
            // the first line of what follows is taken for a trailer, the second request must not be one
            at_most_one(&world, &gateway, &format!("POST {path} HTTP/1.1\r\n{head}\r\n{body}GET / HTTP/1.1\r\n\r\n"));
        }
    }
}

#[test]
fn r103_broken_chunks_are_no_request() {
    let world = World::plain();
    let gateway = world.gateway(&["--header-timeout", "500ms"]);
    for body in broken_chunks() {
        let head = "host: localhost\r\ntransfer-encoding: chunked\r\n";
        let told = at_most_one(&world, &gateway, &format!("POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n{body}"));
        assert!(told.starts_with("HTTP/1.1 4"), "{:?} -> {told}", &body[..body.len().min(200)]);
    }
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[test]
fn r103_requests_one_after_the_other_are_as_many_as_they_are() {
    let world = World::plain();
    let gateway = world.gateway(&[]);
    let (length, chunks) = (CHAT.len(), chunked(CHAT));
    let plain =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{CHAT}");
    let twice = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\ncontent-length: {length}\r\n\r\n{CHAT}"
    );
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nTransfer-Encoding: CHUNKED\r\n\r\n";
    let with_trailers = chunks.replace("0\r\n\r\n", "0;x=y\r\ncontent-length: 5\r\nauthorization: Bearer t\r\n\r\n");
    let all = [&*plain, &twice, head, &chunks, head, &with_trailers, &plain].concat();
    let mut client = connect(gateway.api);
    client.write_all(all.as_bytes()).unwrap();
    let told = until_closed(&mut client).expect("closed after the trailers");
    assert_eq!(told.matches("HTTP/1.1 200 OK").count(), 4, "{told}");
    assert_eq!(world.paths(), ["/api/v1/chat/completions"; 4]);
    for seen in world.simulator.requests() {
        assert_eq!(seen.body, CHAT);
        assert!(!seen.headers.contains_key("transfer-encoding"), "{:?}", seen.headers);
    }
}
