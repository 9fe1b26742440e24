//! Streams that are opened before there is an answer, on real sockets.

use std::{fs, io::Write, thread, time::Duration};

use super::support::*;

const STREAM: &str = r#"{"model":"acme/swift-1","stream":true,"messages":[{"role":"user","content":"Hi"}]}"#;
const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";

/// A gateway that opens streams after 200 ms, before an upstream that takes three times as long for this answer.
fn slow(name: &str, answer: String) -> (Gateway, Upstream) {
    let upstream = Upstream::start(move |_, stream| {
        thread::sleep(Duration::from_millis(600));
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let path = std::env::temp_dir().join(format!("tower-openrouter-keep-alive-{}-{name}.toml", std::process::id()));
    fs::write(&path, "[stream]\nkeep_alive_after = \"200ms\"\nkeep_alive_interval = \"150ms\"\n").unwrap();
    let gateway = Gateway::before(&upstream, &["--config", path.to_str().unwrap()]);
    fs::remove_file(path).unwrap();
    (gateway, upstream)
}

#[test]
fn a_stream_is_opened_without_naming_a_key_and_goes_on_with_the_answer() {
    let events = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let (gateway, _upstream) = slow("fine", format!("{STREAM_HEAD}{}0\r\n\r\n", chunk(events)));
    let reply = post(gateway.api, "/v1/chat/completions", "", STREAM);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(reply.header("x-balancer-key"), None, "who will answer is not known yet");
    assert_eq!(reply.header("x-balancer-attempts"), None);
    assert!(reply.header("x-request-id").is_some());
    let (comments, rest) = reply.body.split_at(reply.body.find(&chunk(events)).unwrap());
    assert!(comments.contains(COMMENT), "{reply:?}");
    assert_eq!(rest, format!("{}0\r\n\r\n", chunk(events)));
    // who asks for no stream waits for its answer
    let reply = gateway.chat("");
    assert_eq!((reply.header("x-balancer-key"), reply.header("x-balancer-attempts")), (Some("api-key"), Some("1")));
    assert!(!reply.body.contains(COMMENT));
}

#[test]
fn a_refusal_after_that_is_an_error_event_in_the_shape_of_the_path() {
    let error =
        r#"{"error":{"code":403,"message":"Refused by policy","metadata":{"error_type":"content_policy_violation"}}}"#;
    let (gateway, _upstream) = slow("refused", response("403 Forbidden", "content-type: application/json\r\n", error));
    for (path, event, kind) in [
        ("/v1/chat/completions", "data: {", r#""code":403"#),
        ("/v1/responses", "event: error\ndata: {", r#""type":"error""#),
        ("/v1/messages", "event: error\ndata: {", r#""type":"permission_error""#),
    ] {
        let reply = post(gateway.api, path, "", STREAM);
        assert_eq!(reply.status, 200);
        assert!(reply.body.contains(COMMENT) && reply.body.ends_with("0\r\n\r\n"), "{reply:?}");
        let told = &reply.body[reply.body.rfind(event).unwrap_or_else(|| panic!("{reply:?}"))..];
        assert!(told.contains(kind) && told.contains("Refused by policy"), "{told}");
    }
}
