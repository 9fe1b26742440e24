//! Accepting connections and serving HTTP/1.1 and cleartext HTTP/2 on them.
//!
//! axum's own `serve` sets no header timeout, so that a client that never finishes its request's head holds a connection for
//! ever; here hyper is used directly. What a connection may cost is bounded by hyper's own limits: 100 headers, 200 streams of
//! HTTP/2 at once, 1 MiB of their bodies unread, 20 streams that were reset before anybody looked at them.
//!
//! A head that does not fit is answered with 431, whatever part of it is too long, since hyper gives up before it has all of it;
//! its own 414 needs a buffer of 64 KiB for each connection. A target too long that fits is answered with 414 further inside.

use std::{
    convert::Infallible,
    future::poll_fn,
    io, mem,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header::CONNECTION};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    rt::{Executor, Sleep, Timer},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::unconstrained,
    time::sleep,
};
use tower::{BoxError, Service, ServiceExt};
use tracing::{debug, warn};

use super::intake::{CleanEnd, Intake};

/// What is kept of an answer for a client that does not read, and the longest request head, which is Node's; hyper's default of 400 KiB would
/// be taken for each such client.
const BUFFER: usize = 16 * 1024;

/// How long a client has to end an HTTP/2 connection that it was asked to end.
const GOODBYE: Duration = Duration::from_millis(500);

/// Serves a listener until it should stop, and its connections until they end.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// How long a request's head may take, a body that hardly comes, and how long a connection may idle.
    pub(super) header_timeout: Duration,
    /// Turns true when nothing new should be taken.
    pub(super) stop: watch::Receiver<bool>,
    /// Dropped by each connection at its end.
    pub(super) _alive: mpsc::Sender<Infallible>,
}

impl Server {
    /// Accepts until told to stop; connections are tasks of their own. `app` gets the address a client has connected to, and
    /// gives what is asked for the service of each request.
    pub(super) async fn serve<F, S, B>(mut self, listener: TcpListener, app: impl Fn(SocketAddr) -> F)
    where
        F: Fn() -> S + Send + 'static,
        S: Service<Request<Intake<Incoming>>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
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

    async fn connection<S, B>(mut self, stream: TcpStream, app: impl Fn() -> S + Send + 'static)
    where
        S: Service<Request<Intake<Incoming>>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (heads, streams, asked) = (Heads::default(), Streams::default(), Arc::new(AtomicBool::new(false)));
        let service = service_fn({
            let (asked, grace) = (asked.clone(), self.header_timeout);
            move |request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                let in_chunks = request.version() < Version::HTTP_2 && request.body().size_hint().exact().is_none();
                let end = in_chunks.then(CleanEnd::default);
                let answer = app().oneshot(request.map(|body| Intake::new(body, grace).telling(end.clone())));
                async move {
                    let mut answer = answer.await?;
                    if end.is_some_and(|end| !end.has_come()) {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(answer)
                }
            }
        });
        let mut builder = auto::Builder::new(streams.clone());
        // answers come in small pieces: to put them together in one buffer costs less than to keep a list of them
        builder
            .http1()
            .writev(false)
            .max_buf_size(BUFFER)
            .timer(heads.clone())
            .header_read_timeout(self.header_timeout);
        // whoever is gone without a word would else be waited for with all that runs for it
        builder
            .http2()
            .max_send_buf_size(BUFFER)
            .timer(TokioTimer::new())
            .keep_alive_interval(self.header_timeout)
            .keep_alive_timeout(self.header_timeout);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        // hyper's own timeout starts once it knows which HTTP is spoken
        let mut alarm = pin!(sleep(self.header_timeout));
        let draining = self.stop.clone();
        // not to be put off for fairness, since it is not asked again
        let mut stop = pin!(unconstrained(self.stop.changed()));
        let (mut stopping, mut told, mut set, mut leaving) = (false, false, false, false);
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    if let Err(error) = ended {
                        debug!(%error, "a connection failed");
                    }
                    return Poll::Ready(());
                }
                // woken for each piece that comes or goes, the task looks at a flag; the lock is for its first time here
                if !stopping
                    && (!mem::replace(&mut told, true) || draining.has_changed().unwrap_or(true))
                    && stop.as_mut().poll(cx).is_ready()
                {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                // and so is it with the alarm, until that has rung
                if mem::replace(&mut set, true) && !alarm.is_elapsed() {
                    return Poll::Pending;
                }
                if pin!(unconstrained(alarm.as_mut())).poll(cx).is_pending() {
                    return Poll::Pending;
                }
                set = false;
                if !asked.load(Ordering::Relaxed) {
                    return Poll::Ready(());
                }
                let now = tokio::time::Instant::now();
                let next = match streams.quiet_since().map(|since| since + self.header_timeout) {
                    Some(over) if over <= now => {
                        if mem::replace(&mut leaving, true) {
                            return Poll::Ready(());
                        }
                        connection.as_mut().graceful_shutdown();
                        now + GOODBYE
                    }
                    Some(over) => over,
                    None => heads.latest().filter(|latest| *latest > now).unwrap_or(now + self.header_timeout),
                };
                alarm.as_mut().reset(next);
            }
        })
        .await;
    }
}

/// The time limits of a connection's request heads, one after the other. A timer for each would be set and removed with
/// every request. As each comes later than the one before, one alarm of the connection serves them all: it rings at the
/// earliest, and is then put forward to the latest.
#[derive(Debug, Clone, Default)]
struct Heads(Arc<Mutex<Option<Instant>>>);

impl Heads {
    fn latest(&self) -> Option<tokio::time::Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(Into::into)
    }
}

impl Timer for Heads {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        Box::pin(Head(deadline))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

/// The time limit of one head. It wakes nobody: the connection's alarm does.
struct Head(Instant);

impl Future for Head {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if tokio::time::Instant::now() >= self.0.into() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Sleep for Head {}

/// Runs the streams of an HTTP/2 connection, each as a task, and knows since when there is none. hyper has a time limit for
/// heads and for idling of HTTP/1 only.
#[derive(Debug, Clone, Default)]
struct Streams(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    streams: usize,
    /// When the last one ended.
    ended: Option<tokio::time::Instant>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while a stream runs, and before the first.
    fn quiet_since(&self) -> Option<tokio::time::Instant> {
        let running = self.lock();
        running.ended.filter(|_| running.streams == 0)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.lock().streams += 1;
        let ending = Ending(self.clone());
        tokio::spawn(async move {
            let _ending = ending;
            stream.await;
        });
    }
}

/// The end of a stream, however it comes.
struct Ending(Streams);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut running = self.0.lock();
        running.streams -= 1;
        running.ended = Some(tokio::time::Instant::now());
    }
}

/// Whether only the one connection failed, before it was accepted.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
