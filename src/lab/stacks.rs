//! The stacks that come with the lab: the default one, the recipes people write themselves, and an oracle as the mark.

mod balancer;

pub use balancer::DefaultStack;
