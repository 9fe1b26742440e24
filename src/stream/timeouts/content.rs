//! Which frames say something, by the body's content type.

use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use memchr::{memchr2, memrchr2};

/// Reads on where the last frame ended. Nothing is kept of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// An event stream: comments and blank lines say nothing.
    Events(At),
    /// A JSON document: white space before it says nothing.
    Padding,
    /// Whatever comes.
    Anything,
}

/// Where in an event stream a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    LineStart,
    Comment,
    Line,
}

impl Content {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let is_plain = headers.get(CONTENT_ENCODING).is_none_or(|value| value == "identity");
        let kind = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()).filter(|_| is_plain);
        let starts = |start: &[u8]| {
            kind.and_then(|kind| kind.get(..start.len())).is_some_and(|kind| kind.eq_ignore_ascii_case(start))
        };
        if starts(b"text/event-stream") {
            Self::Events(At::LineStart)
        } else if starts(b"application/json") {
            Self::Padding
        } else {
            Self::Anything
        }
    }

    /// Whether the next bytes of the body say something.
    pub(super) fn says(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Events(at) => at.says(bytes),
            Self::Padding if bytes.trim_ascii_start().is_empty() => false,
            Self::Padding | Self::Anything => {
                *self = Self::Anything;
                !bytes.is_empty()
            }
        }
    }
}

impl At {
    fn says(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            match self {
                Self::LineStart if matches!(first, b'\n' | b'\r') => rest = &rest[1..],
                Self::LineStart if *first == b':' => *self = Self::Comment,
                Self::Comment => match memchr2(b'\n', b'\r', rest) {
                    Some(end) => (*self, rest) = (Self::LineStart, &rest[end + 1..]),
                    None => return false,
                },
                Self::LineStart | Self::Line => {
                    *self = Self::after(rest);
                    return true;
                }
            }
        }
        false
    }

    /// Where bytes end that begin within a line.
    fn after(bytes: &[u8]) -> Self {
        let last = memrchr2(b'\n', b'\r', bytes).map(|end| &bytes[end + 1..]);
        match last.map(<[u8]>::first) {
            Some(None) => Self::LineStart,
            Some(Some(b':')) => Self::Comment,
            Some(Some(_)) | None => Self::Line,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(kind: &'static str) -> Content {
        Content::of(&HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]))
    }

    #[test]
    fn comments_and_padding_say_nothing() {
        for (kind, frames) in [
            ("text/event-stream", &[(": OPENROUTER PROCESSING\n\n", false), ("data: {}\n\n", true)] as &[(&str, bool)]),
            ("text/event-stream; charset=utf-8", &[(": a", false), ("b: c\r\n\r\n:", false), (" d\n\ndata", true)]),
            ("Text/Event-Stream", &[("data: {", true), (": no comment", true), ("}\n\n", true), (": one\n\n", false)]),
            ("text/event-stream", &[("data: 1\n\n:a", true), ("b\n\n", false), ("\n", false), ("", false)]),
            ("application/json", &[(" \n", false), ("\n", false), ("\n{", true), (" ", true)]),
            ("text/plain", &[("", false), (" ", true)]),
        ] {
            let mut content = of(kind);
            let seen: Vec<_> = frames.iter().map(|(frame, _)| (*frame, content.says(frame.as_bytes()))).collect();
            assert_eq!(seen, frames, "{kind}");
        }
    }

    #[test]
    fn a_compressed_body_is_not_looked_into() {
        let headers = [(CONTENT_TYPE, "text/event-stream"), (CONTENT_ENCODING, "gzip")];
        let headers = headers.map(|(name, value)| (name, value.parse().unwrap()));
        assert!(Content::of(&HeaderMap::from_iter(headers)).says(b": x"));
    }

    proptest! {
        /// The same bytes, line by line, are what counts, however they are cut.
        #[test]
        fn cuts_make_no_difference(text in "[:a\r\n]{0,40}", cuts in prop::collection::vec(0..40usize, 0..6)) {
            let says = text.split(['\r', '\n']).any(|line| !line.is_empty() && !line.starts_with(':'));
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= text.len()).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut content = Content::Events(At::LineStart);
            let pieces = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]);
            let seen: Vec<_> = pieces.map(|piece| content.says(piece)).collect();
            prop_assert_eq!(seen.contains(&true), says);
            let mut whole = Content::Events(At::LineStart);
            whole.says(text.as_bytes());
            prop_assert_eq!(content, whole);
        }

        #[test]
        fn r119_no_bytes_are_too_much(bytes: Vec<u8>) {
            for kind in ["text/event-stream", "application/json", "text/html"] {
                of(kind).says(&bytes);
            }
        }
    }
}
