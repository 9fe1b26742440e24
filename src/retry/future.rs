use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use super::attempts::{Attempts, Wait};
use crate::request::Replay;

/// The future of [`Retry`](super::Retry).
pub struct RetryFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
{
    // boxed, since it holds a whole request and the layers around it would carry that from hand to hand
    run: Pin<Box<Run<S, B, S::Future>>>,
}

pin_project! {
    struct Run<S, B, F> {
        #[pin]
        state: State<F>,
        service: S,
        attempts: Attempts,
        // for the next attempt, if there can be one
        spare: Option<Request<B>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Calling { #[pin] future: F },
        Waiting { #[pin] wait: Wait },
        Readying,
    }
}

impl<S, B, ResB> RetryFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
{
    /// `future` is the first attempt; `spare` the request for the next.
    pub(super) fn new(future: S::Future, service: S, attempts: Attempts, spare: Option<Request<B>>) -> Self {
        Self { run: Box::pin(Run { state: State::Calling { future }, service, attempts, spare }) }
    }
}

impl<S, B, ResB> Future for RetryFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    B: Replay,
{
    type Output = Result<Response<ResB>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.run.as_mut().project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Calling { future } => {
                    // what failed is dropped here, before the wait
                    match future.poll(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(response)) => match this.attempts.after_answer(&response, this.spare.as_ref()) {
                            Some(wait) => State::Waiting { wait },
                            None => return Poll::Ready(Ok(response)),
                        },
                        Poll::Ready(Err(error)) => {
                            let error = error.into();
                            match this.attempts.after_error(&error, this.spare.as_ref()) {
                                Some(wait) => State::Waiting { wait },
                                None => return Poll::Ready(Err(error)),
                            }
                        }
                    }
                }
                StateProj::Waiting { wait } => {
                    ready!(wait.poll(cx));
                    State::Readying
                }
                StateProj::Readying => {
                    if let Err(error) = ready!(this.service.poll_ready(cx)) {
                        let error = error.into();
                        this.attempts.after_error::<B>(&error, None);
                        return Poll::Ready(Err(error));
                    }
                    let request = this.attempts.again(this.spare.take().expect("without it nothing is tried again"));
                    *this.spare = this.attempts.begin(&request);
                    State::Calling { future: this.service.call(request) }
                }
            };
            this.state.set(next);
        }
    }
}

impl<S, B, ResB> fmt::Debug for RetryFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
