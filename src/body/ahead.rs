use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A body, passed on byte for byte, whatever part of it was read ahead to be judged.
    pub struct ReadAhead<B: Body> {
        // what was read: the usual case is one piece of data, which needs no room of its own
        first: Option<Bytes>,
        later: Option<Box<Later<B::Error>>>,
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

/// What was read after the first piece: frames in their order, then perhaps the error that ended them.
struct Later<E> {
    frames: VecDeque<Frame<Bytes>>,
    error: Option<E>,
}

impl<E> Default for Later<E> {
    fn default() -> Self {
        Self { frames: VecDeque::new(), error: None }
    }
}

/// What was just read ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// So many bytes, more than none.
    Data(usize),
    /// The trailers.
    Trailers,
    /// An error, which is the end.
    Failed,
    /// The end.
    End,
}

impl<B: Body<Data = Bytes>> ReadAhead<B> {
    /// A body nothing was read of.
    pub(crate) fn new(body: B) -> Self {
        Self { first: None, later: None, rest: Rest::Inline { body } }
    }

    /// A body that is this text.
    pub(crate) fn of_text(text: String) -> Self {
        Self { first: Some(text.into()), later: None, rest: Rest::Over }
    }

    /// Reads on, and keeps what comes. Empty frames say nothing and are passed over.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Seen>
    where
        B: Unpin,
    {
        loop {
            if self.rest.is_end_stream() {
                self.rest = Rest::Over;
                return Poll::Ready(Seen::End);
            }
            match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
                None => self.rest = Rest::Over,
                Some(Err(error)) => {
                    self.later.get_or_insert_default().error = Some(error);
                    self.rest = Rest::Over;
                    return Poll::Ready(Seen::Failed);
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        let bytes = data.len();
                        match (&mut self.first, &mut self.later) {
                            (first @ None, None) => *first = Some(data),
                            (_, later) => later.get_or_insert_default().frames.push_back(Frame::data(data)),
                        }
                        return Poll::Ready(Seen::Data(bytes));
                    }
                    Err(frame) => {
                        self.later.get_or_insert_default().frames.push_back(frame);
                        return Poll::Ready(Seen::Trailers);
                    }
                },
            }
        }
    }

    /// The trailers, if they were read.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.later.iter().flat_map(|later| &later.frames).find_map(Frame::trailers_ref)
    }

    /// What was read of it, in one piece.
    pub(crate) fn bytes(&self) -> Bytes {
        let mut pieces = self.pieces();
        match (pieces.next(), pieces.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only.clone(),
            _ => self.pieces().flat_map(|piece| piece.iter().copied()).collect(),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        let frames = self.later.iter().flat_map(|later| &later.frames);
        self.first.iter().chain(frames.filter_map(Frame::data_ref))
    }

    fn ahead(&self) -> u64 {
        self.pieces().map(|piece| piece.len() as u64).sum()
    }
}

impl<B: Body<Data = Bytes>> ReadAhead<Pin<Box<B>>> {
    /// The same without the box in its type.
    pub(crate) fn unboxed(self) -> ReadAhead<B> {
        let rest = match self.rest {
            Rest::Inline { body } => Rest::Boxed { body },
            Rest::Boxed { body } => Rest::Boxed { body: *Pin::into_inner(body) },
            Rest::Over => Rest::Over,
        };
        ReadAhead { first: self.first, later: self.later, rest }
    }
}

impl<B: Body> Body for Rest<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project() {
            RestProj::Inline { body } => body.poll_frame(cx),
            RestProj::Boxed { body } => body.as_mut().poll_frame(cx),
            RestProj::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Inline { body } => body.is_end_stream(),
            Self::Boxed { body } => body.is_end_stream(),
            Self::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Inline { body } => body.size_hint(),
            Self::Boxed { body } => body.size_hint(),
            Self::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ReadAhead<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if let Some(later) = this.later {
            if let Some(frame) = later.frames.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let error = later.error.take();
            *this.later = None;
            if let Some(error) = error {
                return Poll::Ready(Some(Err(error)));
            }
        }
        this.rest.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none()
            && self.later.as_ref().is_none_or(|later| later.frames.is_empty() && later.error.is_none())
            && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // an error to come is no promise of a length
        let fails = self.later.as_ref().is_some_and(|later| later.error.is_some());
        let rest = if fails { SizeHint::default() } else { self.rest.size_hint() };
        let ahead = self.ahead();
        if ahead == 0 {
            return rest;
        }
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B: Body<Data = Bytes>> fmt::Debug for ReadAhead<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAhead").field("ahead", &self.ahead()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, task::Waker};

    use http_body_util::{BodyExt, Channel, StreamBody};

    use super::*;

    /// A body of which so many frames, the end and failures among them, are read ahead.
    fn ahead<B: Body<Data = Bytes> + Unpin>(body: B, frames: usize) -> ReadAhead<B> {
        let mut ahead = ReadAhead::new(body);
        for _ in 0..frames {
            assert!(ahead.poll_ahead(&mut Context::from_waker(Waker::noop())).is_ready());
        }
        ahead
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_again_and_the_rest_streams_on() {
        for read in 0..6 {
            let frames = ["abc", "", "def", "ghi"].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
            let body = ahead(StreamBody::new(futures_util::stream::iter(frames)), read);
            let kept = &"abcdefghi"[..(3 * read).min(9)];
            assert_eq!((body.bytes(), body.size_hint().lower()), (Bytes::from(kept), kept.len() as u64));
            assert!(!body.is_end_stream());
            let boxed = ReadAhead { first: body.first, later: body.later, rest: body.rest };
            assert_eq!(boxed.collect().await.unwrap().to_bytes(), "abcdefghi");
        }
    }

    #[tokio::test]
    async fn trailers_and_failures_come_in_their_place() {
        let (mut sender, body) = Channel::<Bytes, &str>::new(4);
        sender.send_data(Bytes::from("abc")).await.unwrap();
        sender.abort("cut");
        let mut body = ahead(body, 2);
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), None);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        assert_eq!(body.frame().await.unwrap().unwrap_err(), "cut");
        assert!(body.frame().await.is_none());

        let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers.clone())].map(Ok::<_, Infallible>);
        let body = ahead(StreamBody::new(futures_util::stream::iter(frames)), 3);
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
    }

    #[tokio::test]
    async fn a_boxed_body_goes_on_where_it_was() {
        let frames = ["abc", "def"].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
        let body = ahead(Box::pin(StreamBody::new(futures_util::stream::iter(frames))), 1).unboxed();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcdef");
    }
}
