use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, ResponseFuture, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use crate::error::{UpstreamError, UpstreamErrorKind};

/// A transport over hyper-util's pooling client, with rustls (ring, the web's roots), HTTP/1 and HTTP/2.
///
/// It has no policy: it follows no redirects, decompresses nothing, keeps no cookies, reads no proxy from the environment
/// and repeats nothing. `TCP_NODELAY` is on. A connection must stand within 10 s; idle ones are kept 90 s; a silent HTTP/2
/// connection is probed after 20 s, so that a dead one does not swallow requests. `http` addresses are connected to as well.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use tower_openrouter::{OpenRouter, openrouter::HyperTransport};
///
/// let service = OpenRouter::new(HyperTransport::<Full<Bytes>>::new());
/// ```
///
/// With a client of one's own, for another connector or other pool settings, hand that to [`OpenRouter`](crate::OpenRouter)
/// as it is, or as a transport that tells connections that failed from those that broke:
///
/// ```
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// # use tower_openrouter::openrouter::HyperTransport;
/// let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http::<Full<Bytes>>();
/// let transport = HyperTransport::from_client(client);
/// ```
pub struct HyperTransport<B = Full<Bytes>, C = HttpsConnector<HttpConnector>> {
    // shared: each attempt clones a key's stack, and a client is a dozen handles and settings
    client: Arc<Client<C, B>>,
}

impl<B> HyperTransport<B>
where
    B: Body + Send,
    B::Data: Send,
{
    /// A client of its own.
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(Duration::from_secs(10)));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let tls = HttpsConnectorBuilder::new().with_provider_and_webpki_roots(rustls::crypto::ring::default_provider());
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => unreachable!("ring supports the default protocol versions: {error}"),
        };
        let connector = tls.https_or_http().enable_http1().enable_http2().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .http2_keep_alive_timeout(Duration::from_secs(10))
            .build(connector);
        Self::from_client(client)
    }
}

impl<B, C> HyperTransport<B, C> {
    /// Over a client one has. It should be built with `retry_canceled_requests(false)`, lest attempts go uncounted.
    pub fn from_client(client: Client<C, B>) -> Self {
        Self { client: Arc::new(client) }
    }
}

impl<B> Default for HyperTransport<B>
where
    B: Body + Send,
    B::Data: Send,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<B, C> Clone for HyperTransport<B, C> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone() }
    }
}

impl<B, C> fmt::Debug for HyperTransport<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperTransport").finish_non_exhaustive()
    }
}

impl<B, C> Service<Request<B>> for HyperTransport<B, C>
where
    for<'a> &'a Client<C, B>:
        Service<Request<B>, Response = Response<Incoming>, Error = Error, Future = ResponseFuture>,
{
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = HyperTransportFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        (&*self.client).poll_ready(cx).map_err(upstream_error)
    }

    fn call(&mut self, request: Request<B>) -> HyperTransportFuture {
        HyperTransportFuture { answer: (&*self.client).call(request) }
    }
}

pin_project! {
    /// The response future of [`HyperTransport`].
    pub struct HyperTransportFuture {
        #[pin]
        answer: ResponseFuture,
    }
}

impl Future for HyperTransportFuture {
    type Output = Result<Response<Incoming>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().answer.poll(cx)).map_err(upstream_error))
    }
}

impl fmt::Debug for HyperTransportFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperTransportFuture").finish_non_exhaustive()
    }
}

fn upstream_error(error: Error) -> BoxError {
    // cancelled: the pooled connection was gone before the request went out, so nothing was sent either
    let cancelled = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled);
    let kind = if error.is_connect() || cancelled { UpstreamErrorKind::Connect } else { UpstreamErrorKind::Reset };
    UpstreamError::new(kind, BoxError::from(error)).into()
}
