//! What a row may look like, and the request it stands for.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::object::Object;

/// A row of the input.
#[derive(Debug)]
pub(super) struct Row {
    /// Counted from 1; empty lines and the header of a CSV file are no rows.
    pub(super) number: u64,
    /// Where it starts in the file.
    pub(super) line: u64,
    /// The caller's own name for it, passed on as it is.
    pub(super) custom_id: Option<Box<RawValue>>,
    /// What it asks for, or what is wrong with it.
    pub(super) ask: Result<Ask, String>,
    pub(super) mark: Mark,
}

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) path: &'static str,
    pub(super) body: Bytes,
}

/// What stands for a row's content: what is sent for it, or a bad row's own text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
            hash.update(b"\n");
        }
        let hash = hash.finalize();
        Self(hash.iter().take(8).fold(0, |mark, byte| (mark << 8) | u64::from(*byte)))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What rows get that do not say it themselves.
#[derive(Debug, Clone, Default)]
pub(super) struct Defaults {
    pub(super) model: Option<String>,
    pub(super) max_tokens: Option<u64>,
    /// Whether the answers are made up, and not to be mixed with others.
    pub(super) simulated: bool,
}

const CHAT: &str = "/v1/chat/completions";

/// Where rows may go, and how the limit of an answer's length is called there.
const ENDPOINTS: [(&str, Option<&str>); 5] = [
    (CHAT, Some("max_tokens")),
    ("/v1/completions", Some("max_tokens")),
    ("/v1/messages", Some("max_tokens")),
    ("/v1/responses", Some("max_output_tokens")),
    ("/v1/embeddings", None),
];

/// A row of a JSONL file: a chat request's body, `{"prompt": …}`, a line of OpenAI's batch format, or a prompt alone.
pub(super) fn from_json(number: u64, line: u64, text: &[u8], defaults: &Defaults) -> Row {
    let mut custom_id = None;
    let ask = read(text, &mut custom_id, defaults);
    Row { number, line, custom_id, mark: mark(&ask, &[text], defaults), ask }
}

/// A row of a CSV file.
#[derive(Debug, Default)]
pub(super) struct Cells<'a> {
    pub(super) prompt: &'a str,
    pub(super) system: &'a str,
    pub(super) model: &'a str,
    pub(super) custom_id: &'a str,
}

impl Cells<'_> {
    pub(super) fn row(&self, number: u64, line: u64, defaults: &Defaults) -> Row {
        let mut rest = Object::default();
        if !self.model.is_empty() {
            rest.put("model", &self.model);
        }
        let system = Some(self.system).filter(|system| !system.is_empty());
        let ask = prompt(self.prompt, system, rest).and_then(|body| finish(CHAT, body, defaults));
        let custom_id = Some(self.custom_id).filter(|id| !id.is_empty()).and_then(|id| raw(&id));
        let text = [self.prompt, self.system, self.model, self.custom_id].map(str::as_bytes);
        Row { number, line, custom_id, mark: mark(&ask, &text, defaults), ask }
    }
}

/// A row that could not even be taken apart.
pub(super) fn broken(number: u64, line: u64, text: &[u8], what: String) -> Row {
    Row { number, line, custom_id: None, mark: Mark::of(&[text]), ask: Err(what) }
}

fn mark(ask: &Result<Ask, String>, text: &[&[u8]], defaults: &Defaults) -> Mark {
    match ask {
        Ok(ask) if defaults.simulated => Mark::of(&[b"simulated", ask.path.as_bytes(), &ask.body]),
        Ok(ask) => Mark::of(&[ask.path.as_bytes(), &ask.body]),
        Err(_) => Mark::of(text),
    }
}

fn raw(value: &impl Serialize) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

fn read(text: &[u8], custom_id: &mut Option<Box<RawValue>>, defaults: &Defaults) -> Result<Ask, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8 text".to_owned())?;
    if text.starts_with('"') {
        let text: String = serde_json::from_str(text).map_err(not_json)?;
        return finish(CHAT, prompt(&text, None, Object::default())?, defaults);
    }
    if !text.starts_with('{') {
        return Err("it is neither a JSON object nor a prompt in quotes".into());
    }
    let mut row: Object = serde_json::from_str(text).map_err(not_json)?;
    *custom_id = row.take("custom_id");
    if row.has("body") {
        return enclosed(row, defaults);
    }
    let body = match (row.has("messages"), row.has("prompt")) {
        (true, false) => row,
        (false, true) => {
            let text = string(&mut row, "prompt")?.unwrap_or_default();
            let system = string(&mut row, "system")?;
            prompt(&text, system.as_deref(), row)?
        }
        (true, true) => return Err("it has both `messages` and `prompt`: leave one out".into()),
        (false, false) => return Err("it has none of `prompt`, `messages` and `body`".into()),
    };
    finish(CHAT, body, defaults)
}

/// A line as of OpenAI's batch files, with the request's body inside.
fn enclosed(mut row: Object, defaults: &Defaults) -> Result<Ask, String> {
    let method = string(&mut row, "method")?;
    if let Some(method) = method
        && !method.eq_ignore_ascii_case("POST")
    {
        return Err(format!("its method is {method:?}: only POST can be sent"));
    }
    let url = string(&mut row, "url")?;
    let path = match url.as_deref() {
        None => CHAT,
        Some(url) => {
            let known = ENDPOINTS.into_iter().map(|(path, _)| path);
            let asked = url.strip_prefix("/api").unwrap_or(url);
            known.clone().find(|path| *path == asked).ok_or_else(|| {
                format!("its url is {url:?}: it must be one of {}", known.collect::<Vec<_>>().join(", "))
            })?
        }
    };
    let body = row.take("body").ok_or("its `body` is null")?;
    let body = serde_json::from_str(body.get()).map_err(|_| "its `body` is not an object")?;
    finish(path, body, defaults)
}

/// The chat request of a prompt; `rest` are its other members.
fn prompt(text: &str, system: Option<&str>, rest: Object) -> Result<Object, String> {
    #[derive(Serialize)]
    struct Message<'a> {
        role: &'a str,
        content: &'a str,
    }
    if text.trim().is_empty() {
        return Err("its prompt is empty".into());
    }
    let mut messages = Vec::from_iter(system.map(|content| Message { role: "system", content }));
    messages.push(Message { role: "user", content: text });
    let mut body = Object::default();
    body.put("messages", &messages);
    body.append(rest);
    Ok(body)
}

/// Gives a body what it lacks, and takes out what makes no sense here.
fn finish(path: &'static str, mut body: Object, defaults: &Defaults) -> Result<Ask, String> {
    // an answer is written whole
    for member in ["stream", "stream_options"] {
        body.take(member);
    }
    if !body.has("model") && !body.has("models") {
        match &defaults.model {
            Some(model) => body.put("model", model),
            None => return Err("it names no model: give it one, or give --model for all such rows".into()),
        }
    }
    let (_, limit) = ENDPOINTS.into_iter().find(|(endpoint, _)| *endpoint == path).unwrap_or_default();
    if let (Some(tokens), Some(limit)) = (defaults.max_tokens, limit)
        && !body.has(limit)
        && !body.has("max_completion_tokens")
    {
        body.put(limit, &tokens);
    }
    let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
    Ok(Ask { path, body: body.into() })
}

fn string(row: &mut Object, name: &str) -> Result<Option<String>, String> {
    let value = row.take(name);
    value
        .map(|value| serde_json::from_str(value.get()).map_err(|_| format!("its `{name}` is not a string")))
        .transpose()
}

/// What serde says, without its own count of lines, which starts anew with each row.
fn not_json(error: serde_json::Error) -> String {
    let said = error.to_string();
    let what = said.split(" at line ").next().unwrap_or_default();
    format!("it is not JSON: {what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        let defaults = Defaults { model: Some("acme/swift-1".into()), ..Defaults::default() };
        from_json(1, 1, text.as_bytes(), &defaults)
    }

    fn sent(text: &str) -> (&'static str, String) {
        let ask = row(text).ask.unwrap();
        (ask.path, String::from_utf8(ask.body.to_vec()).unwrap())
    }

    #[test]
    fn every_form_of_a_row_becomes_a_request() {
        for (text, body) in [
            (r#""Say \"hi\"""#, r#"{"messages":[{"role":"user","content":"Say \"hi\""}],"model":"acme/swift-1"}"#),
            (
                r#"{"custom_id":"a","prompt":"Hi","temperature":0.50}"#,
                r#"{"messages":[{"role":"user","content":"Hi"}],"temperature":0.50,"model":"acme/swift-1"}"#,
            ),
            (
                r#"{"system":"Be brief.","prompt":"Hi","model":"a/b"}"#,
                r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],"model":"a/b"}"#,
            ),
            (r#"{"model":"a/b","messages":[],"stream":true,"custom_id":null}"#, r#"{"model":"a/b","messages":[]}"#),
            (r#"{"body":{"model":"a/b","messages":[]},"method":"post"}"#, r#"{"model":"a/b","messages":[]}"#),
        ] {
            assert_eq!(sent(text), (CHAT, body.to_owned()), "{text}");
        }
        let embeddings =
            r#"{"custom_id":7,"method":"POST","url":"/v1/embeddings","body":{"model":"a/b","input":"Hi"}}"#;
        assert_eq!(sent(embeddings), ("/v1/embeddings", r#"{"model":"a/b","input":"Hi"}"#.to_owned()));
        assert_eq!(row(embeddings).custom_id.unwrap().get(), "7");
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        for (text, said) in [
            ("Hello", "it is neither a JSON object nor a prompt in quotes"),
            ("{\"prompt\":", "it is not JSON: EOF while parsing a value at column 10"),
            ("{\"prompt\":1}", "its `prompt` is not a string"),
            ("{\"prompt\":\" \"}", "its prompt is empty"),
            ("{\"prompt\":null}", "its prompt is empty"),
            ("{\"question\":\"Hi\"}", "it has none of `prompt`, `messages` and `body`"),
            ("{\"prompt\":\"Hi\",\"messages\":[]}", "it has both"),
            ("{\"body\":[]}", "its `body` is not an object"),
            (
                "{\"body\":{},\"url\":\"/v1/files\"}",
                "its url is \"/v1/files\": it must be one of /v1/chat/completions, ",
            ),
            ("{\"body\":{},\"method\":\"GET\"}", "its method is \"GET\""),
        ] {
            let trouble = row(text).ask.unwrap_err();
            assert!(trouble.starts_with(said), "{text} -> {trouble}");
        }
        let no_model = from_json(1, 1, br#"{"prompt":"Hi"}"#, &Defaults::default()).ask.unwrap_err();
        assert!(no_model.contains("--model"), "{no_model}");
        assert_eq!(from_json(1, 1, b"\"\xff\"", &Defaults::default()).ask.unwrap_err(), "it is not UTF-8 text");
    }

    #[test]
    fn a_limit_for_all_is_called_as_each_endpoint_calls_it_and_leaves_a_rows_own_alone() {
        let defaults = Defaults { model: Some("a/b".into()), max_tokens: Some(9), simulated: false };
        for (text, limit) in [
            (r#"{"prompt":"Hi"}"#, r#""max_tokens":9"#),
            (r#"{"prompt":"Hi","max_tokens":5}"#, r#""max_tokens":5"#),
            (r#"{"prompt":"Hi","max_completion_tokens":5}"#, r#""max_completion_tokens":5"#),
            (r#"{"url":"/v1/responses","body":{"input":"Hi"}}"#, r#""max_output_tokens":9"#),
            (r#"{"url":"/api/v1/messages","body":{"messages":[]}}"#, r#""max_tokens":9"#),
        ] {
            let ask = from_json(1, 1, text.as_bytes(), &defaults).ask.unwrap();
            let body = String::from_utf8_lossy(&ask.body).into_owned();
            assert!(body.contains(limit) && body.matches("max_").count() == 1, "{text} -> {body}");
        }
        let embedding = from_json(1, 1, br#"{"url":"/v1/embeddings","body":{}}"#, &defaults).ask.unwrap();
        assert_eq!(embedding.body, r#"{"model":"a/b"}"#);
    }

    #[test]
    fn a_mark_changes_with_what_is_sent_and_with_nothing_else() {
        let mark = |text: &str| row(text).mark;
        assert_eq!(mark(r#"{"prompt":"Hi"}"#), mark(r#"{ "custom_id": 1, "prompt": "Hi" }"#));
        assert_eq!(mark(r#"{"prompt":"Hi"}"#), mark(r#""Hi""#));
        assert_ne!(mark(r#"{"prompt":"Hi"}"#), mark(r#"{"prompt":"Hi","temperature":1}"#));
        assert_ne!(mark("bad"), mark("worse"));
        assert_eq!(Mark::parse(&mark("bad").to_string()), Some(mark("bad")));
        let cells = Cells { prompt: "Hi", ..Cells::default() };
        let defaults = Defaults { model: Some("acme/swift-1".into()), ..Defaults::default() };
        assert_eq!(cells.row(1, 2, &defaults).mark, mark(r#""Hi""#));
        let simulated = Defaults { simulated: true, ..defaults };
        assert_ne!(cells.row(1, 2, &simulated).mark, mark(r#""Hi""#));
    }
}
