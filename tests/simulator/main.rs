//! The simulator's behaviour, read as a specification of the simulated platform.

mod broken;
mod cache;
mod cors;
mod counts;
mod faults;
mod leaving;
mod lookups;
mod platform;
mod pools;
mod routing;
mod served;
mod spending;
mod stale;
mod stream;
mod support;
