use std::fmt;

use super::KeyError;

/// A pattern of model names, such as `anthropic/*`, `openai/gpt-4o` or `*:free`; each `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelPattern(Box<str>);

impl ModelPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is empty or holds white space.
    pub fn new(pattern: &str) -> Result<Self, KeyError> {
        if pattern.is_empty() || pattern.contains(char::is_whitespace) {
            return Err(KeyError::BadPattern(pattern.into()));
        }
        Ok(Self(pattern.into()))
    }

    /// How narrow it is: one without `*` is narrower than any with, and of those the one with more other characters is.
    pub(super) fn narrowness(&self) -> usize {
        match self.0.bytes().filter(|byte| *byte == b'*').count() {
            0 => usize::MAX,
            stars => self.0.len() - stars,
        }
    }

    /// Whether `model` matches.
    pub fn matches(&self, model: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else {
            return *self.0 == *model;
        };
        let Some(mut model) = model.strip_prefix(head) else {
            return false;
        };
        let mut parts = rest.split('*').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return model.ends_with(part);
            }
            match model.find(part) {
                Some(at) => model = &model[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, model, expected) in [
            ("anthropic/*", "anthropic/claude", true),
            ("anthropic/*", "openai/gpt", false),
            ("openai/gpt-4o", "openai/gpt-4o", true),
            ("openai/gpt-4o", "openai/gpt-4o-mini", false),
            ("*:free", "meta/llama:free", true),
            ("*:free", "meta/llama:free2", false),
            ("*/llama*:free", "meta/llama-3:free", true),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(ModelPattern::new(pattern).unwrap().matches(model), expected, "{pattern} {model}");
        }
        assert!(ModelPattern::new("a b").is_err());
    }
}
