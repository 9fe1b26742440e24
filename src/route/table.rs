use std::fmt;

use super::RouteError;
use crate::key::ModelPattern;

/// The patterns, the most specific first, and the stacks they lead to.
pub(super) struct Table<S> {
    patterns: Vec<(ModelPattern, At)>,
    fallback: Option<At>,
    stacks: Vec<S>,
    /// The configured fallback models.
    models: Vec<Box<str>>,
}

/// The place of a stack in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At(usize);

impl<S> Table<S> {
    pub(super) fn new(fallback: Option<S>) -> Self {
        let stacks = Vec::from_iter(fallback);
        Self { patterns: Vec::new(), fallback: (!stacks.is_empty()).then_some(At(0)), stacks, models: Vec::new() }
    }

    pub(super) fn add(&mut self, patterns: &[Box<str>], stack: S) -> Result<(), RouteError> {
        if patterns.is_empty() {
            return Err(RouteError::NoPattern);
        }
        let place = At(self.stacks.len());
        for pattern in patterns {
            let pattern = ModelPattern::new(pattern)?;
            match self.patterns.binary_search_by(|(other, _)| other.rank().cmp(&pattern.rank())) {
                Ok(_) => return Err(RouteError::Duplicate(pattern.to_string().into())),
                Err(at) => self.patterns.insert(at, (pattern, place)),
            }
        }
        self.stacks.push(stack);
        Ok(())
    }

    pub(super) fn set_models(&mut self, models: Vec<Box<str>>) -> Result<(), RouteError> {
        if self.stacks.is_empty() {
            return Err(RouteError::Empty);
        }
        for (at, model) in models.iter().enumerate() {
            if models[..at].contains(model) {
                return Err(RouteError::DuplicateModel(model.clone()));
            }
            if self.find(Some(model)).is_none() {
                return Err(RouteError::UnservedModel(model.clone()));
            }
        }
        self.models = models;
        Ok(())
    }

    pub(super) fn models(&self) -> &[Box<str>] {
        &self.models
    }

    /// Where requests for `model` go.
    pub(super) fn find(&self, model: Option<&str>) -> Option<At> {
        let named = model.and_then(|model| self.patterns.iter().find(|(pattern, _)| pattern.matches(model)));
        named.map(|(_, at)| *at).or(self.fallback)
    }

    pub(super) fn stack(&self, At(at): At) -> &S {
        &self.stacks[at]
    }
}

impl<S> fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<_> = self.patterns.iter().map(|(pattern, at)| (pattern.to_string(), at.0)).collect();
        f.debug_struct("Table")
            .field("patterns", &patterns)
            .field("fallback", &self.fallback.is_some())
            .field("models", &self.models)
            .finish()
    }
}
