use std::{cmp::Reverse, fmt};

use super::KeyError;

/// A pattern of model names, such as `anthropic/*`, `openai/gpt-4o` or `*:free`; each `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelPattern(Box<str>);

impl ModelPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is empty, begins with `!`, which only the patterns of a [key](crate::ApiKey::models) may, or holds white space.
    pub fn new(pattern: &str) -> Result<Self, KeyError> {
        if pattern.is_empty() || pattern.starts_with('!') || pattern.contains(char::is_whitespace) {
            return Err(KeyError::BadPattern(pattern.into()));
        }
        // several stars in a row are one
        let parts = pattern.split('*');
        let last = parts.clone().count() - 1;
        let kept = parts.enumerate().filter(|(at, part)| *at == 0 || *at == last || !part.is_empty());
        Ok(Self(kept.map(|(_, part)| part).collect::<Vec<_>>().join("*").into()))
    }

    /// A rank by which the most specific of several patterns comes first: one without a star, then the one with more that is
    /// no star, then the one with more before its first star, then by the alphabet.
    pub fn rank(&self) -> impl Ord + '_ {
        let head = self.0.find('*');
        let literal = self.0.len() - self.0.matches('*').count();
        (head.is_some(), Reverse(literal), Reverse(head), &*self.0)
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
        assert!(["", "a b", "!a"].iter().all(|pattern| ModelPattern::new(pattern).is_err()));
    }

    #[test]
    fn the_most_specific_comes_first_whatever_the_order() {
        let ranked = ["openai/gpt-4o", "openai/gpt-4*", "openai/*", "*/gpt-4o*", "*:free", "o*", "*o", "*"];
        let mut patterns: Vec<_> = ranked.iter().rev().map(|pattern| ModelPattern::new(pattern).unwrap()).collect();
        patterns.sort_by(|one, other| one.rank().cmp(&other.rank()));
        assert_eq!(patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), ranked);
    }

    #[test]
    fn stars_in_a_row_are_one() {
        for (pattern, same) in [("a**", "a*"), ("**", "*"), ("***b***c**", "*b*c*"), ("a", "a")] {
            assert_eq!(ModelPattern::new(pattern), ModelPattern::new(same), "{pattern}");
        }
    }
}
