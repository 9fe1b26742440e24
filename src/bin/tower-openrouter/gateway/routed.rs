//! The stack over all keys, and before it the routes, where there are any.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::Either;
use pin_project_lite::pin_project;
use tower::{Service, util::BoxCloneSyncService};
use tower_openrouter::{respond::RespondBody, stack::BalancerBody};

/// Routes, each with a stack of its own.
pub(crate) type Routes<B> = BoxCloneSyncService<Request<B>, Response<RoutesBody>, Infallible>;
type RoutesBody = RespondBody<BalancerBody>;

/// Sends requests by their model where there are routes. Without them, and for look-ups, which have no model, it is the stack
/// over all keys, with nothing boxed.
pub(crate) struct Routed<S, B> {
    all: S,
    routes: Option<Routes<B>>,
}

impl<S, B> Routed<S, B> {
    pub(crate) fn new(all: S, routes: Option<Routes<B>>) -> Self {
        Self { all, routes }
    }
}

impl<S: Clone, B> Clone for Routed<S, B> {
    fn clone(&self) -> Self {
        Self { all: self.all.clone(), routes: self.routes.clone() }
    }
}

impl<S, B, ResB> Service<Request<B>> for Routed<S, B>
where
    S: Service<Request<B>, Response = Response<ResB>, Error = Infallible>,
{
    type Response = Response<Either<ResB, RoutesBody>>;
    type Error = Infallible;
    type Future = RoutedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if let Some(routes) = &mut self.routes {
            ready!(routes.poll_ready(cx))?;
        }
        self.all.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match &mut self.routes {
            Some(routes) if request.method() == Method::POST => RoutedFuture::Routed { answer: routes.call(request) },
            _ => RoutedFuture::All { answer: self.all.call(request) },
        }
    }
}

pin_project! {
    /// The answer of either.
    #[project = RoutedProj]
    pub(crate) enum RoutedFuture<F> {
        All {
            #[pin]
            answer: F,
        },
        Routed {
            answer: BoxFuture<'static, Result<Response<RoutesBody>, Infallible>>,
        },
    }
}

impl<F, ResB> Future for RoutedFuture<F>
where
    F: Future<Output = Result<Response<ResB>, Infallible>>,
{
    type Output = Result<Response<Either<ResB, RoutesBody>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            RoutedProj::All { answer } => answer.poll(cx).map_ok(|response| response.map(Either::Left)),
            RoutedProj::Routed { answer } => answer.as_mut().poll(cx).map_ok(|response| response.map(Either::Right)),
        }
    }
}
