//! A service that can be replaced while it runs.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// What is to be used for what comes next. Clones share it; who has taken it goes on with what was taken.
#[derive(Debug)]
pub(super) struct Live<T>(Arc<ArcSwap<T>>);

impl<T> Live<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// A clone of what is used now.
    pub(super) fn now(&self) -> T
    where
        T: Clone,
    {
        T::clone(&self.0.load())
    }

    /// Puts another in its place, at once and for everybody.
    pub(super) fn replace(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
