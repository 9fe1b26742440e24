//! What streams through the gateway cost, in short: the whole is `cargo bench --bench streams`.
//!
//! Tests are built without optimisation and run beside others, so the bounds are wide; what they catch is a buffer for each
//! event, a wait for the next one, or a stream that is kept in memory.

#![cfg(target_os = "linux")]
#![allow(dead_code, reason = "the bench uses all of it")]

use std::{net::SocketAddr, thread, time::Duration};

#[path = "../benches/streams/gateway.rs"]
mod gateway;
#[path = "../benches/streams/load.rs"]
mod load;
#[path = "../benches/streams/upstream.rs"]
mod upstream;

use gateway::Gateway;
use load::{Load, Seen};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn upstream() -> SocketAddr {
    let runtime = runtime();
    let (listener, address) = runtime.block_on(async { upstream::listen() }).unwrap();
    thread::spawn(move || runtime.block_on(upstream::serve(listener)));
    address
}

/// The most memory that the gateway takes while this runs, above what it took before, and what the clients saw.
fn growth(gateway: &Gateway, load: Load) -> (u64, Seen) {
    let before = gateway.memory().unwrap();
    let api = gateway.api;
    let clients = thread::spawn(move || runtime().block_on(load.run(api)));
    let mut most = before;
    while !clients.is_finished() {
        most = most.max(gateway.memory().unwrap());
        thread::sleep(Duration::from_millis(20));
    }
    ((most - before) / load.streams as u64, clients.join().unwrap())
}

fn streams(streams: usize, events: u64, every: Duration) -> Load {
    Load { streams, events, every, bytes: 200, ramp: Duration::from_millis(200), stall: None }
}

#[test]
fn each_event_comes_through_when_it_is_sent() {
    let upstream = upstream();
    let gateway = Gateway::before(upstream);
    let load = streams(20, 100, Duration::from_millis(40));
    let direct = runtime().block_on(load.run(upstream));
    let through = runtime().block_on(load.run(gateway.api));
    assert_eq!((direct.failed, through.failed), (0, 0));
    assert_eq!(through.delays.len(), 2000);
    let [direct, through, late] = [direct.quantile(0.5), through.quantile(0.5), through.quantile(0.99)];
    println!("direct {direct:?}, through {through:?}, 99 of 100 {late:?}");
    assert!(through < load.every, "an event waits for the next: {through:?}, directly {direct:?}");
    assert!(late < 10 * load.every, "{late:?}");
}

#[test]
fn r072_clients_that_do_not_read_hold_the_upstream_up_and_not_the_memory() {
    let upstream = upstream();
    let gateway = Gateway::before(upstream);
    let warm = runtime().block_on(streams(20, 20, Duration::from_millis(5)).run(gateway.api));
    assert_eq!(warm.failed, 0);
    let load = Load {
        events: 1_000_000,
        every: Duration::ZERO,
        bytes: 1000,
        stall: Some(Duration::from_secs(4)),
        ..streams(100, 0, Duration::ZERO)
    };
    let sending = thread::spawn(move || {
        thread::sleep(Duration::from_millis(3500));
        runtime().block_on(load::sent(upstream)).unwrap() / 100
    });
    let (each, seen) = growth(&gateway, load);
    println!("{each} bytes each");
    assert_eq!(seen.failed, 0);
    assert!(each <= 192 * 1024, "{each} bytes each");
    // the rest lies with the kernels on the way, which grow their buffers as they see fit, to some megabytes for each of two
    // connections; unread, each stream has a gigabyte to send
    let sent = sending.join().unwrap();
    assert!(sent < 8 * 1024 * 1024, "the upstream goes on sending: {sent} bytes each");
}

#[test]
fn a_stream_that_flows_takes_little_memory() {
    let gateway = Gateway::before(upstream());
    let warm = runtime().block_on(streams(20, 20, Duration::from_millis(5)).run(gateway.api));
    assert_eq!(warm.failed, 0);
    let (each, seen) = growth(&gateway, streams(200, 10, Duration::from_millis(200)));
    println!("{each} bytes each");
    assert_eq!(seen.failed, 0);
    assert!(each <= 128 * 1024, "{each} bytes each");
}
