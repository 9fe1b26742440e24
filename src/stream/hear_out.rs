//! Hears an answer out when its reader has left, to learn what it cost.
//!
//! What an answer cost stands at its end. A caller who leaves in the middle never sees it, and neither do the books: a
//! [`CreditLimit`](crate::select::CreditLimit) has to take the worst case for the truth until the account is asked again. For
//! providers that stop when the connection closes that is the price of saving the rest. Many do not stop
//! (`openrouter-api.md` §5): they write the answer to its end and bill all of it, heard or not.
//!
//! [`HearOutLayer`] reads on in the caller's place, for a bounded time and number of bytes, and throws away what it reads. It
//! goes outermost, so that everything below sees an answer that goes on: permits, places in flight and reservations stay
//! taken, as is true, and are given back when the answer is over or the bound is reached. Only bodies are heard out: who leaves before there is a head may still have been waiting for a key, and is let go at once.
//!
//! It costs money where the provider would have stopped, so no stack has it unless it is asked for. It is the one layer
//! that hands on work for later: it spawns nothing itself, but gives what is to be read to whatever it was made with.
//!
//! # Examples
//!
//! With tokio's own tasks:
//!
//! ```
//! use tower::{Layer, ServiceBuilder};
//! use tower_openrouter::{Balancer, OpenRouter, stream::HearOutLayer};
//! # use tower_openrouter::{ApiKey, Pool, simulator::{Scenario, Simulator}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! # let transport = Simulator::new(Scenario::default())?.service();
//! # let pool = Pool::new([ApiKey::new("sk-or-v1-a")?])?;
//! let runtime = tokio::runtime::Handle::current();
//! let hear_out = HearOutLayer::new(move |rest| drop(runtime.spawn(rest)));
//! let service = ServiceBuilder::new().layer(hear_out).service(Balancer::builder(pool).build(OpenRouter::new(transport)));
//! # let _: &tower_openrouter::stream::hear_out::HearOut<Balancer<String>> = &service;
//! # Ok(()) }
//! ```
//!
//! With bounds of one's own:
//!
//! ```
//! use std::time::Duration;
//! use tower_openrouter::stream::HearOutLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let runtime = tokio::runtime::Handle::current();
//! let layer = HearOutLayer::new(move |rest| drop(runtime.spawn(rest))).time(Duration::from_secs(10)).bytes(256 * 1024);
//! # let _ = layer;
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use futures_core::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, timeout_at};
use tower_layer::Layer;
use tower_service::Service;

use crate::{clock, outcome::OutcomeCell};

/// Hears answers out whose readers have left. See the [module](self).
#[derive(Clone)]
pub struct HearOutLayer(Arc<Shared>);

struct Shared {
    spawn: Spawn,
    time: Duration,
    bytes: u64,
}

type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

impl HearOutLayer {
    /// Gives what is to be heard out to `spawn`, which should run it and may drop it: that ends the exchange, as if the layer
    /// were not there. It is called while a body is dropped, wherever that happens, and should not panic. At most 30 s and 1 MiB.
    pub fn new(spawn: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { spawn: Arc::new(spawn), time: Duration::from_secs(30), bytes: 1 << 20 }))
    }

    /// Sets for how long, from when the reader left; default 30 s. Zero hears nothing out; more than ten years count as ten
    /// years.
    #[must_use]
    pub fn time(self, time: Duration) -> Self {
        Self(Arc::new(Shared { time, spawn: self.0.spawn.clone(), ..*self.0 }))
    }

    /// Sets how many bytes, from where the reader left; default 1 MiB. Zero hears nothing out.
    #[must_use]
    pub fn bytes(self, bytes: u64) -> Self {
        Self(Arc::new(Shared { bytes, spawn: self.0.spawn.clone(), ..*self.0 }))
    }

    /// The response of a service that the layer is not around, to be heard out like those of one that it is.
    pub fn watch<B>(&self, response: Response<B>) -> Response<HearOutBody<B>>
    where
        B: Body<Data: Send> + Send + 'static,
    {
        // what failed costs nothing more
        let layer = response.status().is_success().then(|| self.clone());
        let cell = response.extensions().get().cloned();
        response.map(|body| HearOutBody { body: Some(Box::pin(body)), cell, layer })
    }
}

impl fmt::Debug for HearOutLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { time, bytes, .. } = &*self.0;
        f.debug_struct("HearOutLayer").field("time", time).field("bytes", bytes).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for HearOutLayer {
    type Service = HearOut<S>;

    fn layer(&self, inner: S) -> HearOut<S> {
        HearOut { inner, layer: self.clone() }
    }
}

/// The service of a [`HearOutLayer`].
#[derive(Debug, Clone)]
pub struct HearOut<S> {
    inner: S,
    layer: HearOutLayer,
}

impl<S> HearOut<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for HearOut<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    ResB: Body<Data: Send> + Send + 'static,
{
    type Response = Response<HearOutBody<ResB>>;
    type Error = S::Error;
    type Future = HearOutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        HearOutFuture { answer: self.inner.call(request), layer: self.layer.clone() }
    }
}

pin_project! {
    /// The response future of [`HearOut`].
    #[derive(Debug)]
    pub struct HearOutFuture<F> {
        #[pin]
        answer: F,
        layer: HearOutLayer,
    }
}

impl<F, ResB, E> Future for HearOutFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    ResB: Body<Data: Send> + Send + 'static,
{
    type Output = Result<Response<HearOutBody<ResB>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(ready!(this.answer.poll(cx)).map(|response| this.layer.watch(response)))
    }
}

/// A response body that is heard out when it is dropped before its end.
pub struct HearOutBody<B: Body<Data: Send> + Send + 'static> {
    body: Option<Pin<Box<B>>>,
    cell: Option<OutcomeCell>,
    /// `None` once there is nothing more to learn.
    layer: Option<HearOutLayer>,
}

impl<B: Body<Data: Send> + Send + 'static> fmt::Debug for HearOutBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HearOutBody").field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl<B: Body<Data: Send> + Send + 'static> Body for HearOutBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.layer = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl<B: Body<Data: Send> + Send + 'static> Drop for HearOutBody<B> {
    fn drop(&mut self) {
        let (Some(body), Some(HearOutLayer(shared))) = (self.body.take(), self.layer.take()) else { return };
        let is_known = |cell: &OutcomeCell| cell.usage().is_some() || cell.at_end().is_some();
        if body.is_end_stream()
            || self.cell.as_ref().is_some_and(is_known)
            || shared.bytes == 0
            || shared.time.is_zero()
        {
            return;
        }
        let until = clock::after(Instant::now(), shared.time);
        tracing::debug!(time = ?shared.time, bytes = shared.bytes, "the caller left: the rest of the answer is heard out");
        (shared.spawn)(Box::pin(hear_out(body, until, shared.bytes)));
    }
}

async fn hear_out<B: Body>(mut body: Pin<Box<B>>, until: Instant, bytes: u64) {
    let mut left = bytes;
    let read = async {
        while let Some(Ok(frame)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.remaining() as u64));
            if left == 0 || body.is_end_stream() {
                break;
            }
        }
    };
    // whatever it said is written down by the layers below, and what they hold goes with the body
    let _ = timeout_at(until, read).await;
}
