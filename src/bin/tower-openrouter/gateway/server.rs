//! Accepting connections and serving HTTP/1.1 and cleartext HTTP/2 on them.
//!
//! axum's own `serve` sets no header timeout, so that a client that never finishes its request's head holds a connection for
//! ever; here hyper is used directly.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tower::{BoxError, Service, ServiceExt};
use tracing::{debug, warn};

/// Serves a listener until it should stop, and its connections until they end.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// How long a request's head may take, and how long a connection may idle.
    pub(super) header_timeout: Duration,
    /// Turns true when nothing new should be taken.
    pub(super) stop: watch::Receiver<bool>,
    /// Dropped by each connection at its end.
    pub(super) _alive: mpsc::Sender<Infallible>,
}

impl Server {
    /// Accepts until told to stop; connections are tasks of their own. `app` gets the address a client has connected to.
    pub(super) async fn serve<S, B>(mut self, listener: TcpListener, app: impl Fn(SocketAddr) -> S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    // without it a small event of a stream would wait for the client's acknowledgement of the one before
                    if stream.set_nodelay(true).is_ok()
                        && let Ok(local) = stream.local_addr()
                    {
                        tokio::spawn(self.clone().connection(stream, app(local)));
                    }
                }
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    // out of file descriptors, say: only time, or the end of other connections, helps
                    warn!(%error, "cannot accept connections for now");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn connection<S, B>(mut self, stream: TcpStream, app: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let asked = Arc::new(AtomicBool::new(false));
        let service = service_fn({
            let asked = asked.clone();
            move |request| {
                asked.store(true, Ordering::Relaxed);
                app.clone().oneshot(request)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        builder.http2().timer(TokioTimer::new());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        // hyper's own timeout starts once it knows which HTTP is spoken
        let mut first_request = pin!(timeout(self.header_timeout, std::future::pending::<Infallible>()));
        let (mut stopping, mut waiting) = (false, true);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%error, "a connection failed");
                    }
                    return;
                }
                _ = self.stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = first_request.as_mut(), if waiting => {
                    if !asked.load(Ordering::Relaxed) {
                        return;
                    }
                    waiting = false;
                }
            }
        }
    }
}

/// Whether only the one connection failed, before it was accepted.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
