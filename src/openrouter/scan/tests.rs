use std::time::SystemTime;

use http::Response;
use proptest::prelude::*;

use super::*;
use crate::outcome::{Rest, Usage};

mod errors;

const SSE: &str = "text/event-stream";
const JSON: &str = "application/json; charset=utf-8";

fn scan(kind: &str, encoding: Option<&str>, exact: Option<u64>) -> (Scan, OutcomeCell) {
    let mut response = Response::builder();
    if !kind.is_empty() {
        response = response.header(CONTENT_TYPE, kind);
    }
    if let Some(encoding) = encoding {
        response = response.header(CONTENT_ENCODING, encoding);
    }
    let (parts, ()) = response.body(()).unwrap().into_parts();
    let cell = OutcomeCell::new();
    (Scan::new(cell.clone(), &parts, exact, false, SystemTime::now), cell)
}

fn run(kind: &str, pieces: &[&[u8]], ending: Ending) -> OutcomeCell {
    let (mut scan, cell) = scan(kind, None, None);
    for piece in pieces {
        scan.data(piece);
    }
    scan.finish(ending);
    cell
}

/// What a cell says, in words that compare.
fn said(cell: &OutcomeCell) -> (Option<Outcome>, Option<Outcome>, Option<Usage>, Option<String>) {
    (cell.at_commit(), cell.at_end(), cell.usage(), cell.account().map(str::to_owned))
}

fn fault(cause: Cause, scope: Scope, retry: Retry) -> Outcome {
    Fault::new(cause, scope).retry(retry).into()
}

/// Streams with what they must be taken for: at commit, at the end, and whether usage is found.
fn streams() -> Vec<(&'static str, String, Outcome, Outcome, bool)> {
    use Outcome::Success;
    let head = r#"{"id":"gen-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    let word = r#"{"id":"gen-1","choices":[{"index":0,"delta":{"role":"assistant","content":"say \"error\": {\"usage\": {}} ü€"},"finish_reason":null}],"usage":null}"#;
    let stop = r#"{"id":"gen-1","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}"#;
    let usage = r#"{"id":"gen-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"cost":0.25,"cost_details":{"upstream_inference_cost":null}}}"#;
    let wait = ": OPENROUTER PROCESSING\n\n";
    let data = |events: &[&str]| events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>();
    let named = |events: &[(&str, &str)]| {
        events.iter().map(|(name, event)| format!("event: {name}\ndata: {event}\n\n")).collect::<String>()
    };
    let error = |code: &str| {
        format!(
            r#"{{"id":"gen-1","choices":[{{"index":0,"delta":{{"content":""}},"finish_reason":"error"}}],"error":{{"code":{code},"message":"m"}}}}"#
        )
    };
    let down = fault(Cause::ProviderUnavailable, Scope::Pool, Retry::Backoff);
    let broken = fault(Cause::MidStream, Scope::Pool, Retry::Never);
    let cut = fault(Cause::Truncated, Scope::Pool, Retry::Never);
    let nothing = fault(Cause::Truncated, Scope::Pool, Retry::Once);
    let full = Fault::new(Cause::UnknownLimit, Scope::Pool).rest(Rest::guessed(std::time::Duration::from_secs(1)));
    let full = Outcome::from(full.retry(Retry::Backoff));
    let server = fault(Cause::ServerError, Scope::Pool, Retry::Backoff);
    let chat = wait.to_owned() + &data(&[head, word, word, stop, usage, "[DONE]"]);
    let created = (
        "response.created",
        r#"{"type":"response.created","response":{"status":"in_progress","error":null,"usage":null}}"#,
    );
    let delta = ("response.output_text.delta", r#"{"type":"response.output_text.delta","delta":"a"}"#);
    let completed = (
        "response.completed",
        r#"{"type":"response.completed","response":{"error":null,"usage":{"input_tokens":3,"output_tokens":2,"cost":0.25}}}"#,
    );
    let failed = (
        "response.failed",
        r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"m"}}}"#,
    );
    let start =
        ("message_start", r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":0}}}"#);
    let text =
        ("content_block_delta", r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#);
    let tokens = (
        "message_delta",
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":3,"output_tokens":2,"cost":0.25}}"#,
    );
    let over = ("message_stop", r#"{"type":"message_stop"}"#);
    let overloaded = ("error", r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#);
    vec![
        ("chat", chat.clone(), Success, Success, true),
        ("chat with CR LF", chat.replace('\n', "\r\n"), Success, Success, true),
        ("chat with CR", chat.replace('\n', "\r"), Success, Success, true),
        ("chat without blanks", chat.replace("data: ", "data:"), Success, Success, true),
        ("chat with a byte order mark", format!("\u{feff}{}", data(&[&error("502")])), down, down, false),
        ("last line unended", data(&[word]) + "data: [DONE]", Success, Success, false),
        ("only a finish", data(&[head, stop, "[DONE]"]), Success, Success, false),
        (
            "an event of several lines",
            format!("data: {{\"choices\":\ndata: [{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\n{}", data(&["[DONE]"])),
            Success,
            Success,
            false,
        ),
        ("no end marker", data(&[head, word, stop]), Success, cut, false),
        ("only comments", wait.repeat(3), nothing, nothing, false),
        ("only an empty delta", data(&[head]), nothing, nothing, false),
        ("empty", String::new(), nothing, nothing, false),
        ("first error, int code", wait.to_owned() + &data(&[head, &error("502"), "[DONE]"]), down, down, false),
        ("first error, numeric string", data(&[&error("\"429\"")]), full, full, false),
        ("first error, string code", data(&[&error("\"server_error\"")]), server, server, false),
        ("bare error", data(&[r#"{"error":{"code":502,"message":"m"}}"#]), down, down, false),
        ("error with no choices", data(&[r#"{"choices":[],"error":{"code":502,"message":"m"}}"#]), down, down, false),
        ("error of a choice", data(&[r#"{"choices":[{"error":{"code":502,"message":"m"}}]}"#]), down, down, false),
        (
            "error as its finish only",
            data(&[r#"{"choices":[{"delta":{},"finish_reason":"error"}]}"#]),
            down,
            down,
            false,
        ),
        ("error after output", data(&[head, word, &error("502"), "[DONE]"]), Success, broken, false),
        ("bare error after output", data(&[word, r#"{"error":{"message":"m"}}"#]), Success, broken, false),
        ("responses", named(&[created, delta, completed]), Success, Success, true),
        ("responses failed", named(&[created, failed]), server, server, false),
        ("responses failed after output", named(&[created, delta, failed]), Success, broken, false),
        (
            "responses error event",
            named(&[created, ("error", r#"{"type":"error","code":"server_error","message":"m"}"#)]),
            server,
            server,
            false,
        ),
        ("responses cut", named(&[created, delta]), Success, cut, false),
        ("messages", named(&[start, ("ping", r#"{"type":"ping"}"#), text, tokens, over]), Success, Success, true),
        ("messages error", named(&[start, overloaded]), down, down, false),
        ("messages error after output", named(&[start, text, overloaded]), Success, broken, false),
        ("messages cut", named(&[start]), nothing, nothing, false),
        ("not JSON", "data: hello\n\n".into(), Success, cut, false),
    ]
}

#[test]
fn r068_r075_streams_are_taken_for_what_they_are_however_they_are_cut() {
    for (name, stream, commit, end, usage) in streams() {
        let bytes = stream.as_bytes();
        let whole = said(&run(SSE, &[bytes], Ending::Complete));
        assert_eq!((whole.0, whole.1), (Some(commit), Some(end)), "{name}");
        assert_eq!(whole.2, usage.then_some(Usage { prompt_tokens: 3, completion_tokens: 2, cost: 0.25 }), "{name}");
        for at in 0..=bytes.len() {
            let cut = said(&run(SSE, &[&bytes[..at], &bytes[at..]], Ending::Complete));
            assert_eq!(cut, whole, "{name}, cut at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(said(&run(SSE, &single, Ending::Complete)), whole, "{name}, byte by byte");
        let sniffed = said(&run("", &[bytes], Ending::Complete));
        if !bytes.is_empty() && !stream.starts_with('\u{feff}') {
            assert_eq!(sniffed, whole, "{name}, without its content type");
        }
    }
}

fn documents() -> Vec<(&'static str, String, Outcome, bool)> {
    use Outcome::Success;
    let good = r#"{"id":"gen-1","choices":[{"message":{"role":"assistant","content":"a \"usage\": {} and \"error\" {[ ü"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"cost":0.25,"is_byok":false}}"#;
    let down = fault(Cause::ProviderUnavailable, Scope::Pool, Retry::Backoff);
    let empty = fault(Cause::Truncated, Scope::Pool, Retry::Once);
    let cut = fault(Cause::Truncated, Scope::Pool, Retry::Unclear);
    vec![
        ("good", good.into(), Success, true),
        ("padded", format!("\n \r\n\t {good}\n"), Success, true),
        ("responses", r#"{"status":"completed","error":null,"usage":{"input_tokens":3,"output_tokens":2,"cost":0.25},"output":[]}"#.into(), Success, true),
        ("no usage", r#"{"data":[{"id":"a/b","usage":1}]}"#.into(), Success, false),
        ("a list", "[1,2]".into(), Success, false),
        ("odd usage", r#"{"usage":{"prompt_tokens":"x"}}"#.into(), Success, false),
        ("an error only", r#" {"id":"gen-1","error":{"code":502,"message":"m"}}"#.into(), down, false),
        ("an error's text only", r#"{"error":"m"}"#.into(), down, false),
        ("error of a choice", r#"{"choices":[{"message":{"content":"par"},"finish_reason":"error","error":{"code":502,"message":"m"}}]}"#.into(), down, false),
        ("an error of a tool, not of the answer", r#"{"output":[{"type":"mcp_call","error":{"message":"m"}}]}"#.into(), Success, false),
        ("nothing", String::new(), empty, false),
        ("padding only", "  \n \n".into(), empty, false),
        ("cut", good[..good.len() - 1].into(), cut, false),
        ("cut in a text", good[..100].into(), cut, false),
        ("not JSON", "{ nonsense".into(), cut, false),
    ]
}

#[test]
fn r069_documents_are_taken_for_what_they_are_however_they_are_cut() {
    for (name, document, end, usage) in documents() {
        let bytes = document.as_bytes();
        let whole = said(&run(JSON, &[bytes], Ending::Complete));
        assert_eq!((whole.0, whole.1), (Some(end), Some(end)), "{name}");
        assert_eq!(whole.2, usage.then_some(Usage { prompt_tokens: 3, completion_tokens: 2, cost: 0.25 }), "{name}");
        for at in 0..=bytes.len() {
            assert_eq!(said(&run(JSON, &[&bytes[..at], &bytes[at..]], Ending::Complete)), whole, "{name}, cut at {at}");
            let (mut known, cell) = scan(JSON, None, Some(bytes.len() as u64));
            known.data(&bytes[..at]);
            known.data(&bytes[at..]);
            known.finish(Ending::Complete);
            assert_eq!(said(&cell), whole, "{name}, its length known, cut at {at}");
        }
    }
}

#[test]
fn every_beginning_of_a_document_is_incomplete() {
    let (_, good, ..) = documents().remove(0);
    for at in 0..good.len() {
        let cell = run(JSON, &[&good.as_bytes()[..at]], Ending::Complete);
        assert_eq!(cell.at_end().and_then(|end| end.fault().map(|fault| fault.cause)), Some(Cause::Truncated), "{at}");
    }
}

#[test]
fn an_account_named_in_an_error_is_noted() {
    let cell = run(
        JSON,
        &[br#"{"error":{"code":402,"message":"Insufficient credits"},"user_id":"user_1"}"#],
        Ending::Complete,
    );
    assert_eq!(cell.account(), Some("user_1"));
    assert_eq!(cell.at_end().unwrap().fault().unwrap().cause, Cause::NoCredit);
}

#[test]
fn a_caller_who_leaves_early_leaves_the_end_open() {
    let cell = run(SSE, &[b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"], Ending::Dropped);
    assert_eq!((cell.at_commit(), cell.at_end()), (Some(Outcome::Success), None));
    let cell = run(JSON, &[b"{\"a\""], Ending::Dropped);
    assert_eq!((cell.at_commit(), cell.at_end()), (None, None));
    let cell = run(SSE, &[b"data: [DONE]\n\n"], Ending::Dropped);
    assert_eq!(cell.at_end(), Some(Outcome::Success), "who leaves after the end marker leaves nothing open");
}

#[test]
fn a_body_that_fails_is_not_repeated_unasked() {
    let cell = run(SSE, &[b": wait\n\n"], Ending::Failed);
    assert_eq!(cell.at_commit(), Some(fault(Cause::Truncated, Scope::Pool, Retry::Unclear)));
}

#[test]
fn r074_an_endless_line_is_given_up_on_and_the_next_is_read() {
    let (mut scan, cell) = scan(SSE, None, None);
    for _ in 0..1000 {
        scan.data(&[b'x'; 1024]);
        let Mode::Sse(sse) = &scan.mode else { panic!("an event stream") };
        assert!(sse.kept() <= 2 * KEPT, "{}", sse.kept());
    }
    scan.data(b"\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n");
    scan.finish(Ending::Complete);
    assert_eq!(cell.at_end(), Some(Outcome::Success));
}

#[test]
fn r074_an_event_larger_than_what_is_kept_is_output() {
    let image = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "A".repeat(200_000));
    let end = format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{\"output\":\"{}\"}}}}\n\n",
        "A".repeat(200_000)
    );
    for size in [usize::MAX, 1000, 65_536] {
        let pieces: Vec<&[u8]> = image.as_bytes().chunks(size.min(image.len())).collect();
        assert_eq!(run(SSE, &pieces, Ending::Dropped).at_commit(), Some(Outcome::Success));
        let pieces: Vec<&[u8]> = end.as_bytes().chunks(size.min(end.len())).collect();
        assert_eq!(run(SSE, &pieces, Ending::Complete).at_end(), Some(Outcome::Success), "{size}");
    }
}

#[test]
fn a_document_larger_than_what_is_kept_is_judged_by_its_end() {
    let text = "A".repeat(300_000);
    let good = format!(
        r#"{{"choices":[{{"message":{{"content":"{text}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":2,"cost":0.25}}}}"#
    );
    let bad = format!(r#"{{"choices":[{{"message":{{"content":"{text}"}},"error":{{"code":502,"message":"m"}}}}]}}"#);
    for size in [700, 40_000, 100_000] {
        let pieces: Vec<&[u8]> = good.as_bytes().chunks(size).collect();
        let cell = run(JSON, &pieces, Ending::Complete);
        assert_eq!((cell.at_end(), cell.usage().map(|usage| usage.prompt_tokens)), (Some(Outcome::Success), Some(3)));
        let pieces: Vec<&[u8]> = bad.as_bytes().chunks(size).collect();
        let end = run(JSON, &pieces, Ending::Complete).at_end();
        assert_eq!(end, Some(fault(Cause::ProviderUnavailable, Scope::Pool, Retry::Backoff)), "{size}");
        let pieces: Vec<&[u8]> = good.as_bytes()[..good.len() - 9].chunks(size).collect();
        assert_eq!(
            run(JSON, &pieces, Ending::Complete).at_end(),
            Some(fault(Cause::Truncated, Scope::Pool, Retry::Unclear))
        );
    }
}

#[test]
fn r076_compressed_and_foreign_bodies_are_not_looked_into() {
    let error = br#"{"error":{"code":502,"message":"m"}}"#;
    for (kind, encoding) in [(JSON, Some("gzip")), (SSE, Some("br")), ("audio/mpeg", None)] {
        let (mut scan, cell) = scan(kind, encoding, None);
        assert_eq!(cell.at_commit(), None);
        scan.data(error);
        assert_eq!((cell.at_commit(), cell.at_end()), (Some(Outcome::Success), None));
        scan.finish(Ending::Complete);
        assert_eq!(cell.at_end(), Some(Outcome::Success));
    }
}

proptest! {
    #[test]
    fn r119_any_bytes_are_scanned_the_same_however_cut(
        bytes in proptest::collection::vec(prop_oneof![
            Just(b"data: ".to_vec()), Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"\n\n".to_vec()),
            Just(br#"{"error":{"code":429}}"#.to_vec()), Just(br#"{"choices":[{"delta":{"content":"x"}}]}"#.to_vec()),
            Just(b"[DONE]".to_vec()), Just(br#"{"usage":{"prompt_tokens":1}}"#.to_vec()), Just(b"{".to_vec()), Just(b"}".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..12),
        ], 0..20).prop_map(|parts| parts.concat()),
        cuts in proptest::collection::vec(1usize..40, 0..20),
        kind in prop_oneof![Just(SSE), Just(JSON)],
    ) {
        let whole = said(&run(kind, &[&bytes], Ending::Complete));
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(said(&run(kind, &pieces, Ending::Complete)), whole);
    }
}
