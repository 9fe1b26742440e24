//! What tower-resilience has for the same purposes.

use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceBuilder};
use tower_resilience_bulkhead::BulkheadLayer;
use tower_resilience_circuitbreaker::CircuitBreakerLayer;
use tower_resilience_retry::RetryLayer;

use crate::exchange::Leaf;

type Asked = Request<Full<bytes::Bytes>>;
type Answered = Response<Full<bytes::Bytes>>;

fn is_failure(response: &Answered) -> bool {
    response.status().is_server_error() || response.status() == 429
}

/// Its retry alone.
pub(crate) fn retry<S>(
    inner: S,
) -> impl Service<Asked, Response = Answered, Error = S::Error, Future: Send> + Clone + Send + use<S>
where
    S: Service<Asked, Response = Answered, Future: Send, Error: Send> + Clone + Send + 'static,
{
    let retry = RetryLayer::<Asked, Answered, S::Error>::builder().max_attempts(3).retry_on_response(is_failure);
    retry.build().layer(inner)
}

/// Its circuit breaker alone.
pub(crate) fn breaker(
    leaf: Leaf,
) -> impl Service<Asked, Response = Answered, Error: std::fmt::Debug + Send, Future: Send> + Clone + Send + 'static {
    CircuitBreakerLayer::builder().classify_response(is_failure).build().expect("the defaults are valid").layer(leaf)
}

/// Its bulkhead alone, which is a concurrency limit.
pub(crate) fn bulkhead(
    leaf: Leaf,
) -> impl Service<Asked, Response = Answered, Error: std::fmt::Debug + Send, Future: Send> + Clone + Send + 'static {
    let layer = BulkheadLayer::builder().max_concurrent_calls(1 << 20).backpressure().build();
    layer.expect("the cap is not 0").layer(leaf)
}

/// Retry, breaker and bulkhead around one upstream: it has nothing that chooses among keys.
pub(crate) fn stack()
-> impl Service<Asked, Response = Answered, Error: std::fmt::Debug, Future: Send> + Clone + Send + 'static {
    let layer = BulkheadLayer::builder().max_concurrent_calls(1 << 20).backpressure().build();
    retry(ServiceBuilder::new().layer(layer.expect("the cap is not 0")).service(breaker(Leaf::new())))
}
