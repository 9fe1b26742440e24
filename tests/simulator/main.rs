//! The simulator's behaviour, read as a specification of the simulated platform.

mod stream;
mod support;
