//! The simulator's behaviour, read as a specification of the simulated platform.

mod counts;
mod faults;
mod lookups;
mod platform;
mod pools;
mod served;
mod spending;
mod stream;
mod support;
