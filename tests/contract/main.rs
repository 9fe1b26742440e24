//! The laws that every layer keeps, alone, in every pair and in the default stack.
//!
//! `CONTRACT_CALLS` sets how many calls are cancelled in all (default 100,000), `CONTRACT_SEED` repeats a run; a test that
//! fails shows the seed it ran with.

#![allow(unreachable_pub, reason = "a test binary has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod cancellation;
mod deadline;
mod hooks;
mod laws;
mod orders;
mod owed;
mod panics;
mod settings;
mod source;
mod stages;
mod storm;
mod wall_clock;
