//! The locks and atomics of the cores that loom models; `std`'s otherwise.
//!
//! A lock that a panic poisoned is used all the same: what it guards is plain data, correct after every statement.

#[cfg(all(test, tower_openrouter_loom))]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};
#[cfg(not(all(test, tower_openrouter_loom)))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, atomic};

/// Locks, whether or not a panic poisoned the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
