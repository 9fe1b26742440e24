//! A few members of a JSON object, found without reading the others.
//!
//! Of a request that is mostly a prompt, a parser reads every character to tell what lies between two quotes. Here the prompt
//! is skipped: all that is looked for in it is its end. What is skipped is not checked, so broken JSON within a member goes
//! unnoticed; the upstream will refuse it.

use memchr::memchr2;

/// The text of each of these members, where there is one that is not null; `None` for what is no object, or names one of
/// them twice.
pub(super) fn find<'a, const N: usize>(text: &'a [u8], names: [&str; N]) -> Option<[Option<&'a [u8]>; N]> {
    let (mut found, mut seen) = ([None; N], [false; N]);
    let mut rest = Rest(text);
    rest.token(b'{')?;
    if rest.token(b'}').is_some() {
        return rest.is_over().then_some(found);
    }
    loop {
        let name = rest.spaces().string()?;
        rest.token(b':')?;
        let value = rest.spaces().value()?;
        let plain = &name[1..name.len() - 1];
        let at = match plain.contains(&b'\\') {
            false => names.iter().position(|wanted| plain == wanted.as_bytes()),
            true => serde_json::from_slice(name)
                .ok()
                .and_then(|name: String| names.iter().position(|wanted| name == *wanted)),
        };
        if let Some(at) = at {
            if std::mem::replace(&mut seen[at], true) {
                return None;
            }
            found[at] = Some(value).filter(|value| *value != b"null");
        }
        if rest.token(b',').is_none() {
            break;
        }
    }
    rest.token(b'}')?;
    rest.is_over().then_some(found)
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn spaces(&mut self) -> &mut Self {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.0 {
            self.0 = rest;
        }
        self
    }

    fn is_over(&mut self) -> bool {
        self.spaces().0.is_empty()
    }

    fn token(&mut self, token: u8) -> Option<()> {
        let (first, rest) = self.spaces().0.split_first()?;
        (*first == token).then(|| self.0 = rest)
    }

    /// A string, with its quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        let end = end_of_string(self.0)?;
        let (string, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(string)
    }

    fn value(&mut self) -> Option<&'a [u8]> {
        let text = self.0;
        let end = match text.first()? {
            b'"' => return self.string(),
            b'{' | b'[' => end_of_nested(text)?,
            _ => text.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'))?,
        };
        let (value, rest) = text.split_at(end);
        self.0 = rest;
        (!value.is_empty()).then_some(value)
    }
}

/// Where the string ends that begins here.
fn end_of_string(text: &[u8]) -> Option<usize> {
    let mut at = (*text.first()? == b'"').then_some(1)?;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        // whatever is escaped
        at += 2;
    }
}

/// Where the object or list ends that begins here.
fn end_of_nested(text: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    loop {
        match text.get(at)? {
            b'"' => {
                at += end_of_string(&text[at..])?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn found(text: &str) -> Option<[Option<&str>; 2]> {
        let found = find(text.as_bytes(), ["a", "b"])?;
        Some(found.map(|value| value.map(|value| std::str::from_utf8(value).unwrap())))
    }

    #[test]
    fn members_are_found_wherever_they_stand_and_nowhere_else() {
        for (text, expected) in [
            ("{}", Some([None, None])),
            (" { \"a\" : 1 } ", Some([Some("1"), None])),
            (
                r#"{"x":{"a":2,"b":"}]"},"b":[{"a":"]\\"},[]],"a":"\"a\""}"#,
                Some([Some(r#""\"a\"""#), Some(r#"[{"a":"]\\"},[]]"#)]),
            ),
            (r#"{"\u0061":true,"b":null}"#, Some([Some("true"), None])),
            (r#"{"a":1,"a":2}"#, None),
            (r#"{"a":1,"\u0061":2}"#, None),
            ("", None),
            ("[]", None),
            ("{", None),
            ("{}x", None),
            (r#"{"a"}"#, None),
            (r#"{"a":}"#, None),
            (r#"{"a":1,}"#, None),
            (r#"{"a":"\"}"#, None),
            (r#"{"a":[1}"#, None),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c\"\\\\{}\\[\\],: é]{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"\\\\]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_parser_finds_the_same(members in prop::collection::btree_map("[a-c\"\\\\]{1,2}", json(), 0..6), pretty: bool) {
            let document: Map<String, Value> = members.into_iter().collect();
            let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
            let found = found(&text).unwrap();
            for (name, found) in ["a", "b"].into_iter().zip(found) {
                let parsed = found.map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
                prop_assert_eq!(&parsed, document.get(name).unwrap_or(&Value::Null), "{}", text);
            }
        }

        #[test]
        fn r119_no_bytes_are_too_much(bytes: Vec<u8>, text in "[{}\\[\\]\",:a\\\\ ]{0,30}") {
            find(&bytes, ["a", "b"]);
            find(text.as_bytes(), ["a", "b"]);
        }
    }
}
