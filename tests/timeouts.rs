//! What the timeouts promise: an upstream that falls silent is given up on in time, and is let go.

mod support;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use support::{Act, BodyAct, Probe};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_openrouter::{
    ApiKey, Balancer, ConcurrencyLimitLayer, DeadlineLayer, OpenRouter, Pool, RetryLayer, TimeoutsLayer,
    buffer::ReplayBody,
    error::{UpstreamError, UpstreamErrorKind},
    outcome::{Cause, Fault, Outcome, OutcomeCell, Retry, Scope},
    stream::timeouts::{Timeouts, TimeoutsError},
};

const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";
const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";
const EMPTY: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// An upstream that says what it says when it says it, and notes when it is let go.
#[derive(Clone)]
struct Upstream {
    kind: &'static str,
    /// Seconds from the call.
    head: u64,
    frames: Arc<Vec<(u64, &'static str)>>,
    gone: Gone,
}

type Gone = Arc<Mutex<Vec<Instant>>>;

struct Held(Gone);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(Instant::now());
    }
}

impl Upstream {
    fn new(kind: &'static str, head: u64, frames: &[(u64, &'static str)]) -> Self {
        Self { kind, head, frames: Arc::new(frames.to_vec()), gone: Gone::default() }
    }

    fn service<B>(
        &self,
    ) -> impl tower::Service<Request<B>, Response = Response<Told>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + use<B> {
        let upstream = self.clone();
        service_fn(move |_: Request<B>| {
            let (upstream, held) = (upstream.clone(), Held(upstream.gone.clone()));
            async move {
                let called = Instant::now();
                sleep(seconds(upstream.head)).await;
                let told = Told { at: 0, called, frames: upstream.frames, timer: None, _held: held };
                Ok(Response::builder().header("content-type", upstream.kind).body(told).unwrap())
            }
        })
    }

    /// How long after `started` each exchange was let go.
    fn gone(&self, started: Instant) -> Vec<Duration> {
        self.gone.lock().unwrap().iter().map(|gone| *gone - started).collect()
    }
}

/// Frames at their times; after the last, silence for ever, unless it is the end marker.
struct Told {
    at: usize,
    called: Instant,
    frames: Arc<Vec<(u64, &'static str)>>,
    timer: Option<Pin<Box<Sleep>>>,
    _held: Held,
}

impl Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some((at, frame)) = self.frames.get(self.at).copied() else {
            let is_over = self.frames.last().is_some_and(|(_, last)| *last == DONE);
            return if is_over { Poll::Ready(None) } else { Poll::Pending };
        };
        let due = self.called + seconds(at);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        std::task::ready!(timer.as_mut().poll(cx));
        (self.timer, self.at) = (None, self.at + 1);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(frame.as_bytes())))))
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// 10 s to the head, 30 to the first output, 5 between frames, 100 in all.
fn layer() -> TimeoutsLayer {
    let layer = TimeoutsLayer::default().headers(seconds(10)).unwrap().first_output(seconds(30)).unwrap();
    layer.gap(seconds(5)).unwrap().total(seconds(100)).unwrap()
}

fn kind(error: &BoxError) -> UpstreamErrorKind {
    UpstreamError::find(&**error).unwrap_or_else(|| panic!("{error}")).kind()
}

fn chat() -> Request<String> {
    Request::post("/v1/chat/completions").body("{}".to_owned()).unwrap()
}

/// Reads an answer to its end, or to the error in place of it.
async fn read<S, B>(service: S) -> Result<String, BoxError>
where
    S: tower::Service<Request<String>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError>,
{
    let answer = service.oneshot(chat()).await?;
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

/// Allows a timer's millisecond.
fn assert_at(found: Duration, wanted: u64) {
    assert!(
        found >= seconds(wanted) && found <= seconds(wanted) + Duration::from_millis(1),
        "{found:?}, not {wanted} s"
    );
}

#[test]
fn r117_a_limit_of_zero_is_refused_when_built() {
    let (layer, zero) = (TimeoutsLayer::default, Duration::ZERO);
    for (name, refused) in [
        ("headers", layer().headers(zero)),
        ("first_output", layer().first_output(zero)),
        ("gap", layer().gap(zero)),
        ("total", layer().total(zero)),
    ] {
        assert_eq!(refused.unwrap_err(), TimeoutsError::Zero(name));
    }
}

#[tokio::test(start_paused = true)]
async fn r070_each_silence_has_a_limit_of_its_own_and_the_exchange_is_let_go_with_it() {
    use UpstreamErrorKind::{FirstOutputTimeout, GapTimeout, HeadersTimeout, TotalTimeout};
    let every_four: Vec<_> = (1..40).map(|at| (4 * at, TOKEN)).collect();
    for (what, content, head, frames, expected, at) in [
        ("no head", EVENTS, 1000, &[] as &[_], HeadersTimeout, 10),
        ("a head and nothing else", EVENTS, 9, &[], FirstOutputTimeout, 30),
        ("comments and nothing else", EVENTS, 1, &[(2, COMMENT), (20, COMMENT), (29, COMMENT)], FirstOutputTimeout, 30),
        ("padding and nothing else", JSON, 1, &[(2, "\n"), (20, " \n"), (29, "\n")], FirstOutputTimeout, 30),
        ("silence after a token", EVENTS, 1, &[(28, TOKEN)], GapTimeout, 33),
        ("comments after a token", EVENTS, 1, &[(28, TOKEN), (30, COMMENT), (32, COMMENT)], GapTimeout, 33),
        ("a document that stops", JSON, 1, &[(20, "\n"), (28, "{"), (31, " ")], GapTimeout, 36),
        ("a trickle", EVENTS, 1, &every_four, TotalTimeout, 100),
        ("something else that stops", "application/grpc", 1, &[(2, "\n"), (4, "\n")], GapTimeout, 9),
    ] {
        let started = Instant::now();
        let upstream = Upstream::new(content, head, frames);
        let error = read(layer().layer(upstream.service())).await.unwrap_err();
        assert_eq!(kind(&error), expected, "{what}");
        assert_at(started.elapsed(), at);
        assert_eq!(upstream.gone(started), [started.elapsed()], "{what}: it goes in that instant");
    }
}

#[tokio::test(start_paused = true)]
async fn r070_the_permit_of_a_silent_upstream_comes_back_with_the_error() {
    for body in [Act::Hang, Act::ok().body(BodyAct::Hang)] {
        let probe = Probe::new(body);
        let limit = ConcurrencyLimitLayer::new(1).unwrap();
        let service = limit.layer(layer().layer(probe.clone()));
        let answer = service.oneshot(chat()).await;
        let failed = match answer {
            Err(error) => error,
            Ok(answer) => {
                let mut body = answer.into_body();
                assert_eq!(limit.handle().in_flight(), 1, "held while the body flows");
                body.frame().await.unwrap().unwrap();
                let error = body.frame().await.unwrap().unwrap_err();
                assert!(body.frame().await.is_none() && body.is_end_stream(), "an error is the end");
                error
            }
        };
        kind(&failed);
        assert_eq!((limit.handle().in_flight(), probe.in_flight()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn r071_a_trickle_ends_at_the_total_though_each_gap_is_short() {
    let trickle: Vec<_> = (1..2000).map(|at| (at, TOKEN)).collect();
    let started = Instant::now();
    let upstream = Upstream::new(EVENTS, 0, &trickle);
    assert_eq!(kind(&read(layer().layer(upstream.service())).await.unwrap_err()), UpstreamErrorKind::TotalTimeout);
    assert_at(started.elapsed(), 100);
    // and with no timeouts at all, at the request's deadline
    let started = Instant::now();
    let deadline = DeadlineLayer::new(seconds(60)).unwrap();
    read(deadline.layer(upstream.service().map_result(|answer| answer))).await.unwrap_err();
    assert_at(started.elapsed(), 60);
}

#[tokio::test(start_paused = true)]
async fn an_answer_within_its_limits_is_passed_on_byte_for_byte() {
    let frames = [(9, COMMENT), (29, EMPTY), (29, TOKEN), (33, TOKEN), (36, ": x"), (37, "\n\n"), (37, DONE)];
    let upstream = Upstream::new(EVENTS, 9, &frames);
    let text: String = frames.iter().map(|(_, frame)| *frame).collect();
    assert_eq!(read(layer().layer(upstream.service())).await.unwrap(), text);
}

#[tokio::test(start_paused = true)]
async fn a_model_may_think_for_minutes_by_default() {
    let thinking: Vec<_> =
        (1..24).map(|at| (10 * at, COMMENT)).chain([(240, TOKEN), (350, TOKEN), (460, DONE)]).collect();
    let upstream = Upstream::new(EVENTS, 1, &thinking);
    read(TimeoutsLayer::default().layer(upstream.service())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_slow_reader_is_not_the_upstreams_silence() {
    let upstream = Upstream::new(EVENTS, 1, &[(2, TOKEN), (3, TOKEN), (4, COMMENT), (5, TOKEN)]);
    let patient = layer().total(seconds(1000)).unwrap();
    let mut body = patient.layer(upstream.service()).oneshot(chat()).await.unwrap().into_body();
    for _ in 0..4 {
        body.frame().await.unwrap().unwrap();
        sleep(seconds(60)).await;
    }
    let started = Instant::now();
    assert_eq!(kind(&body.frame().await.unwrap().unwrap_err()), UpstreamErrorKind::GapTimeout);
    assert_at(started.elapsed(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_total_holds_for_a_reader_who_never_has_to_wait() {
    let all_at_once: Vec<_> = (0..100).map(|_| (1, TOKEN)).collect();
    let upstream = Upstream::new(EVENTS, 1, &all_at_once);
    let started = Instant::now();
    let mut body = layer().layer(upstream.service()).oneshot(chat()).await.unwrap().into_body();
    loop {
        sleep(seconds(2)).await;
        match body.frame().await.unwrap() {
            Ok(_) => assert!(started.elapsed() <= seconds(101), "{:?}", started.elapsed()),
            Err(error) => break assert_eq!(kind(&error), UpstreamErrorKind::TotalTimeout),
        }
    }
    assert!(started.elapsed() <= seconds(103), "noticed at the next frame");
}

fn before_leaf(
    upstream: &Upstream,
) -> Timeouts<
    impl tower::Service<
        Request<String>,
        Response = Response<impl Body<Data = Bytes, Error = BoxError> + use<>>,
        Error = BoxError,
    > + use<>,
> {
    layer().layer(OpenRouter::new(upstream.service()))
}

/// The cell of the answer, once its body is over.
async fn cell(upstream: &Upstream) -> OutcomeCell {
    let answer = before_leaf(upstream).oneshot(chat()).await.unwrap();
    let cell = answer.extensions().get::<OutcomeCell>().cloned().unwrap();
    answer.into_body().collect().await.unwrap_err();
    cell
}

#[tokio::test(start_paused = true)]
async fn around_the_leaf_only_real_output_begins_an_answer() {
    let started = Instant::now();
    let news: Vec<_> = (2..40).map(|at| (at, EMPTY)).collect();
    let cell = cell(&Upstream::new(EVENTS, 1, &news)).await;
    assert_at(started.elapsed(), 30);
    let fault = Fault::new(Cause::FirstOutputTimeout, Scope::Pool).retry(Retry::Once);
    assert_eq!((cell.at_commit(), cell.at_end()), (Some(fault.into()), Some(fault.into())));
    assert!(fault.is_suspect());
}

#[tokio::test(start_paused = true)]
async fn the_outcome_is_written_once_with_its_cause_scope_and_advice() {
    let fault = |cause, retry| Some(Outcome::from(Fault::new(cause, Scope::Pool).retry(retry)));
    let trickle: Vec<_> = (1..200).map(|at| (at, TOKEN)).collect();
    for (content, frames, commit, end) in [
        // a request that is not streamed is billed whether its answer is taken or not
        (
            JSON,
            &[(2, "\n")][..],
            fault(Cause::FirstOutputTimeout, Retry::Unclear),
            fault(Cause::FirstOutputTimeout, Retry::Unclear),
        ),
        (JSON, &[(2, "{")], fault(Cause::GapTimeout, Retry::Unclear), fault(Cause::GapTimeout, Retry::Unclear)),
        (EVENTS, &[(2, TOKEN)], Some(Outcome::Success), fault(Cause::GapTimeout, Retry::Never)),
        (EVENTS, &trickle, Some(Outcome::Success), fault(Cause::Timeout, Retry::Never)),
    ] {
        let cell = cell(&Upstream::new(content, 1, frames)).await;
        assert_eq!((cell.at_commit(), cell.at_end()), (commit, end), "{content} {:?}", frames.last());
    }
    let error = before_leaf(&Upstream::new(EVENTS, 20, &[])).oneshot(chat()).await.err().unwrap();
    let fault = UpstreamError::find(&*error).unwrap().fault();
    assert_eq!(fault, Fault::new(Cause::HeadersTimeout, Scope::Pool).retry(Retry::Unclear));
    assert!(fault.is_suspect());
}

fn balancer(upstream: &Upstream) -> Balancer<String> {
    let pool = Pool::new([ApiKey::new("sk-or-v1-a").unwrap(), ApiKey::new("sk-or-v1-b").unwrap()]).unwrap();
    let builder = Balancer::builder(pool).timeouts(layer()).max_in_flight(1).unwrap();
    builder.retry(RetryLayer::new().retry_unclear(false)).build(OpenRouter::new(upstream.service()))
}

#[tokio::test(start_paused = true)]
async fn r078_in_the_default_stack_a_timeout_is_one_outcome_under_its_own_name() {
    for (head, frames, name) in [(20, &[] as &[_], "headers_timeout"), (1, &[(2, TOKEN)], "gap_timeout")] {
        let upstream = Upstream::new(EVENTS, head, frames);
        let balancer = balancer(&upstream);
        let Ok(answer) = balancer.clone().oneshot(chat()).await;
        if frames.is_empty() {
            assert_eq!(answer.status(), 504);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("headers_timeout"), "{body:?}");
        } else {
            assert_eq!(answer.status(), 200);
            // what a body error is for the client is another layer's affair; it is no clean end
            let _ = answer.into_body().collect().await;
        }
        let total = balancer.handle().snapshot().total;
        assert_eq!(total.outcomes.iter().map(|(name, count)| (*name, *count)).collect::<Vec<_>>(), [(name, 1)]);
        assert_eq!((total.attempts, total.in_flight), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_in_time_is_tried_once_more() {
    let silent = Upstream::new(EVENTS, 1, &[(5, COMMENT)]);
    for (second, attempts, last) in
        [(Upstream::new(EVENTS, 1, &[(5, TOKEN), (6, DONE)]), 2, Some("complete")), (silent.clone(), 2, None)]
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let (first, second) = (silent.service(), second.service());
        let either = service_fn(move |request: Request<ReplayBody>| {
            let (first, second) = (first.clone(), second.clone());
            let call = calls.fetch_add(1, SeqCst);
            async move { if call == 0 { first.oneshot(request).await } else { second.oneshot(request).await } }
        });
        let pool = Pool::new([ApiKey::new("sk-or-v1-a").unwrap()]).unwrap();
        let builder = Balancer::builder(pool).timeouts(layer().first_output(seconds(20)).unwrap());
        let balancer: Balancer<String> = builder.build(OpenRouter::new(either));
        let Ok(answer) = balancer.clone().oneshot(chat()).await;
        let body = answer.into_body().collect().await;
        assert_eq!(body.is_ok(), last.is_some(), "one clean stream, or no clean end");
        let total = balancer.handle().snapshot().total;
        let silences = 2 - u64::from(last.is_some());
        assert_eq!((total.attempts, total.outcomes["first_output_timeout"]), (attempts, silences));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_times_out_leaves_the_key_usable_for_the_next() {
    let silent = Upstream::new(EVENTS, 20, &[]);
    let balancer = balancer(&silent);
    for _ in 0..4 {
        let Ok(answer) = balancer.clone().oneshot(chat()).await;
        assert_eq!(answer.status(), 504, "every key has a single permit, and none is lost");
    }
    assert_eq!(balancer.handle().snapshot().total.attempts, 4);
}
