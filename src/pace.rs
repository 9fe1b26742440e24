//! How fast requests may be sent: what a rate is, what a quota is, and how one is learned.
//!
//! Upstreams limit requests per minute, tokens per minute and requests per day, mostly without saying how many. A balancer
//! that finds out by running into the limit pays for it with refused requests; one that rests for a minute after each
//! refusal leaves most of the quota unused. Here is what paces instead, pure, with the time as an argument: the generic cell
//! rate algorithm for limits one knows ([`Rate`]), a count per UTC day, and a learner for limits one does not.
//!
//! Two stages use it. [`RateLimitLayer`](crate::RateLimitLayer) is a layer around any service, or around each key's stack.
//! [`Pacing`](crate::select::Pacing) is a filter of the selector, which is the place for limits that keys of an account
//! share; it is set up by a [`PacePolicy`].

mod day;
mod gcra;
mod learn;
mod policy;
mod state;

pub(crate) use gcra::Gcra;
pub use gcra::Rate;
pub use policy::{PaceError, PacePolicy, PaceScope};
pub(crate) use state::{Pace, Refusal};
