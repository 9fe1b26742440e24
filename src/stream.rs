//! Answers that are streams: when they count as begun, what is said while they have not, and how they fail.
//!
//! OpenRouter sends 200 as soon as a provider accepts, before any token, and reasoning models may then think for minutes. So
//! the head of a stream says little: an error may be its first event, silence may be thought or the end of a connection, and
//! what fails after the first word cannot be taken back. Each answer to that is a layer of its own.

pub mod hear_out;
pub mod timeouts;

pub use hear_out::HearOutLayer;
pub use timeouts::TimeoutsLayer;
