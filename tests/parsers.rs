//! R119: whatever bytes come as headers, bodies, keys or scenarios, no parser panics, and none takes more memory than a
//! multiple of what it was given.
//!
//! The long form, with the streams of `cut.rs` and the parsers inside the library and the binary:
//!
//! ```text
//! PROPTEST_CASES=1000000 cargo test --release --lib --bins --test cut --test parsers -- r066_ r119_
//! ```

use std::{
    alloc::System,
    convert::Infallible,
    future::ready,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Layer, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, OpenRouter, RequestContext,
    answer::{ErrorAnswer, Shape},
    lab::{self, trace::Trace},
    openrouter::{
        Answer, ProviderLayer, ProviderPreferences,
        account::{Credits, KeyInfo, ModelInfo},
        classify,
    },
    simulator::Scenario,
};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What each parser may take of the heap in all: for each byte it is given, and besides.
const PER_BYTE: usize = 400;
const BESIDES: usize = 64 * 1024;

struct Parser {
    name: &'static str,
    samples: &'static [&'static str],
    read: fn(&[u8]),
}

const PARSERS: [Parser; 13] = [
    Parser { name: "error body", samples: ERRORS, read: |bytes| judge(&HeaderMap::new(), bytes) },
    Parser { name: "hints", samples: HINTS, read: hints },
    Parser { name: "GET /key", samples: ACCOUNTS, read: |bytes| drop(KeyInfo::read(bytes, UNIX_EPOCH)) },
    Parser {
        name: "GET /credits",
        samples: ACCOUNTS,
        read: |bytes| {
            let _ = Credits::read(bytes);
        },
    },
    Parser { name: "GET /models", samples: ACCOUNTS, read: |bytes| drop(ModelInfo::read_list(bytes)) },
    Parser { name: "request", samples: REQUESTS, read: asks },
    Parser { name: "provider preferences", samples: REQUESTS, read: provider },
    Parser { name: "document", samples: ERRORS, read: |bytes| answer("application/json", bytes) },
    Parser { name: "event stream", samples: STREAMS, read: |bytes| answer("text/event-stream", bytes) },
    Parser { name: "key and URL", samples: &["sk-or-v1-0123", "https://eu.openrouter.ai:8443/api/v1"], read: key },
    Parser { name: "scenario", samples: SCENARIOS, read: scenario },
    Parser { name: "scenario of the lab", samples: LABS, read: lab },
    Parser { name: "trace", samples: TRACES, read: |bytes| drop(Trace::read(bytes)) },
];

const ERRORS: &[&str] = &[
    r#"{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day","metadata":{"headers":{"X-RateLimit-Limit":"50","X-RateLimit-Reset":"1741305600000"},"provider_name":null}},"user_id":"user_1"}"#,
    r#"{"error":{"code":"402","message":"can only afford 12","metadata":{"limit_source":"openrouter_credits","retry_after_seconds":2.5,"previous_errors":[{"code":429,"raw":"{\"error\":{\"code\":500}}"}]}},"openrouter_metadata":{"attempt":1}}"#,
    r#"{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":null,"metadata":{"resets_at":"2026-11-22T00:00:00Z"}}"#,
    r#"{"id":"gen-1","choices":[{"message":{"content":"é\ud83d"},"finish_reason":"error","error":{"code":502,"message":"m"}}],"usage":{"prompt_tokens":3,"completion_tokens":1e3,"cost":0.00014725}}"#,
    "<html><body>cf-ray</body></html>",
];

const HINTS: &[&str] = &[
    "29",
    "28.181",
    "1741305600000",
    "Wed, 21 Oct 2026 07:28:00 GMT",
    "2026-11-22T00:00:00.5+01:00",
    "1h30m5.2s",
    "-1",
];

const ACCOUNTS: &[&str] = &[
    r#"{"data":{"label":"sk-or-v1-abc...123","limit":10.5,"limit_remaining":"9.5","limit_reset":"daily","usage":1e-3,"is_free_tier":false,"organization_id":"org_1","free_model_daily_requests":{"limit":50,"used":60,"remaining":-10},"budgets":[{"scope":"key_limit","limit_usd":1,"spend_usd":1,"remaining_usd":0,"resets_at":"2026-11-22T00:00:00Z"}],"expires_at":null}}"#,
    r#"{"data":{"total_credits":100.25,"total_usage":7}}"#,
    r#"{"data":[{"id":"a/b:free","pricing":{"prompt":"0.0000002","completion":"-1"},"top_provider":{"max_completion_tokens":4096}}],"links":{"next":null}}"#,
];

const REQUESTS: &[&str] = &[
    r#"{"model":"acme/swift-1:free","models":["a/b"],"messages":[{"role":"user","content":"Hi \u00e9"}],"stream":true,"max_tokens":64,"provider":{"order":["x"],"sort":"price"},"session_id":"s"}"#,
    r#"{ "model" : null, "max_completion_tokens": 1e3, "user": "u", "provider": [] }"#,
];

const STREAMS: &[&str] = &[
    ": OPENROUTER PROCESSING\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"error\":{\"code\":\"502\"}}\n\ndata: [DONE]\n\n",
    "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3}}}\r\n\r\nevent: error\r\ndata: {\"type\":\"error\"}\r\n\r\n",
    "\u{feff}data: {\"type\":\"response.completed\",\ndata: \"response\":{\"usage\":{\"input_tokens\":3}}}\n\n",
];

const SCENARIOS: &[&str] =
    &[include_str!("clients/scenario.toml"), "seed = 1\naccounts = [{ name = \"a\", credits = 1e309 }]\n"];

const LABS: &[&str] = &[
    include_str!("../src/lab/scenarios/azure-hour.toml"),
    "name = \"x\"\nlength_s = 9e6\narrivals = { rate = { kind = \"steps\", every_s = 9, per_s = [1] } }\n[world]\n",
];

const TRACES: &[&str] = &[
    "{\"at_ms\":0,\"prompt_tokens\":1}\n{\"at_ms\":1e300,\"model\":\"é\",\"prompt_tokens\":1,\"priority\":\"low\"}\n",
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,396,109\n",
];

fn judge(headers: &HeaderMap, body: &[u8]) {
    for status in [200, 400, 402, 403, 404, 429, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_795_248_000);
        classify(&Answer { status, headers, body, opted_in: true, now });
    }
    for shape in [Shape::Chat, Shape::Responses, Shape::Messages] {
        ErrorAnswer::relayed(StatusCode::BAD_GATEWAY, body).event(shape);
    }
}

fn hints(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    for name in ["retry-after", "retry-after-ms", "x-ratelimit-reset", "x-ratelimit-remaining", "x-should-retry"] {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.clone())]);
        judge(&headers, b"");
    }
}

fn asks(bytes: &[u8]) {
    let context = RequestContext::new();
    context.set_body(Bytes::copy_from_slice(bytes));
    let _ = context.asks().is_free();
}

fn provider(bytes: &[u8]) {
    let mut request = Request::post("/v1/chat/completions").body(Full::new(Bytes::copy_from_slice(bytes))).unwrap();
    RequestContext::of(&mut request).set_body(Bytes::copy_from_slice(bytes));
    let preferences = ProviderPreferences::new().ignore(["x"]);
    let sink = service_fn(|_: Request<Full<Bytes>>| ready(Ok::<_, Infallible>(Response::new(()))));
    let layer = ProviderLayer::new(preferences).unwrap();
    layer.layer(sink).oneshot(request).now_or_never().unwrap().unwrap();
}

/// An answer with this body, through the leaf, in pieces.
fn answer(kind: &'static str, bytes: &[u8]) {
    let pieces: Vec<_> = bytes.chunks(bytes.len() / 3 + 1).map(Bytes::copy_from_slice).collect();
    let transport = service_fn(move |_: Request<()>| {
        let frames = pieces.clone().into_iter().map(|piece| Ok::<_, Infallible>(http_body::Frame::data(piece)));
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        ready(Ok::<_, Infallible>(Response::builder().header("content-type", kind).body(body).unwrap()))
    });
    let request = Request::post("/v1/chat/completions").body(()).unwrap();
    let response = OpenRouter::new(transport).oneshot(request).now_or_never().unwrap().unwrap();
    let _cut = response.into_body().collect().now_or_never().unwrap();
}

fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Ok(key) = ApiKey::new(text.as_str()) {
        let _ = key.models([text.as_str()]);
    }
    let _ = OpenRouter::builder().base_url(text).build(());
}

fn lab(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        drop(lab::Scenario::from_toml(text));
    }
}

fn scenario(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Scenario::from_toml(text);
    }
}

/// Runs a parser and holds it to its share of memory.
fn check(parser: &Parser, bytes: &[u8]) -> Result<(), TestCaseError> {
    let heap = Region::new(HEAP);
    (parser.read)(bytes);
    let taken = heap.change().bytes_allocated;
    let may = BESIDES + PER_BYTE * bytes.len();
    prop_assert!(taken <= may, "{}: {taken} bytes for {}", parser.name, bytes.len());
    Ok(())
}

/// Bytes, by what was done to a sample: nothing, bytes changed, cut out or put in, the end gone, another one's end put on.
fn mutated(samples: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let sample = || prop::sample::select(samples).prop_map(|text| text.as_bytes().to_vec());
    let change = (
        any::<prop::sample::Index>(),
        0..5u8,
        prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\":,\\0-.eE\n\r "[..])],
    );
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..200),
        5 => (sample(), sample(), proptest::collection::vec(change, 0..8)).prop_map(|(mut bytes, other, changes)| {
            for (at, what, byte) in changes {
                let at = at.index(bytes.len() + 1);
                match what {
                    0 => bytes.insert(at, byte),
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    2 if at < bytes.len() => bytes[at] = byte,
                    3 => bytes.truncate(at),
                    _ => {
                        bytes.truncate(at);
                        bytes.extend_from_slice(&other[at.min(other.len())..]);
                    }
                }
            }
            bytes
        }),
    ]
}

/// One test, since the counts of the heap are the whole process's.
#[test]
fn r119_no_parser_panics_and_all_are_linear_in_memory() {
    for parser in &PARSERS {
        // what grows: deep nesting, long texts, many members, many lines
        for (open, close) in
            [("[", "]"), ("{\"a\":", "}"), ("\"", "\""), ("a.", ""), ("data: {\"a\":[", "\n"), ("\n", ""), ("9", "")]
        {
            for times in [10, 1000, 100_000] {
                let deep = [open.repeat(times), close.repeat(times)].concat();
                check(parser, deep.as_bytes()).unwrap();
            }
        }
        let members: Vec<_> = (0..20_000).map(|number| format!("\"m{number}\":[{number}]")).collect();
        check(parser, format!("{{{}}}", members.join(",")).as_bytes()).unwrap();
        let config = Config { source_file: Some(file!()), ..Config::default() };
        let run = TestRunner::new(config).run(&mutated(parser.samples), |bytes| check(parser, &bytes));
        run.unwrap_or_else(|error| panic!("{}: {error}", parser.name));
    }
}
