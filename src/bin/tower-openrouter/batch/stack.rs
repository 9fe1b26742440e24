//! The gateway's stack, without its listeners.

use std::{convert::Infallible, env, error::Error};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};
use tower_openrouter::{OpenRouter, buffer::ReplayBody, openrouter::HyperTransport, stack::BalancerHandle};

use crate::gateway::{
    self, Arguments, Transport, Trouble, Upstream, leaf,
    poll::{self, Polling},
    routed::Routed,
};

/// The stack as one service.
pub(super) type Balancer =
    BoxCloneSyncService<Request<Full<Bytes>>, Response<UnsyncBoxBody<Bytes, BoxError>>, Infallible>;

/// What stands behind a batch.
pub(super) struct Stack {
    pub(super) balancer: Balancer,
    pub(super) handle: BalancerHandle,
    /// A model to ask, when it is the simulator that answers.
    pub(super) simulated: Option<String>,
    pub(super) polling: Option<Polling>,
}

impl Stack {
    /// As the gateway's would be. All of `concurrency` may wait for a key at once.
    pub(super) fn open(arguments: &Arguments, concurrency: usize) -> Result<Self, Box<dyn Error>> {
        let mut configuration = arguments.load(&env::vars_os().collect())?;
        let upstream = Upstream::choose(&mut configuration)?;
        let waiters = &mut configuration.settings.waiting.max_waiters;
        *waiters = concurrency.max(*waiters);
        let opened = match upstream {
            Upstream::Real => Self::before(&configuration, HyperTransport::<ReplayBody>::new(), None),
            Upstream::Simulated(simulator, model) => Self::before(&configuration, simulator.service(), Some(model)),
        };
        Ok(opened.map_err(|trouble| configuration.tell(&trouble))?)
    }

    fn before<T: Transport>(
        configuration: &gateway::Configuration,
        transport: T,
        simulated: Option<String>,
    ) -> Result<Self, Trouble> {
        let settings = &configuration.settings;
        let leaf: OpenRouter<T> = leaf(settings, transport)?;
        let stack = gateway::stack::Stack::build(configuration, None)?;
        let (routes, handle) = (stack.routes(settings, &leaf)?, stack.handle());
        let polling = poll::start(settings, handle.pool(), leaf.clone())?;
        let service = Routed::new(stack.all.service(leaf), routes);
        let service =
            service.map_response(|response: Response<_>| response.map(|body| body.map_err(Into::into).boxed_unsync()));
        Ok(Self { balancer: BoxCloneSyncService::new(service), handle, simulated, polling })
    }
}
