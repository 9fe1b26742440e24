use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{BreakerHandle, BreakerPolicy, CircuitBreaker, admission::Wiring, shared::Breaker};
use crate::{
    endpoint::Endpoint,
    outcome::{Classify, Judge},
};

/// Puts a circuit breaker in front of a service; see [the module](crate::breaker).
///
/// The state is the layer's: every service it makes, and every clone of the layer, shares one breaker. Make one layer for each
/// endpoint.
#[derive(Clone)]
pub struct CircuitBreakerLayer {
    breaker: Arc<Breaker>,
    classify: Judge,
    reject: bool,
}

impl CircuitBreakerLayer {
    /// A breaker with this policy, which many may share in an [`Arc`].
    pub fn new(policy: impl Into<Arc<BreakerPolicy>>) -> Self {
        Self { breaker: Arc::new(Breaker::new(policy)), classify: Judge::default(), reject: false }
    }

    /// Ties the breaker to an endpoint of a pool: suspect faults then count only while other endpoints succeed, and the
    /// endpoint shows until when the breaker is open, so that selection need not ask. The first endpoint stays.
    ///
    /// Without an endpoint a breaker has nobody to compare with, and suspect faults count as failures. An endpoint outside any
    /// pool is its own last one, which suspect faults never open: leave it out where they should.
    #[must_use]
    pub fn endpoint(self, endpoint: &Endpoint) -> Self {
        self.breaker.set_endpoint(endpoint);
        self
    }

    /// Says what answers mean that carry no outcome of their own. Default:
    /// [`HttpStatus`](crate::outcome::HttpStatus).
    #[must_use]
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.classify = Judge::new(classify);
        self
    }

    /// Refuses instead of waiting: while open, the service is ready and answers each call at once with
    /// [`Rejected`](crate::Rejected), naming the time that is left. For use outside a balancer.
    #[must_use]
    pub fn reject(mut self) -> Self {
        self.reject = true;
        self
    }

    /// A handle to watch and to switch the breaker.
    pub fn handle(&self) -> BreakerHandle {
        BreakerHandle::new(self.breaker.clone())
    }
}

impl Default for CircuitBreakerLayer {
    fn default() -> Self {
        Self::new(BreakerPolicy::default())
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let wiring = Wiring { breaker: self.breaker.clone(), classify: self.classify.clone() };
        CircuitBreaker::new(inner, wiring, self.reject)
    }
}

impl fmt::Debug for CircuitBreakerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerLayer")
            .field("breaker", &self.breaker)
            .field("reject", &self.reject)
            .finish_non_exhaustive()
    }
}
