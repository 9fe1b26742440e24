use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::ReadAhead,
    outcome::{Classify, HttpStatus},
    request::RequestContext,
};

mod future;

use future::Asked;
pub use future::CommitGateFuture;

/// Half of the 60 s of silence after which nginx (`proxy_read_timeout`) and the application load balancers of AWS give a
/// server up, so that there is time left for what came before the head.
const HOLD: Duration = Duration::from_secs(30);
/// Holds any error and nearly all JSON answers whole; what the leaf's scanner keeps of a body, too.
const HOLD_BYTES: usize = 64 * 1024;

/// The body of an answer that passed a [`CommitGate`]: byte for byte what it was.
pub type CommitGateBody<B> = ReadAhead<B>;

/// Holds the head of a 200 until there is real output behind it.
///
/// A 200 only says that a provider accepted. Passed on at once, it is final, and an error as its first event is the caller's.
/// This layer goes inside of [`RetryLayer`](crate::RetryLayer) and reads on before it passes the head on, until the
/// [`OutcomeCell`](crate::outcome::OutcomeCell) that the leaf put into the response knows more:
///
/// - output, which in an event stream is neither a comment nor an empty delta: head and body go on, untouched, and from then
///   on nothing is looked at or held;
/// - an error, an end, or a cut before any output: the response is a failed attempt with its own cause, which retry reads as
///   it reads any other. It drops the answer, and with it the exchange, before it waits. When nothing is tried again, the
///   caller gets that answer as it was, status, bytes and errors;
/// - neither, for 30 s or 64 KiB: the head goes on as it is, and what fails later is the caller's. So a caller without a
///   [`KeepAliveLayer`](super::KeepAliveLayer) above is not left in silence for too long, although a model may think for
///   minutes; where that layer [tells the caller to wait](crate::RequestContext::keep_alive), the time has no bound here.
///
/// A JSON answer is read to its end, so its padding does not pass while that takes less than the bound. What cannot fail in
/// its body passes at once: other statuses than 200, answers to `HEAD` and compressed bodies, which are not looked into.
///
/// Around services that put no cell into their responses, the first byte is output, and [`Classify::end`] judges a body that
/// ends, with trailers or without, before that; one that fails there is cut, as for the other layers. A service that sends
/// its head and then waits for more of the request before it says anything is held up, so such calls should not pass a gate.
///
/// As it comes, in the usual place:
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response, header::CONTENT_TYPE};
/// use http_body_util::{BodyExt, Full};
/// use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
/// use tower_openrouter::{CommitGateLayer, OpenRouter, RetryLayer, buffer::ReplayBody};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let mut answers = [
///     "data: {\"error\":{\"code\":502,\"message\":\"Provider disconnected\"}}\n\n",
///     "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\ndata: [DONE]\n\n",
/// ].into_iter();
/// let transport = tower::util::BoxCloneSyncService::new(service_fn({
///     let answers = std::sync::Arc::new(std::sync::Mutex::new(answers));
///     move |_: Request<ReplayBody>| {
///         let answer = answers.lock().unwrap().next().unwrap();
///         let response = Response::builder().header(CONTENT_TYPE, "text/event-stream");
///         std::future::ready(response.body(Full::<Bytes>::from(answer)))
///     }
/// }));
/// let service = ServiceBuilder::new()
///     .layer(RetryLayer::new())
///     .layer(CommitGateLayer::new())
///     .service(OpenRouter::new(transport));
/// let request = Request::post("/v1/chat/completions").body(ReplayBody::from(Bytes::from("{}")))?;
/// let answer = service.oneshot(request).await?.into_body().collect().await?.to_bytes();
/// assert!(answer.starts_with(b"data: {\"choices\"")); // the second attempt's
/// # Ok(()) }
/// ```
///
/// With bounds of one's own, around a gRPC channel:
///
/// ```
/// use std::time::Duration;
/// use tower_openrouter::{CommitGateLayer, outcome::Grpc};
///
/// let gate = CommitGateLayer::new().hold(Duration::from_secs(5)).hold_bytes(4096).classify(Grpc);
/// # let _ = gate;
/// ```
#[derive(Clone)]
#[must_use]
pub struct CommitGateLayer {
    bounds: Bounds,
    classify: Arc<dyn Classify>,
}

/// How long, and how much, a gate holds.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    time: Duration,
    bytes: usize,
}

impl CommitGateLayer {
    /// The defaults.
    pub fn new() -> Self {
        Self { bounds: Bounds { time: HOLD, bytes: HOLD_BYTES }, classify: Arc::new(HttpStatus) }
    }

    /// Sets how long a head is held, for callers whom nobody tells to wait; default 30 s, half of the silence after which
    /// common proxies give up. Zero holds none, so the layer does nothing.
    pub fn hold(mut self, time: Duration) -> Self {
        self.bounds.time = time;
        self
    }

    /// Sets how much of a body is read while its head is held; default 64 KiB, which holds any error, and most JSON answers,
    /// whole. The piece that reaches the bound is the last. Zero holds none.
    pub fn hold_bytes(mut self, bytes: usize) -> Self {
        self.bounds.bytes = bytes;
        self
    }

    /// Sets who judges answers that carry no outcome; default [`HttpStatus`].
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.classify = Arc::new(classify);
        self
    }
}

impl Default for CommitGateLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CommitGateLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitGateLayer").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for CommitGateLayer {
    type Service = CommitGate<S>;

    fn layer(&self, inner: S) -> CommitGate<S> {
        CommitGate { inner, layer: self.clone() }
    }
}

/// The service of a [`CommitGateLayer`].
#[derive(Debug, Clone)]
pub struct CommitGate<S> {
    inner: S,
    layer: CommitGateLayer,
}

impl<S> CommitGate<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for CommitGate<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    ResB: Body<Data = Bytes> + Unpin,
{
    type Response = Response<CommitGateBody<ResB>>;
    type Error = S::Error;
    type Future = CommitGateFuture<S::Future, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = Asked {
            layer: self.layer.clone(),
            context: RequestContext::get(request.extensions()).cloned(),
            head: request.method() == Method::HEAD,
        };
        CommitGateFuture::new(self.inner.call(request), asked)
    }
}
