//! The client: one channel, and many credentials that are sent over it as metadata.

use std::convert::Infallible;

use http::{Request, Response};
use tonic::{body::Body, transport::Channel};
use tower::{BoxError, ServiceBuilder, util::BoxCloneSyncService};
use tower_openrouter::{
    ApiKey, AuthorizeLayer, BufferLayer, CircuitBreakerLayer, CommitGateLayer, Endpoint, KeySelectLayer,
    LoadMonitorLayer, RespondLayer, RetryLayer, buffer::ReplayBody, endpoint_fn, outcome::Grpc, select::Pool,
};

use crate::chat::chat_client::ChatClient;

pub(crate) type Balanced = ChatClient<BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>>;

pub(crate) fn credentials<const N: usize>(names: [&str; N]) -> Result<Pool, BoxError> {
    let keys: Result<Vec<_>, _> = names.iter().map(|name| Ok(ApiKey::new(name)?.label(*name))).collect();
    Ok(Pool::new(keys.map_err(|error: tower_openrouter::KeyError| error)?)?)
}

/// Balances calls over the pool's credentials. Every layer that judges is told that it judges gRPC.
pub(crate) fn balanced(channel: Channel, pool: Pool) -> Balanced {
    let per_credential = endpoint_fn(|endpoint: &Endpoint| {
        ServiceBuilder::new()
            .layer(LoadMonitorLayer::endpoint(endpoint).classify(Grpc))
            .layer(CircuitBreakerLayer::default().endpoint(endpoint).classify(Grpc))
            .layer(AuthorizeLayer::new(endpoint.key()))
            .into_inner()
    });
    let stack = ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(RespondLayer::grpc())
        .layer(BufferLayer::tee()) // passes on what comes, and keeps it to be sent again
        .layer(RetryLayer::new().classify(Grpc))
        .layer(CommitGateLayer::new().classify(Grpc)) // a stream that fails before it says anything is a failed attempt
        .layer(KeySelectLayer::new(pool, per_credential).classify(Grpc))
        .map_request(|request: Request<ReplayBody>| request.map(Body::new))
        .service(channel);
    ChatClient::new(BoxCloneSyncService::new(stack))
}
