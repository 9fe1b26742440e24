//! A request's body as it comes from the client: no slower than a client with a poor line would send it, and without
//! trailers.
//!
//! Who sends a head in time and then a byte now and again would hold a connection, memory, and with a large body, which is
//! passed on as it comes, a key. So a body must come within the time that a head has, and one second more for each
//! [`RATE`] bytes. Counted is the time spent waiting for the client; that the upstream reads slowly is no fault of its.
//!
//! Trailers are headers that come late. Nobody uses them in a request to this API, and no list of what must not pass would
//! be looked through for them. Nor does hyper look at each of their lines: behind an LF alone, where another reader sees the
//! end of the request, it takes anything for trailers. So after chunks that did not end without any the connection ends too.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;
use tower_openrouter::{Rejected, error::Why};

/// The least a body may come on with once its first time is over, in bytes a second.
const RATE: u64 = 500;

pin_project! {
    /// The body of a request, see the [module](self).
    pub(super) struct Intake<B> {
        #[pin]
        body: B,
        grace: Duration,
        bytes: u64,
        // for the client, before the wait that is on
        waited: Duration,
        wait: Wait,
        end: Option<CleanEnd>,
    }
}

/// Whether a body has ended without trailers. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct CleanEnd(Arc<AtomicBool>);

impl CleanEnd {
    pub(super) fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

enum Wait {
    /// Nothing was missing so far.
    Not,
    /// Something was, which most often comes before the next look: a timer for each request would cost more than reading it.
    Once,
    /// Since then.
    Since(Instant, Pin<Box<Sleep>>),
}

impl<B> Intake<B> {
    /// A body that may take `grace`, and one second more for each [`RATE`] bytes.
    pub(super) fn new(body: B, grace: Duration) -> Self {
        Self { body, grace, bytes: 0, waited: Duration::ZERO, wait: Wait::Not, end: None }
    }

    /// The same, telling of its end.
    pub(super) fn telling(self, end: Option<CleanEnd>) -> Self {
        Self { end, ..self }
    }
}

fn too_slow(grace: Duration) -> BoxError {
    let detail = format!(
        "the request's body came too slowly: it must be here within {grace:?}, and a second more for each {RATE} bytes"
    );
    Rejected::new(Why::BodyTooSlow, detail).into()
}

impl<B> Body for Intake<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        loop {
            match this.body.as_mut().poll_frame(cx) {
                Poll::Ready(frame) => {
                    if let Wait::Since(since, _) = this.wait {
                        *this.waited += since.elapsed();
                        *this.wait = Wait::Once;
                    }
                    let Some(frame) = frame.transpose().map_err(Into::<BoxError>::into)? else {
                        if let Some(end) = this.end {
                            end.0.store(true, Ordering::Relaxed);
                        }
                        return Poll::Ready(None);
                    };
                    if let Ok(data) = frame.into_data() {
                        *this.bytes += data.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    *this.end = None;
                }
                Poll::Pending => {
                    let alarm = match this.wait {
                        Wait::Not => {
                            *this.wait = Wait::Once;
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                        Wait::Once => {
                            let now = Instant::now();
                            let allowed = *this.grace + Duration::from_secs(*this.bytes / RATE);
                            let alarm = Box::pin(sleep_until(now + allowed.saturating_sub(*this.waited)));
                            *this.wait = Wait::Since(now, alarm);
                            continue;
                        }
                        Wait::Since(_, alarm) => alarm,
                    };
                    return alarm.as_mut().poll(cx).map(|()| Some(Err(too_slow(*this.grace))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http_body_util::{BodyExt, Channel, channel::Sender};
    use tokio::time::advance;
    use tokio_test::{assert_pending, task};

    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    type Boxed = Pin<Box<Intake<Channel<Bytes>>>>;

    fn intake() -> (Sender<Bytes>, Boxed) {
        let (sender, body) = Channel::new(4);
        (sender, Box::pin(Intake::new(body, GRACE)))
    }

    async fn kilobyte(sender: &mut Sender<Bytes>) {
        sender.send_data(Bytes::from(vec![b'x'; 1000])).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn r107_a_body_that_stops_fails_when_its_time_is_over() {
        let (mut sender, mut body) = intake();
        kilobyte(&mut sender).await;
        assert!(body.frame().await.unwrap().is_ok());
        let start = Instant::now();
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 30 + 2, "a second more for each 500 bytes");
        assert_eq!(Rejected::find(&*error).unwrap().why(), Why::BodyTooSlow);
    }

    #[tokio::test(start_paused = true)]
    async fn r107_what_comes_fast_enough_may_take_any_time() {
        let (mut sender, mut body) = intake();
        for _ in 0..1000 {
            let mut frame = task::spawn(body.frame());
            assert_pending!(frame.poll());
            advance(Duration::from_millis(1990)).await;
            kilobyte(&mut sender).await;
            assert!(frame.await.unwrap().is_ok());
        }
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn r107_time_in_which_nobody_reads_is_not_the_clients() {
        let (mut sender, mut body) = intake();
        kilobyte(&mut sender).await;
        advance(Duration::from_secs(3600)).await;
        assert!(body.frame().await.unwrap().is_ok());
        let start = Instant::now();
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(start.elapsed().as_secs(), 32);
    }

    #[tokio::test]
    async fn r105_trailers_end_here() {
        let (mut sender, mut body) = intake();
        kilobyte(&mut sender).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("authorization", "Bearer t".parse().unwrap());
        sender.send_trailers(trailers).await.unwrap();
        drop(sender);
        let collected = body.as_mut().collect().await.unwrap();
        assert!(collected.trailers().is_none());
        assert_eq!(collected.to_bytes().len(), 1000);
    }
}
