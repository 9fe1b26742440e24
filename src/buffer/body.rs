//! The body that every attempt sends.

use std::{
    error::Error,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::LengthLimitError;
use tower::BoxError;

use super::{Limits, collect::Pieces};
use crate::{
    error::{self, Rejected, Why},
    request::Replay,
    sync::{Arc, Mutex, lock},
};

/// A request body that may be sent more than once: whole and cheap to clone, or passing by, or passing by and recorded.
pub struct ReplayBody(Kind);

enum Kind {
    /// In memory.
    Full(Whole),
    /// Passing by once: what was read already, then the rest.
    Once { read: Box<[Bytes; 2]>, rest: Source },
    /// Passing by and recorded.
    Tee { recorder: Recorder, rest: Source },
    /// A copy of one that is recorded.
    Copy(Arc<Mutex<Record>>),
    /// Failed.
    Over,
}

impl ReplayBody {
    /// A body without content.
    pub fn empty() -> Self {
        Self::from(Bytes::new())
    }

    /// Another body with the same bytes, from their start; `None` when they pass by only once.
    ///
    /// A copy of a body that is being recorded ([`BufferLayer::tee`](super::BufferLayer::tee)) may be made at any time, but
    /// must not be sent before [`is_replayable`](Self::is_replayable) says so: it fails with [`Why::BodyBroken`] then.
    pub fn try_clone(&self) -> Option<Self> {
        match &self.0 {
            Kind::Full(whole) => Some(Self(Kind::Full(whole.afresh()))),
            Kind::Tee { recorder: Recorder(record), .. } | Kind::Copy(record) => {
                let lost = matches!(*lock(record), Record::Lost);
                (!lost).then(|| Self(Kind::Copy(record.clone())))
            }
            Kind::Once { .. } | Kind::Over => None,
        }
    }

    /// Whether all of its bytes are known, so that a copy may be sent now.
    pub fn is_replayable(&self) -> bool {
        match &self.0 {
            Kind::Full(_) => true,
            Kind::Tee { recorder: Recorder(record), .. } | Kind::Copy(record) => {
                matches!(*lock(record), Record::Complete(_))
            }
            Kind::Once { .. } | Kind::Over => false,
        }
    }

    pub(super) fn full(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self(Kind::Full(Whole::new(data, trailers)))
    }

    /// What was read already, then the rest, of which at most `left` bytes may come.
    pub(super) fn once<B>(read: [Bytes; 2], rest: B, left: u64) -> Self
    where
        B: Body + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Kind::Once { read: Box::new(read), rest: Source::new(rest, left) })
    }

    pub(super) fn tee<B>(body: B, limits: &Limits) -> Self
    where
        B: Body + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let cap = limits.replay_cap;
        let ceiling = body.size_hint().upper().unwrap_or(cap).min(cap);
        let record = Record::Running { pieces: Pieces::new(&limits.budget, ceiling), cap };
        Self(Kind::Tee { recorder: Recorder(Arc::new(Mutex::new(record))), rest: Source::new(body, limits.body_limit) })
    }
}

impl From<Bytes> for ReplayBody {
    fn from(data: Bytes) -> Self {
        Self::full(data, None)
    }
}

impl Default for ReplayBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let kind = &mut self.0;
        if let Kind::Copy(record) = kind {
            let whole = match &*lock(record) {
                Record::Complete(whole) => Some(whole.afresh()),
                Record::Running { .. } | Record::Lost => None,
            };
            *kind = whole.map_or(Kind::Over, Kind::Full);
            if matches!(kind, Kind::Over) {
                let error = Rejected::new(Why::BodyBroken, "the request's body was not recorded to its end");
                return Poll::Ready(Some(Err(error.into())));
            }
        }
        let frame = match kind {
            Kind::Full(whole) => return Poll::Ready(whole.next_frame().map(Ok)),
            Kind::Once { read, rest } => match read.iter_mut().find(|read| !read.is_empty()) {
                Some(read) => Some(Ok(Frame::data(mem::take(read)))),
                None => ready!(rest.poll_frame(cx)),
            },
            Kind::Tee { recorder, rest } => {
                let frame = ready!(rest.poll_frame(cx));
                recorder.see(&frame, rest.is_end_stream());
                frame
            }
            Kind::Copy(_) | Kind::Over => None,
        };
        Poll::Ready(match frame {
            Some(Err(error)) => {
                *kind = Kind::Over;
                Some(Err(error.into()))
            }
            Some(Ok(frame)) => Some(Ok(frame)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(whole) => whole.is_sent(),
            Kind::Once { read, rest } => read.iter().all(Bytes::is_empty) && rest.is_end_stream(),
            Kind::Tee { rest, .. } => rest.is_end_stream(),
            Kind::Copy(record) => matches!(&*lock(record), Record::Complete(whole) if whole.is_sent()),
            Kind::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(whole) => whole.size_hint(),
            Kind::Once { read, rest } => {
                let read: u64 = read.iter().map(|read| read.len() as u64).sum();
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(read));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(read));
                }
                hint
            }
            Kind::Tee { rest, .. } => rest.size_hint(),
            Kind::Copy(record) => match &*lock(record) {
                Record::Complete(whole) => whole.size_hint(),
                Record::Running { .. } | Record::Lost => SizeHint::new(),
            },
            Kind::Over => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for ReplayBody {
    /// Says its kind and size; what is in it is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Full(_) => "Full",
            Kind::Once { .. } => "Once",
            Kind::Tee { .. } => "Tee",
            Kind::Copy(_) => "Copy",
            Kind::Over => "Over",
        };
        f.debug_struct("ReplayBody").field("kind", &kind).field("size", &self.size_hint()).finish()
    }
}

impl Replay for ReplayBody {
    fn replay(&self) -> Option<Self> {
        self.try_clone()
    }

    fn is_replayable(&self) -> bool {
        self.is_replayable()
    }
}

/// A body in memory, and how much of it was sent.
struct Whole {
    data: Bytes,
    trailers: Option<Arc<HeaderMap>>,
    data_sent: bool,
    trailers_sent: bool,
}

impl Whole {
    fn new(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { data_sent: data.is_empty(), data, trailers_sent: trailers.is_none(), trailers: trailers.map(Arc::new) }
    }

    fn afresh(&self) -> Self {
        Self {
            data: self.data.clone(),
            trailers: self.trailers.clone(),
            data_sent: self.data.is_empty(),
            trailers_sent: self.trailers.is_none(),
        }
    }

    fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        if !mem::replace(&mut self.data_sent, true) {
            return Some(Frame::data(self.data.clone()));
        }
        if mem::replace(&mut self.trailers_sent, true) {
            return None;
        }
        self.trailers.as_deref().map(|trailers| Frame::trailers(trailers.clone()))
    }

    fn is_sent(&self) -> bool {
        self.data_sent && self.trailers_sent
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.data_sent { 0 } else { self.data.len() as u64 })
    }
}

/// What is known of a body that passes by.
enum Record {
    Running {
        pieces: Pieces,
        cap: u64,
    },
    Complete(Whole),
    /// Too large, over the budget, broken, or dropped before its end.
    Lost,
}

/// Writes the record; when dropped before the end, there will be none.
struct Recorder(Arc<Mutex<Record>>);

impl Recorder {
    fn see(&self, frame: &Option<Result<Frame<Bytes>, Rejected>>, last: bool) {
        let mut record = lock(&self.0);
        let Record::Running { pieces, cap } = &mut *record else { return };
        let mut trailers = None;
        let kept = match frame {
            Some(Ok(frame)) => {
                trailers = frame.trailers_ref().cloned();
                frame.data_ref().is_none_or(|data| {
                    pieces.len().saturating_add(data.len() as u64) <= *cap && pieces.push(data.clone())
                })
            }
            Some(Err(_)) => false,
            None => true,
        };
        if !kept {
            *record = Record::Lost;
        } else if (last || frame.is_none() || trailers.is_some())
            && let Record::Running { pieces, .. } = mem::replace(&mut *record, Record::Lost)
        {
            *record = Record::Complete(Whole::new(pieces.join(), trailers));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let mut record = lock(&self.0);
        if matches!(*record, Record::Running { .. }) {
            *record = Record::Lost;
        }
    }
}

/// The caller's body, of any type, held to the limit.
struct Source {
    /// Never contended: it only makes any body `Sync`.
    body: Mutex<Box<dyn Body<Data = Bytes, Error = Rejected> + Send + Unpin>>,
    left: u64,
}

impl Source {
    fn new<B>(body: B, left: u64) -> Self
    where
        B: Body + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        Self { body: Mutex::new(Box::new(Plain(body))), left }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Rejected>>> {
        let frame = ready!(Pin::new(&mut **lock(&self.body)).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.left.checked_sub(size) {
                    Some(left) => {
                        self.left = left;
                        Some(Ok(frame))
                    }
                    None => Some(Err(too_large())),
                }
            }
            frame => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.body).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.body).size_hint()
    }
}

/// Any body as one of [`Bytes`] that fails with refusals. It keeps the size hint, as `BodyExt::map_frame` does not.
struct Plain<B>(B);

impl<B> Body for Plain<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Rejected;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Rejected>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => Ok(frame.map_data(whole)),
            Err(error) => Err(broken(&*error.into())),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A buffer as [`Bytes`]; if it is that already, without a copy.
pub(super) fn whole<D: Buf>(mut data: D) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

pub(super) fn too_large() -> Rejected {
    Rejected::new(Why::BodyTooLarge, "the request's body is larger than allowed")
}

/// What a failure of the caller's body means: a refusal stays what it is, and another layer's size limit is one too.
pub(super) fn broken(cause: &(dyn Error + 'static)) -> Rejected {
    if let Some(refusal) = Rejected::find(cause) {
        return refusal.clone();
    }
    if error::find::<LengthLimitError>(cause).is_some() {
        return too_large();
    }
    Rejected::new(Why::BodyBroken, "the request's body broke off before its end")
}
