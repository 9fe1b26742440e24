use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::{
    content::Content,
    limits::{Limit, Limits, Phase, Waiting},
};
use crate::outcome::{OutcomeCell, Retry};

pin_project! {
    /// A response body that must not fall silent; its error is an [`UpstreamError`](crate::error::UpstreamError) then.
    #[derive(Debug)]
    pub struct TimeoutsBody<B> {
        // gone when a limit has passed
        #[pin]
        body: Option<B>,
        waiting: Option<Pin<Box<Waiting>>>,
        heard: Heard,
        limits: Arc<Limits>,
    }
}

/// What has come of an answer.
#[derive(Debug)]
struct Heard {
    content: Content,
    cell: Option<OutcomeCell>,
    phase: Phase,
}

impl<B: Body> TimeoutsBody<B> {
    pub(super) fn of(response: Response<B>, waiting: Option<Pin<Box<Waiting>>>, limits: Arc<Limits>) -> Response<Self> {
        let content = Content::of(response.headers());
        let cell = response.extensions().get().cloned();
        let heard = Heard { content, cell, phase: Phase::Silence };
        response.map(|body| Self { body: Some(body), waiting, heard, limits })
    }
}

impl Heard {
    /// Whether these bytes say something.
    fn says(&mut self, bytes: &[u8]) -> bool {
        let says = self.content.says(bytes);
        if says && self.is_begun() {
            self.phase = Phase::Output;
        }
        says
    }

    /// Whether what was said is part of the answer. A leaf that reads the events knows better than who counts frames.
    fn is_begun(&self) -> bool {
        !matches!(self.content, Content::Events(_)) || self.is_committed()
    }

    fn is_committed(&self) -> bool {
        self.cell.as_ref().is_none_or(|cell| cell.at_commit().is_some())
    }

    /// Writes down what the limit means, once for all layers around.
    fn note(&self, limit: Limit) {
        let Some(cell) = &self.cell else { return };
        let fault = limit.error().fault().retry(match limit {
            _ if self.phase == Phase::Output && self.is_committed() => Retry::Never,
            // closed before its first token, a stream mostly costs nothing; any other request is billed (row 29)
            Limit::FirstOutput if matches!(self.content, Content::Events(_)) => Retry::Once,
            _ => Retry::Unclear,
        });
        cell.end(fault.into());
    }
}

impl<B> Body for TimeoutsBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let frame = body.as_mut().poll_frame(cx);
        let passed = match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                let says = frame.data_ref().is_some_and(|data| this.heard.says(data.chunk()));
                match this.waiting {
                    None => Poll::Pending,
                    Some(waiting) => {
                        if says {
                            waiting.as_mut().heard();
                        }
                        // a body that always has something for a slow reader never waits
                        if waiting.has_rung() && !body.is_end_stream() {
                            waiting.as_mut().poll(cx, this.limits, this.heard.phase)
                        } else {
                            Poll::Pending
                        }
                    }
                }
            }
            Poll::Ready(_) => {
                *this.waiting = None;
                Poll::Pending
            }
            Poll::Pending => {
                let mut waiting = Waiting::begun(this.waiting, this.limits);
                waiting.as_mut().silent();
                waiting.poll(cx, this.limits, this.heard.phase)
            }
        };
        let Poll::Ready(limit) = passed else { return frame.map_err(Into::into) };
        tracing::debug!(%limit, "the upstream fell silent and was given up on");
        this.heard.note(limit);
        *this.waiting = None;
        this.body.set(None);
        Poll::Ready(Some(Err(limit.error().into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
