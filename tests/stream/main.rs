//! Streams: what happens before the first output, and what the caller sees of it.

#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod gate;
mod keep_alive;
mod simulated;
mod upstream;
