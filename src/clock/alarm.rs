use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

pin_project! {
    /// A timer of a task that is woken for much else, each frame of a stream say. It keeps in mind whom it is to wake, so that
    /// to be asked once more by the same task costs a look at two words.
    #[derive(Debug)]
    pub(crate) struct Alarm {
        #[pin]
        sleep: Sleep,
        told: Option<Waker>,
    }
}

impl Alarm {
    /// Rings at `deadline`.
    pub(crate) fn at(deadline: Instant) -> Self {
        Self { sleep: sleep_until(deadline), told: None }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.sleep.deadline()
    }

    /// Whether it has rung; it does once it was polled.
    pub(crate) fn has_rung(&self) -> bool {
        self.sleep.is_elapsed()
    }

    /// Whether it will wake this task, and has not rung.
    pub(crate) fn is_set_for(&self, cx: &Context<'_>) -> bool {
        self.told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) && !self.has_rung()
    }

    pub(crate) fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.project();
        *this.told = None;
        this.sleep.reset(deadline);
    }

    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_set_for(cx) {
            return Poll::Pending;
        }
        let this = self.project();
        // put off for fairness, it would not know the task, which would not ask again
        let rung = pin!(unconstrained(this.sleep)).poll(cx);
        *this.told = rung.is_pending().then(|| cx.waker().clone());
        rung
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_wakes_whoever_asked_last_and_again_when_it_is_set_anew() {
        let second = Duration::from_secs(1);
        let mut alarm = Box::pin(Alarm::at(Instant::now() + second));
        let (mut first, mut last) = (task::spawn(()), task::spawn(()));
        for _ in 0..3 {
            first.enter(|cx, _| assert_pending!(alarm.as_mut().poll(cx)));
        }
        last.enter(|cx, _| assert_pending!(alarm.as_mut().poll(cx)));
        tokio::time::advance(second).await;
        assert!(last.is_woken() && !first.is_woken() && alarm.has_rung());
        last.enter(|cx, _| assert_ready!(alarm.as_mut().poll(cx)));
        alarm.as_mut().reset(Instant::now() + second);
        let mut last = task::spawn(());
        last.enter(|cx, _| assert_pending!(alarm.as_mut().poll(cx)));
        tokio::time::advance(second).await;
        assert!(last.is_woken());
    }
}
