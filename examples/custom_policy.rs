//! A policy of one's own, compared in the lab with the default one, on traffic of one's own.
//!
//! `cargo run --release --example custom_policy` prints the table. The account whose key has the label `cheap` is to be used
//! first: the other only for what it cannot take.

use std::num::NonZeroUsize;

use tower::BoxError;
use tower_openrouter::{
    Balancer, Endpoint,
    lab::{Built, Comparison, Digest, Matrix, Scenario, Stack, World, stack_fn, stacks},
    pace::PacePolicy,
    select::{Candidates, Pick, Rank, Rng},
};

/// Proposes the cheap key, then whatever else there is.
#[derive(Debug)]
struct CheapFirst;

impl Pick for CheapFirst {
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, _: &mut Rng) -> usize {
        match turn {
            0 => candidates.endpoints.iter().position(is_cheap).unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, _: &mut Rng) -> Option<Rank> {
        Some(Rank::from(if is_cheap(&candidates.endpoints[index]) { 0.0 } else { 1.0 }))
    }
}

fn is_cheap(endpoint: &Endpoint) -> bool {
    endpoint.key().name() == "cheap"
}

fn main() -> Result<(), BoxError> {
    let scenarios = [Scenario::from_toml(include_str!("custom_scenario.toml"))?];
    let cheap_first = stack_fn("cheap-first", |world: &World| {
        let builder = Balancer::builder(world.pool()?).pace(PacePolicy::default()).pick(CheapFirst);
        let balancer = builder.build(world.leaf());
        let handle = balancer.handle().clone();
        Ok(Built::new(balancer).watch(handle))
    });
    let stacks: [Box<dyn Stack>; 2] = [Box::new(stacks::DefaultStack), Box::new(cheap_first)];
    let mut comparison = Comparison::new(&scenarios, stacks.iter().map(|stack| &**stack));
    let matrix = Matrix { scenarios: &scenarios, stacks: &stacks, seeds: 3 };
    let jobs = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    matrix.run(jobs, |_, run| comparison.add(Digest::of(&run, &scenarios[0])))?;
    print!("{}", comparison.table());
    Ok(())
}
