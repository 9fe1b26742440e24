//! The service itself: what a request becomes, and how it is built.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, Version, uri::Scheme};
use http_body::Body;
use tower::BoxError;
use tower_service::Service;

use super::{
    authorize::KeyBase,
    base::Base,
    body::OpenRouterBody,
    future::{Asked, OpenRouterFuture, wrap_error},
    headers::{self, Attribution},
};
use crate::{
    clock::{self, WallClock},
    key::KeyError,
    spans::{self, Wanted},
};

/// The root of OpenRouter's API.
pub const BASE_URL: &str = "https://openrouter.ai/api/v1";

/// OpenRouter as a [`Service`] of HTTP requests, over any transport. See the [module](super).
#[derive(Clone)]
pub struct OpenRouter<T> {
    transport: T,
    config: Arc<Config>,
}

#[derive(Debug)]
pub(super) struct Config {
    base: Base,
    pub(super) error_body_limit: usize,
    attribution: Attribution,
    pub(super) wall_clock: WallClock,
}

impl OpenRouter<()> {
    /// Settings other than the defaults; ends with [`build`](OpenRouterBuilder::build).
    pub fn builder() -> OpenRouterBuilder {
        OpenRouterBuilder::default()
    }
}

impl<T> OpenRouter<T> {
    /// The service with its default settings.
    pub fn new(transport: T) -> Self {
        match OpenRouterBuilder::default().build(transport) {
            Ok(service) => service,
            Err(error) => unreachable!("the defaults are valid: {error}"),
        }
    }

    /// The transport inside.
    pub fn get_ref(&self) -> &T {
        &self.transport
    }
}

impl<T> fmt::Debug for OpenRouter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRouter").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<T, B, TB> Service<Request<B>> for OpenRouter<T>
where
    T: Service<Request<B>, Response = Response<TB>>,
    T::Error: Into<BoxError>,
    TB: Body<Data = Bytes>,
{
    type Response = Response<OpenRouterBody<TB>>;
    type Error = BoxError;
    type Future = OpenRouterFuture<T::Future, TB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(ready!(self.transport.poll_ready(cx)).map_err(wrap_error))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let base = request.extensions().get::<KeyBase>().map_or(&self.config.base, |KeyBase(base)| base);
        let Some(target) = base.join(request.uri()) else {
            return OpenRouterFuture::bad_target();
        };
        let asked = Asked {
            config: self.config.clone(),
            opted_in: headers::prepare(request.headers_mut(), &self.config.attribution),
            head: request.method() == Method::HEAD,
            span: attempt_span(&target),
        };
        *request.uri_mut() = target;
        // the version is the connection's affair
        *request.version_mut() = Version::HTTP_11;
        OpenRouterFuture::new(self.transport.call(request), asked)
    }
}

/// The span around the attempt, told where that goes, if anybody is interested.
fn attempt_span(target: &Uri) -> Wanted {
    if !tracing::enabled!(target: spans::TARGET, tracing::Level::DEBUG) {
        return None;
    }
    let span = spans::wanted(tracing::Span::current())?;
    span.record("gen_ai.provider.name", "openrouter");
    if let Some(host) = target.host() {
        span.record("server.address", host);
    }
    let default = if target.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    span.record("server.port", target.port_u16().unwrap_or(default));
    Some(span)
}

/// Settings of an [`OpenRouter`] service.
///
/// ```
/// use tower_openrouter::OpenRouter;
/// # let transport = ();
///
/// let service = OpenRouter::builder()
///     .base_url("https://eu.openrouter.ai/api/v1")
///     .error_body_limit(16 * 1024)
///     .referer("https://example.com")
///     .title("Example")
///     .categories(["cli-agent"])
///     .build(transport)?;
/// # Ok::<(), tower_openrouter::openrouter::BuildError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct OpenRouterBuilder {
    base_url: Box<str>,
    error_body_limit: usize,
    referer: Option<Box<str>>,
    title: Option<Box<str>>,
    categories: Vec<Box<str>>,
    wall_clock: WallClock,
}

impl Default for OpenRouterBuilder {
    fn default() -> Self {
        Self {
            base_url: BASE_URL.into(),
            error_body_limit: 64 * 1024,
            referer: None,
            title: None,
            categories: Vec::new(),
            wall_clock: clock::wall,
        }
    }
}

impl OpenRouterBuilder {
    /// Sets the API root; default [`BASE_URL`]. [`build`](Self::build) refuses what is not an `http` or `https` URL with a
    /// host, or carries credentials or a query. `http` is for the simulator and for hosts one trusts with the key.
    pub fn base_url(mut self, url: impl Into<Box<str>>) -> Self {
        self.base_url = url.into();
        self
    }

    /// Sets how much of an error's body is read to judge it, in bytes; default 64 KiB, many times what
    /// OpenRouter's errors hold. What lies beyond is passed on unread. [`build`](Self::build) refuses 0.
    pub fn error_body_limit(mut self, limit: usize) -> Self {
        self.error_body_limit = limit;
        self
    }

    /// Names the app's address (`HTTP-Referer`) in requests that name none.
    pub fn referer(mut self, url: impl Into<Box<str>>) -> Self {
        self.referer = Some(url.into());
        self
    }

    /// Names the app (`X-OpenRouter-Title`) in requests that do not.
    pub fn title(mut self, title: impl Into<Box<str>>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Names the app's categories (`X-OpenRouter-Categories`), two at most, in requests that name none.
    pub fn categories<C: Into<Box<str>>>(mut self, categories: impl IntoIterator<Item = C>) -> Self {
        self.categories = categories.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the wall clock by which dates and epoch resets are read; default [`SystemTime::now`](std::time::SystemTime::now).
    pub fn wall_clock(mut self, clock: WallClock) -> Self {
        self.wall_clock = clock;
        self
    }

    /// Builds the service over `transport`.
    ///
    /// # Errors
    /// When a setting is not usable; the error names it.
    pub fn build<T>(self, transport: T) -> Result<OpenRouter<T>, BuildError> {
        if self.error_body_limit == 0 {
            return Err(BuildError::ZeroErrorBodyLimit);
        }
        if self.categories.len() > 2 {
            return Err(BuildError::TooManyCategories(self.categories.len()));
        }
        let value = |name: &'static str, text: Option<Box<str>>| match text {
            None => Ok(None),
            Some(text) => HeaderValue::from_str(&text).map(Some).map_err(|_| BuildError::BadHeader(name)),
        };
        let categories = (!self.categories.is_empty()).then(|| self.categories.join(",").into_boxed_str());
        let attribution = Attribution {
            referer: value("HTTP-Referer", self.referer)?,
            title: value("X-OpenRouter-Title", self.title)?,
            categories: value("X-OpenRouter-Categories", categories)?,
        };
        let config = Config {
            base: Base::parse(&self.base_url)?,
            error_body_limit: self.error_body_limit,
            attribution,
            wall_clock: self.wall_clock,
        };
        Ok(OpenRouter { transport, config: Arc::new(config) })
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The base URL is not usable.
    #[error(transparent)]
    BadBaseUrl(#[from] KeyError),
    /// The bound for error bodies is 0.
    #[error("error_body_limit is 0: without any of the body errors cannot be told apart; 64 KiB is the default")]
    ZeroErrorBodyLimit,
    /// There are more than two categories.
    #[error("{0} categories are given: OpenRouter takes two at most")]
    TooManyCategories(usize),
    /// A text cannot be sent as a header.
    #[error("the text for {0} cannot be sent as a header: use visible ASCII")]
    BadHeader(&'static str),
}
