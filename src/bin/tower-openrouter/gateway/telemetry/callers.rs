//! The traces of callers: a request that names one (W3C Trace Context, `traceparent` and `tracestate`) becomes a part of it.
//!
//! A span begins with its parent and cannot be given another, so the caller's is in place before the request's is made. What
//! the caller left out of its trace is left out here too. The headers themselves pass as any other does.

use std::task::{Context, Poll};

use http::Request;
use opentelemetry::global::get_text_map_propagator;
use opentelemetry_http::HeaderExtractor;
use tower::Service;

/// Puts the spans that `S` makes when called into the caller's trace, where spans are exported.
#[derive(Debug, Clone)]
pub(in super::super) struct OfCallers<S>(S);

impl<S> OfCallers<S> {
    pub(in super::super) fn new(inner: S) -> Self {
        Self(inner)
    }
}

impl<S, B> Service<Request<B>> for OfCallers<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        // none is set where nothing is exported
        let caller = request
            .headers()
            .contains_key("traceparent")
            .then(|| get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(request.headers()))));
        let _in_its_trace = caller.map(opentelemetry::Context::attach);
        self.0.call(request)
    }
}
