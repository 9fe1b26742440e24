//! An upstream that answers at once: with a small completion, or, where a stream is asked for, with 50 events, each written by
//! itself.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The events of a stream, the end marker and the usage not counted.
const EVENTS: usize = 50;

const ANSWER: &str = concat!(
    r#"{"id":"gen-1700000000-AbCdEfGhIjKlMnOpQrSt","object":"chat.completion","created":1700000000,"model":"acme/swift-1","#,
    r#""provider":"DeepInfra","system_fingerprint":null,"choices":[{"index":0,"logprobs":null,"finish_reason":"stop","#,
    r#""native_finish_reason":"stop","message":{"role":"assistant","content":"Six words are in this answer.","refusal":null}}],"#,
    r#""usage":{"prompt_tokens":250,"completion_tokens":6,"total_tokens":256,"cost":0.0000536}}"#
);
const EVENT: &str = concat!(
    r#"data: {"id":"gen-1700000000-AbCdEfGhIjKlMnOpQrSt","object":"chat.completion.chunk","created":1700000000,"#,
    r#""model":"acme/swift-1","provider":"DeepInfra","choices":[{"index":0,"delta":{"role":"assistant","content":" word"},"#,
    r#""finish_reason":null,"native_finish_reason":null,"logprobs":null}]}"#
);
const USAGE: &str = concat!(
    r#"data: {"id":"gen-1700000000-AbCdEfGhIjKlMnOpQrSt","object":"chat.completion.chunk","created":1700000000,"#,
    r#""model":"acme/swift-1","provider":"DeepInfra","choices":[{"index":0,"delta":{"role":"assistant","content":""},"#,
    r#""finish_reason":"stop","native_finish_reason":"stop","logprobs":null}],"#,
    r#""usage":{"prompt_tokens":250,"completion_tokens":50,"total_tokens":300,"cost":0.0000536}}"#
);

/// What is written for each request, piece by piece.
struct Answers {
    json: Vec<Vec<u8>>,
    stream: Vec<Vec<u8>>,
}

impl Answers {
    fn new() -> Self {
        let json = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
            ANSWER.len()
        );
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = |data: &str| format!("{:x}\r\n{data}\n\n\r\n", data.len() + 2).into_bytes();
        let mut stream = vec![head.as_bytes().to_vec()];
        stream.extend(vec![chunk(EVENT); EVENTS]);
        stream.extend([chunk(USAGE), [chunk("data: [DONE]"), b"0\r\n\r\n".to_vec()].concat()]);
        Self { json: vec![json.into_bytes()], stream }
    }
}

pub(crate) fn serve(listen: &str) -> io::Result<()> {
    let answers: &Answers = Box::leak(Box::new(Answers::new()));
    crate::serve(listen, |stream| connection(stream, answers))
}

async fn connection(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    let mut read = Vec::with_capacity(16 * 1024);
    loop {
        let Some(length) = whole(&read) else {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let asks_for_stream = read[..length].windows(13).any(|bytes| bytes == b"\"stream\":true");
        for piece in if asks_for_stream { &answers.stream } else { &answers.json } {
            stream.write_all(piece).await?;
        }
        read.drain(..length);
    }
}

/// How long the first request is, when all of it has come.
fn whole(read: &[u8]) -> Option<usize> {
    let head = read.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&read[..head]).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = head + length.map_or(0, |(_, length)| length.trim().parse().unwrap_or(0));
    (length <= read.len()).then_some(length)
}
