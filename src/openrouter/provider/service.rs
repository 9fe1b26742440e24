use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Config, OnFullPool,
    merge::{Past, Takes, is_full_pool, merge},
};
use crate::{
    outcome::{Outcome, OutcomeCell},
    request::RequestContext,
};

/// The service of a [`ProviderLayer`](super::ProviderLayer).
#[derive(Debug, Clone)]
pub struct ProviderService<S> {
    inner: S,
    /// `None` when every request passes as it came.
    config: Option<Arc<Config>>,
}

impl<S> ProviderService<S> {
    pub(super) fn new(inner: S, config: Option<Arc<Config>>) -> Self {
        Self { inner, config }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for ProviderService<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    B: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ProviderFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let config = self.config.as_ref();
        let watch = config.and_then(|config| Watch::start(config, &mut request));
        ProviderFuture { inner: self.inner.call(request), watch }
    }
}

/// An attempt after which the request may ask for something else.
struct Watch {
    config: Arc<Config>,
    takes: Takes,
    context: RequestContext,
    sent: Option<Bytes>,
}

impl Watch {
    /// Puts the preferences into the request.
    fn start<B: From<Bytes>>(config: &Arc<Config>, request: &mut Request<B>) -> Option<Box<Self>> {
        let takes = Takes::at(request.uri().path())?;
        let context = RequestContext::of(request);
        let body = context.body()?;
        let past = past(config, &context);
        let sent = merge(config, takes, body, context.asks(), &past).map(Bytes::from);
        if let Some(sent) = &sent {
            request.extensions_mut().insert(context.rewritten(sent.clone()));
            if let Some(length) = request.headers_mut().get_mut(CONTENT_LENGTH) {
                *length = sent.len().into();
            }
            *request.body_mut() = sent.clone().into();
        }
        let watched = config.on_full_pool != OnFullPool::Wait;
        watched.then(|| Box::new(Self { config: config.clone(), takes, context, sent }))
    }

    /// After a full pool: notes in the ledger when the next attempt will ask for something else, and so need not wait.
    fn end<B>(&self, response: &Response<B>) {
        let Self { config, takes, context, sent } = self;
        let outcome = response.extensions().get::<OutcomeCell>().and_then(OutcomeCell::at_commit);
        let (Some(Outcome::Fault(fault)), Some(body)) = (outcome, context.body()) else { return };
        if is_full_pool(&fault) {
            let next = merge(config, *takes, body, context.asks(), &past(config, context));
            if next.as_deref().map(str::as_bytes) != sent.as_deref() {
                context.ledger().detour();
            }
        }
    }
}

fn past(config: &Config, context: &RequestContext) -> Past {
    match config.on_full_pool {
        OnFullPool::Wait => Past::default(),
        _ => Past::of(context.ledger().current()),
    }
}

pin_project! {
    /// The response future of [`ProviderService`].
    pub struct ProviderFuture<F> {
        #[pin]
        inner: F,
        // boxed, since only who may ask for something else has one
        watch: Option<Box<Watch>>,
    }
}

impl<F, E, ResB> Future for ProviderFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let (Ok(response), Some(watch)) = (&result, this.watch) {
            watch.end(response);
        }
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for ProviderFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderFuture").finish_non_exhaustive()
    }
}
