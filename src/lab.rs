//! The policy lab: whole stacks of policies, compared on a simulated upstream in virtual time.
//!
//! Which policies should be stacked, with which numbers, for these keys and that traffic? In production the answer costs
//! money and incidents. Here it costs seconds: a [`Scenario`] says who has which quotas, what goes wrong when, and who asks
//! for what; a [`Stack`] is what would be deployed, literally; [`run`] puts the one before the other under a clock that waits
//! for nobody, and keeps everything both sides saw in a [`Run`]. A seed makes a run repeatable to the byte.

mod compare;
mod figures;
mod report;
mod matrix;
mod run;
mod scenario;
mod series;
mod stack;
pub mod stacks;
mod upstream;
mod written;

pub use compare::{Better, Comparison, Difference, Digest, METRICS, Metric, Setting, Spread, Standing, Sweep};
pub use figures::{Errors, Figures, Latency, Reaction, Trouble};
pub use matrix::Matrix;
pub use run::{Ending, Run, Sample, Watched, WatchedKey, run, run_asks};
pub use scenario::{Ask, Patience, Scenario, ScenarioError};
pub use stack::{Built, LabBody, LabService, Stack, StackFn, World, stack_fn};
pub use upstream::{Sent, Upstream, UpstreamFuture};
