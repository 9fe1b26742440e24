//! The bare proxy as one writes it with axum, inside the layers of tower-http that a service has that others call.
//!
//! It balances nothing: what it takes more than the other is the price of the stack that most services stand on already.

use std::{io, time::Duration};

use axum::{Router, body::Body, extract::State, response::Response, routing::post};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, StatusCode, Uri,
    header::{AUTHORIZATION, HOST, HeaderValue},
    server::conn::http1,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioIo,
    service::TowerToHyperService,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    limit::RequestBodyLimitLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    timeout::TimeoutLayer,
    trace::TraceLayer,
};

use crate::proxy;

#[derive(Clone)]
struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    key: HeaderValue,
}

async fn pass(State(upstream): State<Upstream>, mut headers: HeaderMap, body: Bytes) -> Result<Response, StatusCode> {
    headers.insert(AUTHORIZATION, upstream.key);
    headers.remove(HOST);
    let mut request = Request::post(upstream.uri).body(Full::new(body)).map_err(|_| StatusCode::BAD_REQUEST)?;
    *request.headers_mut() = headers;
    let answer = upstream.client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(answer.map(Body::new))
}

pub(crate) fn serve(listen: &str, upstream: &str) -> io::Result<()> {
    const PATH: &str = "/api/v1/chat/completions";
    let uri = format!("http://{upstream}{PATH}").parse().map_err(io::Error::other)?;
    let app = Router::new()
        .route(PATH, post(pass))
        .with_state(Upstream { client: proxy::client(), uri, key: HeaderValue::from_static(proxy::KEY) })
        .layer(RequestBodyLimitLayer::new(1 << 20))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(600)))
        .layer(CatchPanicLayer::new())
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http())
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid));
    crate::serve(listen, |stream| {
        http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()))
    })
}
