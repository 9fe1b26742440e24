use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use crate::error::{UpstreamError, UpstreamErrorKind};

/// A transport over a [`reqwest::Client`].
///
/// [`default_client`](Self::default_client) makes one without any policy, as the stack wants it: it follows no redirects,
/// decompresses nothing, keeps no cookies, reads no proxy from the environment and repeats nothing. This crate turns none of
/// reqwest's features on; `https` needs one of its TLS features in one's own manifest.
///
/// ```
/// use tower_openrouter::{OpenRouter, openrouter::ReqwestTransport};
///
/// let service = OpenRouter::new(ReqwestTransport::default_client()?);
/// # Ok::<(), reqwest::Error>(())
/// ```
///
/// With a client one has, whose policies stay what they are:
///
/// ```
/// # use std::time::Duration;
/// # use tower_openrouter::openrouter::ReqwestTransport;
/// let client = reqwest::Client::builder().retry(reqwest::retry::never()).connect_timeout(Duration::from_secs(3)).build()?;
/// let transport = ReqwestTransport::new(client);
/// # Ok::<(), reqwest::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ReqwestTransport {
    client: reqwest::Client,
}

impl ReqwestTransport {
    /// Over a client one has.
    pub fn new(client: reqwest::Client) -> Self {
        Self { client }
    }

    /// Over a client without policies; a connection must stand within 10 s.
    ///
    /// # Errors
    /// When reqwest cannot set up its TLS.
    pub fn default_client() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .referer(false)
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(10))
            .build()?;
        Ok(Self::new(client))
    }
}

impl<B> Service<Request<B>> for ReqwestTransport
where
    B: Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<reqwest::Body>;
    type Error = BoxError;
    type Future = ReqwestTransportFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.client.poll_ready(cx).map_err(upstream_error)
    }

    fn call(&mut self, request: Request<B>) -> ReqwestTransportFuture {
        let state = match reqwest::Request::try_from(request.map(reqwest::Body::wrap)) {
            Ok(request) => State::Running { answer: self.client.call(request) },
            Err(error) => State::Refused { error: Some(error) },
        };
        ReqwestTransportFuture { state }
    }
}

pin_project! {
    /// The response future of [`ReqwestTransport`].
    pub struct ReqwestTransportFuture {
        #[pin]
        state: State,
    }
}

pin_project! {
    #[project = StateProj]
    enum State {
        Running { #[pin] answer: <reqwest::Client as Service<reqwest::Request>>::Future },
        // before anything was sent
        Refused { error: Option<reqwest::Error> },
    }
}

impl Future for ReqwestTransportFuture {
    type Output = Result<Response<reqwest::Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Running { answer } => answer.poll(cx).map(|result| match result {
                Ok(response) => Ok(response.into()),
                Err(error) => Err(upstream_error(error)),
            }),
            StateProj::Refused { error } => match error.take() {
                Some(error) => Poll::Ready(Err(upstream_error(error))),
                None => Poll::Pending,
            },
        }
    }
}

impl fmt::Debug for ReqwestTransportFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReqwestTransportFuture").finish_non_exhaustive()
    }
}

fn upstream_error(error: reqwest::Error) -> BoxError {
    let unsent = error.is_connect() || error.is_builder();
    let kind = if unsent { UpstreamErrorKind::Connect } else { UpstreamErrorKind::Reset };
    UpstreamError::new(kind, BoxError::from(error)).into()
}
