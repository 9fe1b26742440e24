//! The policy lab: whole stacks of policies, compared on a simulated upstream in virtual time.
//!
//! Which policies should be stacked, with which numbers, for these keys and that traffic? In production the answer costs
//! money and incidents. Here it costs seconds: a [`Scenario`] says who has which quotas, what goes wrong when, and who asks
//! for what; a [`Stack`] is what would be deployed, literally; [`run`] puts the one before the other under a clock that waits
//! for nobody, and keeps everything both sides saw in a [`Run`]. A seed makes a run repeatable to the byte.

mod arrivals;
mod compare;
mod figures;
mod matrix;
mod mix;
mod report;
mod run;
mod scenario;
mod scenarios;
mod series;
mod stack;
pub mod stacks;
pub mod sweep;
pub mod trace;
mod upstream;
mod written;

pub use arrivals::{Arrivals, Burst, Gaps, Rate};
pub use compare::{Better, Comparison, Difference, Digest, Grid, METRICS, Metric, Setting, Spread, Standing};
pub use figures::{Errors, Figures, Latency, Reaction, Trouble};
pub use matrix::Matrix;
pub use mix::{Entry, Size};
pub use run::{Ending, Run, Sample, Watched, WatchedKey, run, run_asks};
pub use scenario::{Ask, Patience, Scenario, ScenarioError};
pub use stack::{Built, LabBody, LabService, Stack, StackFn, World, stack_fn};
pub use sweep::{Sweep, SweepError, Swept};
pub use upstream::{Sent, Upstream, UpstreamFuture};
