//! How it starts, and how it ends.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};

use super::{frames::*, support::*};

#[test]
fn without_any_key_the_simulator_answers_the_printed_lines() {
    let gateway = Gateway::start(&[], &[]);
    assert!(gateway.banner.contains("SIMULATED") && gateway.banner.contains("keys      5"), "{}", gateway.banner);
    let lines: Vec<_> = gateway.banner.lines().filter(|line| line.starts_with("curl")).collect();
    let [plain, stream] = lines[..] else { panic!("{}", gateway.banner) };
    for (line, begins) in [(plain, "application/json"), (stream, "text/event-stream")] {
        let path = line.split(&gateway.api.to_string()).nth(1).unwrap().split(' ').next().unwrap();
        let header = format!("{}\r\n", line.split("-H '").nth(1).unwrap().split('\'').next().unwrap());
        let body = line.split("-d '").nth(1).unwrap().strip_suffix('\'').unwrap();
        let reply = post(gateway.api, path, &header, body);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("x-balancer-simulated"), Some("1"));
        assert!(reply.header("content-type").unwrap().starts_with(begins), "{reply:?}");
        assert!(reply.body.contains("\"usage\""), "{reply:?}");
    }
    assert!(!gateway.log().contains("WARN"), "{}", gateway.log());
}

#[test]
fn keys_of_file_and_environment_are_used_together_and_named_by_label() {
    let folder = std::env::temp_dir().join(format!("tower-openrouter-gateway-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("more.keys"), "# two of them\r\n\r\nsk-or-v1-file-1\r\nsk-or-v1-file-2\r\n").unwrap();
    let upstream = Upstream::fine();
    let config = format!(
        "upstream = \"{}\"\n[[keys]]\nlabel = \"team-a\"\nkey = \"sk-or-v1-a\"\naccount = \"acme\"\n[[keys]]\nkey_file = \"more.keys\"\n",
        upstream.base()
    );
    let path = folder.join("gateway.toml");
    fs::write(&path, config).unwrap();
    let gateway = Gateway::start(
        &["--config", path.to_str().unwrap()],
        &[("OPENROUTER_API_KEY_4", "plain-key"), ("OPENROUTER_KEY_9", "sk-or-v1-a")],
    );
    fs::remove_dir_all(&folder).unwrap();
    // the pick is by chance
    let used: BTreeSet<_> = (0..100).map(|_| gateway.chat("").header("x-balancer-key").unwrap().to_owned()).collect();
    assert_eq!(used, ["api-key-4", "more-1", "more-2", "team-a"].map(str::to_owned).into());
    assert!(gateway.banner.contains("team-a") && gateway.banner.contains("account acme"), "{}", gateway.banner);
    let log = gateway.log();
    assert!(log.contains("WARN") && log.contains("api-key-4") && log.contains("sk-or-"), "{log}");
    assert!(!log.contains("plain-key") && !log.contains("team-a"), "{log}");
}

#[test]
fn a_setting_may_come_from_the_environment() {
    let upstream = Upstream::fine();
    let gateway = Gateway::start(
        &[],
        &[
            ("TOWER_OPENROUTER_UPSTREAM", &upstream.base()),
            ("TOWER_OPENROUTER_ACCESS_TOKEN", "let-me-in"),
            ("TOWER_OPENROUTER_NO_BALANCER_HEADERS", "1"),
            ("OPENROUTER_API_KEYS", "sk-or-v1-a,sk-or-v1-b"),
        ],
    );
    assert_eq!(gateway.chat("").status, 401);
    let reply = gateway.chat("x-api-key: let-me-in\r\n");
    assert!(reply.status == 200 && !reply.head.contains("x-balancer"), "{}", reply.head);
    assert!(gateway.banner.contains("$TOWER_OPENROUTER_ACCESS_TOKEN"), "{}", gateway.banner);
    assert!(!gateway.banner.contains("let-me-in"));
}

#[test]
fn what_keeps_it_from_starting_is_told_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let key = ("OPENROUTER_API_KEY", "sk-or-v1-one");
    let port = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    for (flags, variables, told) in [
        (vec!["--listen", &taken], vec![], vec![&*taken, "--listen", "something else listens there"]),
        (vec!["--listen", "127.0.0.1:0", "--admin-listen", &taken], vec![], vec!["--admin-listen"]),
        (vec!["--admin-listen", "0.0.0.0:0"], vec![], vec!["--admin-token", "127.0.0.1"]),
        (vec![], vec![("OPENROUTER_API_KEY", "")], vec!["OPENROUTER_API_KEY is set but empty"]),
        (vec![], vec![key, ("OPENROUTER_KEY_3", " ")], vec!["OPENROUTER_KEY_3 is set but empty"]),
        (vec!["--upstream", "http://127.0.0.1:1"], vec![], vec!["--upstream", "OPENROUTER_API_KEY"]),
        ([&["--upstream", "ftp://x"], &port[..]].concat(), vec![key], vec!["--upstream", "http"]),
        (vec!["--config", "/no/such/file.toml"], vec![], vec!["--config", "/no/such/file.toml"]),
        (vec!["--access-token", ""], vec![], vec!["access_token: the token is empty"]),
        (vec!["--attempts", "1", "--admin-token", "é"], vec![], vec!["admin_token: the token holds"]),
    ] {
        let said = refused(&flags, &variables);
        assert!(said.starts_with("error: ") && told.iter().all(|told| said.contains(told)), "{flags:?} {said}");
    }
}

/// An upstream whose first event, or answer, comes at once and the rest when the test says so.
fn held_upstream() -> (Upstream, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |request, stream| {
        let is_stream = request.contains("\"stream\":true");
        if is_stream {
            stream.write_all(format!("{STREAM_HEAD}{}", chunk(&token("1"))).as_bytes()).unwrap();
        }
        if gone.lock().unwrap().recv().is_err() {
            // the test is over
            return;
        }
        let end = if is_stream {
            format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n"))
        } else {
            response("200 OK", "content-type: application/json\r\n", r#"{"id":"gen-late","choices":[]}"#)
        };
        let _ = stream.write_all(end.as_bytes());
    });
    (upstream, go)
}

/// A request and a stream, both under way.
fn under_way(gateway: &Gateway, upstream: &Upstream) -> (TcpStream, TcpStream) {
    let mut plain = connect(gateway.api);
    plain.write_all(request("POST", "/v1/chat/completions", "", CHAT).as_bytes()).unwrap();
    let mut stream = connect(gateway.api);
    let body = r#"{"model":"acme/swift-1","stream":true,"messages":[]}"#;
    stream.write_all(request("POST", "/v1/chat/completions", "", body).as_bytes()).unwrap();
    until(&mut stream, &token("1"));
    while upstream.seen().len() < 2 {
        thread::yield_now();
    }
    (plain, stream)
}

/// Waits until the gateway takes no more connections.
fn refuses(gateway: &Gateway) {
    while TcpStream::connect(gateway.api).is_ok() {
        thread::yield_now();
    }
}

#[test]
fn r111_on_sigterm_what_runs_is_finished_and_nothing_new_is_taken() {
    let (upstream, go) = held_upstream();
    let mut gateway = Gateway::before(&upstream, &[]);
    let (mut plain, mut stream) = under_way(&gateway, &upstream);
    gateway.signal("TERM");
    refuses(&gateway);
    let reply = get(gateway.admin, "/readyz", "");
    assert_eq!((reply.status, reply.json()["why"].as_str()), (503, Some("draining")));
    assert_eq!(get(gateway.admin, "/healthz", "").status, 200);
    go.send(()).unwrap();
    go.send(()).unwrap();
    let reply = Reply::parse(&rest(&mut plain));
    assert_eq!((reply.status, &reply.json()["id"]), (200, &"gen-late".into()));
    let end = rest(&mut stream);
    assert!(end.contains("[DONE]") && end.ends_with("0\r\n\r\n"), "{end:?}");
    let (status, took) = gateway.ended();
    assert!(status.code() == Some(0) && took < Duration::from_secs(1), "{status} {took:?}");
}

#[test]
fn r111_r112_at_the_drain_deadline_streams_end_with_an_error_and_the_process_ends() {
    let (upstream, _hold) = held_upstream();
    let mut gateway = Gateway::before(&upstream, &["--drain-timeout", "300ms"]);
    let (mut plain, mut stream) = under_way(&gateway, &upstream);
    gateway.signal("INT");
    let (status, took) = gateway.ended();
    assert_eq!(status.code(), Some(0));
    assert!(took > Duration::from_millis(250) && took < Duration::from_millis(1300), "{took:?}");
    let reply = Reply::parse(&rest(&mut plain));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &503.into()));
    assert!(reply.header("retry-after").is_some());
    let end = rest(&mut stream);
    assert!(end.contains("\"error\":{\"code\":503,"), "{end:?}");
    assert!(!end.ends_with("0\r\n\r\n"), "the end must not look like a proper one: {end:?}");
}

#[test]
fn r112_a_second_signal_ends_it_at_once_whatever_is_open() {
    let (upstream, _hold) = held_upstream();
    let mut gateway = Gateway::before(&upstream, &[]);
    let _under_way = under_way(&gateway, &upstream);
    let _idle = connect(gateway.api);
    let mut half_open = connect(gateway.api);
    half_open.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc").unwrap();
    let mut kept_alive = connect(gateway.api);
    kept_alive.write_all(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    until(&mut kept_alive, "Not Found");
    gateway.signal("TERM");
    refuses(&gateway);
    gateway.signal("TERM");
    let (status, took) = gateway.ended();
    assert!(status.code() == Some(0) && took < Duration::from_secs(1), "{status} {took:?}");
}

#[test]
fn r112_idle_connections_do_not_hold_it_up() {
    let upstream = Upstream::fine();
    let mut gateway = Gateway::before(&upstream, &[]);
    let _idle = connect(gateway.api);
    let mut kept_alive = connect(gateway.api);
    kept_alive.write_all(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    until(&mut kept_alive, "Not Found");
    gateway.signal("TERM");
    let (status, took) = gateway.ended();
    assert!(status.code() == Some(0) && took < Duration::from_secs(1), "{status} {took:?}");
}

/// The frames of an HTTP/2 stream that has begun, as the gateway stops, and how it ended.
fn stopped(gateway: &Gateway, upstream: &Upstream, then: impl FnOnce()) -> (String, Vec<Frame>) {
    let mut client = Http2::connect(gateway.api);
    client.send(&frame(HEADERS, END_HEADERS, 1, &block(&chat(&[]))));
    client.send(&frame(DATA, END_STREAM, 1, CHAT.replace("\"messages\"", "\"stream\":true,\"messages\"").as_bytes()));
    client.until(|frame| frame.kind == DATA);
    assert_eq!(upstream.seen().len(), 1);
    gateway.signal("TERM");
    client.until(|frame| frame.kind == GOAWAY);
    then();
    let (mut text, mut frames) = (String::new(), Vec::new());
    while let Some(came) = client.next() {
        match came.kind {
            DATA => text.push_str(&String::from_utf8_lossy(&came.payload)),
            PING if came.flags == 0 => drop(client.send(&frame(PING, ACK, 0, &came.payload))),
            _ => {}
        }
        frames.push(came);
    }
    (text, frames)
}

#[test]
fn r111_streams_of_http2_are_finished_too_or_told_that_they_are_not() {
    let (upstream, go) = held_upstream();
    let mut gateway = Gateway::before(&upstream, &[]);
    let (text, frames) = stopped(&gateway, &upstream, || go.send(()).unwrap());
    assert!(text.ends_with("data: [DONE]\n\n"), "{text} {frames:?}");
    assert!(frames.iter().any(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0), "{frames:?}");
    let (status, took) = gateway.ended();
    assert!(status.code() == Some(0) && took < Duration::from_secs(1), "{status} {took:?}");

    let (upstream, _hold) = held_upstream();
    let mut gateway = Gateway::before(&upstream, &["--drain-timeout", "300ms"]);
    let (text, frames) = stopped(&gateway, &upstream, || ());
    assert!(text.contains("\"error\":{\"code\":503,"), "{text}");
    assert!(!frames.iter().any(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0), "a clean end: {frames:?}");
    let (status, took) = gateway.ended();
    assert!(status.code() == Some(0) && took < Duration::from_millis(1300), "{status} {took:?}");
}
