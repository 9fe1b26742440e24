use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::HOST, uri::Scheme};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, builderstates::WantsSchemes};
use hyper_util::{
    client::legacy::{Builder, Client, Error, ResponseFuture, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use crate::error::{UpstreamError, UpstreamErrorKind};

/// A transport over hyper-util's pooling client, with rustls (ring, the web's roots), HTTP/1 and HTTP/2.
///
/// It has no policy: it follows no redirects, decompresses nothing, keeps no cookies, reads no proxy from the environment
/// and repeats nothing. `TCP_NODELAY` is on. A connection must stand within 10 s; idle ones are kept 90 s; a silent HTTP/2
/// connection is probed after 20 s, so that a dead one does not swallow requests. `http` addresses are connected to as well.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use tower_openrouter::{OpenRouter, openrouter::HyperTransport};
///
/// let service = OpenRouter::new(HyperTransport::<Full<Bytes>>::new());
/// ```
///
/// With a client of one's own, for another connector or other pool settings, hand that to [`OpenRouter`](crate::OpenRouter)
/// as it is, or as a transport that tells connections that failed from those that broke:
///
/// ```
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// # use tower_openrouter::openrouter::HyperTransport;
/// let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http::<Full<Bytes>>();
/// let transport = HyperTransport::from_client(client);
/// ```
pub struct HyperTransport<B = Full<Bytes>, C = HttpsConnector<HttpConnector>> {
    // shared: each attempt clones a key's stack, and a client is a dozen handles and settings
    client: Arc<Client<C, B>>,
}

/// What is read of an HTTP/1 answer before it is asked for, and the longest head; hyper's default of 408 KiB would be taken
/// for each caller that is slower than the upstream.
const READ_AHEAD: usize = 16 * 1024;

/// The same for HTTP/2. The connection has room for twice as many streams as servers usually allow: with less (hyper's
/// adaptive window gives a connection no more than a stream), a few answers that nobody reads would hold up all others.
const STREAM_WINDOW: u32 = 64 * 1024;

impl<B> HyperTransport<B>
where
    B: Body + Send,
    B::Data: Send,
{
    /// A client of its own.
    pub fn new() -> Self {
        let tls = HttpsConnectorBuilder::new().with_provider_and_webpki_roots(rustls::crypto::ring::default_provider());
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => unreachable!("ring supports the default protocol versions: {error}"),
        };
        Self::from_client(settings().build(connector(tls)))
    }
}

/// How a client of our own connects.
fn connector(tls: HttpsConnectorBuilder<WantsSchemes>) -> HttpsConnector<HttpConnector> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(Duration::from_secs(10)));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    tls.https_or_http().enable_http1().enable_http2().wrap_connector(tcp)
}

/// How a client of our own speaks HTTP.
fn settings() -> Builder {
    let mut settings = Client::builder(TokioExecutor::new());
    settings
        .retry_canceled_requests(false)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .http1_max_buf_size(READ_AHEAD)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(256 * STREAM_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10));
    settings
}

impl<B, C> HyperTransport<B, C> {
    /// Over a client one has. It should be built with `retry_canceled_requests(false)`, lest attempts go uncounted.
    pub fn from_client(client: Client<C, B>) -> Self {
        Self { client: Arc::new(client) }
    }
}

impl<B> Default for HyperTransport<B>
where
    B: Body + Send,
    B::Data: Send,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<B, C> Clone for HyperTransport<B, C> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone() }
    }
}

impl<B, C> fmt::Debug for HyperTransport<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperTransport").finish_non_exhaustive()
    }
}

impl<B, C> Service<Request<B>> for HyperTransport<B, C>
where
    for<'a> &'a Client<C, B>:
        Service<Request<B>, Response = Response<Incoming>, Error = Error, Future = ResponseFuture>,
{
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = HyperTransportFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        (&*self.client).poll_ready(cx).map_err(upstream_error)
    }

    fn call(&mut self, mut request: Request<B>) -> HyperTransportFuture {
        set_host(&mut request);
        HyperTransportFuture { answer: (&*self.client).call(request) }
    }
}

pin_project! {
    /// The response future of [`HyperTransport`].
    pub struct HyperTransportFuture {
        #[pin]
        answer: ResponseFuture,
    }
}

impl Future for HyperTransportFuture {
    type Output = Result<Response<Incoming>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().answer.poll(cx)).map_err(upstream_error))
    }
}

impl fmt::Debug for HyperTransportFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperTransportFuture").finish_non_exhaustive()
    }
}

/// Names the host, as the client would, which formats it anew for each request. Over TLS the two may agree on HTTP/2, which
/// has no such header.
fn set_host<B>(request: &mut Request<B>) {
    let uri = request.uri();
    if uri.scheme() == Some(&Scheme::HTTP)
        && let Some(authority) = uri.authority()
        && authority.port_u16().is_some_and(|port| port != 80)
        && !authority.as_str().contains('@')
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().entry(HOST).or_insert(host);
    }
}

fn upstream_error(error: Error) -> BoxError {
    // cancelled: the pooled connection was gone before the request went out, so nothing was sent either
    let cancelled = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled);
    let kind = if error.is_connect() || cancelled { UpstreamErrorKind::Connect } else { UpstreamErrorKind::Reset };
    UpstreamError::new(kind, BoxError::from(error)).into()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::SocketAddr,
        thread,
    };

    use http_body_util::BodyExt;
    use hyper::{server::conn::http2, service::service_fn};
    use hyper_util::rt::TokioIo;
    use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use rustls::{
        ClientConfig, RootCertStore, ServerConfig, ServerConnection, Stream, crypto::ring, pki_types::PrivateKeyDer,
    };
    use tokio::{net::TcpListener, time::timeout};
    use tower::ServiceExt;

    use super::*;

    /// Half a megabyte for each request, over HTTP/2.
    async fn serve(listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |_: Request<Incoming>| {
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(vec![0; 512 * 1024]))))
            });
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    }

    #[tokio::test]
    async fn r072_answers_that_nobody_reads_hold_up_no_other_on_the_same_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(serve(listener));
        let client = settings().http2_only(true).build::<_, Full<Bytes>>(HttpConnector::new());
        let transport = HyperTransport::from_client(client);
        let ask = || transport.clone().oneshot(Request::get(&uri).body(Full::default()).unwrap());
        let mut unread = Vec::new();
        for _ in 0..100 {
            unread.push(ask().await.unwrap());
        }
        let read = async { ask().await.unwrap().into_body().collect().await.unwrap().to_bytes().len() };
        assert_eq!(timeout(Duration::from_secs(5), read).await.expect("held up"), 512 * 1024);
    }

    /// A server over TLS with this certificate.
    fn serve_tls(certificate: &Certificate, key: &KeyPair) -> SocketAddr {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(ring::default_provider().into());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = std::sync::Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut tcp in listener.incoming().map_while(Result::ok) {
                let mut tls = ServerConnection::new(config.clone()).unwrap();
                if Stream::new(&mut tls, &mut tcp).read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    Stream::new(&mut tls, &mut tcp).write_all(answer).unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn r116_a_certificate_must_be_of_a_known_authority_for_this_name_and_of_this_time() {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let tls = ClientConfig::builder_with_provider(ring::default_provider().into());
        let tls =
            tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        let connector = connector(HttpsConnectorBuilder::new().with_tls_config(tls));
        let transport = HyperTransport::<Full<Bytes>, _>::from_client(settings().build(connector));

        let params = |name: &str| CertificateParams::new([name.to_owned()]).unwrap();
        let (mut expired, mut early) = (params("localhost"), params("localhost"));
        (expired.not_before, expired.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        (early.not_before, early.not_after) = (date_time_ymd(3000, 1, 1), date_time_ymd(3001, 1, 1));
        let key = KeyPair::generate().unwrap();
        let signed = |params: CertificateParams| params.signed_by(&key, &authority).unwrap();
        for (what, certificate, is_good) in [
            ("good", signed(params("localhost")), true),
            ("for another name", signed(params("openrouter.ai")), false),
            ("expired", signed(expired), false),
            ("not yet valid", signed(early), false),
            ("self-signed", params("localhost").self_signed(&key).unwrap(), false),
        ] {
            let uri = format!("https://localhost:{}/", serve_tls(&certificate, &key).port());
            let asked = transport.clone().oneshot(Request::get(uri).body(Full::default()).unwrap()).await;
            match asked {
                Ok(_) => assert!(is_good, "{what}"),
                Err(error) => {
                    assert!(!is_good, "{what}: {error:?}");
                    assert_eq!(UpstreamError::find(&*error).unwrap().kind(), UpstreamErrorKind::Connect, "{what}");
                }
            }
        }
    }
}
