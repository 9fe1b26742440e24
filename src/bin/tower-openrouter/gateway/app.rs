//! The public face: which paths there are, and what surrounds each request.

use std::{
    any::Any,
    convert::Infallible,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    routing::{get_service, post_service},
};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION},
};
use tower::{BoxError, Service, ServiceBuilder};
use tower_http::{
    catch_panic::CatchPanicLayer,
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    trace::{DefaultOnFailure, TraceLayer},
};
use tracing::{Level, debug_span, error};

use super::{proxy::Proxy, refusal::Dialect};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The paths of the API, each served by `proxy`.
pub(super) fn routes<S, B>(proxy: Proxy<S>) -> Router
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut router = Router::new();
    for root in ["/v1", "/api/v1"] {
        for path in ["chat/completions", "completions", "responses", "messages", "embeddings"] {
            router = router.route(&format!("{root}/{path}"), post_service(proxy.clone()));
        }
        for path in ["models", "models/{*rest}"] {
            router = router.route(&format!("{root}/{path}"), get_service(proxy.clone()));
        }
    }
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed)
}

/// What surrounds every request, whatever its path.
pub(super) fn app<B>(
    routes: Router,
) -> impl Service<
    Request<B>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = impl Into<BoxError>> + Send + 'static>,
    Error = Infallible,
    Future = impl Send,
> + Clone
+ Send
+ 'static
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new([
            AUTHORIZATION,
            COOKIE,
            PROXY_AUTHORIZATION,
            HeaderName::from_static("x-api-key"),
        ]))
        .layer(SetRequestIdLayer::new(REQUEST_ID, Numbers))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(|request: &Request<B>| {
                    // the path alone: people put credentials into queries
                    debug_span!("request", method = %request.method(), path = request.uri().path(), id = ?request.headers().get(REQUEST_ID))
                })
                .on_failure(DefaultOnFailure::new().level(Level::DEBUG)),
        )
        .layer(CatchPanicLayer::custom(panicked))
        .service(routes)
}

async fn not_found(uri: Uri) -> Response<Body> {
    Dialect::of(uri.path()).refuse(StatusCode::NOT_FOUND, "Not Found")
}

async fn method_not_allowed(uri: Uri) -> Response<Body> {
    Dialect::of(uri.path()).refuse(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let what = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(what = what.unwrap_or("no message"), "a request panicked; please report it");
    Dialect::OpenRouter.refuse(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
}

/// Request ids that tell requests of all gateways apart and cost next to nothing: a name of this process, and a count.
#[derive(Debug, Clone, Copy)]
struct Numbers;

impl MakeRequestId for Numbers {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        static PROCESS: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = format!("{:016x}-{}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed));
        HeaderValue::try_from(id).ok().map(RequestId::new)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::gateway::{access::Access, drain::Drain, proxy::Shared};

    #[tokio::test]
    async fn a_panic_costs_one_request_and_is_answered() {
        let shared = Shared { access: Access(None), drain: Drain::new(), balancer_headers: true, simulated: false };
        let balancer = service_fn(async |request: Request<Body>| {
            assert!(request.uri().query().is_none(), "told to panic");
            Ok::<_, Infallible>(Response::new(Body::from("fine")))
        });
        let app = app(routes(Proxy::new(balancer, shared)));
        for (path, status) in [("/v1/embeddings?panic", 500), ("/v1/embeddings", 200)] {
            let request = Request::post(path).body(Body::empty()).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
            assert!(response.headers().contains_key("x-request-id"));
            let body = response.into_body().collect().await.map_err(Into::into).unwrap().to_bytes();
            assert_eq!(body.starts_with(br#"{"error":{"code":500"#), status == 500, "{body:?}");
        }
    }
}
