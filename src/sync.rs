//! The locks and atomics of the cores that loom models; `std`'s and arc-swap's otherwise.
//!
//! A lock that a panic poisoned is used all the same: what it guards is plain data, correct after every statement.

#[cfg(all(test, tower_openrouter_loom))]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};
#[cfg(not(all(test, tower_openrouter_loom)))]
#[allow(unused_imports, reason = "a model may need more than the core it models")]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, atomic};

/// Locks, whether or not a panic poisoned the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The same for a lock that is `std`'s in models too.
pub(crate) fn lock_std<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a [`Slot`] gives out.
#[cfg(not(all(test, tower_openrouter_loom)))]
pub(crate) type Loaded<T> = arc_swap::Guard<std::sync::Arc<T>>;
/// What a [`Slot`] gives out.
#[cfg(all(test, tower_openrouter_loom))]
pub(crate) type Loaded<T> = std::sync::Arc<T>;

/// A value read without a lock and replaced as a whole. Loom does not know arc-swap, so it models a lock in its place.
#[cfg(not(all(test, tower_openrouter_loom)))]
pub(crate) struct Slot<T>(arc_swap::ArcSwap<T>);
#[cfg(all(test, tower_openrouter_loom))]
pub(crate) struct Slot<T>(Mutex<std::sync::Arc<T>>);

#[cfg(not(all(test, tower_openrouter_loom)))]
impl<T> Slot<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(arc_swap::ArcSwap::from_pointee(value))
    }

    pub(crate) fn load(&self) -> Loaded<T> {
        self.0.load()
    }

    pub(crate) fn store(&self, value: T) {
        self.0.store(std::sync::Arc::new(value));
    }
}

#[cfg(all(test, tower_openrouter_loom))]
impl<T> Slot<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(std::sync::Arc::new(value)))
    }

    pub(crate) fn load(&self) -> Loaded<T> {
        lock(&self.0).clone()
    }

    pub(crate) fn store(&self, value: T) {
        *lock(&self.0) = std::sync::Arc::new(value);
    }
}
