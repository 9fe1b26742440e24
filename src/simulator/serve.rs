//! The simulator over HTTP, for clients in any language.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Request, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;

use super::{Simulator, SimulatorError};

/// Serves HTTP/1.1 and cleartext HTTP/2 until dropped. Every frame of a body is sent at once.
///
/// A simulated reset aborts the TCP connection (HTTP/1) or the stream (HTTP/2). Must run within a tokio
/// runtime that has IO enabled; connections are tasks of that runtime and outlive this future.
///
/// # Errors
///
/// When the listener fails for good; failures of single connections are passed over.
pub async fn serve(listener: TcpListener, simulator: Simulator) -> io::Result<()> {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_of_connection(&error) => continue,
            Err(error) => return Err(error),
        };
        // Without it a small SSE event could wait for the acknowledgement of the one before.
        if stream.set_nodelay(true).is_ok() {
            tokio::spawn(connection(stream, simulator.clone()));
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(stream: TcpStream, simulator: Simulator) {
    let abort = Arc::new(AtomicBool::new(false));
    let io = TokioIo::new(Socket { stream, abort: Arc::clone(&abort) });
    let service = service_fn(move |request: Request<Incoming>| {
        let flag = Arc::clone(&abort);
        let http1 = request.version() < Version::HTTP_2;
        let mark = move |error: SimulatorError| {
            if http1 && matches!(error, SimulatorError::Reset) {
                flag.store(true, Ordering::Relaxed);
            }
            error
        };
        let answer = simulator.service().call(request);
        async move {
            match answer.await {
                Ok(response) => Ok(response.map(|body| body.map_err(mark))),
                Err(error) => Err(mark(error)),
            }
        }
    });
    // An error here is a simulated one or the client's departure; both are on the books already.
    let _ended = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

/// A TCP stream that can end with a reset.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    abort: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.abort.load(Ordering::Relaxed) {
            // Closing with a zero linger sends RST in place of FIN.
            let _closed_anyway = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.abort.load(Ordering::Relaxed) {
            // A shutdown would send FIN first.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
