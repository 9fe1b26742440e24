//! The gateway's balancer, without its listeners.

use std::{env, error::Error};

use bytes::Bytes;
use http_body_util::Full;
use tower_openrouter::{Balancer, OpenRouter, openrouter::HyperTransport};

use crate::gateway::{self, Arguments, Trouble, Upstream, leaf};

/// What stands behind a batch.
pub(super) struct Stack {
    pub(super) balancer: Balancer<Full<Bytes>>,
    /// A model to ask, when it is the simulator that answers.
    pub(super) simulated: Option<String>,
}

impl Stack {
    /// As the gateway's would be. All of `concurrency` may wait for a key at once.
    pub(super) fn open(arguments: &Arguments, concurrency: usize) -> Result<Self, Box<dyn Error>> {
        let mut configuration = arguments.load(&env::vars_os().collect())?;
        let upstream = Upstream::choose(&mut configuration)?;
        let told = |trouble: Trouble| configuration.tell(&trouble);
        let builder = gateway::Stack::build(&configuration, None).map_err(told)?.builder.max_waiters(concurrency);
        let (balancer, simulated) = match upstream {
            Upstream::Real => {
                (builder.build(leaf(&configuration.settings, HyperTransport::new()).map_err(told)?), None)
            }
            Upstream::Simulated(simulator, model) => (builder.build(OpenRouter::new(simulator.service())), Some(model)),
        };
        Ok(Self { balancer, simulated })
    }
}
