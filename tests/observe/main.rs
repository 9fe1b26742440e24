//! What an operator sees: figures and spans, and nothing that is secret.

mod canary;
mod metrics;
#[path = "../support/prometheus.rs"]
mod prometheus;
mod spans;
mod world;
