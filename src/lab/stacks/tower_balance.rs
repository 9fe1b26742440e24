use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::Full;
use tower::{
    BoxError, Layer, ServiceBuilder,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    load::{CompleteOnResponse, PendingRequestsDiscover},
    retry::{Policy, RetryLayer},
    util::rng,
};

use super::rotation::is_failure;
use crate::{
    AuthorizeLayer,
    lab::{Built, Stack, World},
    simulator::SimulatorBody,
};

/// How often a request is sent again.
const RETRIES: u32 = 2;
/// How many requests wait in the buffer.
const BOUND: usize = 1024;

/// Tower alone: `Retry` over a `Buffer` over p2c `Balance`, by requests in flight.
///
/// What its documentation leads to. To the balancer a key that refuses at once is the one that is least busy, so a dead or
/// spent key draws the traffic to it, retries included.
#[derive(Debug, Clone, Copy)]
pub struct TowerBalanceRecipe;

impl Stack for TowerBalanceRecipe {
    fn name(&self) -> &str {
        "tower-balance"
    }

    fn about(&self) -> &str {
        "tower alone: p2c Balance by requests in flight, behind a Buffer, with two immediate retries"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        if world.keys().is_empty() {
            return Err("the scenario has no key".into());
        }
        let with_key = |key| AuthorizeLayer::new(key).layer(world.upstream());
        let keys: Vec<_> = world.keys().iter().map(with_key).collect();
        let keys = ServiceList::new::<Request<Full<Bytes>>>(keys);
        let measured = PendingRequestsDiscover::new::<Request<Full<Bytes>>>(keys, CompleteOnResponse::default());
        let balance = Balance::from_rng(measured, Seeded(Rng::with_seed(world.seed())));
        let retried =
            ServiceBuilder::new().layer(RetryLayer::new(Attempts(RETRIES))).service(Buffer::new(balance, BOUND));
        Ok(Built::new(retried))
    }
}

/// Tower's own source of randomness has a new seed in each process.
#[derive(Clone)]
struct Seeded(Rng);

impl rng::Rng for Seeded {
    fn next_u64(&mut self) -> u64 {
        self.0.u64(..)
    }
}

#[derive(Clone)]
struct Attempts(u32);

impl<E> Policy<Request<Full<Bytes>>, Response<SimulatorBody>, E> for Attempts {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _request: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<SimulatorBody>, E>,
    ) -> Option<Self::Future> {
        let failed = result.as_ref().map_or(true, |answer| is_failure(answer.status()));
        self.0 = self.0.checked_sub(1).filter(|_| failed)?;
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}
