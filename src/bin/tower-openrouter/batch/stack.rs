//! The gateway's balancer, without its listeners.

use std::{env, error::Error};

use bytes::Bytes;
use http_body_util::Full;
use tower_openrouter::{Balancer, OpenRouter};

use crate::gateway::{
    Arguments,
    balancer::{Upstream, builder},
    keys,
};

/// What stands behind a batch.
pub(super) struct Stack {
    pub(super) balancer: Balancer<Full<Bytes>>,
    /// A model to ask, when it is the simulator that answers.
    pub(super) simulated: Option<String>,
}

impl Stack {
    /// As the gateway's would be. All of `concurrency` may wait for a key at once.
    pub(super) fn open(arguments: Arguments, concurrency: usize) -> Result<Self, Box<dyn Error>> {
        let settings = arguments.settle()?;
        let keys = keys::load(&settings.keys, &settings.folder, &env::vars_os().collect())?;
        let (upstream, keys) = Upstream::choose(&settings, keys)?;
        let builder = builder(&settings, keys)?.max_waiters(concurrency);
        let balancer = match &upstream {
            Upstream::Real(url) => builder.build(Upstream::leaf(url)?),
            Upstream::Simulated(simulator, _) => builder.build(OpenRouter::new(simulator.service())),
        };
        Ok(Self { balancer, simulated: upstream.simulated_model().map(str::to_owned) })
    }
}
