//! Every form in which an error is told, wherever it stands, and whatever comes with it.

use super::*;

/// The ways in which an error is told inside a stream, each with a place for its code; and the words of each path.
fn errors() -> Vec<(&'static str, String)> {
    let data = |event: &str| format!("data: {event}\n\n");
    let named = |name: &str, event: &str| format!("event: {name}\ndata: {event}\n\n");
    let head = r#""id":"gen-1","object":"chat.completion.chunk","created":1,"model":"a/b","provider":"P""#;
    let error = r#""error":{"code":CODE,"message":"m","metadata":{"provider_name":"P","raw":"{\"error\":1}"}}"#;
    let chunk = |choices: &str| data(&format!("{{{head},{error},\"choices\":{choices}}}"));
    vec![
        (
            "chat",
            chunk(r#"[{"index":0,"delta":{"content":""},"finish_reason":"error","native_finish_reason":"error"}]"#),
        ),
        ("chat", data(&format!("{{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"error\"}}],{head},{error}}}"))),
        ("chat", chunk("[]")),
        ("chat", chunk("null")),
        ("chat", data(&format!("{{{head},{error}}}"))),
        ("chat", data(&format!("{{{error}}}"))),
        (
            "chat",
            data(&format!("{{\"choices\":[{{\"delta\":{{\"content\":\"\"}},\"finish_reason\":\"error\",{error}}}]}}")),
        ),
        ("chat", data(&format!("{{\"choices\":[{{}},{{\"index\":1,{error}}}]}}"))),
        ("chat", data(&format!("{{\"choices\":[{{\"text\":\"\",\"finish_reason\":\"error\"}}],{error}}}"))),
        ("chat", data(&format!("{{{error}\ndata: }}"))),
        ("chat", named("error", &format!("{{{error}}}"))),
        ("chat", named("error", r#"{"code":CODE,"message":"m"}"#)),
        ("chat", data(&format!("{{{error},\"page\":\"{}\"}}", "A".repeat(100_000)))),
        (
            "responses",
            named(
                "response.failed",
                &format!(r#"{{"type":"response.failed","response":{{"status":"failed",{error}}}}}"#),
            ),
        ),
        ("responses", named("response.error", &format!(r#"{{"type":"response.error",{error}}}"#))),
        ("responses", named("error", r#"{"type":"error","code":CODE,"message":"m","param":null,"sequence_number":3}"#)),
        ("responses", named("error", &format!(r#"{{"type":"error","sequence_number":3,{error}}}"#))),
        ("responses", data(r#"{"type":"error","code":CODE,"message":"m"}"#)),
        ("messages", named("error", &format!(r#"{{"type":"error",{error},"request_id":null}}"#))),
        ("messages", data(&format!(r#"{{"type":"error",{error}}}"#))),
    ]
}

/// What may stand in the place of the code, and the cause it stands for before any output.
const CODES: [(&str, Cause); 14] = [
    ("502", Cause::ProviderUnavailable),
    ("\"502\"", Cause::ProviderUnavailable),
    ("503", Cause::ProviderUnavailable),
    ("500", Cause::ServerError),
    ("\"server_error\"", Cause::ServerError),
    ("504", Cause::UpstreamTimeout),
    ("\"provider_overloaded\"", Cause::ProviderUnavailable),
    ("400", Cause::BadRequest),
    ("\"invalid_prompt\"", Cause::BadRequest),
    ("\"something new\"", Cause::ProviderUnavailable),
    ("null", Cause::ProviderUnavailable),
    ("200", Cause::ProviderUnavailable),
    ("502.0", Cause::ProviderUnavailable),
    ("[]", Cause::ProviderUnavailable),
];

#[test]
fn r068_an_error_in_any_shape_place_and_company_is_never_a_success() {
    let data = |event: &str| format!("data: {event}\n\n");
    let wait = ": OPENROUTER PROCESSING\n\n".to_owned();
    for (path, error) in errors() {
        let (opening, word, stop, marker) = match path {
            "chat" => (
                data(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#),
                data(r#"{"choices":[{"delta":{"content":"a"}}]}"#),
                data(r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}"#),
                data("[DONE]"),
            ),
            "responses" => (
                data(r#"{"type":"response.created","response":{"error":null}}"#),
                data(r#"{"type":"response.output_text.delta","delta":"a"}"#),
                data(r#"{"type":"response.output_text.done","text":"a"}"#),
                data(r#"{"type":"response.completed","response":{"error":null}}"#),
            ),
            _ => (
                data(r#"{"type":"message_start","message":{"usage":{"input_tokens":3}}}"#),
                data(r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#),
                data(r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#),
                data(r#"{"type":"message_stop"}"#),
            ),
        };
        let places = [
            (String::new(), false),
            (wait.clone(), false),
            (wait.clone() + &opening, false),
            (opening.clone() + &word, true),
            (wait.clone() + &opening + &word + &wait + &word + &stop, true),
        ];
        for (code, cause) in CODES {
            for (before, committed) in &places {
                for after in ["", &marker, &(wait.clone() + &word)] {
                    for ending in [Ending::Complete, Ending::Failed, Ending::Dropped] {
                        let stream = before.clone() + &error.replace("CODE", code) + after;
                        let cell = run(SSE, &[stream.as_bytes()], ending);
                        let is = |outcome: Option<Outcome>| outcome.and_then(|it| it.fault().map(|fault| fault.cause));
                        let what = format!("{code} {ending:?} {}", &stream[..stream.len().min(600)]);
                        // what is cut out of a long event has no names left but its code
                        let (commit, end) = match (committed, is(cell.at_commit())) {
                            (true, commit) => (commit, Some(Cause::MidStream)),
                            (false, commit) if stream.len() > 100_000 => {
                                assert!(commit.is_some(), "{what}");
                                (commit, commit)
                            }
                            (false, commit) => {
                                assert_eq!(commit, Some(cause), "{what}");
                                (commit, Some(cause))
                            }
                        };
                        assert_eq!((commit.is_none(), is(cell.at_end())), (*committed, end), "{what}");
                        assert_eq!(cell.at_commit() == Some(Outcome::Success), *committed, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn r068_an_event_named_an_error_is_one_whatever_it_says() {
    let word = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for data in ["the upstream died", "{\"message\":\"m\"}", "[]", "3", "{", ""] {
        let stream = format!("event: error\ndata: {data}\n\ndata: [DONE]\n\n");
        let first = run(SSE, &[stream.as_bytes()], Ending::Complete);
        let later = run(SSE, &[word.as_bytes(), stream.as_bytes()], Ending::Complete);
        if data.is_empty() {
            // an event without data is none
            assert_eq!((first.at_end(), later.at_end()), (Some(Outcome::Success), Some(Outcome::Success)));
            continue;
        }
        assert_eq!(first.at_end(), Some(fault(Cause::ProviderUnavailable, Scope::Pool, Retry::Backoff)), "{data}");
        assert_eq!(later.at_end(), Some(fault(Cause::MidStream, Scope::Pool, Retry::Never)), "{data}");
    }
    let calm = format!("event: error\n\n{word}data: [DONE]\n\n");
    assert_eq!(run(SSE, &[calm.as_bytes()], Ending::Complete).at_end(), Some(Outcome::Success), "a name alone is none");
}

#[test]
fn what_is_of_no_known_shape_is_output_so_that_nobody_waits_for_it() {
    for data in ["1", "\"a\"", "[1]", r#"{"token":"a"}"#, r#"{"candidates":[]}"#] {
        let stream = format!("data: {data}\n\n");
        assert_eq!(run(SSE, &[stream.as_bytes()], Ending::Dropped).at_commit(), Some(Outcome::Success), "{data}");
    }
    for data in ["{}", r#"{"id":"gen-1"}"#] {
        let stream = format!("data: {data}\n\n");
        assert_eq!(run(SSE, &[stream.as_bytes()], Ending::Dropped).at_commit(), None, "{data}");
    }
}

#[test]
fn r069_an_error_document_in_any_shape_is_judged_by_its_code() {
    let error = r#""error":{"code":CODE,"message":"m"}"#;
    for document in [
        format!("{{{error}}}"),
        format!("{{\"id\":\"gen-1\",{error}}}"),
        format!("{{\"id\":\"gen-1\",\"choices\":[],{error}}}"),
        format!("{{\"choices\":[{{\"message\":{{\"content\":\"par\"}},\"finish_reason\":\"error\",{error}}}]}}"),
        format!("{{\"id\":\"resp_1\",\"status\":\"failed\",{error},\"output\":[]}}"),
        format!("{{\"type\":\"error\",{error},\"request_id\":null}}"),
        format!("{{\"success\":false,{error}}}"),
    ] {
        for (code, cause) in CODES {
            for ending in [Ending::Complete, Ending::HeadOnly] {
                for padding in ["", "\n \n"] {
                    let document = format!("{padding}{}", document.replace("CODE", code));
                    let cell = run(JSON, &[document.as_bytes()], ending);
                    let found = cell.at_end().and_then(|end| end.fault().map(|fault| fault.cause));
                    assert_eq!(found, Some(cause), "{document}");
                    assert_eq!(cell.at_commit(), cell.at_end());
                }
            }
        }
    }
}
