//! One request on its way to the balancer and back.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Either;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};
use tower_openrouter::{
    RequestContext,
    answer::Shape,
    body::{Guarded, Held},
    request::Priority,
};

use super::{
    access::Access,
    around::REQUEST_ID,
    bursts::Bursts,
    drain::{Cuttable, Drain, STOPPING, WhenCut},
    headers,
    record::{Entry, Recorder},
    refusal::refuse,
    traces::{Explained, Traces},
};

const PRIORITY: HeaderName = HeaderName::from_static("x-priority");
const KEY: HeaderName = HeaderName::from_static("x-balancer-key");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-balancer-attempts");
const SIMULATED: HeaderName = HeaderName::from_static("x-balancer-simulated");

/// Lets in who may come in, keeps on either side what belongs there, and notes on the answer how it came about.
#[derive(Debug, Clone)]
pub(super) struct Proxy<S> {
    balancer: S,
    shared: Arc<Shared>,
}

/// What all requests share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) access: Access,
    pub(super) drain: Drain,
    pub(super) balancer_headers: bool,
    pub(super) explain: Explained,
    pub(super) traces: Traces,
    pub(super) recorder: Option<Recorder>,
    pub(super) simulated: bool,
}

impl<S> Proxy<S> {
    pub(super) fn new(balancer: S, shared: Shared) -> Self {
        Self { balancer, shared: Arc::new(shared) }
    }
}

/// The body of an answer, which may be recorded.
pub(super) type ProxyBody<B> = Guarded<AnyBody<B>, Box<Entry>>;
/// The balancer's, an event stream of its that can be cut, or one of ours.
type AnyBody<B> = Either<B, Either<Pin<Box<Cuttable<Bursts<B>>>>, Body>>;

impl<S, ReqB, B> Service<Request<ReqB>> for Proxy<S>
where
    S: Service<Request<ReqB>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response<ProxyBody<B>>;
    type Error = Infallible;
    type Future = ProxyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.balancer.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let shape = Shape::of_path(request.uri().path());
        if !self.shared.access.allows(request.headers()) {
            let response = refuse(shape, StatusCode::UNAUTHORIZED, "Missing or wrong access token");
            return ProxyFuture::Refused { response: Some(response) };
        }
        let priority = match request.headers().get(&PRIORITY) {
            None => None,
            Some(name) => match name.to_str().unwrap_or_default().parse::<Priority>() {
                Ok(priority) => Some(priority),
                Err(_) => {
                    let response = refuse(shape, StatusCode::BAD_REQUEST, "x-priority must be high, normal or low");
                    return ProxyFuture::Refused { response: Some(response) };
                }
            },
        };
        let context = RequestContext::of(&mut request);
        let recorder = self.shared.recorder.as_ref().filter(|_| request.method() == Method::POST);
        let entry = recorder.map(|recorder| Held::new(Entry::new(recorder, &self.shared.drain, &request, &context)));
        headers::to_upstream(request.headers_mut());
        if let Some(priority) = priority {
            context.set_priority(priority);
        }
        if let Some(trace) = context.trace()
            && let Some(id) = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok())
        {
            self.shared.traces.keep(id, trace.clone());
        }
        ProxyFuture::Running {
            answer: self.balancer.call(request),
            cut: self.shared.drain.when_cut(),
            context,
            entry,
            shape,
            shared: self.shared.clone(),
        }
    }
}

pin_project! {
    /// The answer to come.
    #[project = ProxyProj]
    pub(super) enum ProxyFuture<F> {
        Refused {
            response: Option<Response<Body>>,
        },
        Running {
            #[pin]
            answer: F,
            #[pin]
            cut: WhenCut,
            context: RequestContext,
            // below the answer: what is dropped with it has its say first
            entry: Option<Held<Box<Entry>>>,
            shape: Shape,
            shared: Arc<Shared>,
        },
    }
}

impl<F, B> Future for ProxyFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<ProxyBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match self.project() {
            ProxyProj::Refused { response } => {
                let response = response.take().expect("polled after it was ready");
                own(response).map(|body| Guarded::new(body, None))
            }
            ProxyProj::Running { answer, cut, context, entry, shape, shared } => {
                let mut noted = entry.as_mut().and_then(Held::get_mut);
                let response = match answer.poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        if let Some(entry) = &mut noted {
                            entry.answered(&response);
                        }
                        shared.finish(response, context, *shape)
                    }
                    Poll::Pending if cut.poll(cx).is_ready() => {
                        if let Some(entry) = &mut noted {
                            entry.cut();
                        }
                        own(refuse(*shape, StatusCode::SERVICE_UNAVAILABLE, STOPPING))
                    }
                    Poll::Pending => return Poll::Pending,
                };
                if let Some(entry) = noted {
                    entry.head(&response);
                }
                let entry = entry.as_mut().and_then(Held::take);
                response.map(|body| Guarded::new(body, entry))
            }
        };
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for ProxyFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyFuture").finish_non_exhaustive()
    }
}

impl Shared {
    fn finish<B>(&self, mut response: Response<B>, context: &RequestContext, shape: Shape) -> Response<AnyBody<B>> {
        headers::to_client(response.headers_mut());
        let is_stream =
            response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let mut response = if response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED {
            // the client would follow it, and show the other server the token it has for this one
            let message = format!("The upstream answered with a redirect ({})", response.status().as_u16());
            own(refuse(shape, StatusCode::BAD_GATEWAY, &message))
        } else if is_stream {
            response.map(|body| {
                let events = Cuttable::new(Bursts::new(body), &self.drain, shape);
                Either::Right(Either::Left(Box::pin(events)))
            })
        } else {
            response.map(Either::Left)
        };
        let headers = response.headers_mut();
        // a head that was sent ahead of its answer cannot say who will give that
        if self.balancer_headers && !context.is_kept_alive() {
            let ledger = context.ledger();
            let attempts = ledger.attempts();
            headers.insert(ATTEMPTS, number(attempts.len()));
            if let Some(attempt) = ledger.latest()
                && let Ok(label) = HeaderValue::from_bytes(attempt.endpoint.key().name().as_bytes())
            {
                headers.insert(KEY, label);
            }
        }
        if self.simulated {
            headers.insert(SIMULATED, HeaderValue::from_static("1"));
        }
        response
    }
}

fn own<B>(response: Response<Body>) -> Response<AnyBody<B>> {
    response.map(|body| Either::Right(Either::Right(body)))
}

fn number(number: usize) -> HeaderValue {
    match number {
        1 => HeaderValue::from_static("1"),
        number => HeaderValue::from(number),
    }
}
