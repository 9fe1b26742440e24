//! How many will be let in until then: what a line may hold.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::simulator::{Simulator, clock::Now, routing, scenario::Model, world::World};

impl Simulator {
    /// How many more requests the quotas of these keys' accounts let in from now to `until`; none when one has no quota.
    pub(crate) fn room_in_quotas(&self, labels: &[&str], until: Instant) -> Option<u64> {
        let now = self.shared.clock.now();
        let (world, end) = (self.shared.lock(), elapsed_at(now, until));
        let rooms = accounts(&world, labels).into_iter();
        rooms.map(|account| Some(world.accounts[account].quota.as_ref()?.room(now.elapsed, end))).sum()
    }

    /// How many more requests for `model` its providers' pools let in from now to `until`, and for a free one the free quotas of
    /// these keys' accounts; none when nothing counts them.
    pub(crate) fn room_for(&self, labels: &[&str], model: &str, until: Instant) -> Option<u64> {
        let (model, _) = routing::resolve(&self.shared.scenario, model)?;
        let now = self.shared.clock.now();
        let (world, end) = (self.shared.lock(), elapsed_at(now, until));
        let providers = self.shared.scenario.endpoints.iter().zip(&world.endpoints);
        let pools = providers.filter(|(endpoint, _)| endpoint.model == model.id).map(|(_, state)| state.pool.as_ref());
        let pools: Option<u64> = pools.map(|pool| Some(pool?.room(now.elapsed, end))).sum();
        let free = Model::is_free(&model.id).then(|| {
            let wait = end.saturating_sub(now.elapsed);
            let room = |account: usize| {
                let account = &world.accounts[account];
                account.free.room(account.free_daily_limit(), now.wall, now.wall.later(wait.as_secs_f64() * 1e3))
            };
            accounts(&world, labels).into_iter().map(room).sum()
        });
        pools.into_iter().chain(free).min()
    }
}

fn accounts(world: &World, labels: &[&str]) -> BTreeSet<usize> {
    labels.iter().filter_map(|label| Some(world.keys[world.key_labelled(label)?].account)).collect()
}

fn elapsed_at(now: Now, at: Instant) -> Duration {
    now.elapsed + at.saturating_duration_since(now.instant)
}
