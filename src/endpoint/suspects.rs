//! Whether a suspect fault is the key's or the upstream's.

/// The pool's memory of suspect faults.
#[derive(Debug, Default)]
pub struct Suspects {}

/// Whom a suspect fault is laid to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The endpoint, with this many faults that had been held back until peers spoke.
    Endpoint(u32),
    /// The upstream pool.
    Pool,
    /// Nobody yet.
    Nobody,
}
