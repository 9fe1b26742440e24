//! What each layer, and the whole stack, takes from the heap for a request; and tower's parts, and tower-resilience's.
//!
//! `cargo bench --bench allocations` counts what is allocated from the first byte of a request to the last of its answer, the
//! caller's own work (which the first row shows) left out, and prints a table. It counts, so a busy machine does not matter;
//! `tests/memory.rs` holds the whole stack to its number.

#![allow(unreachable_pub, dead_code, reason = "the modules of a bench are its own, and shared with another")]

#[path = "../overhead/exchange.rs"]
mod exchange;
#[path = "../overhead/measure.rs"]
mod measure;
#[path = "../overhead/resilience.rs"]
mod resilience;
#[path = "../overhead/stacks.rs"]
mod stacks;
#[path = "../overhead/subjects.rs"]
mod subjects;

use std::alloc::System;

use exchange::Asking;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Before anything is counted: enough for each of 10,000 keys to have served.
const WARM_UP: u32 = 100_000;
const REQUESTS: u32 = 1_000;

fn main() {
    let asking = Asking::new();
    let mut bare = None;
    println!("| above the bare call, a request | allocations | bytes |\n| --- | ---: | ---: |");
    for mut subject in subjects::subjects() {
        subject.run(&asking, WARM_UP);
        let region = Region::new(HEAP);
        subject.run(&asking, REQUESTS);
        let change = region.change();
        let each = |number: usize| number as f64 / f64::from(REQUESTS);
        let count = (each(change.allocations + change.reallocations), each(change.bytes_allocated));
        let (allocations, bytes) = *bare.get_or_insert(count);
        let above = if subject.name() == subjects::BARE { count } else { (count.0 - allocations, count.1 - bytes) };
        println!("| {} | {:.1} | {:.0} |", subject.name(), above.0, above.1);
    }
}
