//! What several stacks of the same settings have in common, and how the settings become a stack.

use super::{SettingError, Settings};
use crate::{
    Balancer, BufferLayer, HedgeLayer, KeySelectLayer, RetryLayer,
    select::{AdaptiveLimit, Pacing, Pick, Pool},
    stack::BalancerBuilder,
};

/// What knows or counts something for all stacks that spend the same keys: those of several routes, or a stack and the one
/// that takes its place. Clones are the same.
#[derive(Debug, Clone)]
pub struct Shared {
    /// With the budget of retries.
    pub retry: RetryLayer,
    /// With what is late.
    pub hedge: Option<HedgeLayer>,
    /// With the memory of bodies.
    pub buffer: BufferLayer,
    /// With what runs at once.
    pub learned: Option<AdaptiveLimit>,
    /// With what was sent.
    pub pacing: Option<Pacing>,
}

impl Shared {
    /// What `settings` need anew.
    ///
    /// # Errors
    /// For a setting that its layer refuses.
    pub fn new(settings: &Settings) -> Result<Self, SettingError> {
        Ok(Self {
            retry: settings.retry.layer()?,
            hedge: settings.hedge.layer()?,
            buffer: settings.limits.buffer(),
            learned: settings.limits.learned()?,
            pacing: settings.pace.filter()?,
        })
    }

    /// What `new` settings need after `old` ones: what has not changed is taken over with all it knows.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn renew(&self, old: &Settings, new: &Settings) -> Result<Self, SettingError> {
        let mut next = Self::new(new)?;
        if old.retry == new.retry {
            next.retry = self.retry.clone();
        }
        if old.hedge == new.hedge {
            next.hedge = self.hedge.clone();
        }
        if old.limits == new.limits {
            next.buffer = self.buffer.clone();
            next.learned = self.learned.clone();
        }
        if old.pace == new.pace {
            next.pacing = self.pacing.clone();
        }
        Ok(next)
    }
}

impl Settings {
    /// The default stack as it is set, over all keys of `pool`.
    ///
    /// # Errors
    /// For a setting that its layer refuses.
    pub fn balancer(&self, pool: Pool) -> Result<BalancerBuilder<Box<dyn Pick>>, SettingError> {
        self.stack(Balancer::builder(pool), &Shared::new(self)?)
    }

    /// The default stack as it is set, over the keys of the builder's pool, and with what it shares with others.
    ///
    /// # Errors
    /// For a setting that its layer refuses.
    pub fn stack<P: Pick>(
        &self,
        builder: BalancerBuilder<P>,
        shared: &Shared,
    ) -> Result<BalancerBuilder<Box<dyn Pick>>, SettingError> {
        let BalancerBuilder { select, stages } = builder;
        let select = self.select_layer(select, &stages.pool, shared)?;
        let mut builder = BalancerBuilder { select, stages }
            .breaker(self.breaker.policy()?)
            .retry(shared.retry.clone())
            .provider(self.provider_layer()?)
            .buffer(shared.buffer.clone())
            .deadline(self.deadline_layer()?)
            .timeouts(self.timeouts.layer()?)
            .commit_gate(self.stream.commit_gate());
        if let Some(cap) = self.limits.max_in_flight {
            let capped = builder.max_in_flight(cap.get());
            builder = capped.map_err(|error| SettingError::new("limits.max_in_flight", error))?;
        }
        if let Some(hedge) = &shared.hedge {
            builder = builder.hedge(hedge.clone());
        }
        Ok(builder)
    }

    /// How one selects among the keys of `pool`, and waits for one.
    pub(crate) fn select_layer<L, P: Pick>(
        &self,
        layer: KeySelectLayer<L, P>,
        pool: &Pool,
        shared: &Shared,
    ) -> Result<KeySelectLayer<L, Box<dyn Pick>>, SettingError> {
        let endpoints = pool.endpoints();
        let pick = self.select.policy(endpoints.iter().map(|endpoint| endpoint.key()));
        let layer = layer.pick(pick).max_wait(self.waiting.max_wait.0).max_waiters(self.waiting.max_waiters);
        let mut layer = self.select.bound(layer)?;
        if let Some(pacing) = &shared.pacing {
            layer = layer.filter(pacing.clone());
        }
        if let Some(learned) = &shared.learned {
            layer = layer.filter(learned.clone());
        }
        if let Some(floor) = self.credit.floor_filter() {
            layer = layer.filter(floor);
        }
        if let Some(limit) = self.credit.limit_filter() {
            layer = layer.filter(limit);
        }
        Ok(layer)
    }
}
