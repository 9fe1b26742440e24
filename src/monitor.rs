//! Measures what becomes of every attempt on an endpoint: how many, how long, how they ended, what they used.
//!
//! Two numbers mislead most balancers. A request is counted as over when its response head arrives, so an endpoint busy with
//! long streams looks idle; and a refusal in 20 ms counts as a fast answer, so the endpoint that refuses draws all traffic.
//! Here an attempt is in flight until its body ends, fails or is dropped; only successes enter the times; and each failure
//! counts for a while as one more request in flight.
//!
//! Every attempt ends in exactly one way: complete, a fault by its [`Cause`](crate::outcome::Cause), refused by a layer of
//! our own, or left by its caller; left after the request's deadline has passed, it timed out. What the end of a body says
//! wins over what its head said; a fault known before counts even when nobody reads the body. Time to the first byte is
//! that of real output: the comments by which OpenRouter keeps a stream open do not count.
//!
//! The [layer](LoadMonitorLayer) writes the [`Figures`](crate::endpoint::Figures) of an [`Endpoint`](crate::Endpoint), which
//! picks and the [`Snapshot`] read, and implements tower's [`Load`](tower::load::Load). Writing is a handful of atomic
//! additions; reading takes no lock that a request takes.
//!
//! Examples, around any service and in the stack of one key, are at [`LoadMonitorLayer`].

mod credit;
mod layer;
mod service;
mod snapshot;

pub use credit::CreditSnapshot;
pub use layer::{LoadMonitorLayer, MonitorHandle};
pub use service::{CurrentLoad, Exchange, LoadMonitor, LoadMonitorFuture};
pub use snapshot::{EndpointSnapshot, Measures, Snapshot, Spread};
