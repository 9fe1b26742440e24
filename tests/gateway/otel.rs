//! Spans on their way to an OpenTelemetry collector.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;

use super::support::*;

/// Heads and bodies of what was exported.
type Exports = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Takes what is exported, and answers, or not.
struct Collector {
    address: SocketAddr,
    exports: Exports,
}

impl Collector {
    fn start(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let exports = Exports::default();
        let kept = exports.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                thread::spawn(move || {
                    let mut bytes = Vec::new();
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        bytes.extend_from_slice(&buffer[..read]);
                        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                        let length: usize = length.unwrap().parse().unwrap();
                        if bytes.len() < end + 4 + length {
                            continue;
                        }
                        let body = bytes[end + 4..][..length].to_vec();
                        bytes.drain(..end + 4 + length);
                        kept.lock().unwrap().push((head, body));
                        if answers {
                            let ok =
                                "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                            stream.write_all(ok.as_bytes()).unwrap();
                        }
                    }
                });
            }
        });
        Self { address, exports }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans so far.
    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for (head, body) in self.exports.lock().unwrap().iter() {
            assert!(
                head.starts_with("post /v1/traces ") && head.contains("content-type: application/x-protobuf"),
                "{head}"
            );
            let plain = String::from_utf8_lossy(body);
            assert!(!plain.contains("Hn4Rt8Jp") && !plain.contains("3fQz7Lk9"), "a key was exported: {plain}");
            for resource in ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans {
                let service = resource.resource.unwrap().attributes;
                assert_eq!(text(&service)["service.name"], "tower-openrouter");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

fn text(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let value = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), value(attribute))).collect()
}

#[test]
fn a_collector_gets_one_span_for_the_request_and_one_for_each_attempt() {
    let upstream = Upstream::start(|request, stream| {
        let json = "content-type: application/json\r\n";
        let answer = if request.contains("sk-or-v1-Hn4Rt8Jp1MsDw6") {
            response("401 Unauthorized", json, r#"{"error":{"code":401,"message":"User not found."}}"#)
        } else {
            let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":7,"cost":0.25}"#;
            response("200 OK", json, &format!(r#"{{"id":"gen-1","model":"acme/swift-1-b","choices":[],{usage}}}"#))
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let collector = Collector::start(true);
    let mut gateway = Gateway::start(
        &["--upstream", &upstream.base()],
        &[
            ("OPENROUTER_API_KEYS", "sk-or-v1-Hn4Rt8Jp1MsDw6,sk-or-v1-3fQz7Lk9WcVb2N"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint()),
        ],
    );
    let mut requests = 0;
    // until both keys were tried, whichever comes first
    while requests < 2 || !upstream.seen().iter().any(|request| request.contains("Hn4Rt8Jp1MsDw6")) {
        assert_eq!(gateway.chat("x-request-id: mine-1\r\n").status, 200);
        requests += 1;
        assert!(requests < 100, "the dead key is never tried");
    }
    gateway.signal("TERM");
    gateway.ended();
    let spans = collector.spans();
    let parents: Vec<_> = spans.iter().filter(|span| span.parent_span_id.is_empty()).collect();
    let attempts: Vec<_> = spans.iter().filter(|span| !span.parent_span_id.is_empty()).collect();
    assert_eq!((parents.len(), attempts.len()), (requests, requests + 1), "{spans:#?}");
    for attempt in &attempts {
        let parent = parents.iter().find(|parent| parent.span_id == attempt.parent_span_id).unwrap();
        assert_eq!(parent.trace_id, attempt.trace_id);
        assert_eq!((attempt.name.as_str(), attempt.kind()), ("chat acme/swift-1", SpanKind::Client));
        assert!(attempt.end_time_unix_nano >= attempt.start_time_unix_nano);
    }
    for parent in parents {
        let told = text(&parent.attributes);
        assert_eq!((parent.name.as_str(), parent.kind()), ("chat", SpanKind::Internal));
        assert_eq!(told["gen_ai.request.model"], "acme/swift-1");
        assert_eq!((told["request_id"].as_str(), told["outcome"].as_str()), ("mine-1", "success"));
        assert_eq!(told["http.response.status_code"], "200");
    }
    let failed = attempts
        .iter()
        .filter(|attempt| attempt.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error));
    assert_eq!(failed.count(), 1);
    let mut outcomes: Vec<_> = attempts.iter().map(|attempt| text(&attempt.attributes)).collect();
    outcomes.sort_by_key(|told| told["outcome"].clone());
    assert_eq!(outcomes[0]["error.type"], "invalid_key");
    assert_eq!(outcomes[0]["http.response.status_code"], "401");
    for (attribute, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openrouter"),
        ("gen_ai.request.model", "acme/swift-1"),
        ("gen_ai.response.model", "acme/swift-1-b"),
        ("gen_ai.usage.input_tokens", "5"),
        ("gen_ai.usage.output_tokens", "7"),
        ("cost_usd", "0.25"),
        ("server.address", "127.0.0.1"),
        ("server.port", &upstream.address().port().to_string()),
    ] {
        assert_eq!(outcomes[1].get(attribute).map(String::as_str), Some(value), "{attribute}");
    }
}

#[test]
fn a_request_is_part_of_its_callers_trace_unless_that_is_left_out() {
    let upstream = Upstream::fine();
    let collector = Collector::start(true);
    let mut gateway = Gateway::start(
        &["--upstream", &upstream.base()],
        &[("OPENROUTER_API_KEY", "sk-or-v1-3fQz7Lk9WcVb2N"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())],
    );
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for (id, headers) in [
        ("part", format!("traceparent: 00-{trace}-{span}-01\r\ntracestate: vendor=its-own\r\n")),
        ("left-out", format!("traceparent: 00-{trace}-{span}-00\r\n")),
        ("malformed", format!("traceparent: 00-{}-{span}-01\r\n", trace.to_uppercase())),
        ("none", String::new()),
    ] {
        assert_eq!(gateway.chat(&format!("x-request-id: {id}\r\n{headers}")).status, 200);
    }
    gateway.signal("TERM");
    gateway.ended();
    let spans = collector.spans();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let requests = spans.iter().filter(|span| span.name == "chat");
    let requests: BTreeMap<_, _> = requests.map(|span| (text(&span.attributes)["request_id"].clone(), span)).collect();
    assert_eq!(requests.keys().collect::<Vec<_>>(), ["malformed", "none", "part"], "{spans:#?}");
    let part = requests["part"];
    assert_eq!((hex(&part.trace_id), hex(&part.parent_span_id)), (trace.to_owned(), span.to_owned()));
    assert_eq!(part.trace_state, "vendor=its-own");
    for own in ["malformed", "none"] {
        assert!(requests[own].parent_span_id.is_empty() && hex(&requests[own].trace_id) != trace, "{own}");
    }
    for attempt in spans.iter().filter(|span| span.name != "chat") {
        let parent = requests.values().find(|parent| parent.span_id == attempt.parent_span_id).unwrap();
        assert_eq!((&parent.trace_id, &parent.trace_state), (&attempt.trace_id, &attempt.trace_state));
    }
    assert_eq!(spans.len(), 6, "each of three has an attempt");
}

#[test]
fn r081_a_collector_that_hangs_holds_up_neither_requests_nor_the_end() {
    let upstream = Upstream::fine();
    let collector = Collector::start(false);
    let endpoint = collector.endpoint();
    let mut gateway = Gateway::start(
        &["--upstream", &upstream.base()],
        &[
            ("OPENROUTER_API_KEY", "sk-or-v1-one"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
        ],
    );
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(gateway.chat("").status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(collector.exports.lock().unwrap().len(), 1, "one export hangs, and no other is begun");
    let page = get(gateway.admin, "/metrics", "").body;
    assert!(page.contains("outcome=\"success\",error_type=\"\"} 20"), "{page}");
    gateway.signal("TERM");
    let (_, took) = gateway.ended();
    assert!(took < Duration::from_secs(6), "{took:?}");
    let log = gateway.log();
    assert!(
        log.contains("SpanDroppingStarted") || log.contains("ropped"),
        "spans were lost, and nobody said so: {log}"
    );
}
