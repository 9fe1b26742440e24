//! Many requests through one service: so many at once and no more, each with a result of its own.
//!
//! `join_all` starts everything at once, and `try_join_all` throws a thousand answers away for one error. tower's
//! [`CallAll`](tower::util::CallAll) waits for one instance to be ready, knows no bound, and ends at the first error too. A
//! [`Batch`] keeps `concurrency` requests under way. It asks its input, an iterator or a stream, for the next request only
//! when there is room for it, so that a million of them need no memory. Each request gets a clone of the service, which is
//! called once it is itself ready, and each has its own `Result`. Nothing is spawned: the answers are a stream that does all
//! the work while it is polled, and dropping it drops every request under way.
//!
//! Answers come [in the order of the requests](Batch::in_order), or [as they come](Batch::as_they_come) with their numbers.
//! The order has a price: an answer that must wait for an earlier one keeps its place, so one slow request can leave the
//! service idle.
//!
//! # Whole answers
//!
//! A service of HTTP answers when the head is there, and a layer such as [`limit`](crate::limit) gives its permit back when
//! the *body* is over. Answers that wait unread for an earlier one then hold what that one waits for. So read the body as
//! part of the request, with [`whole`]:
//!
//! ```
//! use bytes::Bytes;
//! use futures_util::StreamExt;
//! use http::Request;
//! use http_body_util::Full;
//! use tower::{BoxError, ServiceExt};
//! use tower_openrouter::{ApiKey, Balancer, Batch, OpenRouter, batch, select::Pool};
//! # use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), BoxError> {
//! # let simulator = Simulator::new(Scenario::default())?;
//! # let (key, transport) = (simulator.keys()[0].secret.clone(), simulator.service());
//! let pool = Pool::new([ApiKey::new(key)?])?;
//! let balancer = Balancer::builder(pool).build(OpenRouter::new(transport));
//!
//! let prompts = ["Why is the sky blue?", "Why is the grass green?", "Why is the night dark?"];
//! let requests = prompts.map(|prompt| {
//!     let body = format!(r#"{{"model":"acme/swift-1","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
//!     Request::post("/v1/chat/completions").body(Full::<Bytes>::from(body)).unwrap()
//! });
//! let mut answers = Batch::new(balancer.and_then(batch::whole), requests, 2)?.in_order();
//! while let Some(answer) = answers.next().await {
//!     let answer = answer?;
//!     println!("{} {}", answer.status(), String::from_utf8_lossy(answer.body()));
//!     # assert_eq!(answer.status(), 200);
//! }
//! # Ok(()) }
//! ```
//!
//! From a stream, as they come, until there is enough; what is still under way at the end is dropped:
//!
//! ```
//! use futures_util::{StreamExt, stream};
//! use tower::{BoxError, service_fn};
//! use tower_openrouter::Batch;
//!
//! async fn is_prime(number: u64) -> Result<u64, BoxError> {
//!     match (2..number).find(|divisor| number.is_multiple_of(*divisor)) {
//!         None => Ok(number),
//!         Some(divisor) => Err(format!("{number} is a multiple of {divisor}").into()),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! let numbers = stream::iter(1_000_000..);
//! let mut answers = Batch::from_stream(service_fn(is_prime), numbers, 8)?.as_they_come();
//! let mut primes = Vec::new();
//! while let Some((number, answer)) = answers.next().await {
//!     match answer {
//!         Ok(prime) => primes.push(prime),
//!         Err(error) => println!("request {number}: {error}"),
//!     }
//!     if primes.len() == 3 {
//!         break;
//!     }
//! }
//! assert_eq!(primes, [1_000_003, 1_000_033, 1_000_037]);
//! # Ok(()) }
//! ```

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream::FuturesUnordered;
use http::Response;
use http_body::Body;
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tower::{BoxError, ServiceExt, util::Oneshot};
use tower_service::Service;

/// Requests for a service, and how many of them may be under way at once. See the [module](self).
#[derive(Clone)]
#[must_use = "nothing is sent before its answers are asked for"]
pub struct Batch<S, I> {
    service: S,
    requests: I,
    concurrency: usize,
}

/// A batch that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// No request could ever be sent.
    #[error("a concurrency of 0 sends nothing: give at least 1")]
    ZeroConcurrency,
}

impl<S, I: Iterator> Batch<S, Iter<I>> {
    /// Requests out of an iterator.
    ///
    /// # Errors
    /// When the concurrency is 0.
    pub fn new(service: S, requests: impl IntoIterator<IntoIter = I>, concurrency: usize) -> Result<Self, BatchError> {
        Self::from_stream(service, Iter(requests.into_iter()), concurrency)
    }
}

impl<S, I: Stream> Batch<S, I> {
    /// Requests out of a stream.
    ///
    /// # Errors
    /// When the concurrency is 0.
    pub fn from_stream(service: S, requests: I, concurrency: usize) -> Result<Self, BatchError> {
        if concurrency == 0 {
            return Err(BatchError::ZeroConcurrency);
        }
        Ok(Self { service, requests, concurrency })
    }

    /// The answers in the order of their requests. Those that have to wait for an earlier one count as under way.
    pub fn in_order(self) -> InOrder<S, I>
    where
        S: Service<I::Item> + Clone,
    {
        InOrder { answers: self.as_they_come(), early: VecDeque::new(), held: 0, given: 0 }
    }

    /// The answers as they come, each with its request's number, counted from 0.
    pub fn as_they_come(self) -> AsTheyCome<S, I>
    where
        S: Service<I::Item> + Clone,
    {
        let Self { service, requests, concurrency } = self;
        AsTheyCome { requests: Some(requests), service, concurrency, next: 0, running: FuturesUnordered::new() }
    }
}

impl<S, I> fmt::Debug for Batch<S, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

/// An iterator as a stream.
#[derive(Clone)]
pub struct Iter<I>(I);

impl<I> fmt::Debug for Iter<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

// an iterator is never pinned
impl<I> Unpin for Iter<I> {}

impl<I: Iterator> Stream for Iter<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

pin_project! {
    /// Answers as they come: a stream of request numbers and results. See [`Batch::as_they_come`].
    #[must_use = "streams do nothing unless polled"]
    pub struct AsTheyCome<S, I>
    where
        S: Service<I::Item>,
        I: Stream,
    {
        // gone once it has ended
        #[pin]
        requests: Option<I>,
        service: S,
        concurrency: usize,
        next: usize,
        running: FuturesUnordered<Numbered<Oneshot<S, I::Item>>>,
    }
}

/// A request's number, and what it is answered.
type NumberedAnswer<S, R> = (usize, Result<<S as Service<R>>::Response, <S as Service<R>>::Error>);

impl<S, I> AsTheyCome<S, I>
where
    S: Service<I::Item> + Clone,
    I: Stream,
{
    /// The next answer, with at most `room` requests under way.
    fn poll_within(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<Option<NumberedAnswer<S, I::Item>>> {
        let mut this = self.project();
        while this.running.len() < room {
            let Some(requests) = this.requests.as_mut().as_pin_mut() else { break };
            match requests.poll_next(cx) {
                Poll::Ready(Some(request)) => {
                    // a clone that is asked for its own readiness, and called when it has said so
                    let call = this.service.clone().oneshot(request);
                    this.running.push(Numbered { number: *this.next, call });
                    *this.next += 1;
                }
                Poll::Ready(None) => this.requests.set(None),
                Poll::Pending => break,
            }
        }
        match Pin::new(this.running).poll_next(cx) {
            // nothing runs, and the input wakes us when it has more
            Poll::Ready(None) if this.requests.is_some() => Poll::Pending,
            answer => answer,
        }
    }
}

impl<S, I> Stream for AsTheyCome<S, I>
where
    S: Service<I::Item> + Clone,
    I: Stream,
{
    type Item = NumberedAnswer<S, I::Item>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let room = self.concurrency;
        self.poll_within(cx, room)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.requests.as_ref().map_or((0, Some(0)), Stream::size_hint);
        let running = self.running.len();
        (least.saturating_add(running), most.and_then(|most| most.checked_add(running)))
    }
}

impl<S, I> fmt::Debug for AsTheyCome<S, I>
where
    S: Service<I::Item>,
    I: Stream,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsTheyCome")
            .field("concurrency", &self.concurrency)
            .field("sent", &self.next)
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// Answers in the order of their requests: a stream of results. See [`Batch::in_order`].
    #[must_use = "streams do nothing unless polled"]
    pub struct InOrder<S, I>
    where
        S: Service<I::Item>,
        I: Stream,
    {
        #[pin]
        answers: AsTheyCome<S, I>,
        // from the next one to give on; those not answered yet are None
        early: VecDeque<Option<Result<S::Response, S::Error>>>,
        // how many of them are answered
        held: usize,
        given: usize,
    }
}

impl<S, I> Stream for InOrder<S, I>
where
    S: Service<I::Item> + Clone,
    I: Stream,
{
    type Item = Result<S::Response, S::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            if let Some(Some(_)) = this.early.front() {
                *this.held -= 1;
                *this.given += 1;
                return Poll::Ready(this.early.pop_front().flatten());
            }
            // the next one to give is not among those held, so there is room for it
            let room = this.answers.concurrency - *this.held;
            let Some((number, answer)) = ready!(this.answers.as_mut().poll_within(cx, room)) else {
                return Poll::Ready(None);
            };
            let at = number - *this.given;
            if this.early.len() <= at {
                this.early.resize_with(at + 1, || None);
            }
            this.early[at] = Some(answer);
            *this.held += 1;
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.answers.size_hint();
        (least.saturating_add(self.held), most.and_then(|most| most.checked_add(self.held)))
    }
}

impl<S, I> fmt::Debug for InOrder<S, I>
where
    S: Service<I::Item>,
    I: Stream,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InOrder").field("answers", &self.answers).field("held", &self.held).finish_non_exhaustive()
    }
}

pin_project! {
    /// A future that remembers which one it is.
    struct Numbered<F> {
        number: usize,
        #[pin]
        call: F,
    }
}

impl<F: Future> Future for Numbered<F> {
    type Output = (usize, F::Output);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready((*this.number, ready!(this.call.poll(cx))))
    }
}

/// Reads an answer's body to its end: for [`AndThen`](tower::util::AndThen), so that a request of a batch is over when its body is.
///
/// # Errors
/// The body's own, when it breaks off.
pub async fn whole<B>(response: Response<B>) -> Result<Response<Bytes>, BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(Into::into)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
