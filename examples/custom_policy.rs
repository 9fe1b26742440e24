//! Policies of one's own, compared in the lab with the default ones, on traffic of one's own.
//!
//! `cargo run --release --example custom_policy` prints the table. The key `cheap` is to be used first (the pick), the other
//! for streams only, where somebody watches (the filter); five more failures than successes open a breaker (the trip policy).

use std::collections::BTreeMap;
use tokio::time::Instant;
use tower::BoxError;
use tower_openrouter::{
    Balancer, Endpoint, RequestContext,
    breaker::{BreakerPolicy, Trip, TripPolicy},
    lab::{Built, Comparison, Digest, Matrix, Scenario, Stack, World, stack_fn, stacks},
    pace::PacePolicy,
    select::{Candidates, Fit, Rng, filter_fn, pick_fn},
};

#[derive(Default)]
struct Lead(u32);
impl Trip for Lead {
    fn success(&mut self, _: Instant) {
        self.0 = self.0.saturating_sub(1);
    }
    fn failure(&mut self, _: Instant) -> bool {
        self.0 += 1;
        self.0 >= 5
    }
    fn clear(&mut self) {
        self.0 = 0;
    }
}

fn own(world: &World) -> Result<Built, BoxError> {
    let is_cheap = |endpoint: &Endpoint| endpoint.key().name() == "cheap";
    let cheap_first = pick_fn(move |candidates: &Candidates<'_>, turn: usize, _: &mut Rng| {
        candidates.endpoints.iter().position(is_cheap).filter(|_| turn == 0).unwrap_or(usize::MAX)
    });
    let watched = filter_fn(move |endpoint: &Endpoint, request: &RequestContext, _| {
        let fits = is_cheap(endpoint) || request.asks().stream;
        if fits { Fit::Yes } else { Fit::No }
    });
    let policies = Balancer::builder(world.pool()?).pace(PacePolicy::default()).pick(cheap_first).filter(watched);
    let balancer = policies.breaker(BreakerPolicy::new(TripPolicy::custom(Lead::default))).build(world.leaf());
    Ok(Built::new(balancer.clone()).watch(balancer.handle().clone()))
}

fn main() -> Result<(), BoxError> {
    let scenarios = [Scenario::from_toml(include_str!("custom_scenario.toml"))?];
    let stacks: [Box<dyn Stack>; 2] = [Box::new(stacks::DefaultStack), Box::new(stack_fn("own policies", own))];
    let mut comparison = Comparison::new(&scenarios, stacks.iter().map(|stack| &**stack));
    let mut dear = BTreeMap::new();
    let matrix = Matrix { scenarios: &scenarios, stacks: &stacks, seeds: if cfg!(debug_assertions) { 1 } else { 3 } };
    matrix.run(std::thread::available_parallelism()?, |_, run| {
        *dear.entry(run.stack.clone()).or_insert(0) += run.sent.iter().filter(|sent| sent.key == Some(1)).count();
        comparison.add(Digest::of(&run, &scenarios[0]));
    })?;
    print!("{}", comparison.table());
    assert!(dear["own policies"] < dear["default"], "the dear key is spared: {dear:?}");
    Ok(())
}
