use std::{
    any::Any,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::{TARGET, Trace};
use crate::{error::Rejected, request::RequestContext};

/// The header by which a request asks to be explained, with `1`, and in which its response answers.
pub const HEADER: HeaderName = HeaderName::from_static("x-balancer-explain");

/// Explains requests. It goes outermost; see the [module](super).
///
/// Explained are requests that ask by the [`HEADER`], all of them if [told so](Self::all) or while somebody listens to the
/// events, and those for which a layer further out called [`RequestContext::explain`]. The header is taken off the request.
#[derive(Debug, Clone)]
#[must_use]
pub struct ExplainLayer {
    all: bool,
    header: bool,
}

impl ExplainLayer {
    /// Explains requests that ask for it.
    pub fn new() -> Self {
        Self { all: false, header: true }
    }

    /// Explains every request.
    pub fn all(mut self) -> Self {
        self.all = true;
        self
    }

    /// Sets whether to answer in the header; default yes. The header tells whoever asks the labels of keys.
    pub fn header(mut self, header: bool) -> Self {
        self.header = header;
        self
    }
}

impl Default for ExplainLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for ExplainLayer {
    type Service = Explain<S>;

    fn layer(&self, inner: S) -> Explain<S> {
        Explain { inner, layer: self.clone() }
    }
}

/// The service of an [`ExplainLayer`].
#[derive(Debug, Clone)]
pub struct Explain<S> {
    inner: S,
    layer: ExplainLayer,
}

impl<S> Explain<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for Explain<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: 'static,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = ExplainFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let asked = asks(request.headers_mut());
        let wanted = asked
            || self.layer.all
            || RequestContext::get(request.extensions()).is_some_and(|context| context.trace().is_some())
            || tracing::enabled!(target: TARGET, tracing::Level::DEBUG);
        let trace = wanted.then(|| RequestContext::of_arrived(&mut request, Some(Instant::now())).explain().clone());
        let watch = Watch { trace, header: asked && self.layer.header };
        ExplainFuture { inner: self.inner.call(request), watch }
    }
}

/// Takes the question off a request, and says whether it was put.
fn asks(headers: &mut HeaderMap) -> bool {
    !headers.is_empty() && headers.remove(HEADER).is_some_and(|value| matches!(value.as_bytes(), b"1" | b"true"))
}

pin_project! {
    /// The response future of [`Explain`].
    #[derive(Debug)]
    pub struct ExplainFuture<F> {
        #[pin]
        inner: F,
        watch: Watch,
    }
}

/// Notes what the caller got; dropped before that, that it left.
#[derive(Debug)]
struct Watch {
    trace: Option<Trace>,
    /// Whether to answer in the header.
    header: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(trace) = self.trace.take() {
            trace.left();
        }
    }
}

impl<F, ResB, E> Future for ExplainFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        let Some(trace) = this.watch.trace.take() else { return Poll::Ready(result) };
        match &mut result {
            Ok(response) => {
                trace.answered(response.status().as_u16(), response.extensions().get::<Rejected>());
                if this.watch.header {
                    let header = trace.header();
                    if !header.is_empty() {
                        response.headers_mut().insert(HEADER, header);
                    }
                }
                response.extensions_mut().insert(trace);
            }
            // an error type of one's own is the caller's to read
            Err(error) => trace.failed((error as &dyn Any).downcast_ref::<BoxError>().map(|error| &**error)),
        }
        Poll::Ready(result)
    }
}
