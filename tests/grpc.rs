//! gRPC: what a status means where it comes at the end of a stream, and how long a server asks to be left alone.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::{Instant, advance};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, AuthorizeLayer, BufferLayer, Classify, CommitGateLayer, Endpoint, KeySelectLayer, LoadMonitorLayer,
    Outcome, Rejected, RequestContext, RespondLayer, RetryLayer, Snapshot,
    buffer::ReplayBody,
    endpoint_fn,
    error::Why,
    outcome::{Cause, Grpc, Rest},
    select::{Filter, Fit, Pool, RoundRobin},
};

type Body = UnsyncBoxBody<Bytes, BoxError>;

/// An answer: so many messages, then what the trailers say, if there are any.
#[derive(Clone)]
struct Answer {
    messages: usize,
    end: End,
}

#[derive(Clone)]
enum End {
    Trailers(HeaderMap),
    /// Nothing else comes, and nothing is in the head but the status.
    InHead(HeaderMap),
    Nothing,
    Cut,
}

impl Answer {
    fn ok(messages: usize) -> Self {
        Self::trailers(messages, Status::ok(""))
    }

    fn trailers(messages: usize, status: Status) -> Self {
        Self { messages, end: End::Trailers(status.into_http::<()>().into_parts().0.headers) }
    }

    fn in_head(status: Status) -> Self {
        Self { messages: 0, end: End::InHead(status.into_http::<()>().into_parts().0.headers) }
    }

    fn response(self) -> Response<Body> {
        let mut frames: Vec<_> = (0..self.messages).map(|_| Ok(Frame::data(Bytes::from_static(b"message")))).collect();
        let mut head = HeaderMap::new();
        match self.end {
            End::Trailers(trailers) => frames.push(Ok(Frame::trailers(trailers))),
            End::InHead(headers) => head = headers,
            End::Nothing => {}
            End::Cut => frames.push(Err("the connection is gone".into())),
        }
        let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
        *response.headers_mut() = head;
        response
    }
}

/// What the next attempts are answered, and which credentials they had. Where nothing is scripted, all is well.
#[derive(Clone, Default)]
struct Upstream(Arc<Mutex<(VecDeque<Answer>, Vec<String>)>>);

impl Upstream {
    fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.0.lock().unwrap().0.extend(answers);
    }

    fn called(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }

    fn call<B>(&self, request: &Request<B>) -> Response<Body> {
        let mut state = self.0.lock().unwrap();
        let credential = request.headers()["authorization"].to_str().unwrap();
        state.1.push(credential.trim_start_matches("Bearer ").to_owned());
        state.0.pop_front().unwrap_or_else(|| Answer::ok(1)).response()
    }
}

fn pool<const N: usize>(names: [&str; N]) -> Pool {
    Pool::new(names.map(|name| ApiKey::new(name).unwrap().label(name))).unwrap()
}

fn select(
    pool: Pool,
    upstream: &Upstream,
) -> impl Clone
+ Service<
    Request<()>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = BoxError> + Unpin>,
    Error = BoxError,
> {
    let upstream = upstream.clone();
    let per_key = endpoint_fn(|endpoint: &Endpoint| {
        ServiceBuilder::new()
            .layer(LoadMonitorLayer::endpoint(endpoint).classify(Grpc))
            .layer(AuthorizeLayer::new(endpoint.key()))
            .into_inner()
    });
    let layer = KeySelectLayer::new(pool, per_key).classify(Grpc).pick(RoundRobin::default());
    layer.layer(service_fn(move |request: Request<()>| std::future::ready(Ok::<_, BoxError>(upstream.call(&request)))))
}

/// The whole of a client's stack, over bodies that can be sent again.
fn stack(
    pool: Pool,
    upstream: &Upstream,
) -> impl Clone
+ Service<
    Request<ReplayBody>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = BoxError>>,
    Error = BoxError,
> {
    let upstream = upstream.clone();
    let per_key = endpoint_fn(|endpoint: &Endpoint| AuthorizeLayer::new(endpoint.key()));
    ServiceBuilder::new()
        .layer(RetryLayer::new().classify(Grpc))
        .layer(CommitGateLayer::new().classify(Grpc))
        .layer(KeySelectLayer::new(pool, per_key).classify(Grpc).pick(RoundRobin::default()))
        .service(service_fn(move |request: Request<ReplayBody>| {
            let upstream = upstream.clone();
            async move {
                let (head, body) = request.into_parts();
                body.collect().await?;
                Ok::<_, BoxError>(upstream.call(&Request::from_parts(head, ())))
            }
        }))
}

fn in_time(code: Code, seconds: u64) -> Status {
    Status::with_error_details(code, "later", ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds))))
}

fn request() -> Request<ReplayBody> {
    Request::new(ReplayBody::from(Bytes::from_static(b"prompt")))
}

async fn read(response: Response<impl http_body::Body<Data = Bytes, Error = BoxError>>) -> Result<usize, BoxError> {
    let body = response.into_body().collect().await?;
    Ok(body.to_bytes().len() / "message".len())
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_exhausted_at_the_end_of_a_stream_rests_as_long_as_the_server_asks() {
    let (upstream, pool) = (Upstream::default(), pool(["a", "b"]));
    let service = select(pool, &upstream);
    upstream.script([Answer::trailers(3, in_time(Code::ResourceExhausted, 90))]);
    let response = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(read(response).await.unwrap(), 3);
    let [exhausted] = upstream.called().try_into().unwrap();
    let other = if exhausted == "a" { "b" } else { "a" };
    for _ in 0..89 {
        read(service.clone().oneshot(Request::new(())).await.unwrap()).await.unwrap();
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(upstream.called(), vec![other; 89]);
    advance(Duration::from_secs(30)).await;
    for _ in 0..4 {
        read(service.clone().oneshot(Request::new(())).await.unwrap()).await.unwrap();
    }
    assert!(upstream.called().contains(&exhausted), "it is back");
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_it_says_anything_is_tried_with_another_credential() {
    for (name, failure) in [
        ("in the head", Answer::in_head(in_time(Code::ResourceExhausted, 90))),
        ("in the trailers", Answer::trailers(0, in_time(Code::ResourceExhausted, 90))),
        ("unknown, in the trailers", Answer::trailers(0, Status::unauthenticated("who?"))),
    ] {
        let upstream = Upstream::default();
        let service = stack(pool(["a", "b"]), &upstream);
        upstream.script([failure, Answer::ok(2)]);
        let start = Instant::now();
        let response = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(read(response).await.unwrap(), 2, "{name}");
        assert_eq!(start.elapsed(), Duration::ZERO, "{name}: at once");
        let called = upstream.called();
        assert!(called.len() == 2 && called[0] != called[1], "{name}: {called:?}");
        read(service.oneshot(request()).await.unwrap()).await.unwrap();
        assert_eq!(upstream.called(), called[1..], "{name}: the first rests");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_unavailable_is_asked_again_when_it_says() {
    for failure in [Answer::in_head(in_time(Code::Unavailable, 7)), Answer::trailers(0, in_time(Code::Unavailable, 7))]
    {
        let upstream = Upstream::default();
        let service = stack(pool(["a", "b"]), &upstream);
        upstream.script([failure]);
        let start = Instant::now();
        read(service.oneshot(request()).await.unwrap()).await.unwrap();
        let waited = start.elapsed();
        assert!((Duration::from_secs(7)..Duration::from_secs(9)).contains(&waited), "{waited:?}");
        assert_eq!(upstream.called().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_been_passed_on_is_not_repeated() {
    let upstream = Upstream::default();
    let service = stack(pool(["a", "b"]), &upstream);
    upstream.script([Answer::trailers(2, Status::unavailable("gone"))]);
    let body = service.oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "14", "as the server said it");
    assert_eq!(upstream.called().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_an_attempt_is_known_at_its_end() {
    for (answer, messages, outcome) in [
        (Answer::ok(2), 2, Ok(())),
        (Answer::trailers(2, Status::internal("broken")), 2, Err(Cause::ServerError)),
        (Answer { messages: 2, end: End::Nothing }, 2, Err(Cause::Truncated)),
        (Answer { messages: 0, end: End::Nothing }, 0, Err(Cause::Truncated)),
    ] {
        let (upstream, pool) = (Upstream::default(), pool(["a"]));
        upstream.script([answer]);
        let mut request = Request::new(());
        let context = RequestContext::of(&mut request);
        let response = select(pool.clone(), &upstream).oneshot(request).await.unwrap();
        assert_eq!(context.ledger().attempts()[0].outcome, None, "the head says nothing");
        assert_eq!(read(response).await.unwrap(), messages);
        let attempt = context.ledger().attempts()[0].clone();
        let said = attempt.outcome.unwrap();
        assert_eq!(said.fault().map_or(Ok(()), |fault| Err(fault.cause)), outcome);
        assert!(!attempt.running);
        let name = outcome.map_or_else(|cause| cause.as_str(), |()| "complete");
        assert_eq!(Snapshot::of(&*pool.endpoints()).total.outcomes.into_keys().collect::<Vec<_>>(), [name]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_or_left_is_told_apart() {
    let (upstream, pool) = (Upstream::default(), pool(["a"]));
    let attempt = async |answer, read_on: bool| {
        upstream.script([answer]);
        let mut request = Request::new(());
        let context = RequestContext::of(&mut request);
        let response = select(pool.clone(), &upstream).oneshot(request).await.unwrap();
        match read_on {
            true => drop(read(response).await.unwrap_err()),
            false => drop(response),
        }
        context.ledger().attempts()[0].clone()
    };
    let cut = attempt(Answer { messages: 1, end: End::Cut }, true).await;
    assert_eq!(cut.outcome.unwrap().fault().unwrap().cause, Cause::Truncated);
    let left = attempt(Answer::ok(1), false).await;
    assert_eq!((left.outcome, left.running), (None, false), "its caller left: that says nothing about the credential");
}

#[tokio::test(start_paused = true)]
async fn a_filter_is_told_of_an_outcome_that_trailers_tell() {
    /// One request at once for each credential, and what became of them.
    #[derive(Clone, Default)]
    struct Once(Arc<Mutex<Vec<Option<Outcome>>>>);
    impl Filter for Once {
        fn judge(&self, _: &Endpoint, _: &RequestContext, _: Instant) -> Fit {
            Fit::Yes
        }
        fn reserves(&self) -> bool {
            true
        }
        fn reserve(&self, _: &Endpoint, _: &RequestContext, _: Instant) -> Option<u64> {
            Some(1)
        }
        fn settle(&self, _: &Endpoint, _: u64, ended: &tower_openrouter::select::Ended) -> bool {
            self.0.lock().unwrap().push(ended.outcome);
            false
        }
    }
    let (upstream, seen) = (Upstream::default(), Once::default());
    upstream.script([Answer::ok(1), Answer::trailers(1, in_time(Code::ResourceExhausted, 5))]);
    let answers = upstream.clone();
    let layer =
        KeySelectLayer::new(pool(["a", "b"]), endpoint_fn(|endpoint: &Endpoint| AuthorizeLayer::new(endpoint.key())));
    let service = layer
        .classify(Grpc)
        .filter(seen.clone())
        .layer(service_fn(move |request: Request<()>| std::future::ready(Ok::<_, BoxError>(answers.call(&request)))));
    for _ in 0..2 {
        read(service.clone().oneshot(Request::new(())).await.unwrap()).await.unwrap();
    }
    let seen: Vec<_> =
        seen.0.lock().unwrap().iter().map(|outcome| outcome.unwrap().fault().map(|fault| fault.cause)).collect();
    assert_eq!(seen, [None, Some(Cause::PlatformLimit)]);
}

#[tokio::test]
async fn one_balancer_understands_another() {
    let refusal = Rejected::new(Why::NoKey, "all rest").retry_after(Duration::from_millis(1234));
    let refuse = service_fn(move |_: Request<()>| std::future::ready(Err::<Response<String>, _>(refusal.clone())));
    let Ok(answer) = RespondLayer::grpc().layer(refuse).oneshot(Request::new(())).await;
    let outcome = Grpc.head(answer.status(), answer.headers()).unwrap();
    assert_eq!(outcome.fault().unwrap().rest, Some(Rest::hinted(Duration::from_millis(1234))));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_streams_is_repeated_once_it_is_all_there() {
    let upstream = Upstream::default();
    let service = BufferLayer::tee().layer(stack(pool(["a", "b"]), &upstream));
    upstream.script([Answer::in_head(Status::unauthenticated("who?"))]);
    let body = http_body_util::Full::new(Bytes::from_static(b"prompt"));
    read(service.oneshot(Request::new(body)).await.unwrap()).await.unwrap();
    assert_eq!(upstream.called().len(), 2);
}
