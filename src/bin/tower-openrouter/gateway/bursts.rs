//! Events that come together go out together.
//!
//! Providers send tokens in bursts, and one read from the upstream often holds several events. They come up here one by one
//! all the same, as what reads the connection hands out a chunk at a time, and a server writes out what it has each time the
//! body has nothing more: a burst of 50 events costs 50 system calls, each more than all that is done for the event here.
//!
//! So an event is kept until the reader has had a turn, and goes out with what that brings. No timer is involved: when a turn
//! brings nothing, what is kept goes out at once. A stream whose events come one at a time is asked ever more rarely whether
//! another lies behind one.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

/// This much is worth a system call.
const ENOUGH: usize = 8 * 1024;
/// How often it may be asked in vain before what is kept goes out. hyper asks twice at each turn of a connection, so that the
/// second says nothing about who else has had one.
const LOOKS: u32 = 2;
/// The most events in a row that pass without a look for more behind them.
const RAREST: u32 = 15;

pin_project! {
    /// An event stream, whose frames are put together where several are ready.
    pub(super) struct Bursts<B> {
        #[pin]
        body: B,
        held: Held,
        // what came after what is held: trailers, an error, or the end
        after: Option<After>,
        // the first goes out with the head
        begun: bool,
        // how many events pass before the next look, and how many did before the last
        pass: u32,
        rarely: u32,
    }
}

type After = Option<Result<Frame<Bytes>, BoxError>>;

#[derive(Default)]
struct Held {
    /// A single frame is passed on as it is.
    first: Option<Bytes>,
    rest: BytesMut,
    frames: u32,
    /// How many there were at the last look, and how many more looks there may be.
    seen: u32,
    looks: u32,
}

impl Held {
    fn push(&mut self, data: Bytes) {
        self.frames += 1;
        match self.first.take() {
            None if self.rest.is_empty() => self.first = Some(data),
            first => {
                if let Some(first) = first {
                    self.rest.reserve(ENOUGH);
                    self.rest.extend_from_slice(&first);
                }
                self.rest.extend_from_slice(&data);
            }
        }
    }

    fn looks_again(&mut self) -> bool {
        if self.frames > self.seen {
            (self.seen, self.looks) = (self.frames, LOOKS);
        }
        let again = self.looks > 0;
        self.looks = self.looks.saturating_sub(1);
        again
    }

    fn len(&self) -> usize {
        self.first.as_ref().map_or(self.rest.len(), Bytes::len)
    }

    /// All of it, and of how many frames that is.
    fn take(&mut self) -> Option<(Bytes, u32)> {
        let Self { first, rest, frames, .. } = std::mem::take(self);
        (frames > 0).then(|| (first.unwrap_or_else(|| rest.freeze()), frames))
    }
}

impl<B> Bursts<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, held: Held::default(), after: None, begun: false, pass: 0, rarely: 0 }
    }
}

impl<B> Body for Bursts<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        while this.after.is_none() && this.held.len() < ENOUGH {
            let frame = match this.body.as_mut().poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if this.held.frames == 0 => return Poll::Pending,
                Poll::Pending => match this.held.looks_again() {
                    // after a turn for who reads the upstream
                    true => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    false => break,
                },
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if !*this.begun || *this.pass > 0 => {
                    *this.begun = true;
                    *this.pass = this.pass.saturating_sub(1);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Ok(Ok(data))) => this.held.push(data),
                Some(Ok(Err(trailers))) => *this.after = Some(Some(Ok(trailers))),
                Some(Err(error)) => *this.after = Some(Some(Err(error.into()))),
                None => *this.after = Some(None),
            }
        }
        let looked = this.held.seen > 0;
        if let Some((data, frames)) = this.held.take() {
            if frames > 1 {
                *this.rarely = 0;
            } else if looked {
                *this.rarely = (2 * *this.rarely + 1).min(RAREST);
                *this.pass = *this.rarely;
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(this.after.take().flatten())
    }

    fn is_end_stream(&self) -> bool {
        self.held.frames == 0 && self.after.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.held.frames == 0 { self.body.size_hint() } else { SizeHint::default() }
    }
}

impl<B> fmt::Debug for Bursts<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bursts").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use http::HeaderMap;
    use http_body_util::{Channel, channel::Sender};
    use tokio_test::{assert_pending, task};

    use super::*;

    async fn send(sender: &mut Sender<Bytes, &'static str>, events: &[&'static str]) {
        for event in events {
            sender.send_data(Bytes::from_static(event.as_bytes())).await.unwrap();
        }
    }

    /// What comes next, and after how many turns.
    fn next(body: Pin<&mut Bursts<Channel<Bytes, &'static str>>>) -> (Option<Result<String, String>>, u32) {
        let mut body = task::spawn(body);
        for turns in 0..10 {
            let polled = body.enter(|cx, mut body| body.as_mut().poll_frame(cx));
            if let Poll::Ready(frame) = polled {
                let text = |frame: Frame<Bytes>| match frame.into_data() {
                    Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                    Err(_) => "trailers".to_owned(),
                };
                return (frame.map(|frame| frame.map(text).map_err(|error| error.to_string())), turns);
            }
            assert!(body.is_woken(), "nothing comes");
        }
        panic!("it never goes out")
    }

    fn data(text: &str) -> Option<Result<String, String>> {
        Some(Ok(text.to_owned()))
    }

    #[tokio::test]
    async fn what_is_ready_goes_out_in_one_piece_and_in_order_and_the_first_at_once() {
        let (mut sender, body) = Channel::new(16);
        let mut body = pin!(Bursts::new(body));
        send(&mut sender, &["a", "b", "c", "d"]).await;
        assert_eq!(next(body.as_mut()), (data("a"), 0));
        assert_eq!(next(body.as_mut()), (data("bcd"), LOOKS));
        send(&mut sender, &["e", "f"]).await;
        sender.send_trailers(HeaderMap::new()).await.unwrap();
        assert_eq!(next(body.as_mut()), (data("ef"), 0), "there will be no more to wait for");
        assert_eq!(next(body.as_mut()), (data("trailers"), 0));
        drop(sender);
        assert_eq!(next(body.as_mut()), (None, 0));
    }

    #[tokio::test]
    async fn what_came_before_a_failure_goes_out_before_it() {
        let (mut sender, body) = Channel::new(16);
        let mut body = pin!(Bursts::new(body));
        send(&mut sender, &["a", "b"]).await;
        assert_eq!(next(body.as_mut()), (data("a"), 0));
        sender.abort("cut");
        assert_eq!(next(body.as_mut()), (data("b"), 0));
        assert_eq!(next(body.as_mut()), (Some(Err("cut".into())), 0));
    }

    #[tokio::test]
    async fn more_than_is_worth_a_write_waits_for_nothing() {
        let (mut sender, body) = Channel::new(16);
        let mut body = pin!(Bursts::new(body));
        let large: &'static str = "x".repeat(ENOUGH).leak();
        send(&mut sender, &["a", large, "b"]).await;
        assert_eq!(next(body.as_mut()), (data("a"), 0));
        assert_eq!(next(body.as_mut()), (data(large), 0));
        assert_eq!(next(body.as_mut()), (data("b"), LOOKS));
    }

    #[tokio::test]
    async fn events_that_come_one_at_a_time_soon_pass_at_once_and_a_burst_is_still_seen() {
        let (mut sender, body) = Channel::new(64);
        let mut body = pin!(Bursts::new(body));
        let mut turns = 0;
        for _ in 0..200 {
            send(&mut sender, &["a"]).await;
            let (event, waited) = next(body.as_mut());
            assert_eq!(event, data("a"));
            turns += waited / LOOKS;
            task::spawn(body.as_mut()).enter(|cx, mut body| assert_pending!(body.as_mut().poll_frame(cx)));
        }
        assert!((4..=16).contains(&turns), "{turns} looks");
        send(&mut sender, &["a"; 40]).await;
        let mut writes = 0;
        let mut came = String::new();
        while came.len() < 40 {
            came += &next(body.as_mut()).0.unwrap().unwrap();
            writes += 1;
        }
        assert!(writes <= RAREST + 1, "{writes}");
    }
}
