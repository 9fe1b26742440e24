use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

#[cfg(feature = "metrics")]
use super::series::Figures;
use super::watch::Watch;
use crate::{
    body::{Guarded, Held},
    outcome::{Classify, Judge},
};

/// How many models have a label value of their own unless told otherwise.
#[cfg(feature = "metrics")]
const MODELS: usize = 1000;

/// Tells of each request how it came out: in a span and, with the feature `metrics`, in figures. See the [module](super).
///
/// It belongs above whatever tries again; above a [`KeepAliveLayer`](crate::KeepAliveLayer), which answers before there is an
/// answer, it could tell less.
#[derive(Clone)]
#[must_use]
pub struct ObserveLayer {
    pub(super) classify: Judge,
    #[cfg(feature = "metrics")]
    pub(super) figures: std::sync::Arc<Figures>,
}

impl ObserveLayer {
    /// For each of the first 1000 models a label value of its own; answers judged by their outcome or else by their status.
    pub fn new() -> Self {
        Self {
            classify: Judge::default(),
            #[cfg(feature = "metrics")]
            figures: std::sync::Arc::new(Figures::new(MODELS)),
        }
    }

    /// Sets how many models have a label value of their own; default 1000. Clients may ask for any name, so those that come
    /// later share the value `other`.
    #[cfg(feature = "metrics")]
    pub fn models(mut self, most: usize) -> Self {
        self.figures = std::sync::Arc::new(Figures::new(most));
        self
    }

    /// Sets who judges answers that carry no outcome, and errors; default [`HttpStatus`](crate::outcome::HttpStatus).
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.classify = Judge::new(classify);
        self
    }
}

impl Default for ObserveLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ObserveLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserveLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: self.clone() }
    }
}

/// The service of an [`ObserveLayer`].
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S> Observe<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: 'static,
    ResB: Body,
{
    type Response = Response<Guarded<ResB, Watch>>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let watch = Watch::start(&self.layer, &mut request, Instant::now());
        let span = watch.as_ref().and_then(Watch::span).cloned();
        let watch = watch.map(Held::new);
        let _entered = span.as_ref().map(|span| span.enter());
        ObserveFuture { inner: self.inner.call(request), watch }
    }
}

pin_project! {
    /// The response future of [`Observe`].
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        watch: Option<Held<Watch>>,
    }
}

impl<F, ResB, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: 'static,
    ResB: Body,
{
    type Output = Result<Response<Guarded<ResB, Watch>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let watch = this.watch.as_mut();
        let polled = match watch.and_then(Held::get_mut).and_then(|watch| watch.span()) {
            Some(span) => span.in_scope(|| this.inner.poll(cx)),
            None => this.inner.poll(cx),
        };
        let Poll::Ready(result) = polled else { return Poll::Pending };
        let watch = this.watch.as_mut().and_then(Held::take);
        Poll::Ready(match result {
            Ok(response) => {
                let watch = watch.map(|watch| watch.answered(&response));
                Ok(response.map(|body| Guarded::new(body, watch)))
            }
            Err(error) => {
                if let Some(watch) = watch {
                    watch.failed(&error);
                }
                Err(error)
            }
        })
    }
}
