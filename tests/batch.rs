//! Many requests through a service: how many at once, in which order, and what a drop ends.

mod support;

use std::{
    convert::Infallible,
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http::{Request, StatusCode};
use support::{Act, BodyAct, Probe};
use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn, util::AndThen};
use tower_openrouter::{
    Batch, ConcurrencyLimitLayer,
    batch::{self, BatchError},
};

fn requests(count: usize) -> impl Iterator<Item = Request<()>> {
    iter::repeat_with(|| Request::new(())).take(count)
}

/// Takes as many milliseconds as it is asked for, and answers with them.
async fn nap(millis: u64) -> Result<u64, Infallible> {
    sleep(Duration::from_millis(millis)).await;
    Ok(millis)
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_the_order_of_their_requests_however_long_each_takes() {
    let naps = [30, 10, 20, 50, 0, 40];
    let answers: Vec<_> = Batch::new(service_fn(nap), naps, 3).unwrap().in_order().collect().await;
    assert_eq!(answers, naps.map(Ok));
}

#[tokio::test(start_paused = true)]
async fn or_as_they_come_with_the_number_of_their_request() {
    let batch = Batch::new(service_fn(nap), [30, 10, 20, 50, 0, 40], 3).unwrap();
    let answers: Vec<_> = batch.as_they_come().map(|(number, answer)| (number, answer.unwrap())).collect().await;
    // 50 starts at 10, 0 at 20, 40 at 20 as well
    assert_eq!(answers, [(1, 10), (2, 20), (4, 0), (0, 30), (3, 50), (5, 40)]);
}

#[tokio::test(start_paused = true)]
async fn so_many_are_under_way_at_once_and_no_more() {
    for concurrency in [1, 7, 100, 1000] {
        let probe = Probe::new(Act::ok().delay(Duration::from_millis(10)));
        let service = AndThen::new(probe.clone(), batch::whole);
        let start = Instant::now();
        let answered = Batch::new(service, requests(100), concurrency).unwrap().as_they_come().count().await;
        assert_eq!((answered, probe.calls()), (100, 100));
        assert_eq!(probe.seen().peak.load(SeqCst), concurrency.min(100));
        // and never fewer, while there are any left
        let rounds = 100_usize.div_ceil(concurrency) as u32;
        assert_eq!(start.elapsed().as_millis(), u128::from(10 * rounds), "at {concurrency}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_waits_for_an_earlier_one_keeps_its_place() {
    let asked = Arc::new(AtomicUsize::new(0));
    let naps = iter::once(1000).chain(iter::repeat(1)).inspect({
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, SeqCst);
        }
    });
    let mut answers = Batch::new(service_fn(nap), naps, 4).unwrap().in_order();
    assert_eq!(answers.next().await, Some(Ok(1000)));
    assert_eq!(asked.load(SeqCst), 4);
    assert_eq!(answers.next().await, Some(Ok(1)));
}

#[test]
fn the_input_is_asked_only_when_there_is_room() {
    let asked = Arc::new(AtomicUsize::new(0));
    let endless = iter::repeat_with({
        let asked = asked.clone();
        move || {
            asked.fetch_add(1, SeqCst);
            Request::new(())
        }
    });
    let probe = Probe::new(Act::Hang);
    let batch = Batch::new(probe.clone(), endless, 3).unwrap();
    assert_eq!(asked.load(SeqCst), 0);
    let mut answers = task::spawn(batch.as_they_come());
    for _ in 0..3 {
        assert_pending!(answers.poll_next());
        assert_eq!((asked.load(SeqCst), probe.in_flight()), (3, 3));
    }
}

#[test]
fn dropping_the_answers_drops_all_that_is_under_way() {
    let probe = Probe::new(Act::Hang);
    let mut answers = task::spawn(Batch::new(probe.clone(), requests(9), 5).unwrap().in_order());
    assert_pending!(answers.poll_next());
    assert_eq!(probe.in_flight(), 5);
    drop(answers);
    assert_eq!((probe.in_flight(), probe.seen().cancelled.load(SeqCst), probe.calls()), (0, 5, 5));
}

#[tokio::test]
async fn each_request_has_a_result_of_its_own() {
    let probe = Probe::ok();
    let fail = || Act::Fail { delay: Duration::ZERO };
    probe.script([fail(), Act::ok(), fail(), Act::status(500), Act::ok()]);
    let answers = Batch::new(probe, requests(5), 1).unwrap().in_order();
    let statuses: Vec<_> = answers.map(|answer| answer.map(|answer| answer.status().as_u16()).ok()).collect().await;
    assert_eq!(statuses, [None, Some(200), None, Some(500), Some(200)]);
}

#[test]
fn only_an_instance_that_said_ready_is_called() {
    let probe = Probe::ok();
    probe.block(true);
    let mut answers = task::spawn(Batch::new(probe.clone(), requests(4), 2).unwrap().as_they_come());
    assert_pending!(answers.poll_next());
    assert_eq!((probe.calls(), probe.reserved()), (0, 0));
    probe.block(false);
    assert!(answers.is_woken());
    for number in 0..4 {
        let (answered, answer) = assert_ready!(answers.poll_next()).unwrap();
        assert_eq!((answered, answer.unwrap().status()), (number, StatusCode::OK));
    }
    assert!(assert_ready!(answers.poll_next()).is_none());
    assert_eq!((probe.unready_calls(), probe.reserved()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_is_waited_for_and_its_end_is_the_end() {
    let slow = stream::iter([5, 5, 5]).then(async |millis| {
        sleep(Duration::from_millis(100)).await;
        millis
    });
    let batch = Batch::from_stream(service_fn(nap), Box::pin(slow), 8).unwrap();
    let (start, mut answers) = (Instant::now(), batch.as_they_come());
    for number in 0..3 {
        assert_eq!(answers.next().await, Some((number, Ok(5))));
        assert_eq!(start.elapsed().as_millis() as usize, 105 + 100 * number);
    }
    assert_eq!(answers.next().await, None);
    assert_eq!(answers.next().await, None);
}

#[test]
fn the_input_is_not_asked_again_after_its_end_and_is_dropped_there() {
    let alive = Arc::new(());
    let mut left = 2;
    let held = alive.clone();
    let input = iter::from_fn(move || {
        let _ = &held;
        left -= 1;
        assert!(left >= 0, "asked after its end");
        (left > 0).then_some(Request::new(()))
    });
    let probe = Probe::new(Act::Hang);
    let mut answers = task::spawn(Batch::new(probe, input, 9).unwrap().as_they_come());
    assert_pending!(answers.poll_next());
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_pending!(answers.poll_next());
}

#[tokio::test(start_paused = true)]
async fn whole_answers_in_order_do_not_wait_for_each_other() {
    // the first is called last: the others would hold both permits until they were read
    let limit = ConcurrencyLimitLayer::new(2).unwrap();
    let probe = Probe::new(Act::ok().body(BodyAct::Frames { pause: Duration::from_millis(5), frames: 3 }));
    let service = AndThen::new(ServiceBuilder::new().layer(limit).service(probe.clone()), batch::whole);
    let late_first = service_fn(move |number: usize| {
        let service = service.clone();
        async move {
            if number == 0 {
                sleep(Duration::from_secs(1)).await;
            }
            service.oneshot(Request::new(())).await
        }
    });
    let answers: Vec<_> = Batch::new(late_first, 0..20, 20).unwrap().in_order().collect().await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().into_body() == "frameframeframe"));
    assert_eq!(probe.seen().peak.load(SeqCst), 2);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    let broken = AndThen::new(Probe::new(Act::ok().body(BodyAct::Cut)), batch::whole);
    let error = broken.oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(error.to_string(), "scripted cut");
}

#[test]
fn the_answers_to_come_are_counted() {
    let probe = Probe::new(Act::Hang);
    let mut answers = task::spawn(Batch::new(probe, requests(9), 4).unwrap().in_order());
    assert_eq!(answers.size_hint(), (9, Some(9)));
    assert_pending!(answers.poll_next());
    assert_eq!(answers.size_hint(), (9, Some(9)));
    let endless = Batch::new(Probe::ok(), iter::repeat_with(|| Request::new(())), 4).unwrap();
    assert_eq!(endless.as_they_come().size_hint(), (usize::MAX, None));
}

#[test]
fn nothing_at_once_is_refused() {
    let batch = Batch::new(Probe::ok(), requests(1), 0);
    assert_eq!(batch.unwrap_err(), BatchError::ZeroConcurrency);
}

#[tokio::test(start_paused = true)]
async fn a_batch_can_be_moved_to_another_task() {
    let echo = service_fn(async |number: u32| Ok::<_, BoxError>(number));
    let answers = Batch::new(echo, 0..100, 8).unwrap().in_order();
    let sum = tokio::spawn(answers.map(Result::unwrap).fold(0, async |sum, number| sum + number));
    assert_eq!(sum.await.unwrap(), 4950);
}
