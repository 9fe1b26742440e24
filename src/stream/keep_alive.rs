use std::{
    mem,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Method, Request, Response, header::ACCEPT};
use http_body::Body;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::StreamError;
use crate::{answer::Shape, request::RequestContext};

mod body;
mod future;

pub use body::KeepAliveBody;
pub use future::KeepAliveFuture;

/// Late enough for refusals and quick failures to keep their status; a third of the 30 s for which Heroku's router, the
/// hastiest of the common ones, waits for the first byte.
const AFTER: Duration = Duration::from_secs(10);
/// As the HTML standard advises authors of event streams, against proxies that close silent connections.
const INTERVAL: Duration = Duration::from_secs(15);

/// Opens streams that have nothing to say yet, and keeps them open with comments.
///
/// A request may wait for a key, be tried again, and meet a model that thinks for minutes, before there is a head to pass on.
/// Clients and proxies on the way take that silence for the end. This layer answers a request that asks for a stream with
/// 200 when it has waited for 10 s. The body of that answer owns the future that still runs, sends a comment every 15 s until
/// it resolves, and then goes on with the stream behind it, byte for byte. The comments are those of OpenRouter itself,
/// so whatever talks to it knows them.
///
/// With the 200 the status is spent: a refusal or a failure from then on is one event in the body, in the shape of the path
/// that was asked ([`ErrorAnswer`](crate::answer::ErrorAnswer)), which then ends. So are the headers: those of the inner
/// response are dropped, and what a layer above puts on the head must not count on an attempt being over.
/// What stages below have put into its extensions is to be had by the [`Later`] in those of the early head.
/// [`RequestContext::is_kept_alive`] tells it, and tells a [`CommitGateLayer`](super::CommitGateLayer) below that it has time.
///
/// It goes outside of everything that waits or decides, so above [`RespondLayer`](crate::RespondLayer), which has made
/// answers of all errors, and below whatever adds headers. Dropping the response, or its body, drops all that runs below.
///
/// Who asks for a stream says so in the body (`"stream":true`), as far as a [`BufferLayer`](crate::BufferLayer) below has
/// it when the time has come, or in the header `accept`; it must be a `POST`. All others are left alone.
///
/// With the defaults:
///
/// ```
/// use std::{future::pending, time::Duration};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{BoxError, ServiceBuilder, ServiceExt};
/// use tower_openrouter::KeepAliveLayer;
///
/// async fn thinks(_: Request<()>) -> Result<Response<Full<Bytes>>, BoxError> {
///     pending().await
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let service = ServiceBuilder::new().layer(KeepAliveLayer::new()).service_fn(thinks);
/// let request = Request::post("/v1/chat/completions").header("accept", "text/event-stream").body(())?;
/// let mut response = service.oneshot(request).await?; // after ten seconds
/// assert_eq!(response.status(), 200);
/// let comment = response.body_mut().frame().await.unwrap()?.into_data().unwrap();
/// assert!(comment.starts_with(b":"));
/// # Ok(()) }
/// ```
///
/// Sooner, and around a whole balancer:
///
/// ```
/// use std::time::Duration;
/// use tower::ServiceBuilder;
/// use tower_openrouter::{ApiKey, Balancer, KeepAliveLayer, OpenRouter, select::Pool};
/// # use tower_openrouter::simulator::{Scenario, Simulator};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?])?;
/// let balancer: Balancer<String> = Balancer::builder(pool).build(OpenRouter::new(transport));
/// let keep_alive = KeepAliveLayer::new().after(Duration::from_secs(3)).interval(Duration::from_secs(5))?;
/// let service = ServiceBuilder::new().layer(keep_alive).service(balancer);
/// # let _ = service;
/// # Ok::<(), tower::BoxError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct KeepAliveLayer {
    times: Times,
}

/// When an answer is opened, and how often it gets a comment then.
#[derive(Debug, Clone, Copy)]
struct Times {
    after: Duration,
    interval: Duration,
}

impl KeepAliveLayer {
    /// The defaults.
    pub fn new() -> Self {
        Self { times: Times { after: AFTER, interval: INTERVAL } }
    }

    /// Sets after how long a stream is opened; default 10 s, late enough for refusals and quick failures to keep their
    /// status. Zero never opens one, so the layer does nothing.
    pub fn after(mut self, after: Duration) -> Self {
        self.times.after = after;
        self
    }

    /// Sets the time between comments; default 15 s, as the HTML standard advises for event streams.
    ///
    /// # Errors
    /// When it is 0.
    pub fn interval(mut self, interval: Duration) -> Result<Self, StreamError> {
        if interval.is_zero() {
            return Err(StreamError::ZeroInterval);
        }
        self.times.interval = interval;
        Ok(self)
    }
}

impl Default for KeepAliveLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for KeepAliveLayer {
    type Service = KeepAlive<S>;

    fn layer(&self, inner: S) -> KeepAlive<S> {
        KeepAlive { inner, times: self.times }
    }
}

/// The service of a [`KeepAliveLayer`].
#[derive(Debug, Clone)]
pub struct KeepAlive<S> {
    inner: S,
    times: Times,
}

impl<S> KeepAlive<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

/// What will be in the extensions of an answer whose head was sent ahead of it; it is in the extensions of that head. Clones
/// are the same.
#[derive(Debug, Clone, Default)]
pub struct Later(Arc<OnceLock<Extensions>>);

impl Later {
    /// The extensions, once there is an answer. In the place of an error that stages below gave, there are none.
    pub fn extensions(&self) -> Option<&Extensions> {
        self.0.get()
    }

    /// There is an answer now.
    fn fill<B>(&self, mut answer: Response<B>) -> Response<B> {
        let _ = self.0.set(mem::take(answer.extensions_mut()));
        answer
    }
}

/// What is known of a request that may ask for a stream.
#[derive(Debug)]
struct Asked {
    times: Times,
    context: RequestContext,
    /// Whether a header asks for a stream.
    accepts: bool,
    shape: Shape,
}

impl Asked {
    fn is_stream(&self) -> bool {
        self.accepts || self.context.asks().stream
    }

    /// Whether all of the request is here, and asks for none: the usual one, which needs no timer.
    fn is_no_stream(&self) -> bool {
        self.context.body().is_some() && !self.is_stream()
    }
}

impl<S, B, ResB> Service<Request<B>> for KeepAlive<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body<Data = Bytes>,
{
    type Response = Response<KeepAliveBody<S::Future, ResB>>;
    type Error = S::Error;
    type Future = KeepAliveFuture<S::Future, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if self.times.after.is_zero() || request.method() != Method::POST {
            return KeepAliveFuture::straight(self.inner.call(request));
        }
        let accepts = request.headers().get_all(ACCEPT).iter().any(|value| {
            // as clients write it: beside others it is only one that will do
            value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
        });
        let shape = Shape::of_path(request.uri().path());
        let asked = Asked { times: self.times, context: RequestContext::of(&mut request), accepts, shape };
        KeepAliveFuture::watched(self.inner.call(request), asked)
    }
}
