use std::fmt;

use super::RouteError;
use crate::key::ModelPattern;

/// The routes, the most specific first.
pub(super) struct Table<S> {
    routes: Vec<(ModelPattern, S)>,
    fallback: Option<S>,
    /// The configured fallback models.
    models: Vec<Box<str>>,
}

/// A place in the table; the fallback's is behind the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At(usize);

impl<S> Table<S> {
    pub(super) fn new(fallback: Option<S>) -> Self {
        Self { routes: Vec::new(), fallback, models: Vec::new() }
    }

    pub(super) fn add(&mut self, pattern: ModelPattern, service: S) -> Result<(), RouteError> {
        match self.routes.binary_search_by(|(other, _)| other.rank().cmp(&pattern.rank())) {
            Ok(_) => Err(RouteError::Duplicate(pattern.to_string().into())),
            Err(at) => {
                self.routes.insert(at, (pattern, service));
                Ok(())
            }
        }
    }

    pub(super) fn set_models(&mut self, models: Vec<Box<str>>) -> Result<(), RouteError> {
        if self.routes.is_empty() && self.fallback.is_none() {
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
        let named = model.and_then(|model| self.routes.iter().position(|(pattern, _)| pattern.matches(model)));
        named.or(self.fallback.is_some().then_some(self.routes.len())).map(At)
    }

    pub(super) fn service(&self, at: At) -> &S {
        match self.routes.get(at.0) {
            Some((_, service)) => service,
            None => self.fallback.as_ref().expect("a place behind the last is given out only when there is a fallback"),
        }
    }
}

impl<S> fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes: Vec<_> = self.routes.iter().map(|(pattern, _)| pattern.to_string()).collect();
        f.debug_struct("Table")
            .field("routes", &routes)
            .field("fallback", &self.fallback.is_some())
            .field("models", &self.models)
            .finish()
    }
}
