//! Changes a few members of a JSON object, and leaves every other byte as it came.
//!
//! A body that is read into a tree and written again comes out with other spacing, other escapes and other numbers, so a
//! prompt cache upstream no longer knows it. Here the places of the members are found, and only what changes is cut out and
//! put in.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// A JSON object, read only as far as the places of its members.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    text: &'a str,
    members: Vec<Member<'a>>,
}

#[derive(Debug)]
struct Member<'a> {
    name: Cow<'a, str>,
    /// From the name's quote to the end of the value.
    whole: Range<usize>,
    value: Range<usize>,
}

impl<'a> Object<'a> {
    /// Reads an object; `None` when `text` is no JSON object, or names a member twice.
    pub(crate) fn read(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let Pairs(pairs) = serde_json::from_str(text).ok()?;
        let mut end = text.find('{')? + 1;
        let mut members = Vec::<Member<'_>>::with_capacity(pairs.len());
        for (name, value) in pairs {
            // what lies between two members is white space and a comma
            let start = end + text[end..].find('"')?;
            // the value is borrowed from the text, so its address says where it stands
            let from = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
            end = from + value.get().len();
            members.push(Member { name, whole: start..end, value: from..end });
        }
        // sorted, since a request may have as many members as it likes
        let mut names: Vec<_> = members.iter().map(|member| &*member.name).collect();
        names.sort_unstable();
        let is_twice = names.windows(2).any(|pair| pair[0] == pair[1]);
        (!is_twice).then_some(Self { text, members })
    }

    /// The text of a member's value; `None` when it is missing or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        let member = self.members.iter().find(|member| member.name == name)?;
        Some(&self.text[member.value.clone()]).filter(|value| *value != "null")
    }

    /// Begins to change it.
    pub(crate) fn edit(&self) -> Edit<'_> {
        Edit { object: self, changes: Vec::new(), added: Vec::new() }
    }
}

/// Changes to an object.
#[derive(Debug)]
pub(crate) struct Edit<'a> {
    object: &'a Object<'a>,
    /// By the member's place in the object: another value, or none.
    changes: Vec<(usize, Option<String>)>,
    added: Vec<String>,
}

impl Edit<'_> {
    /// Gives a member a value, in the place of its old one, or at the end. Each member is changed once.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        match self.place(name) {
            Some(at) => self.changes.push((at, Some(value))),
            None => self.added.push(format!("{}:{value}", serde_json::Value::from(name))),
        }
    }

    /// Takes a member out.
    pub(crate) fn remove(&mut self, name: &str) {
        let at = self.place(name);
        self.changes.extend(at.map(|at| (at, None)));
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.object.members.iter().position(|member| member.name == name)
    }

    /// The changed text; `None` when nothing changed.
    pub(crate) fn finish(mut self) -> Option<String> {
        if self.changes.is_empty() && self.added.is_empty() {
            return None;
        }
        self.changes.sort_by_key(|(at, _)| *at);
        let Object { text, members } = self.object;
        let open = text.find('{')? + 1;
        let grown = |value: &String| value.len() + 1;
        let more: usize =
            self.added.iter().chain(self.changes.iter().filter_map(|(_, value)| value.as_ref())).map(grown).sum();
        let mut out = String::with_capacity(text.len() + more);
        out.push_str(&text[..open]);
        let mut changes = self.changes.into_iter().peekable();
        let (mut end, mut any) = (open, false);
        for (at, Member { whole, value, .. }) in members.iter().enumerate() {
            let before = &text[end..whole.start];
            end = whole.end;
            let change = changes.next_if(|(changed, _)| *changed == at).map(|(_, value)| value);
            if let Some(None) = change {
                continue;
            }
            // the first that stays has no comma before it
            out.push_str(if any || at == 0 { before } else { before.trim_start().trim_start_matches(',') });
            any = true;
            match change.flatten() {
                Some(new) => out.extend([&text[whole.start..value.start], &new]),
                None => out.push_str(&text[whole.clone()]),
            }
        }
        for member in self.added {
            out.extend([if any { "," } else { "" }, &member]);
            any = true;
        }
        out.push_str(&text[end..]);
        Some(out)
    }
}

/// The members in order, their values unread.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A name, borrowed where it holds no escape.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    pairs.push((name, value));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn edited(text: &str, change: impl FnOnce(&mut Edit<'_>)) -> Option<String> {
        let object = Object::read(text.as_bytes()).unwrap();
        let mut edit = object.edit();
        change(&mut edit);
        edit.finish()
    }

    #[test]
    fn only_what_changes_changes() {
        let text = "{ \"model\" : \"a\", \"n\":1.0e2,\n \"models\":[\"b\"] , \"x\\u0079\":{\"model\":\"}\"} } ";
        let object = Object::read(text.as_bytes()).unwrap();
        assert_eq!(
            (object.get("model"), object.get("xy"), object.get("z")),
            (Some("\"a\""), Some("{\"model\":\"}\"}"), None)
        );
        assert_eq!(edited(text, |edit| edit.set("model", "\"c\"".into())).unwrap(), text.replacen("\"a\"", "\"c\"", 1));
        assert_eq!(
            edited(text, |edit| {
                edit.remove("models");
                edit.set("new", "1".into());
                edit.set("newer", "2".into());
            })
            .unwrap(),
            "{ \"model\" : \"a\", \"n\":1.0e2 , \"x\\u0079\":{\"model\":\"}\"},\"new\":1,\"newer\":2 } "
        );
        assert_eq!(
            edited(text, |edit| edit.remove("model")).unwrap(),
            "{ \"n\":1.0e2,\n \"models\":[\"b\"] , \"x\\u0079\":{\"model\":\"}\"} } "
        );
        assert_eq!(edited(text, |edit| edit.remove("z")), None);
        assert_eq!(edited(" { } ", |edit| edit.set("a", "1".into())).unwrap(), " {\"a\":1 } ");
    }

    #[test]
    fn what_is_no_object_with_names_of_its_own_is_left_alone() {
        for text in ["", "[]", "1", "{", "{}x", "{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":2}", "{\"a\":}"] {
            assert!(Object::read(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Object::read(b"{\"a\":\"\xff\"}").is_none());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-f\"\\\\]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_edited_object_parses_to_the_edited_members(
            members in prop::collection::btree_map("[a-f\"]{1,2}", json(), 0..6), pretty: bool,
            set in prop::collection::btree_map("[a-f\"]{1,2}", json(), 0..3),
            removed in prop::collection::btree_set("[a-f\"]{1,2}", 0..4),
        ) {
            let mut expected: Map<String, Value> = members.into_iter().collect();
            let document = Value::Object(expected.clone());
            let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
            let out = edited(&text, |edit| {
                set.iter().for_each(|(name, value)| edit.set(name, value.to_string()));
                removed.iter().filter(|name| !set.contains_key(*name)).for_each(|name| edit.remove(name));
            });
            expected.retain(|name, _| !removed.contains(name));
            expected.extend(set);
            prop_assert_eq!(serde_json::from_str::<Value>(&out.unwrap_or(text)).unwrap(), Value::Object(expected));
        }
    }
}
