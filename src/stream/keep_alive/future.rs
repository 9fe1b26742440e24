use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderValue, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;

use super::{Asked, KeepAliveBody, Later};
use crate::clock;

pin_project! {
    /// The response future of [`KeepAlive`](super::KeepAlive).
    pub struct KeepAliveFuture<F, B> {
        #[pin]
        state: State<F>,
        _body: std::marker::PhantomData<fn() -> B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // in a box as the others: they would be as large
        Straight { future: Pin<Box<F>> },
        // empty once it is passed on
        Watched { watched: Option<Watched<F>> },
    }
}

/// A request that may get its answer before there is one.
pub(super) struct Watched<F> {
    /// In a box, so that it can move into a body.
    pub(super) future: Pin<Box<F>>,
    /// Set when there is something to wait for.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    pub(super) asked: Asked,
}

impl<F, B> KeepAliveFuture<F, B> {
    pub(super) fn straight(future: F) -> Self {
        Self { state: State::Straight { future: Box::pin(future) }, _body: std::marker::PhantomData }
    }

    pub(super) fn watched(future: F, asked: Asked) -> Self {
        let watched = Watched { future: Box::pin(future), timer: None, asked };
        Self { state: State::Watched { watched: Some(watched) }, _body: std::marker::PhantomData }
    }
}

impl<F, B, E> Future for KeepAliveFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<KeepAliveBody<F, B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let slot = match self.project().state.project() {
            StateProj::Straight { future } => {
                return future.as_mut().poll(cx).map_ok(|response| response.map(KeepAliveBody::flowing));
            }
            StateProj::Watched { watched } => watched,
        };
        let watched = slot.as_mut().expect("polled after it was ready");
        if let Poll::Ready(answer) = watched.future.as_mut().poll(cx) {
            *slot = None;
            return Poll::Ready(answer.map(|response| response.map(KeepAliveBody::flowing)));
        }
        if watched.timer.is_none() && watched.asked.is_no_stream() {
            return Poll::Pending;
        }
        let times = watched.asked.times;
        let timer =
            watched.timer.get_or_insert_with(|| Box::pin(sleep_until(clock::after(Instant::now(), times.after))));
        if !timer.is_elapsed() {
            ready!(timer.as_mut().poll(cx));
        }
        // one whose body is still on its way is looked at again as that comes
        if !watched.asked.is_stream() {
            return Poll::Pending;
        }
        let Some(watched) = slot.take() else { unreachable!("it was there above") };
        watched.asked.context.keep_alive();
        let later = Later::default();
        let mut response = Response::new(KeepAliveBody::waiting(watched, later.clone()));
        response.extensions_mut().insert(later);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Poll::Ready(Ok(response))
    }
}

impl<F, B> fmt::Debug for KeepAliveFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAliveFuture").finish_non_exhaustive()
    }
}
