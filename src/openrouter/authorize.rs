//! A key's own layer: its credential, and no other.

use std::{
    fmt,
    hint::black_box,
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderName, HeaderValue, Request,
    header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION},
};
use tower_layer::Layer;
use tower_service::Service;

use super::base::Base;
use crate::key::ApiKey;

/// Where else credentials stand.
static OTHERS: [HeaderName; 3] = [COOKIE, PROXY_AUTHORIZATION, HeaderName::from_static("x-api-key")];

/// The base URL of the key a request carries. Only the leaf reads it, and nobody outside can put one in.
#[derive(Debug, Clone)]
pub(super) struct KeyBase(pub(super) Arc<Base>);

/// Puts a key on requests, and takes every other credential off.
///
/// A request that reaches here may carry the credentials of whoever sent it: a token for the gateway, cookies, the key of an
/// earlier attempt. None of them is the upstream's business. It stands directly above the
/// [`OpenRouter`](crate::OpenRouter) service in a key's stack, so that what it removes cannot come back, and hands down the
/// key's own base URL where it has one.
///
/// ```
/// use tower::ServiceBuilder;
/// use tower_openrouter::{ApiKey, OpenRouter, openrouter::AuthorizeLayer};
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # let transport = tower::service_fn(|_: Request<String>| async {
/// #     Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes::Bytes::new())))
/// # });
///
/// let key = ApiKey::new("sk-or-v1-0123456789abcdef")?;
/// let service = ServiceBuilder::new().layer(AuthorizeLayer::new(&key)).service(OpenRouter::new(transport));
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// A key with a regional host of its own:
///
/// ```
/// # use tower_openrouter::{ApiKey, openrouter::AuthorizeLayer};
/// let key = ApiKey::new("sk-or-v1-0123456789abcdef")?.base_url("https://eu.openrouter.ai/api/v1")?;
/// let layer = AuthorizeLayer::new(&key);
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Clone)]
pub struct AuthorizeLayer {
    authorization: HeaderValue,
    base: Option<KeyBase>,
}

impl AuthorizeLayer {
    /// Authorizes with `key`.
    pub fn new(key: &ApiKey) -> Self {
        Self {
            authorization: key.authorization().clone(),
            // the key refused what could not be a base when it was given
            base: key.base().and_then(|url| Base::of(url).ok()).map(|base| KeyBase(Arc::new(base))),
        }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, with: self.clone() }
    }
}

/// The service that [`AuthorizeLayer`] makes.
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    with: AuthorizeLayer,
}

impl<S, B> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // the line of memory that the clone below will write to, fetched together with those of the layers above
        black_box(self.with.authorization.as_bytes().first());
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let headers = request.headers_mut();
        // to compare the few names there are costs less than to look for each that might be there
        while let Some(name) = headers.keys().find(|name| OTHERS.contains(name)).cloned() {
            headers.remove(name);
        }
        headers.insert(AUTHORIZATION, self.with.authorization.clone());
        match &self.with.base {
            Some(base) => {
                request.extensions_mut().insert(base.clone());
            }
            // of an earlier attempt, on another key
            None => {
                request.extensions_mut().remove::<KeyBase>();
            }
        }
        self.inner.call(request)
    }
}

impl fmt::Debug for AuthorizeLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizeLayer").field("base", &self.base).finish_non_exhaustive()
    }
}
