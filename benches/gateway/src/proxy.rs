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
use tokio::net::TcpListener;

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

pub(crate) fn serve(listen: &str, upstream: &str) -> io::Result<()> {
    crate::runtime()?.block_on(async {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let proxy = Arc::new(Proxy {
            client: Client::builder(TokioExecutor::new()).build(connector),
            upstream: upstream.parse().map_err(io::Error::other)?,
            key: HeaderValue::from_static("Bearer sk-or-v1-bench-1"),
        });
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let proxy = proxy.clone();
            let service = service_fn(move |request| {
                let proxy = proxy.clone();
                async move { proxy.pass(request).await }
            });
            // that a connection ends is its client's doing
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}
