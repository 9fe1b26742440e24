//! How the gateway ends: first it only takes nothing new, then what still runs is cut.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    sync::{Notify, futures::OwnedNotified, watch},
    time::{Sleep, sleep},
};
use tower::BoxError;
use tower_openrouter::answer::Shape;

use super::refusal;

/// How long the last event of a stream has to be written out, which the error after it would discard; HTTP/2 does so on another
/// task.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) const STOPPING: &str = "the gateway is stopping: send the request again";

/// Knows whether the gateway is ending. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Drain(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    draining: watch::Sender<bool>,
    is_cut: AtomicBool,
    cut: Arc<Notify>,
}

impl Drain {
    pub(super) fn new() -> Self {
        let draining = watch::Sender::new(false);
        Self(Arc::new(Inner { draining, is_cut: AtomicBool::new(false), cut: Arc::default() }))
    }

    /// From here on nothing new is taken.
    pub(super) fn start(&self) {
        self.0.draining.send_replace(true);
    }

    /// From here on nothing is waited for.
    pub(super) fn cut(&self) {
        self.0.is_cut.store(true, Ordering::Release);
        self.0.cut.notify_waiters();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.0.is_cut.load(Ordering::Acquire)
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Turns true when draining starts.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.0.draining.subscribe()
    }

    /// Resolves when everything is cut, also if it was already.
    pub(super) fn when_cut(&self) -> WhenCut {
        // made before the first look at the flag, so that a cut in between is seen by one of them
        let notified = self.0.cut.clone().notified_owned();
        WhenCut { notified, drain: self.clone(), told: None }
    }
}

pin_project! {
    /// See [`Drain::when_cut`].
    pub(super) struct WhenCut {
        #[pin]
        notified: OwnedNotified,
        drain: Drain,
        // whom the cut wakes
        told: Option<Waker>,
    }
}

impl Future for WhenCut {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.drain.is_cut() {
            return Poll::Ready(());
        }
        // polled at every wake-up of a task that waits for much else: only a task that is not told yet takes the lock
        if !this.told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) {
            *this.told = Some(cx.waker().clone());
            return this.notified.poll(cx);
        }
        Poll::Pending
    }
}

pin_project! {
    /// An event stream that, when it is cut, says so in an event and then ends uncleanly, so that no client takes what came
    /// for the whole answer.
    pub(super) struct Cuttable<B> {
        #[pin]
        body: B,
        #[pin]
        cut: WhenCut,
        shape: Shape,
        state: State,
    }
}

enum State {
    Flowing,
    /// The event is out.
    Told(Pin<Box<Sleep>>),
    Over,
}

impl<B> Cuttable<B> {
    pub(super) fn new(body: B, drain: &Drain, shape: Shape) -> Self {
        Self { body, cut: drain.when_cut(), shape, state: State::Flowing }
    }
}

impl<B> Body for Cuttable<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        match this.state {
            State::Flowing => {
                if let Poll::Ready(frame) = this.body.poll_frame(cx) {
                    return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
                }
                ready!(this.cut.poll(cx));
                *this.state = State::Told(Box::pin(sleep(PAUSE)));
                Poll::Ready(Some(Ok(Frame::data(refusal::last_event(*this.shape, STOPPING)))))
            }
            State::Told(pause) => {
                ready!(pause.as_mut().poll(cx));
                *this.state = State::Over;
                Poll::Ready(Some(Err(STOPPING.into())))
            }
            State::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Flowing) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for Cuttable<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuttable").field("is_flowing", &matches!(self.state, State::Flowing)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use http_body_util::{BodyExt, Channel};

    use super::*;

    #[tokio::test]
    async fn r111_a_cut_stream_ends_with_an_error_event_and_then_uncleanly() {
        let drain = Drain::new();
        let (mut sender, body) = Channel::<Bytes>::new(4);
        let mut body = pin!(Cuttable::new(body, &drain, Shape::Chat));
        sender.send_data(Bytes::from("data: 1\n\n")).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
        let mut rest = tokio_test::task::spawn(async { (body.frame().await, body.frame().await) });
        assert!(rest.poll().is_pending());
        drain.start();
        assert!(!rest.is_woken(), "draining alone cuts nothing");
        drain.cut();
        assert!(rest.is_woken());
        let (event, error) = rest.await;
        assert!(event.unwrap().unwrap().into_data().unwrap().starts_with(b"\n\ndata: {\"id\":\"\""));
        error.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn what_starts_after_the_cut_is_cut() {
        let drain = Drain::new();
        drain.cut();
        drain.when_cut().await;
    }

    #[tokio::test]
    async fn a_stream_that_is_never_cut_passes_unchanged() {
        let drain = Drain::new();
        let body = Cuttable::new(http_body_util::Full::new(Bytes::from("data: 1\n\n")), &drain, Shape::Chat);
        assert_eq!(body.size_hint().exact(), Some(9));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "data: 1\n\n");
    }
}
