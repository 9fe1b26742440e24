//! What a recording says of the traffic, and what it does not say.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tower_openrouter::lab::trace::Trace;

use super::support::*;

const KEY: &str = "sk-or-v1-3fQz7Lk9WcVb2NxTe5Yh";
const TOKEN: &str = "Zk2PvB9qXr7LmTc4WsJd";
/// Words of prompts and answers, and names of sessions and people.
const PRIVATE: [&str; 6] =
    [KEY, TOKEN, "my secret question", "the secret answer", "conversation-4711", "somebody@example"];

/// The file of a recording, removed with the test.
struct Recording(PathBuf);

impl Recording {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tower-openrouter-record-{}-{name}.jsonl", std::process::id()));
        let _ = fs::remove_file(&path);
        Self(path)
    }

    fn flag(&self) -> [&str; 2] {
        ["--record", self.0.to_str().unwrap()]
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }

    fn requests(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until so many requests are recorded.
    fn wait_for(&self, count: usize) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let text = self.text();
            if text.ends_with('\n') && text.lines().count() >= count {
                return self.requests();
            }
            assert!(start.elapsed() < PATIENCE, "{text}");
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Those of the fields that the same traffic always gives.
fn picked(record: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), record[name].clone())).collect::<serde_json::Map<_, _>>().into()
}

/// Answers by what the request asks for, with a usage.
fn upstream() -> Upstream {
    Upstream::start(|request, stream| {
        let json = "content-type: application/json\r\n";
        let usage = r#""usage":{"prompt_tokens":12,"completion_tokens":34,"cost":0.1}"#;
        if request.contains("acme/wrong") {
            let body = r#"{"error":{"code":400,"message":"the secret answer"}}"#;
            stream.write_all(response("400 Bad Request", json, body).as_bytes()).unwrap();
        } else if request.contains("\"stream\":true") {
            let last = format!("data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n");
            let events = chunk(&token("the secret answer")) + &chunk(&last) + "0\r\n\r\n";
            stream.write_all((STREAM_HEAD.to_owned() + &events).as_bytes()).unwrap();
        } else {
            let body =
                format!(r#"{{"id":"gen-1","choices":[{{"message":{{"content":"the secret answer"}}}}],{usage}}}"#);
            stream.write_all(response("200 OK", json, &body).as_bytes()).unwrap();
        }
    })
}

#[test]
fn each_request_is_a_line_that_says_what_its_client_saw_and_nothing_private() {
    let (upstream, recording) = (upstream(), Recording::new("lines"));
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    let mut gateway = Gateway::start(
        &[&["--upstream", &upstream.base()][..], &recording.flag()].concat(),
        &[("OPENROUTER_API_KEY", KEY), ("TOWER_OPENROUTER_ACCESS_TOKEN", TOKEN), ("RUST_LOG", "trace")],
    );
    let ask = |headers: &str, body: &str| {
        let reply = post(gateway.api, "/v1/chat/completions", &format!("{token}{headers}"), body);
        (reply.status, reply.header("x-balancer-key").map(str::to_owned), body.len())
    };
    let messages = r#""messages":[{"role":"user","content":"my secret question"}]"#;
    let plain = format!(r#"{{"model":"acme/swift-1","max_tokens":99,{messages}}}"#);
    let streamed = format!(r#"{{"model":"acme/deep-2","stream":true,"user":"somebody@example",{messages}}}"#);
    let wrong = format!(r#"{{"model":"acme/wrong","session_id":"conversation-4711",{messages}}}"#);
    let again = format!(r#"{{"model":"acme/swift-1","session_id":"conversation-4711",{messages}}}"#);
    let seen = [
        ask("x-priority: high\r\n", &plain),
        ask("x-priority: low\r\n", &streamed),
        ask("", &wrong),
        ask("x-session-id: another\r\n", &again),
    ];
    // who was not let in is no traffic, and neither are questions about models
    assert_eq!(post(gateway.api, "/v1/chat/completions", "", CHAT).status, 401);
    get(gateway.api, "/v1/models", &token);

    let records = recording.wait_for(4);
    assert_eq!(records.len(), 4, "{records:?}");
    let names = ["model", "reply_tokens", "cost", "max_tokens", "stream", "priority", "ending", "cause", "attempts"];
    let told = |model, usage: Option<(u64, f64)>, max_tokens: Option<u64>, stream, priority, cause: Option<&str>| {
        json!({
            "model": model, "reply_tokens": usage.map(|usage| usage.0), "cost": usage.map(|usage| usage.1),
            "max_tokens": max_tokens, "stream": stream, "priority": priority,
            "ending": if cause.is_some() { "failed" } else { "served" }, "cause": cause, "attempts": 1,
        })
    };
    let used = Some((34, 0.1));
    let expected = [
        told("acme/swift-1", used, Some(99), false, "high", None),
        told("acme/deep-2", used, None, true, "low", None),
        told("acme/wrong", None, None, false, "normal", Some("bad_request")),
        told("acme/swift-1", used, None, false, "normal", None),
    ];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let mut before = now - 60_000;
    for ((record, expected), (status, key, bytes)) in records.iter().zip(expected).zip(seen) {
        assert_eq!(picked(record, &names), expected);
        assert_eq!(
            picked(record, &["status", "key", "request_bytes"]),
            json!({"status": status, "key": key, "request_bytes": bytes})
        );
        let time = |name: &str| record[name].as_u64().unwrap_or_else(|| panic!("{name}: {record}"));
        assert!(before <= time("at_ms"), "{record}");
        assert!(time("head_ms") <= time("first_output_ms") && time("first_output_ms") <= time("end_ms"), "{record}");
        let prompt = if record["cost"].is_null() { bytes as u64 / 4 } else { 12 };
        assert_eq!(record["prompt_tokens"], prompt, "as the answer says, else an estimate");
        before = time("at_ms");
    }
    let sessions: Vec<_> = records.iter().map(|record| record["session"].as_str()).collect();
    assert_eq!(sessions[0], None);
    assert!(sessions[1].is_some() && sessions[1] != sessions[2]);
    assert_eq!(sessions[2], sessions[3], "the body's session counts, whatever the header says");

    // the next recording follows in the same file, with sessions that cannot be told from those of the first
    gateway.signal("TERM");
    gateway.ended();
    let gateway = Gateway::before(&upstream, &recording.flag());
    assert_eq!(post(gateway.api, "/v1/chat/completions", "", &again).status, 200);
    let records = recording.wait_for(5);
    assert_eq!(records.len(), 5, "{records:?}");
    assert_ne!(records[4]["session"], records[3]["session"]);
    assert!(before <= records[4]["at_ms"].as_u64().unwrap(), "the times of one follow on those of the other");
    let text = recording.text();
    let trace = Trace::open(&recording.0).unwrap();
    let read: Vec<_> = trace.records().iter().map(|record| (record.model.as_deref(), record.prompt_tokens)).collect();
    let told = records.iter().map(|record| (record["model"].as_str(), record["prompt_tokens"].as_u64().unwrap()));
    assert_eq!(read, told.collect::<Vec<_>>(), "as the lab reads it");
    for private in PRIVATE {
        assert!(!text.contains(private), "{private} in {text}");
    }
    assert_eq!(fs::metadata(&recording.0).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn who_leaves_is_recorded_as_gone_and_who_is_refused_with_the_reason() {
    let recording = Recording::new("causes");
    let slow = Upstream::start(|request, stream| {
        if request.contains("acme/silent") {
            // until the gateway leaves
            rest(stream);
        }
        stream.write_all((STREAM_HEAD.to_owned() + &chunk(&token("a"))).as_bytes()).unwrap();
        rest(stream);
    });
    let flags = ["--max-in-flight", "1", "--max-wait", "0s", "--attempts", "1"];
    let mut gateway = Gateway::before(&slow, &[&flags[..], &recording.flag()].concat());
    let ask = |model: &str| {
        let mut client = connect(gateway.api);
        let body = format!(r#"{{"model":"{model}","stream":true,"messages":[]}}"#);
        client.write_all(request("POST", "/v1/chat/completions", "", &body).as_bytes()).unwrap();
        client
    };
    let start = Instant::now();
    let silent = ask("acme/silent");
    while slow.seen().is_empty() {
        assert!(start.elapsed() < PATIENCE);
    }
    let reply = gateway.chat("");
    assert_eq!(reply.status, 429, "{reply:?}");
    drop(silent);
    recording.wait_for(2);
    let mut streaming = ask("acme/swift-1");
    until(&mut streaming, "\"content\"");
    drop(streaming);
    let records = recording.wait_for(3);
    let names = ["model", "status", "ending", "cause", "attempts"];
    let told: Vec<_> = records.iter().map(|record| picked(record, &names)).collect();
    assert_eq!(
        told,
        [
            json!({"model": "acme/swift-1", "status": 429, "ending": "failed", "cause": "no_key", "attempts": 0}),
            json!({"model": "acme/silent", "status": null, "ending": "left", "cause": "client_gone", "attempts": 1}),
            json!({"model": "acme/swift-1", "status": 200, "ending": "left", "cause": "client_gone", "attempts": 1}),
        ]
    );
    assert!(records[1]["head_ms"].is_null() && records[1]["first_output_ms"].is_null(), "{}", records[1]);
    assert!(records[2]["first_output_ms"].is_u64(), "{}", records[2]);

    // cut by a second signal, and in the file all the same
    let mut streaming = ask("acme/swift-1");
    until(&mut streaming, "\"content\"");
    gateway.signal("TERM");
    let start = Instant::now();
    while !gateway.log().contains("stopping") {
        assert!(start.elapsed() < PATIENCE);
    }
    gateway.signal("TERM");
    gateway.ended();
    let records = recording.requests();
    assert_eq!(
        picked(&records[3], &names[1..4]),
        json!({"status": 200, "ending": "broken", "cause": "draining"}),
        "{records:?}"
    );
}

#[test]
fn a_stream_opened_before_its_answer_is_recorded_with_what_came_of_it() {
    let recording = Recording::new("later");
    let upstream = Upstream::start(|request, stream| {
        std::thread::sleep(Duration::from_millis(300));
        let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":34}}"#;
        let events = chunk(&token("a")) + &chunk(&format!("{usage}\n\ndata: [DONE]\n\n")) + "0\r\n\r\n";
        let answer = match request.contains("acme/wrong") {
            true => response(
                "400 Bad Request",
                "content-type: application/json\r\n",
                r#"{"error":{"code":400,"message":"no"}}"#,
            ),
            false => STREAM_HEAD.to_owned() + &events,
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let path = recording.0.with_extension("toml");
    fs::write(&path, format!("record = {:?}\n[stream]\nkeep_alive_after = \"20ms\"\n", recording.0)).unwrap();
    let gateway = Gateway::before(&upstream, &["--config", path.to_str().unwrap()]);
    fs::remove_file(&path).unwrap();
    for model in ["acme/swift-1", "acme/wrong"] {
        let body = format!(r#"{{"model":"{model}","stream":true,"messages":[]}}"#);
        assert_eq!(post(gateway.api, "/v1/chat/completions", "", &body).status, 200);
    }
    let records = recording.wait_for(2);
    let names = ["status", "cause", "attempts", "reply_tokens"];
    assert_eq!(picked(&records[0], &names), json!({"status": 200, "cause": null, "attempts": 1, "reply_tokens": 34}));
    assert_eq!(
        picked(&records[1], &names),
        json!({"status": 200, "cause": "bad_request", "attempts": 1, "reply_tokens": null})
    );
    let time = |name: &str| records[0][name].as_u64().unwrap();
    assert!(time("head_ms") < 300 && time("first_output_ms") >= 300, "comments are no output: {}", records[0]);
}

#[test]
fn a_full_disk_costs_lines_of_the_recording_and_no_request() {
    let (upstream, recording) = (upstream(), Recording::new("full"));
    // the longest file the process may write is as good as a full disk, once the signal that would kill it is ignored
    let mut gateway = Gateway::within(
        "trap '' XFSZ; ulimit -f 2",
        &[&["--upstream", &upstream.base()][..], &recording.flag()].concat(),
        &[("OPENROUTER_API_KEY", KEY)],
    );
    for _ in 0..20 {
        assert_eq!(gateway.chat("").status, 200);
    }
    gateway.signal("TERM");
    assert!(gateway.ended().0.success());
    let text = recording.text();
    assert!(text.ends_with('\n') && (2..20).contains(&text.lines().count()), "{text}");
    recording.requests();
    assert!(gateway.log().contains("requests cannot be recorded for now"), "{}", gateway.log());
}

#[test]
fn a_file_that_cannot_be_recorded_into_is_refused_at_start() {
    let recording = Recording::new("taken");
    let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let _first = Gateway::start(&recording.flag(), &[]);
    for (path, told) in [
        ("/tmp", "record: /tmp: "),
        ("/nowhere/traffic.jsonl", "record: /nowhere/traffic.jsonl: "),
        (recording.0.to_str().unwrap(), "another gateway records into it"),
    ] {
        let said = refused(&[&ports[..], &["--record", path]].concat(), &[]);
        assert!(said.contains(told), "{said}");
    }
    let output = command(&[&["--check"][..], &recording.flag()].concat(), &[]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("record") && told.contains(recording.0.to_str().unwrap()), "{told}");
}
