//! What the buffer of request bodies promises.

mod support;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header::CONTENT_LENGTH};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Channel, Full, Limited, StreamBody};
use proptest::prelude::*;
use support::{Act, BodyAct, Probe};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{
    RequestContext,
    buffer::{Buffer, BufferLayer, ReplayBody},
    error::{Rejected, Why},
    limit::ConcurrencyLimitLayer,
};

type Pieces = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, BoxError>>>>;

/// A body of these frames whose length nobody declared.
fn frames(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Pieces {
    StreamBody::new(futures_util::stream::iter(frames))
}

fn pieces(pieces: &[&'static [u8]]) -> Pieces {
    frames(pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect())
}

fn full(bytes: usize) -> Full<Bytes> {
    Full::new(Bytes::from(vec![b'x'; bytes]))
}

fn why(error: &BoxError) -> Why {
    Rejected::find(&**error).expect("a refusal").why()
}

/// Sends `body` through the layer and gives back the request that the inner service got.
async fn through<B>(layer: &BufferLayer, body: B) -> Result<Request<ReplayBody>, BoxError>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    send(layer, Request::new(body)).await
}

async fn send<B>(layer: &BufferLayer, request: Request<B>) -> Result<Request<ReplayBody>, BoxError>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let got = Arc::new(Mutex::new(None));
    let inner = service_fn(|request| {
        *got.lock().unwrap() = Some(request);
        async { Ok::<_, BoxError>(Response::new(())) }
    });
    layer.layer(inner).oneshot(request).await?;
    Ok(got.lock().unwrap().take().unwrap())
}

async fn read(body: ReplayBody) -> (Bytes, Option<HeaderMap>) {
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    (collected.to_bytes(), trailers)
}

proptest! {
    #[test]
    fn r063_every_copy_is_byte_equal_to_what_was_sent(
        body in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        cap in 0..200_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let sent = body.concat();
            let stream = frames(body.into_iter().map(|piece| Ok(Frame::data(Bytes::from(piece)))).collect());
            let layer = BufferLayer::new().replay_cap(cap);
            let request = through(&layer, stream).await.unwrap();
            let copy = request.body().try_clone();
            prop_assert_eq!(copy.is_some(), sent.len() as u64 <= cap);
            prop_assert_eq!(request.body().is_replayable(), copy.is_some());
            prop_assert_eq!(&read(request.into_body()).await.0, &sent);
            if let Some(copy) = copy {
                prop_assert_eq!(&read(copy.try_clone().unwrap()).await.0, &sent);
                prop_assert_eq!(&read(copy).await.0, &sent);
            }
            prop_assert_eq!(layer.used(), 0);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn r063_headers_and_trailers_are_untouched() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "1".parse().unwrap());
    let body = frames(vec![Ok(Frame::data(Bytes::from("abc"))), Ok(Frame::trailers(trailers.clone()))]);
    let request = Request::post("/v1/x?y=z").header("x-one", "1").header("transfer-encoding", "chunked");
    let expected = (request.uri_ref().unwrap().clone(), request.headers_ref().unwrap().clone());
    let got = send(&BufferLayer::new(), request.body(body).unwrap()).await.unwrap();
    assert_eq!((got.uri().clone(), got.headers().clone()), expected);
    assert_eq!(got.method(), http::Method::POST);
    for body in [got.body().try_clone().unwrap(), got.into_body()] {
        assert_eq!(read(body).await, ("abc".into(), Some(trailers.clone())));
    }
}

#[tokio::test]
async fn a_body_in_one_piece_is_not_copied_and_its_length_is_known() {
    let data = Bytes::from("in one piece");
    let got = through(&BufferLayer::new(), Full::new(data.clone())).await.unwrap();
    assert_eq!(got.body().size_hint().exact(), Some(12));
    let mut body = got.into_body();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame.as_ptr(), data.as_ptr());
    assert!(body.is_end_stream());
    assert_eq!(body.try_clone().unwrap().size_hint().exact(), Some(12), "a copy starts afresh");
}

#[tokio::test]
async fn a_declared_length_survives_however_the_body_is_sent() {
    for layer in [BufferLayer::new(), BufferLayer::new().replay_cap(1), BufferLayer::tee()] {
        let got = through(&layer, full(5)).await.unwrap();
        assert_eq!(got.body().size_hint().exact(), Some(5));
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        sender.send_data(Bytes::from("x")).await.unwrap();
        drop(sender);
        let mut got = through(&layer.replay_cap(0), body).await.unwrap();
        assert_eq!(got.body().size_hint().exact(), None);
        assert_eq!(got.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "x");
    }
}

#[tokio::test]
async fn an_empty_body_stays_empty() {
    let layer = BufferLayer::new();
    for got in
        [through(&layer, full(0)).await, through(&layer, pieces(&[])).await, through(&layer, pieces(&[b""])).await]
    {
        let body = got.unwrap().into_body();
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
        assert_eq!(read(body).await.0, "");
    }
}

#[tokio::test]
async fn the_context_knows_what_the_body_asks_for_unless_it_streams() {
    let body: &[&[u8]] = &[br#"{"model":"#, br#""a/b"}"#];
    let got = through(&BufferLayer::new(), pieces(body)).await.unwrap();
    let model =
        |got: &Request<_>| RequestContext::get(got.extensions()).and_then(|context| context.asks().model.clone());
    assert_eq!(model(&got).as_deref(), Some("a/b"));
    let got = through(&BufferLayer::new().replay_cap(10), pieces(body)).await.unwrap();
    assert_eq!(model(&got), None);
}

#[tokio::test]
async fn r073_a_declared_length_above_the_limit_is_refused_unread() {
    let layer = BufferLayer::new().body_limit(10);
    assert_eq!(why(&through(&layer, full(11)).await.unwrap_err()), Why::BodyTooLarge);
    let (_sender, unread) = Channel::<Bytes, BoxError>::new(1);
    let request = Request::builder().header(CONTENT_LENGTH, 1_000_000_000).body(unread).unwrap();
    assert_eq!(why(&send(&layer, request).await.unwrap_err()), Why::BodyTooLarge);
    assert!(through(&layer, full(10)).await.is_ok());
}

#[tokio::test]
async fn r073_an_undeclared_body_is_refused_at_the_limit() {
    let layer = BufferLayer::new().body_limit(10);
    assert_eq!(why(&through(&layer, pieces(&[b"12345", b"67890", b"1"])).await.unwrap_err()), Why::BodyTooLarge);
    assert_eq!(layer.used(), 0);

    // one that streams already fails as a body, which the transport passes on
    let layer = layer.replay_cap(3);
    let got = through(&layer, pieces(&[b"12345", b"67890", b"1"])).await.unwrap();
    assert_eq!(why(&got.into_body().collect().await.unwrap_err()), Why::BodyTooLarge);
}

#[tokio::test]
async fn r062_above_the_cap_a_body_streams_once_and_no_more_than_the_cap_is_held() {
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    let layer = BufferLayer::new().replay_cap(10);
    let mut call = task::spawn(through(&layer, body));
    for _ in 0..2 {
        assert_pending!(call.poll());
        sender.send_data(Bytes::from("12345")).await.unwrap();
    }
    assert_pending!(call.poll());
    assert_eq!(layer.used(), 10);
    sender.send_data(Bytes::from("67890")).await.unwrap();
    let mut body = assert_ready!(call.poll()).unwrap().into_body();
    assert!(body.try_clone().is_none());
    assert_eq!(layer.used(), 10);
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "1234512345");
    assert_eq!(layer.used(), 0, "what was passed on is no longer held");
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "67890");
    sender.send_data(Bytes::from("rest")).await.unwrap();
    drop(sender);
    assert_eq!(read(body).await.0, "rest");
}

#[tokio::test]
async fn r127_over_the_budget_a_request_is_shed_and_the_budget_comes_back_with_the_last_copy() {
    let layer = BufferLayer::new().budget(100);
    let first = through(&layer, full(60)).await.unwrap();
    assert_eq!(why(&through(&layer, full(60)).await.unwrap_err()), Why::Overloaded);
    assert_eq!(layer.used(), 60);
    let copy = first.body().try_clone();
    drop(first);
    assert_eq!(layer.used(), 60, "an attempt still has it");
    drop(copy);
    assert_eq!(layer.used(), 0);
    through(&layer, full(60)).await.unwrap();
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused_and_nothing_is_sent() {
    let probe = Probe::ok();
    let body = || frames(vec![Ok(Frame::data(Bytes::from("half"))), Err("secret detail".into())]);
    let error = BufferLayer::new().layer(probe.clone()).oneshot(Request::new(body())).await.unwrap_err();
    assert_eq!((why(&error), probe.calls()), (Why::BodyBroken, 0));
    assert!(!error.to_string().contains("secret"));

    let got = through(&BufferLayer::new().replay_cap(1), body()).await.unwrap();
    assert_eq!(why(&got.into_body().collect().await.unwrap_err()), Why::BodyBroken);
}

#[tokio::test]
async fn the_size_limit_of_another_layer_is_still_a_size_limit() {
    let error = through(&BufferLayer::new(), Limited::new(pieces(&[b"12345", b"6"]), 5)).await.unwrap_err();
    assert_eq!(why(&error), Why::BodyTooLarge);
}

#[tokio::test]
async fn teeing_passes_on_at_once_and_can_be_replayed_once_it_has_ended() {
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(4);
    let layer = BufferLayer::tee();
    let mut first = through(&layer, body).await.unwrap().into_body();
    let second = first.try_clone().unwrap();
    sender.send_data(Bytes::from("one")).await.unwrap();
    assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert!(!second.is_replayable());
    sender.send_data(Bytes::from("two")).await.unwrap();
    drop(sender);
    assert_eq!(read(first).await.0, "two");
    assert!(second.is_replayable());
    assert_eq!(layer.used(), 6);
    assert_eq!(read(second.try_clone().unwrap()).await.0, "onetwo");
    assert_eq!(second.size_hint().exact(), Some(6));
    assert_eq!(read(second).await.0, "onetwo");
    assert_eq!(layer.used(), 0);
}

#[tokio::test]
async fn teeing_forgets_what_is_too_large_broken_or_dropped_before_its_end() {
    for layer in [BufferLayer::tee().replay_cap(5), BufferLayer::tee().budget(5)] {
        let body = through(&layer, pieces(&[b"12345", b"6"])).await.unwrap().into_body();
        let copy = body.try_clone().unwrap();
        assert_eq!(read(body).await.0, "123456", "it is passed on all the same");
        assert!(!copy.is_replayable() && copy.try_clone().is_none());
        assert_eq!(layer.used(), 0);
        assert_eq!(why(&copy.collect().await.unwrap_err()), Why::BodyBroken);
    }
    let layer = BufferLayer::tee();
    let mut body = through(&layer, pieces(&[b"12345", b"6"])).await.unwrap().into_body();
    let copy = body.try_clone().unwrap();
    body.frame().await.unwrap().unwrap();
    assert_eq!(layer.used(), 5);
    drop(body);
    assert_eq!((copy.is_replayable(), layer.used()), (false, 0));

    let body = frames(vec![Ok(Frame::data(Bytes::from("x"))), Err("cut".into())]);
    let body = through(&layer, body).await.unwrap().into_body();
    let copy = body.try_clone().unwrap();
    assert_eq!(why(&body.collect().await.unwrap_err()), Why::BodyBroken);
    assert_eq!((copy.is_replayable(), layer.used()), (false, 0));
}

#[test]
fn debug_output_shows_no_content() {
    let shown = format!("{:?}", ReplayBody::from(Bytes::from("a secret prompt")));
    assert!(!shown.contains("secret") && shown.contains("15"), "{shown}");
}

#[tokio::test]
async fn r001_r002_the_call_runs_on_the_instance_that_was_ready_however_often_it_was_asked() {
    for layer in [BufferLayer::new(), BufferLayer::new().replay_cap(1), BufferLayer::tee()] {
        let probe = Probe::ok();
        let mut service = layer.layer(probe.clone());
        for size in [0, 1, 5] {
            for _ in 0..10 {
                ready(&mut service).await;
            }
            service.call(Request::new(full(size))).await.unwrap();
        }
        ready(&mut service).await;
        service.call(Request::new(pieces(&[b"1", b"2", b"3"]))).await.unwrap();
        assert_eq!((probe.calls(), probe.unready_calls()), (4, 0));
    }
}

async fn ready(service: &mut Buffer<Probe>) {
    ServiceExt::<Request<Full<Bytes>>>::ready(service).await.unwrap();
}

#[tokio::test]
async fn r004_readiness_is_the_inner_services() {
    let probe = Probe::ok();
    let mut service = task::spawn(BufferLayer::new().layer(probe.clone()));
    let mut poll = || {
        let poll = service.enter(|cx, mut service| Service::<Request<Full<Bytes>>>::poll_ready(&mut *service, cx));
        (poll.is_ready(), service.is_woken())
    };
    probe.block(true);
    assert_eq!(poll(), (false, false));
    probe.block(false);
    assert!(poll().0);
}

#[tokio::test(start_paused = true)]
async fn r005_dropped_at_any_poll_no_memory_is_left() {
    for layer in [BufferLayer::new(), BufferLayer::new().replay_cap(6), BufferLayer::tee()] {
        for polls in 0..10 {
            let probe = Probe::new(Act::ok().delay(Duration::from_secs(1)));
            let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
            let mut call = task::spawn(layer.layer(probe.clone()).oneshot(Request::new(body)));
            for _ in 0..polls {
                if call.poll().is_ready() {
                    break;
                }
                let _ = sender.try_send(Frame::data(Bytes::from("1234")));
                tokio::time::advance(Duration::from_millis(400)).await;
            }
            drop(call);
            assert_eq!((layer.used(), probe.in_flight()), (0, 0));
        }
    }
}

#[tokio::test]
async fn r006_refusals_are_answers_and_the_service_stays_usable() {
    let mut service = BufferLayer::new().body_limit(1).layer(Probe::ok());
    for _ in 0..10_000 {
        ready(&mut service).await;
        assert_eq!(why(&service.call(Request::new(full(2))).await.unwrap_err()), Why::BodyTooLarge);
    }
    ready(&mut service).await;
    service.call(Request::new(full(1))).await.unwrap();
}

#[tokio::test]
async fn a_refused_instance_keeps_nothing_that_the_inner_service_reserved() {
    let below = ConcurrencyLimitLayer::new(9).unwrap();
    let mut service = BufferLayer::new().body_limit(1).layer(below.layer(Probe::ok()));
    ServiceExt::<Request<Full<Bytes>>>::ready(&mut service).await.unwrap();
    assert_eq!(below.handle().in_flight(), 1);
    service.call(Request::new(full(2))).await.unwrap_err();
    assert_eq!(below.handle().in_flight(), 0);
}

#[tokio::test]
async fn r008_a_panic_anywhere_leaves_the_budget_free() {
    let layer = BufferLayer::new();
    let probe = Probe::ok();
    let service = layer.layer(probe.clone());
    for act in [Act::PanicInCall, Act::PanicInFuture, Act::ok().body(BodyAct::Panic)] {
        probe.script([act]);
        let service = service.clone();
        let task = tokio::spawn(async move {
            let response = service.oneshot(Request::new(full(5))).await?;
            response.into_body().collect().await
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(layer.used(), 0);
    }
    probe.seen().panic_in_poll_ready.store(1, SeqCst);
    let mut once = service.clone();
    let mut cx = Context::from_waker(Waker::noop());
    let poll = AssertUnwindSafe(|| Service::<Request<Full<Bytes>>>::poll_ready(&mut once, &mut cx).is_ready());
    assert!(catch_unwind(poll).is_err());
    service.oneshot(Request::new(full(5))).await.unwrap();
}

#[tokio::test]
async fn services_bodies_and_futures_are_as_sendable_as_what_they_hold() {
    fn check<T: Send + Sync + 'static>(_: &T) {}
    fn send<T: Future + Send + 'static>(_: &T) {}
    let mut service = BufferLayer::new().layer(Probe::ok());
    check(&service.clone());
    check(&ReplayBody::empty());
    ready(&mut service).await;
    send(&service.call(Request::new(axum::body::Body::from("x"))));
    assert!(matches!(
        Pin::new(&mut ReplayBody::empty()).poll_frame(&mut Context::from_waker(Waker::noop())),
        Poll::Ready(None)
    ));
}
