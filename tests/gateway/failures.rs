//! What clients are told when something fails here: a status of its own, in the shape of their API. And what is refused so that
//! the rest can live.

use std::{
    io::Write,
    sync::{Mutex, mpsc},
    thread,
};

use super::support::*;

/// What the client is told when `send` has been sent.
fn told(gateway: &Gateway, send: &str) -> Reply {
    let mut client = connect(gateway.api);
    client.write_all(send.as_bytes()).unwrap();
    Reply::parse(&rest(&mut client))
}

/// Both shapes of the same failure.
fn check(gateway: &Gateway, send: impl Fn(&str) -> String, status: u16, reason: &str) {
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let reply = told(gateway, &send(path));
        assert_eq!(reply.status, status, "{reason}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
        assert_eq!(reply.header("retry-after").is_some(), matches!(status, 429 | 503), "{reply:?}");
        let json = reply.json();
        assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{reply:?}");
        if path.ends_with("messages") {
            assert_eq!(json["type"], "error", "{reply:?}");
        } else {
            let told = json["error"]["metadata"]["reason"].as_str().unwrap_or_default();
            assert_eq!((&json["error"]["code"], told), (&status.into(), reason), "{reply:?}");
        }
    }
}

fn whole(path: &str) -> String {
    request("POST", path, "", CHAT)
}

/// A gateway with two keys and these settings.
fn with(name: &str, settings: &str, upstream: &Upstream) -> Gateway {
    let file = File::new(name, settings);
    let base = upstream.base();
    let flags = [&file.flag()[..], &["--upstream", &base, "--attempts", "1"]].concat();
    Gateway::start(&flags, &[("OPENROUTER_API_KEYS", "sk-or-v1-one,sk-or-v1-two")])
}

#[test]
fn r110_failures_of_the_upstream_have_a_status_of_their_own() {
    let json = "content-type: application/json\r\n";
    let silent = || Upstream::start(|_, stream| drop(rest(stream)));
    let says = |text: String| Upstream::start(move |_, stream| stream.write_all(text.as_bytes()).unwrap());
    let begun = |text: &'static str| {
        Upstream::start(move |_, stream| {
            stream.write_all(text.as_bytes()).unwrap();
            rest(stream);
        })
    };
    let half = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n  ";
    for (name, upstream, settings, status, reason) in [
        ("reset", says(String::new()), "", 502, "reset"),
        ("no-http", says("SSH-2.0-OpenSSH_9\r\n\r\n".into()), "", 502, "reset"),
        ("cut", says(half.to_owned()), "", 502, "truncated"),
        ("headers", silent(), "timeouts.headers = \"150ms\"", 504, "headers_timeout"),
        ("output", begun(half), "timeouts.first_output = \"150ms\"", 504, "first_output_timeout"),
        ("total", silent(), "timeouts.total = \"150ms\"", 504, "total_timeout"),
        ("deadline", silent(), "deadline = \"150ms\"", 504, "deadline"),
        ("redirect", says(response("302 Found", "location: http://127.0.0.1:1/\r\n", "")), "", 502, ""),
        (
            "dead",
            says(response("401 Unauthorized", json, r#"{"error":{"code":401,"message":"User not found."}}"#)),
            "waiting.max_wait = \"0s\"",
            429,
            "no_key",
        ),
    ] {
        let gateway = with(name, settings, &upstream);
        if reason == "no_key" {
            // two keys, each found out once
            gateway.chat("");
        }
        check(&gateway, whole, status, reason);
    }
}

#[test]
fn r110_what_is_wrong_with_a_request_has_a_status_of_its_own() {
    let upstream = Upstream::fine();
    let settings = "header_timeout = \"300ms\"\nlimits.body_limit = \"2KiB\"\nmodels.unrouted = \"refuse\"\n\
                    [[routes]]\nmodels = [\"acme/*\"]\n";
    let gateway = with("wrong", settings, &upstream);
    let head = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
    let chunks = |path: &str, chunks: &str| head(path, "transfer-encoding: chunked\r\n") + chunks;
    check(&gateway, |path| request("POST", path, "", r#"{"model":"other/x"}"#), 404, "no_route");
    check(&gateway, |path| head(path, "content-length: 2049\r\n"), 413, "body_too_large");
    check(&gateway, |path| chunks(path, &format!("801\r\n{}\r\n", "x".repeat(2049))), 413, "body_too_large");
    check(&gateway, |path| chunks(path, "5\r\nxx\r\n\r\n\r\n"), 400, "body_broken");
    check(&gateway, |path| head(path, "content-length: 9\r\n") + "{", 408, "body_too_slow");
    check(&gateway, |path| head(path, "transfer-encoding: gzip, chunked\r\n") + "0\r\n\r\n", 501, "");
    check(&gateway, |path| request("POST", path, "x-priority: urgent\r\n", CHAT), 400, "");
    assert_eq!(upstream.seen(), Vec::<String>::new());
}

/// An upstream that answers each request when the test says so.
fn held() -> (Upstream, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |_, stream| {
        if gone.lock().unwrap().recv().is_ok() {
            let answer = response("200 OK", "content-type: application/json\r\n", r#"{"id":"gen-1","choices":[]}"#);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (upstream, go)
}

fn until_seen(upstream: &Upstream, count: usize) {
    while upstream.seen().len() < count {
        thread::yield_now();
    }
}

#[test]
fn r110_r114_what_waits_in_vain_is_told_when_to_come_back_and_health_waits_for_nothing() {
    let (upstream, go) = held();
    let settings = "limits.max_in_flight = 1\nwaiting.max_waiters = 1\nwaiting.max_wait = \"300ms\"\n";
    let gateway = with("queue", settings, &upstream);
    let mut running: Vec<_> = (0..2)
        .map(|_| {
            let mut client = connect(gateway.api);
            client.write_all(whole("/v1/chat/completions").as_bytes()).unwrap();
            client
        })
        .collect();
    until_seen(&upstream, 2);
    // every place is taken; this one waits, and what comes then may not even do that
    let mut waiting = connect(gateway.api);
    waiting.write_all(whole("/v1/chat/completions").as_bytes()).unwrap();
    while get(gateway.admin, "/stats", "").json()["waiting"]["normal"] != 1 {
        thread::yield_now();
    }
    check(&gateway, whole, 429, "queue_full");
    assert_eq!(get(gateway.admin, "/readyz", "").status, 200, "busy is not unusable");
    assert_eq!(get(gateway.admin, "/healthz", "").status, 200);
    let reply = Reply::parse(&rest(&mut waiting));
    assert_eq!((reply.status, reply.header("retry-after").is_some()), (429, true), "{reply:?}");
    assert_eq!(upstream.seen().len(), 2, "neither health nor refusals are asked of the upstream");
    go.send(()).unwrap();
    go.send(()).unwrap();
    for client in &mut running {
        assert_eq!(Reply::parse(&rest(client)).status, 200);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn r127_ten_times_more_than_memory_allows_is_shed_and_the_process_lives() {
    const BODY: usize = 100 << 10;
    const CLIENTS: usize = 100;
    let (upstream, go) = held();
    let settings = "[limits]\nmemory = \"1MiB\"\nreplay_cap = \"256KiB\"\n";
    let gateway = with("memory", settings, &upstream);
    let body = format!(r#"{{"model":"acme/swift-1","messages":[],"user":"{}"}}"#, "x".repeat(BODY - 50));
    let before = gateway.memory();
    let (answered, replies) = mpsc::channel();
    for _ in 0..CLIENTS {
        let mut client = connect(gateway.api);
        client.write_all(request("POST", "/v1/chat/completions", "", &body).as_bytes()).unwrap();
        let answered = answered.clone();
        thread::spawn(move || answered.send(Reply::parse(&rest(&mut client))));
    }
    let most = (1 << 20) / body.len();
    until_seen(&upstream, most);
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown}");
    assert_eq!(get(gateway.admin, "/healthz", "").status, 200);
    // all else is told to come back, and only then ends what was let in: room that comes early lets more in
    let shed: Vec<_> = replies.iter().take(CLIENTS - most).collect();
    for _ in 0..=most {
        go.send(()).unwrap();
    }
    let served = replies.iter().take(most).filter(|reply| reply.status == 200).count();
    assert_eq!((served, upstream.seen().len()), (most, most));
    for reply in shed {
        let reason = &reply.json()["error"]["metadata"]["reason"];
        assert_eq!((reply.status, reply.header("retry-after"), reason), (503, Some("1"), &"overloaded".into()));
    }
    let reply = post(gateway.api, "/v1/chat/completions", "", &body);
    assert_eq!(reply.status, 200, "there is room again: {reply:?}");
}
