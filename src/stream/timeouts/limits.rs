//! Which limit comes next, and the one timer for all of them.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    clock::{self, Alarm},
    error::{UpstreamError, UpstreamErrorKind},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) headers: Duration,
    pub(super) first_output: Duration,
    pub(super) gap: Duration,
    pub(super) total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self { headers: minutes(5), first_output: minutes(5), gap: minutes(2), total: minutes(30) }
    }
}

/// How far an exchange has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is no head.
    Head,
    /// There is one, and nothing after it.
    Silence,
    /// The answer has begun.
    Output,
}

/// Which limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Headers,
    FirstOutput,
    Gap,
    Total,
}

impl Limits {
    /// The limit that comes first for an exchange that started then and has been silent `since`.
    fn next(&self, phase: Phase, started: Instant, since: Option<Instant>) -> (Instant, Limit) {
        let within = |span| clock::after(started, span);
        let total = (within(self.total), Limit::Total);
        let sooner = |one: (Instant, Limit), other: (Instant, Limit)| if other.0 <= one.0 { other } else { one };
        match phase {
            Phase::Head => {
                let output = sooner(total, (within(self.first_output), Limit::FirstOutput));
                sooner(output, (within(self.headers), Limit::Headers))
            }
            Phase::Silence => sooner(total, (within(self.first_output), Limit::FirstOutput)),
            Phase::Output => since.map_or(total, |since| sooner(total, (clock::after(since, self.gap), Limit::Gap))),
        }
    }
}

impl Limit {
    pub(super) fn error(self) -> UpstreamError {
        let kind = match self {
            Self::Headers => UpstreamErrorKind::HeadersTimeout,
            Self::FirstOutput => UpstreamErrorKind::FirstOutputTimeout,
            Self::Gap => UpstreamErrorKind::GapTimeout,
            Self::Total => UpstreamErrorKind::TotalTimeout,
        };
        UpstreamError::new(kind, None)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Headers => "headers",
            Self::FirstOutput => "first_output",
            Self::Gap => "gap",
            Self::Total => "total",
        })
    }
}

pin_project! {
    /// An exchange that has had to wait.
    #[derive(Debug)]
    pub(super) struct Waiting {
        #[pin]
        timer: Alarm,
        // the phase it is set for, where nothing more can come nearer: from its beginning, or from the first silence in output
        set: Option<Phase>,
        started: Instant,
        // since when there has been nothing to read but what says nothing
        since: Option<Instant>,
    }
}

impl Waiting {
    /// Begins to wait now, unless it had begun before.
    pub(super) fn begun<'a>(waiting: &'a mut Option<Pin<Box<Self>>>, limits: &Limits) -> Pin<&'a mut Self> {
        let waiting = waiting.get_or_insert_with(|| {
            let now = Instant::now();
            let (first, _) = limits.next(Phase::Head, now, None);
            Box::pin(Self { timer: Alarm::at(first), set: None, started: now, since: None })
        });
        waiting.as_mut()
    }

    /// Something was said.
    pub(super) fn heard(self: Pin<&mut Self>) {
        *self.project().since = None;
    }

    /// There is nothing to read.
    pub(super) fn silent(self: Pin<&mut Self>) {
        self.project().since.get_or_insert_with(Instant::now);
    }

    /// Whether it is time to [`poll`](Self::poll) though there is something to read.
    pub(super) fn has_rung(&self) -> bool {
        self.timer.has_rung()
    }

    /// Waits for the first limit to pass.
    pub(super) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, limits: &Limits, phase: Phase) -> Poll<Limit> {
        let mut this = self.project();
        // within a phase what comes puts the limit off, and never forward
        if *this.set == Some(phase) && this.timer.is_set_for(cx) {
            return Poll::Pending;
        }
        *this.set = (phase != Phase::Output || this.since.is_some()).then_some(phase);
        let (until, limit) = limits.next(phase, *this.started, *this.since);
        // one that rings too early is set anew then, and not at each frame that puts its limit off
        if until < this.timer.deadline() {
            this.timer.as_mut().reset(until);
        }
        while this.timer.as_mut().poll(cx).is_ready() {
            if this.timer.deadline() >= until {
                return Poll::Ready(limit);
            }
            this.timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_first_limit_to_pass_is_the_one_that_counts() {
        let now = Instant::now();
        let limits = Limits { headers: millis(10), first_output: millis(20), gap: millis(5), total: millis(100) };
        let at = |span| now + millis(span);
        for (phase, since, limits, expected) in [
            (Phase::Head, None, limits, (at(10), Limit::Headers)),
            (Phase::Silence, None, limits, (at(20), Limit::FirstOutput)),
            (Phase::Silence, Some(at(15)), limits, (at(20), Limit::FirstOutput)),
            (Phase::Output, None, limits, (at(100), Limit::Total)),
            (Phase::Output, Some(at(30)), limits, (at(35), Limit::Gap)),
            (Phase::Output, Some(at(98)), limits, (at(100), Limit::Total)),
            (Phase::Head, None, Limits { first_output: millis(7), ..limits }, (at(7), Limit::FirstOutput)),
            (Phase::Head, None, Limits { total: millis(7), ..limits }, (at(7), Limit::Total)),
        ] {
            assert_eq!(limits.next(phase, now, since), expected, "{phase:?} {since:?} {limits:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_is_set_anew_when_it_rings_and_not_at_each_frame() {
        let seconds = Duration::from_secs;
        let limits = Limits { gap: seconds(10), ..Limits::default() };
        let (mut waiting, mut cx) = (None, Context::from_waker(std::task::Waker::noop()));
        let mut waiting = Waiting::begun(&mut waiting, &limits);
        let (mut set, mut settings, started) = (waiting.timer.deadline(), 0, Instant::now());
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(100)).await;
            waiting.as_mut().heard();
            waiting.as_mut().silent();
            assert!(waiting.as_mut().poll(&mut cx, &limits, Phase::Output).is_pending());
            settings += usize::from(std::mem::replace(&mut set, waiting.timer.deadline()) != waiting.timer.deadline());
        }
        assert_eq!(started.elapsed(), seconds(100));
        assert!((9..=12).contains(&settings), "{settings}: once a gap");
        tokio::time::advance(seconds(10)).await;
        assert_eq!(waiting.poll(&mut cx, &limits, Phase::Output), Poll::Ready(Limit::Gap));
    }

    proptest! {
        #[test]
        fn r118_no_limit_is_past_every_clock(spans: [Duration; 4], waited: Option<Duration>) {
            let now = Instant::now();
            let [headers, first_output, gap, total] = spans;
            let limits = Limits { headers, first_output, gap, total };
            for phase in [Phase::Head, Phase::Silence, Phase::Output] {
                let (until, _) = limits.next(phase, now, waited.map(|waited| clock::after(now, waited)));
                prop_assert!(until >= now);
            }
        }
    }
}
