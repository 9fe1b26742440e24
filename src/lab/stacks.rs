//! The stacks that come with the lab: the default one, the recipes people write themselves, and an oracle as the mark.
//!
//! A table of one's own stacks says little without what they replace. The recipes are what is found in real code, each with
//! its well-known weakness; what they know of an answer is its status and its headers.

mod balancer;
pub mod composed;
mod cooldown;
mod first_healthy;
mod oracle;
mod rotation;
mod round_robin;
mod shuffle;
mod tower_balance;
mod wait_then_all;

pub use balancer::DefaultStack;
pub use composed::Composed;
pub use cooldown::CooldownRecipe;
pub use first_healthy::FirstHealthyRecipe;
pub use oracle::OracleStack;
pub use round_robin::RoundRobinRecipe;
pub use shuffle::ShuffleRecipe;
pub use tower_balance::TowerBalanceRecipe;
pub use wait_then_all::WaitThenAllRecipe;

use super::Stack;

/// All of them, in the order of the tables.
pub fn all() -> Vec<Box<dyn Stack>> {
    vec![
        Box::new(DefaultStack),
        Box::new(RoundRobinRecipe),
        Box::new(CooldownRecipe),
        Box::new(FirstHealthyRecipe),
        Box::new(ShuffleRecipe),
        Box::new(WaitThenAllRecipe),
        Box::new(TowerBalanceRecipe),
        Box::new(OracleStack),
    ]
}

/// The one of this name.
pub fn by_name(name: &str) -> Option<Box<dyn Stack>> {
    all().into_iter().find(|stack| stack.name() == name)
}
