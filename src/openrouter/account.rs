//! What OpenRouter tells about a key, its account and its models: `GET /key`, `GET /credits`, `GET /models`.
//!
//! Credit is spent by others too, caps are changed in a browser, and prices move, so a balancer has to ask. What comes back
//! has grown over the years, differs between an ordinary key and one for management, and lags behind. So it is read
//! leniently, member by member: a number is a number, `null` is *no limit*, and what is missing or odd is *unknown*, which is
//! neither of the two and never zero.
//!
//! [`AccountClient`] asks, over the same [`OpenRouter`](crate::OpenRouter) service that requests go through, so that base
//! URLs, the key's own one too, and the reading of errors are the same. It has no schedule:
//! [`AccountPoller`](crate::AccountPoller) has.

mod catalogue;
mod client;
mod info;
mod lenient;

pub use catalogue::ModelInfo;
pub use client::{AccountClient, LookupError};
pub use info::{Credits, KeyInfo};
