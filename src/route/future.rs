//! From the model to its stack, and from one that cannot serve to the next.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH, request::Parts};
use pin_project_lite::pin_project;
use tower::{BoxError, util::Oneshot};
use tower_service::Service;

use super::{
    policy::{self, Hop},
    table::Table,
};
use crate::{
    buffer::ReplayBody,
    error::{Rejected, Why},
    explain::Next,
    outcome::{HttpStatus, Outcome, Verdict},
    request::RequestContext,
};

/// How much of a model's name a refusal repeats.
const SHOWN: usize = 100;

pin_project! {
    /// The response future of [`Routes`](super::Routes).
    pub struct RoutesFuture<S: Service<Request<ReplayBody>>> {
        table: Arc<Table<S>>,
        // boxed, since only who has several models has one
        ahead: Option<Box<Ahead>>,
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<ReplayBody>>> {
        Running {
            // the stack's clone is polled until it is ready, then called: nobody's but this request's
            #[pin]
            call: Oneshot<S, Request<ReplayBody>>,
        },
        Refused {
            refusal: Option<Rejected>,
        },
    }
}

/// The models not yet tried, and what is needed to ask for them.
struct Ahead {
    head: Parts,
    context: RequestContext,
    body: Bytes,
    hops: std::vec::IntoIter<Hop>,
}

impl Ahead {
    fn request(&self, hop: &Hop) -> Request<ReplayBody> {
        let mut request = Request::from_parts(self.head.clone(), ReplayBody::from(self.body.clone()));
        if let Some(body) = policy::rewrite(&self.body, hop) {
            let body = Bytes::from(body);
            if let Some(length) = request.headers_mut().get_mut(CONTENT_LENGTH) {
                *length = body.len().into();
            }
            request.extensions_mut().insert(self.context.rewritten(body.clone()));
            *request.body_mut() = body.into();
        }
        request
    }
}

impl<S> RoutesFuture<S>
where
    S: Service<Request<ReplayBody>> + Clone,
{
    pub(super) fn new(table: Arc<Table<S>>, mut request: Request<ReplayBody>) -> Self {
        let context = RequestContext::of(&mut request);
        let asks = context.asks();
        let mut hops = policy::plan(&table, asks).into_iter();
        let (call, ahead) = match (hops.next(), context.body()) {
            (Some(first), Some(body)) => {
                let body = body.clone();
                let ahead = Ahead { head: request.into_parts().0, context: context.clone(), body, hops };
                let call = Oneshot::new(table.stack(first.at).clone(), ahead.request(&first));
                (Some(call), (ahead.hops.len() > 0).then(|| Box::new(ahead)))
            }
            _ => {
                let at = table.find(asks.model.as_deref());
                (at.map(|at| Oneshot::new(table.stack(at).clone(), request)), None)
            }
        };
        let state = match call {
            Some(call) => State::Running { call },
            None => State::Refused { refusal: Some(no_route(asks.model.as_deref())) },
        };
        Self { table, ahead, state }
    }
}

fn no_route(model: Option<&str>) -> Rejected {
    let detail = match model {
        Some(model) => {
            let shown: String = model.chars().take(SHOWN).collect();
            format!("no route serves the model {shown:?}: ask for another, or give the router a route for it")
        }
        None => "the request names no model in a body of JSON, and the router has no fallback for it".to_owned(),
    };
    Rejected::new(Why::NoRoute, detail)
}

impl<S, ResB> Future for RoutesFuture<S>
where
    S: Service<Request<ReplayBody>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<ResB>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Running { call } => ready!(call.poll(cx)).map_err(Into::into),
                StateProj::Refused { refusal } => {
                    return Poll::Ready(Err(refusal.take().expect("polled after it was ready").into()));
                }
            };
            let Some(ahead) = this.ahead.as_mut().filter(|_| goes_on(&result)) else {
                return Poll::Ready(result);
            };
            let Some(hop) = ahead.hops.next() else { return Poll::Ready(result) };
            tracing::debug!(model = &*hop.model, "the model before it cannot serve: trying the next");
            ahead.context.ledger().turn();
            if let Some(trace) = ahead.context.trace() {
                trace.next(Next::OtherModel);
            }
            // what the failed answer holds is free before the next begins
            drop(result);
            let call = Oneshot::new(this.table.stack(hop.at).clone(), ahead.request(&hop));
            this.state.set(State::Running { call });
        }
    }
}

fn goes_on<ResB>(result: &Result<Response<ResB>, BoxError>) -> bool {
    match result {
        Ok(response) => match response.extensions().get::<Rejected>() {
            Some(refusal) => policy::refused_here(refusal),
            None => match Verdict::of(response, &HttpStatus) {
                Verdict::Known(Outcome::Fault(fault)) => policy::goes_on(&fault),
                _ => false,
            },
        },
        Err(error) => policy::failed_here(&**error),
    }
}

impl<S: Service<Request<ReplayBody>>> fmt::Debug for RoutesFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoutesFuture").finish_non_exhaustive()
    }
}
