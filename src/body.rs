//! Response bodies that carry a guard, and bodies of which the beginning has been read ahead.
//!
//! A permit, a probe slot, an in-flight count must live exactly as long as the exchange: through the response future, then
//! through the body, until it ends, fails or is dropped. One type does it for all of them: [`Held`] keeps a [`Guard`] while
//! the future runs, [`Guarded`] while the body flows, and whichever comes last calls [`Guard::finish`] once, with how it
//! ended. [`ReadAhead`] is for who must look into a body before its head is passed on.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

mod ahead;

pub use ahead::ReadAhead;
pub(crate) use ahead::Seen;

/// Something given back when an exchange is over, that may watch it until then.
pub trait Guard: Sized {
    /// Sees each contiguous piece of data before it is passed on.
    fn data(&mut self, chunk: &[u8]) {
        let _ = chunk;
    }

    /// Sees the trailers before they are passed on.
    fn trailers(&mut self, trailers: &HeaderMap) {
        let _ = trailers;
    }

    /// Gives back what is held. Called exactly once.
    fn finish(self, ending: Ending);
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The body came to its end.
    Complete,
    /// The response had no body: head and end were one.
    HeadOnly,
    /// The body failed.
    Failed,
    /// The body was dropped before its end: the caller left.
    Dropped,
    /// The response future was dropped before there was a response: the caller left.
    FutureDropped,
    /// The response future gave an error in place of a response.
    NoResponse,
}

/// A guard in a response future; dropping it finishes the guard with [`Ending::FutureDropped`].
#[derive(Debug)]
pub struct Held<G: Guard>(Option<G>);

impl<G: Guard> Held<G> {
    /// Holds `guard`.
    pub fn new(guard: G) -> Self {
        Self(Some(guard))
    }

    /// The guard, while it has not been taken out.
    pub fn get_mut(&mut self) -> Option<&mut G> {
        self.0.as_mut()
    }

    /// Takes the guard out, to move it into a body.
    pub fn take(&mut self) -> Option<G> {
        self.0.take()
    }

    /// Finishes the guard now.
    pub fn finish(&mut self, ending: Ending) {
        if let Some(guard) = self.0.take() {
            guard.finish(ending);
        }
    }
}

impl<G: Guard> Drop for Held<G> {
    fn drop(&mut self) {
        self.finish(Ending::FutureDropped);
    }
}

pin_project! {
    /// A body with a guard that is finished when the body ends, fails or is dropped.
    #[derive(Debug)]
    pub struct Guarded<B, G: Guard> {
        #[pin]
        body: B,
        // after the body, so that what is given back at a drop is free only once the exchange below is gone
        guard: Last<G>,
    }
}

/// A guard in a body; dropping it finishes the guard with [`Ending::Dropped`].
#[derive(Debug)]
struct Last<G: Guard>(Option<G>);

impl<G: Guard> Drop for Last<G> {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take() {
            guard.finish(Ending::Dropped);
        }
    }
}

impl<B: Body, G: Guard> Guarded<B, G> {
    /// Ties `guard`, if there is one, to `body`. A body that is over already finishes it at once.
    pub fn new(body: B, guard: impl Into<Option<G>>) -> Self {
        let mut guard = guard.into();
        if body.is_end_stream()
            && let Some(guard) = guard.take()
        {
            guard.finish(Ending::HeadOnly);
        }
        Self { body, guard: Last(guard) }
    }

    /// The body inside.
    pub fn get_ref(&self) -> &B {
        &self.body
    }
}

impl<B: Body, G: Guard> Body for Guarded<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        let ending = match (&frame, this.guard.0.as_mut()) {
            (_, None) => return Poll::Ready(frame),
            (Some(Ok(frame)), Some(guard)) => {
                if let Some(data) = frame.data_ref() {
                    guard.data(data.chunk());
                } else if let Some(trailers) = frame.trailers_ref() {
                    guard.trailers(trailers);
                }
                // a reader that knows the length never asks again after the last frame
                this.body.is_end_stream().then_some(Ending::Complete)
            }
            (Some(Err(_)), Some(_)) => Some(Ending::Failed),
            (None, Some(_)) => Some(Ending::Complete),
        };
        if let Some(ending) = ending
            && let Some(guard) = this.guard.0.take()
        {
            guard.finish(ending);
        }
        Poll::Ready(frame)
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
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http_body_util::{BodyExt, Channel, Empty, Full};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<Ending>>>);

    impl Guard for Log {
        fn finish(self, ending: Ending) {
            self.0.lock().unwrap().push(ending);
        }
    }

    impl Log {
        fn seen(&self) -> Vec<Ending> {
            self.0.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn a_body_read_to_its_end_is_complete_once() {
        let log = Log::default();
        Guarded::new(Full::new(Bytes::from("x")), log.clone()).collect().await.unwrap();
        assert_eq!(log.seen(), [Ending::Complete]);
    }

    #[tokio::test]
    async fn the_last_frame_of_a_known_length_is_the_end() {
        let log = Log::default();
        let mut body = Guarded::new(Full::new(Bytes::from("x")), log.clone());
        body.frame().await.unwrap().unwrap();
        assert_eq!(log.seen(), [Ending::Complete]);
    }

    #[tokio::test]
    async fn an_empty_body_is_over_with_its_head() {
        let log = Log::default();
        drop(Guarded::new(Empty::<Bytes>::new(), log.clone()));
        assert_eq!(log.seen(), [Ending::HeadOnly]);
    }

    #[tokio::test]
    async fn a_body_that_fails_is_failed() {
        let log = Log::default();
        let (sender, body) = Channel::<Bytes, &str>::new(1);
        sender.abort("cut");
        Guarded::new(body, log.clone()).collect().await.unwrap_err();
        assert_eq!(log.seen(), [Ending::Failed]);
    }

    #[test]
    fn a_dropped_body_is_gone_before_its_guard_is_finished() {
        struct Seen(Log);
        impl Drop for Seen {
            fn drop(&mut self) {
                assert_eq!(self.0.seen(), [], "the guard came first");
            }
        }
        let log = Log::default();
        let seen = Seen(log.clone());
        let body = Full::new(Bytes::from("x")).map_frame(move |frame| {
            let _ = &seen;
            frame
        });
        drop(Guarded::new(body, log.clone()));
        assert_eq!(log.seen(), [Ending::Dropped]);
    }

    #[tokio::test]
    async fn a_dropped_body_or_future_says_so() {
        let log = Log::default();
        drop(Guarded::new(Full::new(Bytes::from("x")), log.clone()));
        drop(Held::new(log.clone()));
        assert_eq!(log.seen(), [Ending::Dropped, Ending::FutureDropped]);
    }
}
