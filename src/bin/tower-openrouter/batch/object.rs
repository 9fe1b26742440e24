//! A JSON object of which little is read and little changed: everything else stays as it was written.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

/// Members in their order, values in their own words: the order of a schema's properties and the digits of a number mean
/// something to models.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(member, _)| member == name)
    }

    /// Takes a member out; a `null` counts as none.
    pub(super) fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(member, _)| member == name)?;
        Some(self.0.remove(at).1).filter(|value| value.get() != "null")
    }

    /// Puts a member at the end.
    pub(super) fn put(&mut self, name: &str, value: &impl Serialize) {
        // strings, numbers and lists of them always serialise
        if let Ok(value) = to_raw_value(value) {
            self.0.push((name.to_owned(), value));
        }
    }

    /// Adds the members of another at the end.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_digits_stay_as_written() {
        let text = r#"{"z":1.0,"a":{"y": 12345678901234567890123,"b":[]},"m":"é"}"#;
        let mut object: Object = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
        assert_eq!(object.take("m").unwrap().get(), "\"é\"");
        object.put("n", &1);
        assert_eq!(
            serde_json::to_string(&object).unwrap(),
            r#"{"z":1.0,"a":{"y": 12345678901234567890123,"b":[]},"n":1}"#
        );
    }
}
