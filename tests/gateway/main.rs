//! The gateway as a process: what its clients, its upstream and its operator see.

mod api;
mod check;
mod cut;
mod explain;
mod failures;
mod floods;
mod frames;
mod framings;
mod keep_alive;
mod leaving;
mod log;
mod metrics;
#[cfg(feature = "otel")]
mod otel;
mod page;
mod polls;
mod process;
#[path = "../support/prometheus.rs"]
mod prometheus;
#[cfg(unix)]
mod record;
mod reload;
mod secrets;
mod slow;
mod smuggling;
mod support;
mod tls;
mod world;
