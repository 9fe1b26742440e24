//! The answer's body as a timetable: what is due when, with keep-alives in between.
//!
//! Without delays no timer is made. The [`Ticket`] rides along and is closed with the last frame, so "in
//! flight" ends where the caller could see it end.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::SimulatorError;
use super::generation::{EndOf, Served};
use super::reply::{self, Failure};
use super::scenario::{InBand, What};
use super::ticket::Ticket;

/// The body of a simulated answer.
///
/// Frames of a stream are single SSE events or comments. Dropping it early is what a closed connection is.
pub struct SimulatorBody(Kind);

enum Kind {
    Whole(Option<Bytes>, Option<Ticket>),
    Play(Box<Play>),
}

impl fmt::Debug for SimulatorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Whole(..) => "whole",
            Kind::Play(play) if play.served.streamed => "stream",
            Kind::Play(_) => "timed",
        };
        f.debug_tuple("SimulatorBody").field(&kind).finish()
    }
}

impl SimulatorBody {
    /// A body that is there at once.
    pub(super) fn whole(bytes: Bytes, ticket: Option<Ticket>) -> Self {
        Self(Kind::Whole(Some(bytes), ticket))
    }

    /// The body of an accepted inference.
    pub(super) fn play(play: Play) -> Self {
        Self(Kind::Play(Box::new(play)))
    }
}

/// Intervals of keep-alives; zero is never.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepAlive {
    pub(super) first: Duration,
    pub(super) every: Duration,
}

/// An answer being told.
pub(super) struct Play {
    served: Arc<Served>,
    ticket: Ticket,
    twist: Option<What>,
    keep_alive: KeepAlive,
    next_keep_alive: Option<Instant>,
    accepted: Instant,
    first_token: Duration,
    per_token: Duration,
    step: Step,
    sent: u64,
    queue: VecDeque<Bytes>,
    /// How it ends once the queue is empty.
    end: Option<Last>,
    /// Whether the frames before a failure had their chance to leave.
    flushed: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Opening,
    Tokens,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    End(EndOf),
    Fail { reset: bool },
    Hang,
}

impl Play {
    pub(super) fn new(
        served: Arc<Served>,
        ticket: Ticket,
        twist: Option<What>,
        keep_alive: KeepAlive,
        accepted: Instant,
        (first_token, per_token): (Duration, Duration),
    ) -> Self {
        let first = (!keep_alive.first.is_zero()).then(|| accepted + keep_alive.first);
        Self {
            served,
            ticket,
            twist,
            keep_alive,
            next_keep_alive: first,
            accepted,
            first_token,
            per_token,
            step: Step::Opening,
            sent: 0,
            queue: VecDeque::new(),
            end: None,
            flushed: false,
            sleep: None,
        }
    }

    /// When the next step is due; none for at once.
    fn due(&self) -> Option<Instant> {
        if self.step == Step::Opening && self.served.streamed {
            return None;
        }
        let spoken =
            if self.served.streamed { self.sent + self.next_event().max(1) } else { self.served.completion_tokens };
        let tokens = spoken.max(1) - 1;
        let per_token = self.per_token.checked_mul(u32::try_from(tokens).unwrap_or(u32::MAX));
        let after = self.first_token + per_token.unwrap_or(Duration::MAX / 4);
        let last = self.served.streamed && self.sent == self.served.completion_tokens;
        (!after.is_zero() && !last).then(|| self.accepted + after)
    }

    /// How many tokens the next event of a stream carries: one at first, so that the first token is not late, and never
    /// some that a twist keeps back.
    fn next_event(&self) -> u64 {
        let most = if self.sent == 0 { 1 } else { self.served.per_event };
        let end = match self.twist.as_ref().and_then(interruption) {
            Some((after, _)) => after.min(self.served.completion_tokens),
            None => self.served.completion_tokens,
        };
        most.min(end.saturating_sub(self.sent))
    }

    /// Waits until `due`; a keep-alive may be due before.
    fn poll_due(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let now = Instant::now();
            if now >= due {
                return Poll::Ready(None);
            }
            let mut wake = due;
            if let Some(next) = self.next_keep_alive {
                if now >= next {
                    let every = self.keep_alive.every;
                    self.next_keep_alive = (!every.is_zero()).then(|| next + every);
                    return Poll::Ready(Some(self.filler()));
                }
                wake = wake.min(next);
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(wake)));
            if sleep.deadline() != wake {
                sleep.as_mut().reset(wake);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn filler(&self) -> Bytes {
        Bytes::from_static(if self.served.streamed { b": OPENROUTER PROCESSING\n\n" } else { b"\n" })
    }

    /// Does the step that is due: fills the queue, and the end when it is the last.
    fn advance(&mut self) {
        if !self.served.streamed {
            return self.advance_json();
        }
        match self.step {
            Step::Opening => {
                self.step = Step::Tokens;
                self.queue.extend(reply::opening(&self.served));
            }
            Step::Tokens => {
                if let Some((after, last)) = self.twist.as_ref().and_then(interruption)
                    && self.sent >= after.min(self.served.completion_tokens)
                {
                    return self.interrupt(last);
                }
                if self.sent < self.served.completion_tokens {
                    let tokens = self.next_event();
                    self.queue.push_back(reply::tokens(&self.served, self.sent, tokens));
                    self.sent += tokens;
                    self.ticket.sent(tokens);
                    if self.keep_alive.every.is_zero() {
                        return;
                    }
                    // A stream that speaks needs no comment.
                    self.next_keep_alive = Some(Instant::now() + self.keep_alive.every);
                    return;
                }
                self.queue.extend(reply::closing(&self.served));
                self.finish(Last::End(EndOf::Whole));
            }
            Step::Ended => {}
        }
    }

    /// Ends a stream early, in the way of the twist.
    fn interrupt(&mut self, last: Last) {
        match &self.twist {
            Some(What::InBand { form, code, .. }) => {
                let failure = Failure { form: *form, code: *code };
                self.queue.extend(reply::failure(&self.served, failure, self.sent));
            }
            Some(What::Malformed) => {
                let mut event = b"data: ".to_vec();
                event.extend_from_slice(&reply::malformed(&self.served));
                event.extend_from_slice(b"\n\ndata: [DONE]\n\n");
                self.queue.push_back(Bytes::from(event));
            }
            Some(What::PaddingOnly) => self.queue.extend(vec![self.filler(); 3]),
            Some(What::Cut { half: true, .. }) => {
                let next = reply::tokens(&self.served, self.sent, 1);
                self.queue.push_back(next.slice(..next.len() / 2));
            }
            _ => {}
        }
        self.finish(last);
    }

    fn advance_json(&mut self) {
        let whole = || reply::json(&self.served);
        let half = |bytes: Bytes| bytes.slice(..bytes.len() / 2);
        let (bytes, last) = match &self.twist {
            None | Some(What::Huge { .. }) => (whole(), Last::End(EndOf::Whole)),
            Some(What::InBand { form, code, after_tokens }) => {
                let failure = Failure { form: *form, code: *code };
                let tokens = if *form == InBand::Choice { *after_tokens } else { 0 };
                (reply::json_failure(&self.served, failure, tokens), Last::End(EndOf::Error))
            }
            Some(What::Malformed) => (reply::malformed(&self.served), Last::End(EndOf::Whole)),
            Some(What::PaddingOnly) => (Bytes::from_static(b"\n\n\n"), Last::End(EndOf::Broken)),
            Some(twist) => {
                let last = interruption(twist).map_or(Last::End(EndOf::Whole), |(_, last)| last);
                (half(whole()), last)
            }
        };
        self.queue.push_back(bytes);
        self.finish(last);
    }

    fn finish(&mut self, last: Last) {
        self.step = Step::Ended;
        self.end = Some(last);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SimulatorError>>> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                if let (true, Some(Last::End(end))) = (self.queue.is_empty(), self.end) {
                    self.ticket.close(end);
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            match self.end {
                Some(Last::End(end)) => {
                    self.ticket.close(end);
                    return Poll::Ready(None);
                }
                Some(Last::Fail { .. }) if !self.flushed => {
                    // A server writes out what it has when the body has nothing more for the moment;
                    // an error at once would take the frames before it along.
                    self.flushed = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Last::Fail { reset }) => {
                    self.ticket.close(EndOf::Broken);
                    // A body that failed once is over.
                    self.end = Some(Last::End(EndOf::Broken));
                    let error = if reset { SimulatorError::Reset } else { SimulatorError::Cut };
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Last::Hang) => return Poll::Pending,
                None => {}
            }
            if let Some(due) = self.due() {
                match self.poll_due(due, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(filler)) => return Poll::Ready(Some(Ok(Frame::data(filler)))),
                    Poll::Ready(None) => {}
                }
            }
            self.advance();
        }
    }
}

/// After how many tokens a twist strikes, and how the body ends then.
fn interruption(twist: &What) -> Option<(u64, Last)> {
    Some(match twist {
        What::InBand { after_tokens, .. } => (*after_tokens, Last::End(EndOf::Error)),
        What::Eof { after_tokens } => (*after_tokens, Last::End(EndOf::Broken)),
        What::Cut { after_tokens, reset, .. } => (*after_tokens, Last::Fail { reset: *reset }),
        What::Hang { after_tokens } => (*after_tokens, Last::Hang),
        What::Malformed | What::PaddingOnly => (0, Last::End(EndOf::Broken)),
        _ => return None,
    })
}

impl Body for SimulatorBody {
    type Data = Bytes;
    type Error = SimulatorError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SimulatorError>>> {
        match &mut self.get_mut().0 {
            Kind::Whole(bytes, ticket) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                if let Some(mut ticket) = ticket.take() {
                    ticket.close(EndOf::Whole);
                }
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
            Kind::Play(play) => play.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            // With a ticket left, one more poll must come, or an empty body would count as abandoned.
            Kind::Whole(bytes, ticket) => bytes.is_none() && ticket.is_none(),
            Kind::Play(play) => play.queue.is_empty() && matches!(play.end, Some(Last::End(_))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Play(_) => SizeHint::default(),
        }
    }
}
