//! The public face: which paths there are, and what surrounds each request.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    routing::{future::RouteFuture, get_service, post_service},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Either;
use pin_project_lite::pin_project;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_openrouter::{ExplainLayer, RequestContext, answer::Shape};

use super::{
    around::Around,
    proxy::{Proxy, ProxyBody, ProxyFuture, Shared},
    refusal::refuse,
    traces::Explained,
};

/// The endpoints that are posted to, below either root.
const POSTED: [&str; 5] = ["chat/completions", "completions", "responses", "messages", "embeddings"];
const ROOTS: [&str; 2] = ["/v1", "/api/v1"];

/// What surrounds every request, whatever its path, around `balancer`.
pub(super) fn app<S, ReqB, B>(
    balancer: S,
    shared: Shared,
) -> impl Service<
    Request<ReqB>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = impl Into<BoxError>> + Send + 'static>,
    Error = Infallible,
    Future = impl Send,
> + Clone
+ Send
+ 'static
where
    S: Service<Request<RequestBody<ReqB>>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    ReqB: http_body::Body<Data = Bytes> + Send + 'static,
    ReqB::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (access, traces, watched) = (shared.access.clone(), shared.traces.clone(), shared.explain == Explained::Asked);
    let explain = match shared.explain {
        Explained::Off => None,
        Explained::Asked => Some(ExplainLayer::new()),
        Explained::All => Some(ExplainLayer::new().all()),
    };
    let explain = explain.map(|explain| explain.header(shared.balancer_headers));
    let front = Front::new(Proxy::new(balancer, shared));
    let watched = move |mut request: Request<ReqB>| {
        if watched && traces.wants_one(|| access.allows(request.headers())) {
            RequestContext::of(&mut request).explain();
        }
        request
    };
    ServiceBuilder::new().layer_fn(Around::new).map_request(watched).option_layer(explain).service(front)
}

/// A request's body: as the server reads it, or boxed by the router.
pub(super) type RequestBody<B> = Either<B, Body>;

/// Sends what is posted to the common endpoints straight to the proxy, and leaves everything else to a router, which boxes
/// its services, futures and bodies for each request.
#[derive(Clone)]
struct Front<S> {
    proxy: Proxy<S>,
    router: Router,
}

impl<S> Front<S> {
    fn new<ReqB, B>(proxy: Proxy<S>) -> Self
    where
        S: Service<Request<RequestBody<ReqB>>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
        ReqB: 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut router = Router::new();
        let service = proxy.clone().map_request(|request: Request<Body>| request.map(RequestBody::<ReqB>::Right));
        for root in ROOTS {
            for path in POSTED {
                router = router.route(&format!("{root}/{path}"), post_service(service.clone()));
            }
            for path in ["models", "models/{*rest}"] {
                router = router.route(&format!("{root}/{path}"), get_service(service.clone()));
            }
        }
        Self { proxy, router: router.fallback(not_found).method_not_allowed_fallback(method_not_allowed) }
    }
}

fn is_posted<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let below = |root: &str| path.strip_prefix(root)?.strip_prefix('/');
    request.method() == Method::POST
        && ROOTS.into_iter().find_map(below).is_some_and(|endpoint| POSTED.contains(&endpoint))
}

impl<S, ReqB, B> Service<Request<ReqB>> for Front<S>
where
    S: Service<Request<RequestBody<ReqB>>, Response = Response<B>, Error = Infallible>,
    ReqB: http_body::Body<Data = Bytes> + Send + 'static,
    ReqB::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response<Either<ProxyBody<B>, Body>>;
    type Error = Infallible;
    type Future = FrontFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // the router is always ready
        self.proxy.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        if is_posted(&request) {
            FrontFuture::Straight { answer: self.proxy.call(request.map(Either::Left)) }
        } else {
            FrontFuture::Routed { answer: self.router.call(request) }
        }
    }
}

pin_project! {
    /// The answer of either.
    #[project = FrontProj]
    enum FrontFuture<F> {
        Straight {
            #[pin]
            answer: ProxyFuture<F>,
        },
        Routed {
            #[pin]
            answer: RouteFuture<Infallible>,
        },
    }
}

impl<F, B> Future for FrontFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Either<ProxyBody<B>, Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            FrontProj::Straight { answer } => answer.poll(cx).map_ok(|response| response.map(Either::Left)),
            FrontProj::Routed { answer } => answer.poll(cx).map_ok(|response| response.map(Either::Right)),
        }
    }
}

async fn not_found(uri: Uri) -> Response<Body> {
    refuse(Shape::of_path(uri.path()), StatusCode::NOT_FOUND, "Not Found")
}

async fn method_not_allowed(uri: Uri) -> Response<Body> {
    refuse(Shape::of_path(uri.path()), StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::service_fn;

    use super::*;
    use crate::gateway::{access::Access, drain::Drain, traces::Traces};

    #[tokio::test]
    async fn a_panic_costs_one_request_and_is_answered() {
        let shared = Shared {
            access: Access(None),
            drain: Drain::new(),
            balancer_headers: true,
            explain: Explained::Asked,
            traces: Traces::default(),
            recorder: None,
            simulated: false,
        };
        let balancer = service_fn(async |request: Request<RequestBody<Body>>| {
            assert!(request.uri().query().is_none(), "told to panic");
            Ok::<_, Infallible>(Response::new(Body::from("fine")))
        });
        let app = app(balancer, shared);
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
