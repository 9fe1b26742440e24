use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::time::Instant;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Backoff, RetryBudget, RetryError, RetryFuture, RetryHandle,
    attempts::{Attempts, Shared},
    policy::Limits,
    stats::Counts,
};
use crate::{
    outcome::{Classify, HttpStatus},
    request::{Replay, RequestContext},
};

/// Tries failed requests again; see the [module](super) for which, where and when.
///
/// As it comes: 3 attempts, 0.5 to 30 s between them, a budget of 20 % and 10 a second, hints of up to 2 minutes waited for:
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode};
/// use http_body_util::Full;
/// use tower::{BoxError, ServiceBuilder, ServiceExt};
/// use tower_openrouter::RetryLayer;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let retry = RetryLayer::new();
/// let handle = retry.handle();
/// let service = ServiceBuilder::new().layer(retry).service_fn(|_: Request<Full<Bytes>>| async {
///     let mut answer = Response::new("busy");
///     *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
///     Ok::<_, BoxError>(answer)
/// });
/// let answer = service.oneshot(Request::new(Full::default())).await?;
/// assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
/// assert_eq!(handle.stats().attempts, 3);
/// # Ok(())
/// # }
/// ```
///
/// Around a gRPC channel, with numbers of one's own, and repeating what may have run:
///
/// ```
/// use std::time::Duration;
/// use tower_openrouter::{
///     RetryLayer,
///     outcome::Grpc,
///     retry::{Backoff, RetryBudget},
/// };
///
/// let retry = RetryLayer::new()
///     .attempts(5)?
///     .backoff(Backoff::new(Duration::from_millis(100), Duration::from_secs(5))?)
///     .budget(RetryBudget::new(0.6, 1)?)
///     .wait_cap(Duration::from_secs(10))
///     .retry_unclear(true)
///     .classify(Grpc);
/// # let _ = retry;
/// # Ok::<(), tower_openrouter::retry::RetryError>(())
/// ```
///
/// All services made from one layer, and all its clones, share one budget and one set of counts.
#[derive(Clone)]
pub struct RetryLayer {
    shared: Arc<Shared>,
}

impl RetryLayer {
    /// The most attempts that can be asked for (gRPC's bound).
    pub const MOST_ATTEMPTS: u32 = 5;

    /// The defaults.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                limits: Limits {
                    attempts: 3,
                    wait_cap: Duration::from_secs(120),
                    backoff: Backoff::default(),
                    unclear: false,
                },
                budget: RetryBudget::default(),
                classify: Arc::new(HttpStatus),
                counts: Arc::new(Counts::default()),
            }),
        }
    }

    /// Sets how many attempts a request may make, the first included and failovers not; default 3, as OpenAI's clients; 1
    /// never repeats.
    ///
    /// # Errors
    /// When it is 0 or above [`MOST_ATTEMPTS`](Self::MOST_ATTEMPTS).
    pub fn attempts(mut self, attempts: u32) -> Result<Self, RetryError> {
        if !(1..=Self::MOST_ATTEMPTS).contains(&attempts) {
            return Err(RetryError::Attempts(attempts));
        }
        self.shared_mut().limits.attempts = attempts;
        Ok(self)
    }

    /// Sets the waits between attempts; default [`Backoff::default`], 0.5 to 30 s.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.shared_mut().limits.backoff = backoff;
        self
    }

    /// Sets the budget of retries; default [`RetryBudget::default`], 0.2 for each request and 10 a second. Give clones of one
    /// to several layers that lead to the same upstream.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.shared_mut().budget = budget;
        self
    }

    /// Sets the longest hint that is waited for; default 2 minutes, as OpenAI's clients. What asks for more is passed on.
    #[must_use]
    pub fn wait_cap(mut self, cap: Duration) -> Self {
        self.shared_mut().limits.wait_cap = cap;
        self
    }

    /// Sets whether to repeat requests that may have run without our seeing the answer, such as after a reset; default no,
    /// because a completion that ran twice is billed twice.
    #[must_use]
    pub fn retry_unclear(mut self, retry: bool) -> Self {
        self.shared_mut().limits.unclear = retry;
        self
    }

    /// Sets who judges answers that carry no outcome, and errors; default [`HttpStatus`].
    #[must_use]
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.shared_mut().classify = Arc::new(classify);
        self
    }

    /// Watches what the layer does.
    pub fn handle(&self) -> RetryHandle {
        RetryHandle(self.shared.counts.clone())
    }

    /// The budget, to be shared with whatever else sends requests of its own accord, such as a
    /// [`HedgeLayer`](crate::HedgeLayer).
    pub fn shared_budget(&self) -> RetryBudget {
        self.shared.budget.clone()
    }

    /// How many attempts a request may make.
    pub(crate) fn most_attempts(&self) -> u32 {
        self.shared.limits.attempts
    }

    fn shared_mut(&mut self) -> &mut Shared {
        Arc::make_mut(&mut self.shared)
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("limits", &self.shared.limits)
            .field("budget", &self.shared.budget)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { shared: self.shared.clone(), inner }
    }
}

/// The service of [`RetryLayer`].
///
/// The request's body must be able to [`Replay`]; one that cannot is sent once. The inner service is cloned for each request.
#[derive(Clone)]
pub struct Retry<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S, B, ResB> Service<Request<B>> for Retry<S>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    B: Replay,
{
    type Response = Response<ResB>;
    type Error = BoxError;
    type Future = RetryFuture<S, B, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // the copies for later attempts must share it
        let context = RequestContext::of(&mut request);
        self.shared.counts.request();
        self.shared.budget.deposit_at(context.arrived().unwrap_or_else(Instant::now));
        let mut attempts = Attempts::new(self.shared.clone(), context);
        let spare = attempts.begin(&request);
        RetryFuture::new(self.inner.call(request), self.inner.clone(), attempts, spare)
    }
}

impl<S: fmt::Debug> fmt::Debug for Retry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("limits", &self.shared.limits).field("inner", &self.inner).finish()
    }
}
