//! The service: a model behind gRPC, as somebody has it, and the layers that are put around it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{BoxError, ServiceBuilder};
use tower_openrouter::{
    CircuitBreakerLayer, ConcurrencyLimitLayer, LoadMonitorLayer, RespondLayer,
    breaker::{BreakerPolicy, TripPolicy},
    monitor::MonitorHandle,
    outcome::Grpc,
};

use crate::chat::{Answer, Delta, Prompt, chat_server};

/// What an account has left, and what it asked for.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) left: u32,
    pub(crate) served: u32,
    pub(crate) refused: u32,
}

/// Repeats what it is told, in capitals.
#[derive(Clone, Default)]
pub(crate) struct Model(Arc<Mutex<BTreeMap<String, Account>>>);

impl Model {
    pub(crate) fn accounts(&self) -> MutexGuard<'_, BTreeMap<String, Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls came as far as here.
    pub(crate) fn calls(&self) -> u32 {
        self.accounts().values().map(|account| account.served + account.refused).sum()
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let credential = metadata.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let name = credential.unwrap_or("nobody").to_owned();
        let mut accounts = self.accounts();
        let known = accounts.contains_key(&name);
        let account = accounts.entry(name).or_default();
        if known && account.left > 0 {
            (account.left, account.served) = (account.left - 1, account.served + 1);
            return Ok(());
        }
        account.refused += 1;
        if !known || account.served == 0 {
            return Err(Status::unauthenticated("no such account"));
        }
        // as Google's services say it: google.rpc.RetryInfo in grpc-status-details-bin
        let in_a_minute = ErrorDetails::with_retry_info(Some(Duration::from_secs(60)));
        Err(Status::with_error_details(Code::ResourceExhausted, "the account's quota is used up", in_a_minute))
    }
}

#[tonic::async_trait]
impl chat_server::Chat for Model {
    async fn complete(&self, request: Request<Prompt>) -> Result<Response<Answer>, Status> {
        self.admit(request.metadata())?; // an error here is an answer of trailers only
        match request.into_inner().text {
            text if text == "fail" => Err(Status::internal("out of order")),
            text => Ok(Response::new(Answer { text: text.to_uppercase() })),
        }
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Delta, Status>> + Send>>;

    async fn stream(&self, request: Request<Prompt>) -> Result<Response<Self::StreamStream>, Status> {
        // the head is sent before anybody looks: an error is told by the trailers, wherever it comes
        let admitted = self.admit(request.metadata());
        let text = request.into_inner().text;
        let words = text.split_whitespace().map(|word| match word {
            "cut" => Err(Status::unavailable("the model went away")),
            word => Ok(Delta { text: word.to_uppercase() }),
        });
        let deltas: Vec<_> = match admitted {
            Ok(()) => words.collect(),
            Err(status) => vec![Err(status)],
        };
        let endless = text.ends_with('…').then(stream::pending);
        Ok(Response::new(stream::iter(deltas).chain(stream::iter(endless).flatten()).boxed()))
    }
}

/// Serves the model behind a monitor, a breaker and a limit of two calls at once.
pub(crate) async fn serve(model: Model) -> Result<(SocketAddr, MonitorHandle), BoxError> {
    let monitor = LoadMonitorLayer::new().classify(Grpc);
    let watch = monitor.handle();
    let broken = BreakerPolicy::new(TripPolicy::consecutive(3)?);
    let layers = ServiceBuilder::new()
        .layer(RespondLayer::grpc()) // what is refused below becomes a gRPC status: tonic's services cannot fail
        .layer(monitor)
        .layer(CircuitBreakerLayer::new(broken).classify(Grpc).reject())
        .layer(ConcurrencyLimitLayer::new(2)?.refuse())
        .into_inner();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = chat_server::ChatServer::new(model);
    let server = Server::builder().layer(layers).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Ok((address, watch))
}
