//! RFC 9112 as code: which requests there are in what a connection sends.
//!
//! What the standard lets a recipient put up with is put up with: a line of the head may end in LF alone (2.2), empty lines
//! may come first (2.2), equal lengths may be repeated (6.3), and a chunk's extensions are passed over (7.1.1), whatever they
//! hold but the end of a line. So is space behind a chunk's size. Where it says that a message is to be refused, or that the
//! connection is to be closed after it, nothing that follows is a request; nor is it after trailers, about whose lines readers
//! differ.

use super::hostile::NAME;

/// A request: its name, and its body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) body: Vec<u8>,
}

/// The requests that are whole, in order.
pub(super) fn requests(mut bytes: &[u8]) -> Vec<Asked> {
    let mut found = Vec::new();
    while let Some((asked, is_last, rest)) = request(bytes) {
        found.push(asked);
        if is_last {
            break;
        }
        bytes = rest;
    }
    found
}

/// The first request, whether it must be the last, and what follows it. `None` where it is not whole, or none.
fn request(mut bytes: &[u8]) -> Option<(Asked, bool, &[u8])> {
    while let [b'\r' | b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    let (line, mut rest) = line(bytes)?;
    let mut words = line.split(|byte| *byte == b' ');
    let [method, target, version] = [words.next()?, words.next()?, words.next()?];
    let is_1_0 = version == b"HTTP/1.0";
    let is_line = words.next().is_none() && (is_1_0 || version == b"HTTP/1.1");
    if !is_line
        || !is_token(method)
        || !target.iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..))
        || target.is_empty()
    {
        return None;
    }
    let (mut name, mut lengths, mut codings, mut is_last) = (None, Vec::new(), Vec::new(), is_1_0);
    loop {
        let (line, after) = self::line(rest)?;
        rest = after;
        if line.is_empty() {
            break;
        }
        let (field, value) = field(line)?;
        match &*field {
            NAME => name = Some(value),
            "content-length" => lengths.extend(value.split(',').map(|length| length.trim().to_owned())),
            "transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            "connection" => is_last |= value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")),
            _ => {}
        }
    }
    let body;
    if codings.is_empty() {
        let length = |digits: &String| {
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| digits.parse::<usize>().ok()).flatten()
        };
        let mut lengths = lengths.iter().map(length).collect::<Option<Vec<_>>>()?;
        lengths.dedup();
        let length = match *lengths {
            [] => 0,
            [length] => length,
            _ => return None,
        };
        (body, rest) = (rest.get(..length)?.to_vec(), &rest[length..]);
    } else {
        if codings != ["chunked"] {
            return None;
        }
        let trailers;
        (body, trailers, rest) = chunks(rest)?;
        // 6.1: whoever sends both may be up to something
        is_last |= trailers || !lengths.is_empty();
    }
    Some((Asked { name: name.unwrap_or_default(), body }, is_last, rest))
}

/// The body, whether it had trailers, and what follows.
fn chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, bool, &[u8])> {
    let mut body = Vec::new();
    loop {
        let (line, rest) = whole_line(bytes)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let extension = line[digits..].trim_ascii_start();
        if !(extension.is_empty() || extension[0] == b';') {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        bytes = rest;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
    let mut trailers = false;
    loop {
        let (line, rest) = line(bytes)?;
        bytes = rest;
        if line.is_empty() {
            return Some((body, trailers, bytes));
        }
        field(line)?;
        trailers = true;
    }
}

/// A line that ends in CR LF, or in LF alone.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

/// A line that ends in CR LF, with neither of them inside.
fn whole_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    bytes[end..].strip_prefix(b"\r\n").map(|rest| (&bytes[..end], rest))
}

/// A field's name in small letters, and its value.
fn field(line: &[u8]) -> Option<(String, String)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // spaces and tabs alone: others would make a length of what is none
    let value = || text(value).trim_matches([' ', '\t']).to_owned();
    (is_token(name) && is_value(&line[colon + 1..])).then(|| (text(name).to_ascii_lowercase(), value()))
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn is_value(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..))
}

#[test]
fn the_reference_counts_as_the_standard_says() {
    let head = |framing: &str| format!("POST / HTTP/1.1\r\n{NAME}: n\r\n{framing}\r\n");
    let next = head("");
    for (framing, body, bodies) in [
        ("content-length: 3\r\n", "abc", vec!["abc", ""]),
        ("content-length: 3\r\nContent-Length:\t3 \r\n", "abc", vec!["abc", ""]),
        ("content-length: 3, 03\n", "abc", vec!["abc", ""]),
        ("content-length: 3\r\nconnection: close\r\n", "abc", vec!["abc"]),
        ("content-length: 3\r\ncontent-length: 2\r\n", "abc", vec![]),
        ("content-length: +3\r\n", "abc", vec![]),
        ("content-length : 3\r\n", "abc", vec![]),
        ("x: y\r\n content-length: 3\r\n", "abc", vec![]),
        ("transfer-encoding: Chunked\r\n", "2;x=y\r\nab\r\n1 \r\nc\r\n0\r\n\r\n", vec!["abc", ""]),
        ("transfer-encoding: chunked\r\n", "1\r\na\r\n0\r\nx: y\r\n\r\n", vec!["a"]),
        ("transfer-encoding: chunked\r\ncontent-length: 1\r\n", "1\r\na\r\n0\r\n\r\n", vec!["a"]),
        ("transfer-encoding: gzip, chunked\r\n", "1\r\na\r\n0\r\n\r\n", vec![]),
        ("transfer-encoding: chunked\r\n", "1\na\r\n0\r\n\r\n", vec![]),
        ("transfer-encoding: chunked\r\n", "1;x\ny\r\na\r\n0\r\n\r\n", vec![]),
        ("transfer-encoding: chunked\r\n", "0x1\r\na\r\n0\r\n\r\n", vec![]),
        ("transfer-encoding: chunked\r\n", "1\r\na0\r\n\r\n", vec![]),
        ("transfer-encoding: chunked\r\n", "ffffffffffffffff1\r\na\r\n0\r\n\r\n", vec![]),
    ] {
        let found = requests(format!("\r\n{}{body}{next}", head(framing)).as_bytes());
        let found: Vec<_> = found.iter().map(|asked| std::str::from_utf8(&asked.body).unwrap()).collect();
        assert_eq!(found, bodies, "{framing:?} {body:?}");
    }
}
