//! What surrounds every request: an id, a line in the log for those who debug, and somebody who catches its panic. What is
//! framed in two ways, or has a target too long to be one, goes no further, whatever is asked and by whom: the connection could
//! not be used for another.
//!
//! Layers for each of these are to be had. Together they took a twelfth of what a request costs here: values in the extensions
//! that nobody reads, a clock for a log that nobody writes, a box around each body.

use std::{
    any::Any,
    convert::Infallible,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header::CONNECTION};
use http_body_util::Either;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;
use tower_openrouter::answer::Shape;
use tracing::{Level, debug, error};

use super::{headers, refusal::refuse};

/// Tells requests apart; answers carry it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest target, in bytes: nginx's, and far longer than any endpoint's. A head may be twice as long.
const LONGEST_TARGET: usize = 8192;

/// Gives a request an id unless its client has given it one, and answers with it unless the upstream has.
#[derive(Debug, Clone)]
pub(super) struct Around<S>(S);

impl<S> Around<S> {
    pub(super) fn new(inner: S) -> Self {
        Self(inner)
    }
}

impl<S, ReqB, B> Service<Request<ReqB>> for Around<S>
where
    S: Service<Request<ReqB>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<Either<B, Body>>;
    type Error = Infallible;
    type Future = AroundFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let id = request.headers_mut().entry(REQUEST_ID).or_insert_with(next_id).clone();
        let traced = tracing::enabled!(Level::DEBUG).then(|| Traced {
            method: request.method().clone(),
            uri: request.uri().clone(),
            since: Instant::now(),
        });
        let state = match refused(&request) {
            Some(response) => State::Answered { response: Some(response) },
            None => match catch_unwind(AssertUnwindSafe(|| self.0.call(request))) {
                Ok(future) => State::Running { future },
                Err(panic) => State::Answered { response: Some(panicked(&*panic)) },
            },
        };
        AroundFuture { state, id: Some(id), traced }
    }
}

/// What is kept of a request while somebody debugs.
#[derive(Debug)]
struct Traced {
    method: Method,
    uri: Uri,
    since: Instant,
}

pin_project! {
    /// The response future of [`Around`].
    pub(super) struct AroundFuture<F> {
        #[pin]
        state: State<F>,
        // gone with the answer
        id: Option<HeaderValue>,
        traced: Option<Traced>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Running {
            #[pin]
            future: F,
        },
        Answered {
            response: Option<Response<Body>>,
        },
    }
}

impl<F, B> Future for AroundFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Either<B, Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.state.project() {
            StateProj::Running { future } => match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(answer) => match ready!(answer) {
                    Ok(response) => response.map(Either::Left),
                    Err(never) => match never {},
                },
                Err(panic) => panicked(&*panic).map(Either::Right),
            },
            StateProj::Answered { response } => response.take().expect("polled after it was ready").map(Either::Right),
        };
        if let Some(Traced { method, uri, since }) = this.traced.take() {
            let (status, took) = (response.status().as_u16(), since.elapsed());
            // the path alone: people put credentials into queries
            debug!(id = ?this.id, %method, path = uri.path(), status, ?took, "the head of the answer");
        }
        if let Some(id) = this.id.take() {
            response.headers_mut().entry(REQUEST_ID).or_insert(id);
        }
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for AroundFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AroundFuture").field("id", &self.id).finish_non_exhaustive()
    }
}

fn is_too_long(target: &Uri) -> bool {
    let length = |part: Option<&str>| part.map_or(0, str::len);
    let path = length(target.path_and_query().map(|path| path.as_str()));
    path + length(target.authority().map(|authority| authority.as_str())) > LONGEST_TARGET
}

fn refused<B>(request: &Request<B>) -> Option<Response<Body>> {
    let (status, message) = if !headers::framing_is_plain(request.headers()) {
        (StatusCode::NOT_IMPLEMENTED, "the only Transfer-Encoding is chunked".to_owned())
    } else if is_too_long(request.uri()) {
        let message = format!("the target is longer than {LONGEST_TARGET} bytes: what is asked belongs into the body");
        (StatusCode::URI_TOO_LONG, message)
    } else {
        return None;
    };
    let mut response = refuse(Shape::of_path(request.uri().path()), status, &message);
    // where the next request would begin is a matter of opinion
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

fn panicked(panic: &(dyn Any + Send)) -> Response<Body> {
    let what = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(what = what.unwrap_or("no message"), "a request panicked; please report it");
    refuse(Shape::Chat, StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
}

/// Ids that tell requests of all gateways apart and cost next to nothing: a name of this process, and a count.
fn next_id() -> HeaderValue {
    static PROCESS: LazyLock<String> = LazyLock::new(|| format!("{:016x}-", fastrand::u64(..)));
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // by hand, since formatting costs as much as parsing the request
    let mut id = [b'0'; 37];
    let (process, mut number) = (PROCESS.as_bytes(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut at = id.len();
    while number > 0 {
        at -= 1;
        id[at] += (number % 10) as u8;
        number /= 10;
    }
    at -= process.len();
    id[at..][..process.len()].copy_from_slice(process);
    // shared from the start: request and answer both have it
    let id = Bytes::from_owner(id).slice(at..);
    HeaderValue::from_maybe_shared(id).unwrap_or(HeaderValue::from_static("0"))
}
