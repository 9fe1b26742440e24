//! One instant by which a request must be over, whatever it waits for.
//!
//! Time limits on single steps do not add up to a promise: three attempts of a minute each, a queue before them and a body
//! that trickles a byte every few seconds can hold a caller for as long as they like. [`DeadlineLayer`] goes outermost. When a
//! request comes it sets one instant, puts it into the [`RequestContext`], where inner layers see that a wait would be
//! pointless, and enforces it: over the response future, which then fails with [`Why::Deadline`], and over the body, which
//! then ends with that error rather than as if it were complete. In both cases what is below is dropped at once.
//!
//! The default is 10 minutes: reasoning models think for minutes before and while they answer, and the official OpenAI
//! clients give up after 10. A single request may be given more or less with a [`Deadline`] in its extensions; a limit that
//! its context has already holds if it is earlier.
//!
//! Waiting for readiness is not covered, since the request is not there yet. An exchange that never waits sets no timer.
//!
//! # Examples
//!
//! ```
//! use std::future::pending;
//! use http::{Request, Response};
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{deadline::DeadlineLayer, error::{Rejected, Why}};
//!
//! async fn hang(_: Request<()>) -> Result<Response<String>, BoxError> {
//!     pending().await
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # tokio::time::pause();
//! let service = ServiceBuilder::new().layer(DeadlineLayer::default()).service_fn(hang);
//! let error = service.oneshot(Request::new(())).await.unwrap_err(); // after ten minutes
//! assert_eq!(Rejected::find(&*error).unwrap().why(), Why::Deadline);
//! # }
//! ```
//!
//! A tighter limit for all, and a longer one for a request that is known to need it:
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::deadline::{Deadline, DeadlineLayer};
//!
//! async fn slow(_: Request<()>) -> Result<Response<String>, BoxError> {
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//!     Ok(Response::new("done".into()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # tokio::time::pause();
//! let service = ServiceBuilder::new().layer(DeadlineLayer::new(Duration::from_secs(30))?).service_fn(slow);
//! assert!(service.clone().oneshot(Request::new(())).await.is_err());
//!
//! let mut patient = Request::new(());
//! patient.extensions_mut().insert(Deadline::within(Duration::from_secs(120)));
//! assert!(service.oneshot(patient).await.is_ok());
//! # Ok(())
//! # }
//! ```

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::{self, Alarm},
    error::{Rejected, Why},
    request::RequestContext,
};

const DEFAULT_TOTAL: Duration = Duration::from_secs(600);

/// Gives every request one deadline, over waits, attempts and body. See the [module](self).
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    total: Duration,
}

/// A deadline that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeadlineError {
    /// Every request would be over before it began.
    #[error("a total time of 0 would fail every request: give more, or leave the layer out")]
    ZeroTotal,
}

impl DeadlineLayer {
    /// Allows each request `total`, from its call to the end of its body; more than ten years count as ten years.
    ///
    /// # Errors
    ///
    /// [`DeadlineError::ZeroTotal`] when `total` is zero.
    pub fn new(total: Duration) -> Result<Self, DeadlineError> {
        if total.is_zero() { Err(DeadlineError::ZeroTotal) } else { Ok(Self { total }) }
    }
}

impl Default for DeadlineLayer {
    /// Ten minutes.
    fn default() -> Self {
        Self { total: DEFAULT_TOTAL }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService { inner, total: self.total }
    }
}

/// A request's own deadline, put into its extensions by the caller: it replaces the layer's total time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Instant);

impl Deadline {
    /// This long from now; more than ten years count as ten years.
    pub fn within(span: Duration) -> Self {
        Self(clock::after(Instant::now(), span))
    }

    /// At this instant. When it has passed, the request is refused unsent.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }
}

/// The service of a [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    inner: S,
    total: Duration,
}

impl<S> DeadlineService<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<DeadlineBody<ResB>>;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let now = Instant::now();
        let own = request.extensions().get().map(|Deadline(instant)| *instant);
        let context = RequestContext::of_arrived(&mut request, Some(now));
        context.limit(own.unwrap_or_else(|| clock::after(now, self.total)));
        let deadline = context.deadline().unwrap_or(now);
        let future = if now < deadline {
            Some(self.inner.call(request))
        } else {
            // late already: what the inner service reserved to become ready must not idle in here
            self.inner = self.inner.clone();
            None
        };
        DeadlineFuture { future, timer: Some(Timer::new(now, deadline)) }
    }
}

/// Rings once, and is set only when there is something to wait for.
#[derive(Debug)]
struct Timer {
    deadline: Instant,
    allowed: Duration,
    /// Boxed to move from the future to the body without being set again.
    alarm: Option<Pin<Box<Alarm>>>,
}

impl Timer {
    fn new(now: Instant, deadline: Instant) -> Self {
        Self { deadline, allowed: deadline.saturating_duration_since(now), alarm: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.get_or_insert_with(|| Box::pin(Alarm::at(self.deadline))).as_mut().poll(cx)
    }

    /// The clock is read only where no alarm is set, which would have rung.
    fn is_over(&self) -> bool {
        self.alarm.as_ref().map_or_else(|| Instant::now() >= self.deadline, |alarm| alarm.has_rung())
    }

    fn refusal(&self) -> BoxError {
        Rejected::new(Why::Deadline, format!("the request was not over within {:?}", self.allowed)).into()
    }
}

pin_project! {
    /// The response future of [`DeadlineService`].
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        // gone when the deadline has passed
        #[pin]
        future: Option<F>,
        timer: Option<Timer>,
    }
}

impl<F, ResB, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<DeadlineBody<ResB>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let timer = this.timer.as_mut().expect("polled after it was ready");
        if let Some(future) = this.future.as_mut().as_pin_mut() {
            match future.poll(cx) {
                Poll::Ready(Ok(response)) => {
                    let timer = this.timer.take();
                    return Poll::Ready(Ok(response.map(|body| DeadlineBody {
                        body: Some(body),
                        timer,
                        polled: false,
                    })));
                }
                Poll::Ready(Err(error)) => {
                    *this.timer = None;
                    return Poll::Ready(Err(error.into()));
                }
                Poll::Pending if timer.poll(cx).is_pending() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        let refusal = timer.refusal();
        *this.timer = None;
        this.future.set(None);
        Poll::Ready(Err(refusal))
    }
}

pin_project! {
    /// A response body that must end by the deadline; its error is a [`Rejected`] then.
    #[derive(Debug)]
    pub struct DeadlineBody<B> {
        // gone when the deadline has passed
        #[pin]
        body: Option<B>,
        timer: Option<Timer>,
        polled: bool,
    }
}

impl<B> Body for DeadlineBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let (Some(body), Some(timer)) = (this.body.as_mut().as_pin_mut(), this.timer.as_mut()) else {
            return Poll::Ready(None);
        };
        // a body that always has something for a slow reader never waits, so the timer alone would not see it
        let late = std::mem::replace(this.polled, true) && !body.is_end_stream() && timer.is_over();
        if !late {
            if let Poll::Ready(frame) = body.poll_frame(cx) {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let refusal = timer.refusal();
        *this.timer = None;
        this.body.set(None);
        Poll::Ready(Some(Err(refusal)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
