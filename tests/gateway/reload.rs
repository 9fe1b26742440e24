//! SIGHUP: another configuration takes the place of the one that runs, whole or not at all.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use super::support::*;

const JSON: &str = "content-type: application/json\r\n";
const DONE: &str = r#"{"id":"gen-1","choices":[]}"#;

/// A gateway, the file it reads, and how often it has read it.
struct Configured {
    gateway: Gateway,
    path: PathBuf,
    reloads: usize,
}

impl Configured {
    fn start(name: &str, upstream: &Upstream, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tower-openrouter-reload-{}-{name}.toml", std::process::id()));
        let text = format!("upstream = \"{}\"\n{text}", upstream.base());
        fs::write(&path, text).unwrap();
        Self { gateway: Gateway::start(&["--config", path.to_str().unwrap()], &[]), path, reloads: 0 }
    }

    /// Has it read this text in place of the one before; what it then logs.
    fn reload(&mut self, upstream: &Upstream, text: &str) -> String {
        fs::write(&self.path, format!("upstream = \"{}\"\n{text}", upstream.base())).unwrap();
        self.reloads += 1;
        self.gateway.signal("HUP");
        let start = Instant::now();
        loop {
            let log = self.gateway.log();
            let mut said = log.match_indices("the configuration was read again");
            if let Some((at, _)) = said.nth(self.reloads - 1) {
                let from = log[..at].rfind('\n').map_or(0, |at| at + 1);
                return log[from..].to_owned();
            }
            assert!(start.elapsed() < PATIENCE, "it does not say that it has read it again: {log}");
            thread::yield_now();
        }
    }

    /// Which key serves.
    fn key(&self) -> String {
        self.gateway.chat("").header("x-balancer-key").unwrap().to_owned()
    }

    /// How many attempts a key has made, by `/stats`.
    fn attempts_of(&self, label: &str) -> u64 {
        let stats = get(self.gateway.admin, "/stats", "").json();
        let endpoints = stats["endpoints"].as_array().unwrap();
        endpoints.iter().find(|endpoint| endpoint["key"] == label).unwrap()["attempts"].as_u64().unwrap()
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn key(label: &str) -> String {
    format!("[[keys]]\nlabel = \"{label}\"\nkey = \"sk-or-v1-{label}\"\n")
}

#[test]
fn r120_under_load_a_reload_drops_nothing() {
    let served = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = served.clone();
    let upstream = Upstream::start(move |_, stream| {
        stream.write_all(response("200 OK", JSON, DONE).as_bytes()).unwrap();
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let sets = [key("a") + &key("b"), key("b") + &key("c"), "[retry\n".to_owned(), key("d")];
    let mut configured = Configured::start("load", &upstream, &sets[0]);
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let api = configured.gateway.api;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        asked.fetch_add(1, Ordering::SeqCst);
                        let reply = post(api, "/v1/chat/completions", "", CHAT);
                        assert_eq!(reply.status, 200, "{reply:?}");
                    }
                })
            })
            .collect();
        for turn in 0..20 {
            let before = asked.load(Ordering::SeqCst);
            configured.reload(&upstream, &sets[turn % sets.len()]);
            while asked.load(Ordering::SeqCst) < before + 10 && clients.iter().all(|client| !client.is_finished()) {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(served.load(Ordering::SeqCst), asked.load(Ordering::SeqCst), "each was sent once and answered once");
    assert_eq!(configured.key(), "d");
}

#[test]
fn r120_a_broken_file_changes_nothing_and_is_told_by_line() {
    let upstream = Upstream::fine();
    let mut configured = Configured::start("broken", &upstream, &key("a"));
    for (text, told) in [
        (key("b") + "wait = 3\n", "line 5: unknown field `wait`"),
        (key("b") + "weight = -1\n", "line 2: [[keys]] number 1, `b`: the key's weight is -1"),
        ("listen = \"sk-or-v1-canary\"\n".to_owned() + &key("b"), "line 2: listen: "),
        (String::new(), "there is no key left"),
    ] {
        let said = configured.reload(&upstream, &text);
        assert!(said.contains("ERROR") && said.contains("what ran before runs on") && said.contains(told), "{said}");
        assert!(!said.contains("canary"), "{said}");
        assert_eq!(configured.key(), "a");
    }
    let said = configured.reload(&upstream, &key("b"));
    assert!(said.contains("INFO") && said.contains("keys=1 unchanged=0"), "{said}");
    assert_eq!(configured.key(), "b");
}

#[test]
fn r120_a_key_that_is_taken_out_finishes_what_it_runs_and_gets_nothing_new() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |request, stream| {
        if request.contains("sk-or-v1-old") {
            stream.write_all(format!("{STREAM_HEAD}{}", chunk(&token("1"))).as_bytes()).unwrap();
            gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).unwrap();
        } else {
            stream.write_all(response("200 OK", JSON, DONE).as_bytes()).unwrap();
        }
    });
    let mut configured = Configured::start("drain", &upstream, &key("old"));
    let mut stream = connect(configured.gateway.api);
    stream.write_all(request("POST", "/v1/chat/completions", "", CHAT).as_bytes()).unwrap();
    until(&mut stream, &token("1"));
    configured.reload(&upstream, &key("new"));
    for _ in 0..10 {
        assert_eq!(configured.key(), "new");
    }
    let stats = get(configured.gateway.admin, "/stats", "").body;
    assert!(stats.contains("\"new\"") && !stats.contains("\"old\""), "{stats}");
    go.send(()).unwrap();
    let end = rest(&mut stream);
    assert!(end.contains("[DONE]") && end.ends_with("0\r\n\r\n"), "{end:?}");
}

#[test]
fn r120_a_key_that_has_not_changed_keeps_its_rest_and_its_figures() {
    let upstream = Upstream::start(|request, stream| {
        let answer = if request.contains("sk-or-v1-spent") {
            let body = r#"{"error":{"code":403,"message":"Key limit exceeded (total limit)."}}"#;
            response("403 Forbidden", JSON, body)
        } else {
            response("200 OK", JSON, DONE)
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let mut configured = Configured::start("rest", &upstream, &(key("spent") + &key("fine")));
    let asked =
        |upstream: &Upstream| upstream.seen().iter().filter(|request| request.contains("sk-or-v1-spent")).count();
    while asked(&upstream) == 0 {
        assert_eq!(configured.key(), "fine");
    }
    let before = configured.attempts_of("fine");
    assert!(before > 0);
    configured.reload(&upstream, &(key("more") + &key("spent") + &key("fine") + "[select]\npick = \"round-robin\"\n"));
    let keys: Vec<_> = (0..12).map(|_| configured.key()).collect();
    assert!(keys.contains(&"more".to_owned()), "{keys:?}");
    assert_eq!(asked(&upstream), 1, "it rests");
    assert!(configured.attempts_of("fine") > before, "it counts on");
    configured.reload(&upstream, &(key("spent") + "account = \"other\"\n" + &key("fine")));
    for _ in 0..40 {
        assert_eq!(configured.key(), "fine");
    }
    assert_eq!(asked(&upstream), 2, "with other settings it is another key, and tried anew");
}

#[test]
fn r120_routes_change_with_the_file_and_the_wrong_ones_change_nothing() {
    let upstream = Upstream::fine();
    let route = |label: &str| {
        let route = format!("[[routes]]\nmodels = [\"acme/*\"]\nkeys = [\"{label}\"]\n");
        key("a") + &key("b") + &route
    };
    let mut configured = Configured::start("routes", &upstream, &route("a"));
    let keys = |configured: &Configured| (0..10).map(|_| configured.key()).collect::<BTreeSet<_>>();
    assert_eq!(keys(&configured), ["a".to_owned()].into());
    configured.reload(&upstream, &route("b"));
    assert_eq!(keys(&configured), ["b".to_owned()].into());
    for (text, told) in [
        (route("c"), "line 8: [[routes]] number 1: keys: no key has the label `c`"),
        (route("a") + "[provider]\nonly = []\n", "line 11: provider: only is empty"),
        (route("a") + "[models]\nunrouted = \"refuse\"\nfallback = [\"west/large\"]\n", "line 11: models: "),
    ] {
        let said = configured.reload(&upstream, &text);
        assert!(said.contains("ERROR") && said.contains(told), "{said}");
        assert_eq!(keys(&configured), ["b".to_owned()].into());
    }
    configured.reload(&upstream, &(key("a") + &key("b")));
    assert_eq!((0..100).map(|_| configured.key()).collect::<BTreeSet<_>>().len(), 2, "all keys serve all models");
}

#[test]
fn what_cannot_change_while_it_runs_is_reported() {
    let upstream = Upstream::fine();
    let mut configured = Configured::start("fixed", &upstream, &key("a"));
    let said = configured.reload(&upstream, &("header_timeout = \"7s\"\n".to_owned() + &key("b")));
    let log = configured.gateway.log();
    assert!(said.contains("INFO"), "{said}");
    assert!(log.contains("setting=\"header_timeout\" runs=\"30s\" asked=\"7s\""), "{log}");
    assert_eq!(configured.key(), "b", "the rest holds");
}

#[test]
fn an_access_token_can_change_while_it_runs() {
    let upstream = Upstream::fine();
    let mut configured = Configured::start("token", &upstream, &("access_token = \"one\"\n".to_owned() + &key("a")));
    let status = |configured: &Configured, token: &str| {
        configured.gateway.chat(&format!("authorization: Bearer {token}\r\n")).status
    };
    assert_eq!((status(&configured, "one"), status(&configured, "two")), (200, 401));
    configured.reload(&upstream, &("access_token = \"two\"\n".to_owned() + &key("a")));
    assert_eq!((status(&configured, "one"), status(&configured, "two")), (401, 200));
}

#[test]
fn without_a_file_a_hangup_changes_nothing() {
    let upstream = Upstream::fine();
    let gateway = Gateway::before(&upstream, &[]);
    gateway.signal("HUP");
    let start = Instant::now();
    while !gateway.log().contains("there is no file to read again") {
        assert!(start.elapsed() < PATIENCE, "{}", gateway.log());
        thread::yield_now();
    }
    assert_eq!(gateway.chat("").status, 200);
}
