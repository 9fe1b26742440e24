//! What a client is given when the upstream's answer breaks off, and when it does not.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Ready, ready},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::Value;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    OpenRouter, Outcome, RespondLayer,
    error::{UpstreamError, UpstreamErrorKind},
    outcome::{Cause, OutcomeCell, Scope},
};

const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];

/// How an upstream's body ends after its last frame.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Clean,
    /// The connection breaks.
    Broken,
}

/// A body that is given frame by frame.
struct Frames(std::vec::IntoIter<Bytes>, End);

impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.0.next() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if std::mem::replace(&mut self.1, End::Clean) == End::Broken => {
                Poll::Ready(Some(Err("sk-or-v1-secret: the pipe is broken".into())))
            }
            None => Poll::Ready(None),
        }
    }
}

/// What the client of `path` receives: the head, the frames, and how they end, beside the outcome that is noted.
struct Received {
    headers: HeaderMap,
    bytes: Vec<u8>,
    error: Option<BoxError>,
    cell: OutcomeCell,
}

impl Received {
    fn outcome(&self) -> (Option<Outcome>, Option<Outcome>) {
        (self.cell.at_commit(), self.cell.at_end())
    }

    fn cause(&self) -> Option<(Cause, Scope)> {
        Some(self.cell.at_end()?.fault().map(|fault| (fault.cause, fault.scope))?)
    }
}

thread_local! {
    /// One paused clock for all cases, since a million runtimes take their time.
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    static NEXT: RefCell<Option<Response<Frames>>> = const { RefCell::new(None) };
    static LEAF: OpenRouter<Transport> = OpenRouter::new(Transport);
}

/// Answers with what stands in `NEXT`.
#[derive(Clone)]
struct Transport;

impl Service<Request<String>> for Transport {
    type Response = Response<Frames>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Frames>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        ready(Ok(NEXT.take().unwrap()))
    }
}

fn receive(path: &str, headers: &[(&str, &str)], frames: Vec<Bytes>, end: End) -> Received {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    NEXT.set(Some(response.body(Frames(frames.into_iter(), end)).unwrap()));
    let stack = RespondLayer::new().layer(LEAF.with(Clone::clone));
    let request = Request::post(path).body(String::new()).unwrap();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let Ok(response) = stack.oneshot(request).await;
            let (parts, body) = response.into_parts();
            let cell = parts.extensions.get::<OutcomeCell>().unwrap().clone();
            let (mut body, mut bytes, mut error) = (pin!(body), Vec::new(), None);
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                    Err(broken) => error = Some(broken),
                }
            }
            Received { headers: parts.headers, bytes, error, cell }
        })
    })
}

fn receive_stream(path: &str, frames: Vec<Bytes>, end: End) -> Received {
    receive(path, &[("content-type", "text/event-stream")], frames, end)
}

/// Events as a client reads them, by the rules of the HTML standard: name and data. What no empty line ends is none.
fn events(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let (mut events, mut name, mut data) = (Vec::new(), String::new(), Vec::<String>::new());
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                let name = std::mem::take(&mut name);
                if !data.is_empty() {
                    events.push((name, std::mem::take(&mut data).join("\n")));
                }
            }
            "event" => name = value.to_owned(),
            "data" => data.push(value.to_owned()),
            _ => {}
        }
    }
    events
}

/// Whether an event is the error that a client of the path understands, with this code and reason.
fn check_told(path: &str, (name, data): &(String, String), code: u16, reason: &str) {
    let event: Value = serde_json::from_str(data).unwrap();
    let (of, metadata) = match path {
        "/v1/messages" => (("error", "type"), &event["metadata"]),
        "/v1/responses" => (("error", "type"), &event["error"]["metadata"]),
        _ => (("", "object"), &event["error"]["metadata"]),
    };
    assert_eq!((name.as_str(), event[of.1].is_string()), (of.0, true), "{path}: {event}");
    assert!(event["error"]["message"].as_str().is_some_and(|message| !message.contains("secret")), "{event}");
    assert_eq!(metadata["reason"], reason, "{event}");
    if name.is_empty() {
        assert_eq!(event["error"]["code"], code, "{event}");
        assert_eq!(event["choices"][0]["finish_reason"], "error");
    }
}

fn chat(event: &str) -> String {
    format!("data: {event}\n\n")
}

fn named(name: &str) -> String {
    format!("event: {name}\ndata: {{\"type\":\"{name}\",\"delta\":{{\"type\":\"text_delta\",\"text\":\"é€\"}}}}\n\n")
}

/// For a path: a stream without its end, and its end.
fn stream_of(path: &str) -> (String, String) {
    match path {
        "/v1/messages" => (
            ["message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta"]
                .map(named)
                .concat(),
            named("message_stop"),
        ),
        "/v1/responses" => (
            ["response.created", "response.output_text.delta", "response.output_text.delta"].map(named).concat(),
            named("response.completed"),
        ),
        "/v1/completions" => (chat(r#"{"choices":[{"text":"é"}]}"#).repeat(3), chat("[DONE]")),
        _ => (
            ": OPENROUTER PROCESSING\n\n".to_owned() + &chat(r#"{"choices":[{"delta":{"content":"é"}}]}"#).repeat(3),
            chat("[DONE]"),
        ),
    }
}

#[test]
fn r075_a_stream_that_breaks_off_ends_with_an_error_event_and_uncleanly() {
    for path in PATHS {
        let (stream, marker) = stream_of(path);
        let whole = stream.clone() + &marker;
        let complete = receive_stream(path, vec![whole.clone().into()], End::Clean);
        assert!(complete.error.is_none());
        assert_eq!((complete.bytes.as_slice(), complete.cell.at_end()), (whole.as_bytes(), Some(Outcome::Success)));
        // cut anywhere, in the bytes of a letter too
        for at in 0..=stream.len() {
            let sent = &whole.as_bytes()[..at];
            for end in [End::Clean, End::Broken] {
                let received = receive_stream(path, vec![sent.to_vec().into()], end);
                let error = received.error.as_ref().expect("no clean end");
                assert_eq!(UpstreamError::find(&**error).unwrap().kind(), UpstreamErrorKind::Truncated, "{path} {at}");
                assert_eq!(received.cause(), Some((Cause::Truncated, Scope::Pool)), "{path} {at}");
                let read = events(&received.bytes);
                let (told, before) = read.split_last().unwrap();
                assert_eq!(before, events(sent), "{path} {at}: whole events, and no half one");
                check_told(path, told, 502, "truncated");
            }
        }
    }
}

#[test]
fn r075_what_breaks_after_the_end_marker_is_whole() {
    for path in PATHS {
        let (stream, marker) = stream_of(path);
        let whole = stream + &marker;
        let received = receive_stream(path, vec![whole.clone().into()], End::Broken);
        assert!(received.error.is_none());
        assert_eq!((received.bytes.as_slice(), received.cell.at_end()), (whole.as_bytes(), Some(Outcome::Success)));
    }
}

#[test]
fn r068_an_error_event_of_the_upstreams_passes_unchanged_and_alone() {
    for path in PATHS {
        let error = match path {
            "/v1/messages" => {
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\"}}\n\n"
            }
            "/v1/responses" => "event: error\ndata: {\"type\":\"error\",\"code\":\"502\",\"message\":\"m\"}\n\n",
            _ => "data: {\"error\":{\"code\":502,\"message\":\"m\"}}\n\n",
        };
        let told = stream_of(path).0 + error;
        for end in [End::Clean, End::Broken] {
            let received = receive_stream(path, vec![told.clone().into()], end);
            assert_eq!(received.error.is_some(), end == End::Broken);
            assert_eq!(received.bytes, told.as_bytes(), "the upstream has said so itself");
            assert_eq!(received.cause(), Some((Cause::MidStream, Scope::Pool)));
        }
    }
}

#[test]
fn a_document_that_breaks_off_ends_uncleanly_and_untouched() {
    let json = [("content-type", "application/json")];
    let document = r#"{"choices":[{"message":{"content":"a"}}]}"#;
    for (at, end) in [(10, End::Clean), (10, End::Broken), (0, End::Broken), (document.len(), End::Broken)] {
        let received = receive(PATHS[0], &json, vec![document[..at].into()], end);
        assert!(received.error.is_some(), "{at} {end:?}");
        assert_eq!(received.bytes, document[..at].as_bytes());
    }
    let received = receive(PATHS[0], &json, vec!["\n \n".into()], End::Clean);
    assert!(received.error.is_some(), "padding alone is no answer");
    for whole in [document, ""] {
        let frames = if whole.is_empty() { vec![] } else { vec![whole.into()] };
        assert!(receive(PATHS[0], &json, frames, End::Clean).error.is_none());
    }
}

#[test]
fn r076_a_compressed_stream_that_breaks_is_not_written_into() {
    for encoding in ["gzip", "br", "zstd"] {
        let headers = [("content-type", "text/event-stream"), ("content-encoding", encoding), ("content-length", "9")];
        let received = receive(PATHS[0], &headers, vec!["data: {}".into()], End::Broken);
        assert_eq!((received.bytes.as_slice(), received.error.is_some()), (&b"data: {}"[..], true));
        assert_eq!(received.headers["content-encoding"], encoding);
        assert_eq!(received.headers["content-length"], "9");
        let received = receive(PATHS[0], &headers, vec!["data: {}\n".into()], End::Clean);
        assert_eq!((received.bytes.as_slice(), received.error.is_none()), (&b"data: {}\n"[..], true));
    }
}

#[test]
fn a_stream_that_may_get_an_event_more_does_not_promise_its_length() {
    let headers = [("content-type", "text/event-stream; charset=utf-8"), ("content-length", "9")];
    let received = receive(PATHS[0], &headers, vec!["data: {}\n".into()], End::Clean);
    assert!(!received.headers.contains_key("content-length"));
    check_told(PATHS[0], events(&received.bytes).last().unwrap(), 502, "truncated");
}

#[test]
fn an_event_too_long_to_hold_back_flows_and_is_ended_before_the_error() {
    let huge = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}", "A".repeat(300_000));
    for size in [1000, 70_000, 400_000] {
        let frames = huge.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        let received = receive_stream(PATHS[0], frames, End::Broken);
        let read = events(&received.bytes);
        assert!(read.len() == 2 && huge.ends_with(&read[0].1), "{size}: what had gone out stays out");
        check_told(PATHS[0], &read[1], 502, "truncated");
        let after = "\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"half";
        let frames = (huge.clone() + after).as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        let received = receive_stream(PATHS[0], frames, End::Broken);
        let read = events(&received.bytes);
        assert_eq!(read.len(), 2, "{size}: and the next one is held back again");
        check_told(PATHS[0], &read[1], 502, "truncated");
    }
}

/// Whole events leave with the frame that completes them.
#[test]
fn r067_an_event_is_passed_on_with_the_frame_that_ends_it() {
    for line_end in ["\n", "\r\n", "\r"] {
        let event = format!("event: a{line_end}data: {{}}{line_end}{line_end}");
        let frames: Vec<_> = event.bytes().map(|byte| Bytes::copy_from_slice(&[byte])).collect();
        // with CR LF, the empty line is over with its CR, and the LF comes by itself
        let first = if line_end == "\r\n" { event.len() - 1 } else { event.len() };
        let response = |_: Request<()>| {
            let body = Frames(frames.clone().into_iter(), End::Clean);
            ready(Ok::<_, BoxError>(
                Response::builder().header("content-type", "text/event-stream").body(body).unwrap(),
            ))
        };
        RUNTIME.with(|runtime| {
            runtime.block_on(async {
                let Ok(response) = RespondLayer::new().layer(service_fn(response)).oneshot(Request::new(())).await;
                let mut body = response.into_body();
                let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(frame, &event.as_bytes()[..first]);
            });
        });
    }
}

/// Pieces of which streams are made: whole events of every shape, and what may stand between and around them.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = prop_oneof![
        Just(chat(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"é€𝄞"},"finish_reason":null}]}"#)),
        Just(chat(
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"cost":0.25}}"#
        )),
        Just(chat(r#"{"choices":[],"error":{"code":"429","message":"m"}}"#)),
        Just(chat(r#"{"error":{"code":502,"message":"m","metadata":{"provider_name":"P"}},"user_id":"user_1"}"#)),
        Just(chat("[DONE]")),
        Just(chat("{\"choices\":\ndata: [{\"delta\":{\"content\":\"a\"}}]}")),
        Just(named("content_block_delta")),
        Just(named("message_stop")),
        Just(named("response.output_text.delta")),
        Just(named("response.completed")),
        Just(
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n"
                .into()
        ),
        Just(": OPENROUTER PROCESSING\n\n".into()),
        Just("\u{feff}".into()),
        Just("data:".into()),
        Just("\n".into()),
        Just("id: 1\nretry: 10\n".into()),
    ];
    prop_oneof![
        8 => words.clone().prop_map(String::into_bytes),
        2 => words.clone().prop_map(|words| words.replace('\n', "\r\n").into_bytes()),
        1 => words.clone().prop_map(|words| words.replace('\n', "\r").into_bytes()),
        // a real one with a byte that is another
        2 => (words, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(words, at, byte)| {
            let mut bytes = words.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ]
}

fn cut_up(bytes: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let (mut frames, mut rest) = (Vec::new(), bytes);
    for cut in cuts {
        let (frame, after) = rest.split_at((*cut).min(rest.len()));
        frames.push(Bytes::copy_from_slice(frame));
        rest = after;
    }
    frames.push(Bytes::copy_from_slice(rest));
    frames
}

proptest! {
    /// The long form: `PROPTEST_CASES=1000000 cargo test --release --test cut r066`.
    #[test]
    fn r066_wherever_a_stream_is_cut_bytes_events_and_outcome_are_the_same(
        stream in proptest::collection::vec(piece(), 0..8).prop_map(|pieces| pieces.concat()),
        cuts in proptest::collection::vec(prop_oneof![3 => 0usize..4, 2 => 4usize..200], 0..24),
        path in prop::sample::select(&PATHS[..]),
        broken: bool,
        plain in prop::bool::weighted(0.9),
    ) {
        let end = if broken { End::Broken } else { End::Clean };
        let headers = [("content-type", "text/event-stream"), ("content-encoding", "gzip")];
        let headers = &headers[..if plain { 1 } else { 2 }];
        let whole = receive(path, headers, vec![stream.clone().into()], end);
        let cut = receive(path, headers, cut_up(&stream, &cuts), end);
        prop_assert_eq!(cut.outcome(), whole.outcome());
        prop_assert_eq!((cut.cell.usage(), cut.cell.account()), (whole.cell.usage(), whole.cell.account()));
        prop_assert_eq!(cut.error.is_some(), whole.error.is_some());
        prop_assert_eq!(&cut.bytes, &whole.bytes);
        if whole.error.is_none() || !plain {
            prop_assert_eq!(&whole.bytes, &stream);
        } else {
            // all that was whole, then one error event, unless the upstream itself had said that it failed
            let mut read = events(&whole.bytes);
            if whole.cause().unwrap().0 == Cause::Truncated {
                check_told(path, &read.pop().unwrap(), 502, "truncated");
            }
            prop_assert_eq!(read, events(&stream));
        }
    }
}
