//! A body whose beginning has been read ahead.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A response body, passed on byte for byte, whatever part of it was read ahead to be judged.
    pub struct Replay<B: Body> {
        read: Option<Box<Read<B::Error>>>,
        #[pin]
        rest: Rest<B>,
    }
}

pin_project! {
    #[project = RestProj]
    enum Rest<B> {
        Inline { #[pin] body: B },
        Boxed { body: Pin<Box<B>> },
        Over,
    }
}

/// What was read ahead: frames in their order, then perhaps the error that ended them.
struct Read<E> {
    frames: VecDeque<Frame<Bytes>>,
    bytes: u64,
    error: Option<E>,
}

impl<B: Body<Data = Bytes>> Replay<B> {
    /// A body nothing was read of.
    pub(super) fn untouched(body: B) -> Self {
        Self { read: None, rest: Rest::Inline { body } }
    }

    /// A body that is this text.
    pub(super) fn of_text(text: String) -> Self {
        let bytes = text.len() as u64;
        let frames = VecDeque::from([Frame::data(Bytes::from(text))]);
        Self { read: Some(Box::new(Read { frames, bytes, error: None })), rest: Rest::Over }
    }
}

impl<B: Body<Data = Bytes>> Body for Replay<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        if let Some(read) = this.read {
            if let Some(frame) = read.frames.pop_front() {
                read.bytes -= frame.data_ref().map_or(0, |data| data.len() as u64);
                return Poll::Ready(Some(Ok(frame)));
            }
            let error = read.error.take();
            *this.read = None;
            if let Some(error) = error {
                this.rest.set(Rest::Over);
                return Poll::Ready(Some(Err(error)));
            }
        }
        match this.rest.project() {
            RestProj::Inline { body } => body.poll_frame(cx),
            RestProj::Boxed { body } => body.as_mut().poll_frame(cx),
            RestProj::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.as_ref().is_none_or(|read| read.frames.is_empty() && read.error.is_none())
            && match &self.rest {
                Rest::Inline { body } => body.is_end_stream(),
                Rest::Boxed { body } => body.is_end_stream(),
                Rest::Over => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Rest::Inline { body } => body.size_hint(),
            Rest::Boxed { body } => body.size_hint(),
            Rest::Over => SizeHint::with_exact(0),
        };
        let Some(read) = &self.read else { return rest };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read.bytes);
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read.bytes)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B: Body> fmt::Debug for Replay<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("read_ahead", &self.read.as_ref().map_or(0, |read| read.bytes))
            .finish_non_exhaustive()
    }
}

/// Reads a body ahead, up to a bound.
pub(super) struct Ahead<B: Body> {
    body: Pin<Box<B>>,
    read: Box<Read<B::Error>>,
    over: bool,
}

impl<B: Body<Data = Bytes>> Ahead<B> {
    pub(super) fn new(body: B) -> Self {
        let over = body.is_end_stream();
        let read = Box::new(Read { frames: VecDeque::new(), bytes: 0, error: None });
        Self { body: Box::pin(body), read, over }
    }

    /// Reads until the body is over, has failed, or `bound` bytes are here.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, bound: usize) -> Poll<()> {
        while !self.over && self.read.bytes < bound as u64 {
            match ready!(self.body.as_mut().poll_frame(cx)) {
                None => self.over = true,
                Some(Err(error)) => {
                    self.read.error = Some(error);
                    self.over = true;
                }
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map(Bytes::len);
                    // empty frames say nothing, and would not count against the bound
                    if bytes != Some(0) {
                        self.read.bytes += bytes.unwrap_or(0) as u64;
                        self.read.frames.push_back(frame);
                    }
                    self.over = self.body.is_end_stream();
                }
            }
        }
        Poll::Ready(())
    }

    /// What is here of it, in one piece.
    pub(super) fn bytes(&self) -> Bytes {
        let mut pieces = self.read.frames.iter().filter_map(Frame::data_ref);
        match (pieces.next(), pieces.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only.clone(),
            _ => {
                let frames = self.read.frames.iter().filter_map(Frame::data_ref);
                frames.flat_map(|piece| piece.iter().copied()).collect()
            }
        }
    }

    /// The body, from its beginning.
    pub(super) fn into_body(self) -> Replay<B> {
        let rest = if self.over { Rest::Over } else { Rest::Boxed { body: self.body } };
        Replay { read: Some(self.read), rest }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, task::Waker};

    use http::HeaderMap;
    use http_body_util::{BodyExt, Channel, StreamBody};

    use super::*;

    fn ahead<B: Body<Data = Bytes>>(body: B, bound: usize) -> Ahead<B> {
        let mut ahead = Ahead::new(body);
        let _ = ahead.poll(&mut Context::from_waker(Waker::noop()), bound);
        ahead
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_again_and_the_rest_streams_on() {
        let frames = ["abc", "def", "ghi"].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
        let ahead = ahead(StreamBody::new(futures_util::stream::iter(frames)), 4);
        assert_eq!(ahead.bytes(), "abcdef", "a frame is never cut");
        let body = ahead.into_body();
        assert_eq!(body.size_hint().lower(), 6);
        assert!(!body.is_end_stream());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcdefghi");
    }

    #[tokio::test]
    async fn trailers_and_failures_come_in_their_place() {
        let (mut sender, body) = Channel::<Bytes, &str>::new(4);
        sender.send_data(Bytes::from("abc")).await.unwrap();
        sender.abort("cut");
        let mut body = ahead(body, 100).into_body();
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        assert_eq!(body.frame().await.unwrap().unwrap_err(), "cut");
        assert!(body.frame().await.is_none());

        let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers.clone())].map(Ok::<_, Infallible>);
        let body = ahead(StreamBody::new(futures_util::stream::iter(frames)), 100).into_body();
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
    }
}
