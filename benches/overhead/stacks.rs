//! The stacks that are compared.

use std::{
    convert::Infallible,
    future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::{
    BoxError, Service, ServiceBuilder,
    balance::p2c::Balance,
    buffer::BufferLayer,
    discover::ServiceList,
    layer::util::Identity,
    limit::ConcurrencyLimitLayer as TowerLimitLayer,
    load::{CompleteOnResponse, PeakEwma},
    retry::{Policy, RetryLayer as TowerRetryLayer},
    util::BoxService,
};
use tower_openrouter::{
    ApiKey, Balancer, Endpoint, KeySelectLayer, OpenRouter, endpoint_fn,
    select::{LeastInFlight, Pool},
    stack::BalancerBody,
};

use crate::exchange::Leaf;

type Asked = Request<Full<Bytes>>;

/// A pool of so many keys.
pub(crate) fn pool(keys: usize) -> Pool {
    let key = |index| ApiKey::new(format!("sk-or-v1-{index:064}")).expect("the secret is visible ASCII");
    Pool::new((0..keys).map(key)).expect("there are keys")
}

/// The default stack, every type known to the compiler.
pub(crate) fn ours(
    keys: usize,
) -> impl Service<
    Asked,
    Response = Response<impl Body<Data = Bytes, Error: std::fmt::Debug> + Send>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    Balancer::builder(pool(keys)).service(OpenRouter::new(Leaf::new()))
}

/// The default stack, boxed.
pub(crate) fn boxed(keys: usize) -> impl Service<Asked, Response = Response<BalancerBody>, Error = Infallible> {
    Balancer::builder(pool(keys)).build(OpenRouter::new(Leaf::new()))
}

/// Selection alone.
pub(crate) fn select(
    keys: usize,
) -> impl Service<Asked, Response = Response<impl Body<Data = Bytes, Error = Infallible>>, Error = BoxError> {
    let layer = KeySelectLayer::new(pool(keys), endpoint_fn(|_: &Endpoint| Identity::new()));
    ServiceBuilder::new().layer(layer.pick(LeastInFlight::default())).service(Leaf::new())
}

/// The same of tower's own parts: retry, buffer, and p2c over three endpoints with a limit each.
///
/// It neither sets a key nor looks at the answer, as ours does, nor does its limit last until the body's end.
pub(crate) fn towers()
-> impl Service<Asked, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send> + Clone + Send + 'static {
    let endpoint = || {
        let limited = ServiceBuilder::new().layer(TowerLimitLayer::new(usize::MAX >> 4)).service(Leaf::new());
        PeakEwma::new(limited, Duration::from_millis(500), 1e6, CompleteOnResponse::default())
    };
    ServiceBuilder::new()
        .layer(TowerRetryLayer::new(Attempts { left: 3 }))
        .layer(BufferLayer::new(1024))
        .service(Balance::new(ServiceList::new::<Asked>([endpoint(), endpoint(), endpoint()])))
}

/// So many services of one owner each, boxed, called in turn: the least that can go to one of many.
pub(crate) fn in_turn(
    services: usize,
) -> impl Service<Asked, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> {
    InTurn { services: (0..services).map(|_| BoxService::new(Leaf::new())).collect(), next: 0 }
}

struct InTurn {
    services: Vec<BoxService<Asked, Response<Full<Bytes>>, Infallible>>,
    next: usize,
}

impl Service<Asked> for InTurn {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = <BoxService<Asked, Response<Full<Bytes>>, Infallible> as Service<Asked>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.next = (self.next + STRIDE) % self.services.len();
        self.services[self.next].poll_ready(cx)
    }

    fn call(&mut self, request: Asked) -> Self::Future {
        self.services[self.next].call(request)
    }
}

/// Prime, so that it meets all, and the memory next to the last is not the memory of the next.
const STRIDE: usize = 7_919;

/// A retry policy as users write it.
#[derive(Clone)]
struct Attempts {
    left: usize,
}

impl<E> Policy<Asked, Response<Full<Bytes>>, E> for Attempts {
    type Future = future::Ready<()>;

    fn retry(&mut self, _: &mut Asked, result: &mut Result<Response<Full<Bytes>>, E>) -> Option<Self::Future> {
        let failed = match result {
            Ok(response) => response.status().is_server_error() || response.status() == 429,
            Err(_) => true,
        };
        (failed && self.left > 1).then(|| {
            self.left -= 1;
            future::ready(())
        })
    }

    fn clone_request(&mut self, request: &Asked) -> Option<Asked> {
        Some(request.clone())
    }
}

/// An endpoint for layers that want one.
pub(crate) fn endpoint() -> (ApiKey, Endpoint) {
    let endpoint = Arc::clone(&pool(1).endpoints())[0].clone();
    (endpoint.key().clone(), endpoint)
}
