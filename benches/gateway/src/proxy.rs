//! The least a proxy in front of an LLM can do with hyper: collect the request, set a key, pass it on, pass the answer back.

use std::{io, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HOST, HeaderValue},
    http::uri::{Authority, Scheme},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};

/// In place of the client's.
pub(crate) const KEY: &str = "Bearer sk-or-v1-bench-1";

struct Proxy {
    client: Client<HttpConnector, Full<Bytes>>,
    upstream: Authority,
    key: HeaderValue,
}

impl Proxy {
    async fn pass(&self, request: Request<Incoming>) -> Result<hyper::Response<Incoming>, io::Error> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        head.headers.insert(AUTHORIZATION, self.key.clone());
        head.headers.remove(HOST);
        let mut uri = head.uri.into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(self.upstream.clone()));
        head.uri = Uri::from_parts(uri).map_err(io::Error::other)?;
        self.client.request(Request::from_parts(head, Full::new(body))).await.map_err(io::Error::other)
    }
}

/// What both proxies ask the upstream with.
pub(crate) fn client() -> Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

pub(crate) fn serve(listen: &str, upstream: &str) -> io::Result<()> {
    let upstream = upstream.parse().map_err(io::Error::other)?;
    let proxy = Arc::new(Proxy { client: client(), upstream, key: HeaderValue::from_static(KEY) });
    crate::serve(listen, |stream| {
        let proxy = proxy.clone();
        let service = service_fn(move |request| {
            let proxy = proxy.clone();
            async move { proxy.pass(request).await }
        });
        http1::Builder::new().serve_connection(TokioIo::new(stream), service)
    })
}
