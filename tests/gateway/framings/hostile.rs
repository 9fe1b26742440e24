//! Requests, one after the other, of which some are framed so that somebody could read them otherwise.

use fastrand::Rng;

/// Names the request to the upstream, since bodies may be cut.
pub(super) const NAME: &str = "x-title";

/// What one connection sends. Each request has a name of its own that begins with `case`.
pub(super) fn connection(rng: &mut Rng, case: usize) -> Vec<u8> {
    let mut text = String::new();
    for number in 0..rng.usize(1..=3) {
        let name = format!("{case}-{number}");
        text += &match rng.u8(0..4) {
            0 => plain(&name),
            1 => head(&name, "1.1", "transfer-encoding: chunked\r\n") + &chunks(rng, &json(&name), false),
            _ => hostile(rng, &name),
        };
    }
    // most connections end at once by this, and need not wait for a time limit
    text += if rng.bool() { "no request\r\n\r\n" } else { "" };
    if rng.u8(0..4) == 0 { mutated(rng, text) } else { text.into_bytes() }
}

/// A request like any other.
pub(super) fn plain(name: &str) -> String {
    let body = json(name);
    head(name, "1.1", &format!("content-length: {}\r\n", body.len())) + &body
}

fn json(name: &str) -> String {
    format!(r#"{{"model":"acme/swift-1","messages":[{{"role":"user","content":"{name}"}}]}}"#)
}

fn head(name: &str, version: &str, framing: &str) -> String {
    format!("POST /v1/chat/completions HTTP/{version}\r\n{NAME}: {name}\r\nhost: localhost\r\n{framing}\r\n")
}

fn one_of<'a>(rng: &mut Rng, choices: &[&'a str]) -> &'a str {
    choices[rng.usize(..choices.len())]
}

/// Most often as it should be.
fn line_end(rng: &mut Rng) -> &'static str {
    if rng.u8(0..8) > 0 { "\r\n" } else { one_of(rng, &["\n", "\r", "\r\r\n", "\r\n ", "\r\n\t", "\n\n", ""]) }
}

fn hostile(rng: &mut Rng, name: &str) -> String {
    let json = json(name);
    // for some readers the body ends before it, for others behind
    let inner = if rng.bool() { plain(&format!("{name}-inner")) } else { String::new() };
    let body = match rng.u8(0..4) {
        0 => json.clone() + &inner,
        1 => chunks(rng, &json, true) + &inner,
        2 => chunks(rng, &(json.clone() + &inner), true),
        _ => format!("0\r\n\r\n{inner}"),
    };
    let mut framing = String::new();
    for _ in 0..rng.usize(0..=3) {
        framing += &match rng.u8(0..3) {
            0 => length(rng, &[json.len(), body.len(), body.len() - inner.len()]),
            1 => coding(rng),
            _ => one_of(rng, &["x: y", "connection: close", "connection: content-length", "x", ": y", "te: chunked"])
                .into(),
        };
        framing += line_end(rng);
    }
    let version = if rng.u8(0..8) > 0 { "1.1" } else { one_of(rng, &["1.0", "1.2", "0.9", "2.0", "1.1 ", "01.1"]) };
    let head = head(name, version, &framing);
    // what nobody is asked for is framed as well
    (if rng.u8(0..8) == 0 { head.replacen("/chat/", "/nowhere/", 1) } else { head }) + &body
}

fn length(rng: &mut Rng, true_ones: &[usize]) -> String {
    let length = true_ones[rng.usize(..true_ones.len())];
    let value = match rng.u8(0..24) {
        0 => "0".into(),
        1 => format!("{}", length.saturating_sub(1)),
        2 => format!("{}", length + 5),
        3 => format!("+{length}"),
        4 => format!("-{length}"),
        5 => format!("{length:#x}"),
        6 => format!("{length}, {length}"),
        7 => format!("{length}, 0"),
        8 => format!("{length} {length}"),
        9 => format!("00{length}"),
        10 => format!("{length}\u{b}"),
        11 => format!("{length}.0"),
        12 => one_of(rng, &["", "1e2", "18446744073709551615", "18446744073709551616", "99999999999999999999999999"])
            .into(),
        _ => length.to_string(),
    };
    let name = one_of(
        rng,
        &["content-length", "content-length", "Content-Length", "content-length ", " content-length", "content_length"],
    );
    format!("{name}: {value}")
}

fn coding(rng: &mut Rng) -> String {
    let value = if rng.bool() {
        "chunked"
    } else {
        one_of(
            rng,
            &[
                "Chunked",
                "\tchunked \t",
                "chunked, chunked",
                "identity",
                "gzip, chunked",
                "chunked, identity",
                "xchunked",
                "chunked;q=1",
                "\"chunked\"",
                "\u{b}chunked",
                "chunked\0",
                ", chunked",
                "chunked,",
                "chunk ed",
                "",
            ],
        )
    };
    let name = one_of(
        rng,
        &["transfer-encoding", "transfer-encoding", "Transfer-Encoding", "transfer-encoding ", "\ttransfer-encoding"],
    );
    format!("{name}: {value}")
}

/// The body in pieces; `odd` if some of them are to be none.
fn chunks(rng: &mut Rng, body: &str, odd: bool) -> String {
    // each may be odd in one of four places
    let is_odd = |rng: &mut Rng| odd && rng.u8(0..12) == 0;
    let (mut text, mut rest) = (String::new(), body);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.usize(1..=rest.len()));
        rest = after;
        let length = piece.len();
        text += &if is_odd(rng) {
            match rng.u8(0..10) {
                0 => format!("{length:#x}"),
                1 => format!("+{length:x}"),
                2 => format!("-{length:x}"),
                3 => format!(" {length:x}"),
                4 => format!("{length:x} "),
                5 => format!("{length:x}g"),
                6 => format!("{length:x}\0"),
                7 => format!("1000000000000000{length:x}"),
                8 => format!("{:x}", length + 1),
                _ => String::new(),
            }
        } else {
            match rng.u8(0..3) {
                0 => format!("{length:x}"),
                1 => format!("{length:X}"),
                _ => format!("000{length:x}"),
            }
        };
        text += if is_odd(rng) {
            one_of(rng, &[";a=b\nc", ";a=b\rc", ";a\0", ";\n", " a=b", ",a", ";a=\"\n\""])
        } else {
            one_of(rng, &["", "", ";a", ";a=b", ";a=\"b c\"", ";a=b;c"])
        };
        text += if is_odd(rng) { line_end(rng) } else { "\r\n" };
        text += piece;
        text += if is_odd(rng) { one_of(rng, &["\n", "", "\r", "xx", "\r\n\r\n", " \r\n"]) } else { "\r\n" };
    }
    text += if is_odd(rng) {
        one_of(
            rng,
            &[
                "0\r\n",
                "0\n\n",
                "0\r\n\n",
                "-0\r\n\r\n",
                "0\r\nx: y\rz\r\n\r\n",
                "0\r\nx: y\n\r\n",
                "0\r\n x: y\r\n\r\n",
                "0\r\nx : y\r\n\r\n",
                "0\r\nx\r\n\r\n",
            ],
        )
    } else {
        one_of(rng, &["0\r\n\r\n", "00;a=b\r\n\r\n", "0\r\ncontent-length: 5\r\n\r\n", "0\r\nx: y\r\nhost: z\r\n\r\n"])
    };
    text
}

/// One byte more, less, or other, but not in a request's name.
fn mutated(rng: &mut Rng, text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    let at = loop {
        let at = rng.usize(..bytes.len());
        let line = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // nor in the end of the line before it, or the head may end there
        let is_near =
            (0..3).any(|ahead| bytes[at..].get(ahead..).is_some_and(|rest| rest.starts_with(NAME.as_bytes())));
        if !is_near && !bytes[line..].starts_with(NAME.as_bytes()) {
            break at;
        }
    };
    let byte = b"\r\n\0 \t:;,0x+-\x0b\x7f\x80"[rng.usize(..15)];
    match rng.u8(0..3) {
        0 => bytes.insert(at, byte),
        1 => drop(bytes.remove(at)),
        _ => bytes[at] = byte,
    }
    bytes
}
