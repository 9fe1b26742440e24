//! The queues of those who watch.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use super::Event;
use crate::sync::lock_std;

/// How many events wait for one who watches; from more, the oldest are lost. Enough for a storm that opens and rests a thousand
/// keys; full, it takes less than a megabyte.
pub const MOST: usize = 4096;

/// Where changes are told.
#[derive(Debug, Default)]
pub(crate) struct Feed(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    /// Whether there is any queue.
    watched: AtomicBool,
    queues: Mutex<Vec<Arc<Mutex<Queue>>>>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    lost: u64,
    waker: Option<Waker>,
    ended: bool,
}

impl Feed {
    /// From now on.
    pub(crate) fn watch(&self) -> Events {
        let queue = Arc::<Mutex<Queue>>::default();
        let mut queues = lock_std(&self.0.queues);
        queues.push(queue.clone());
        self.0.watched.store(true, Ordering::Release);
        drop(queues);
        Events { desk: self.0.clone(), queue }
    }

    fn is_watched(&self) -> bool {
        self.0.watched.load(Ordering::Acquire)
    }

    /// Tells a change, under the lock that decided it. Nobody is woken: for that there is [`wake`](Self::wake).
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if !self.is_watched() {
            return;
        }
        let event = event();
        for queue in &*lock_std(&self.0.queues) {
            let mut queue = lock_std(queue);
            if queue.events.len() == MOST {
                queue.events.pop_front();
                queue.lost += 1;
            }
            queue.events.push_back(event.clone());
        }
    }

    /// Wakes those who were told something. It runs their wakers, so no lock is held.
    pub(crate) fn wake(&self) {
        if self.is_watched() {
            self.wake_those(|queue| !queue.events.is_empty());
        }
    }

    fn wake_those(&self, wanted: impl Fn(&mut Queue) -> bool) {
        let take = |queue: &Arc<Mutex<Queue>>| {
            let mut queue = lock_std(queue);
            wanted(&mut queue).then(|| queue.waker.take()).flatten()
        };
        let wakers: Vec<_> = lock_std(&self.0.queues).iter().filter_map(take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.wake_those(|queue| {
            queue.ended = true;
            true
        });
    }
}

/// What changes in a [`Pool`](crate::Pool), and in those that [share](crate::Pool::share) with it, from when this was
/// [asked for](crate::Pool::events). See the [module](super).
///
/// It is a [`Stream`], too, and ends when the pools, and the requests that run on their keys, are gone; it keeps none of them
/// alive. Each is told everything.
#[must_use]
pub struct Events {
    desk: Arc<Desk>,
    queue: Arc<Mutex<Queue>>,
}

impl Events {
    /// The next change; `None` when there will be none. It may be dropped before it has resolved, and nothing is lost.
    pub async fn recv(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// The next change, if there is one by now.
    pub fn try_recv(&mut self) -> Option<Event> {
        lock_std(&self.queue).events.pop_front()
    }

    /// How many were lost so far, because so many waited already. They came before the next one.
    pub fn lost(&self) -> u64 {
        lock_std(&self.queue).lost
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut queue = lock_std(&self.queue);
        match queue.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if queue.ended => Poll::Ready(None),
            None => {
                // dropped only when the lock is released: it may be anybody's
                let _old = queue.waker.replace(cx.waker().clone());
                drop(queue);
                Poll::Pending
            }
        }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll(cx)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut queues = lock_std(&self.desk.queues);
        queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        self.desk.watched.store(!queues.is_empty(), Ordering::Release);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = lock_std(&self.queue);
        f.debug_struct("Events")
            .field("waiting", &queue.events.len())
            .field("lost", &queue.lost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_test::{assert_pending, assert_ready_eq, task};

    use super::*;
    use crate::{
        events::{Change, Whose},
        outcome::Scope,
    };

    fn event(name: &str) -> Event {
        let whose = Whose::new(Scope::Key, Some(name));
        Event { at: Instant::now(), whose, endpoint: None, change: Change::Added }
    }

    fn names(events: &mut Events) -> Vec<String> {
        std::iter::from_fn(|| events.try_recv()).map(|event| event.whose.name.unwrap().to_string()).collect()
    }

    #[test]
    fn nobody_watches_and_no_event_is_made() {
        let feed = Feed::default();
        feed.tell(|| panic!("for nobody"));
        drop(feed.watch());
        feed.tell(|| panic!("for nobody any more"));
        feed.wake();
    }

    #[test]
    fn r081_each_who_watches_is_told_everything_from_then_on() {
        let feed = Feed::default();
        let mut first = feed.watch();
        feed.tell(|| event("a"));
        let mut second = feed.watch();
        feed.tell(|| event("b"));
        assert_eq!((names(&mut first), names(&mut second)), (vec!["a".into(), "b".into()], vec!["b".into()]));
        drop(first);
        feed.tell(|| event("c"));
        assert_eq!(names(&mut second), ["c"]);
    }

    #[test]
    fn r081_from_a_full_queue_the_oldest_are_lost_and_counted() {
        let feed = Feed::default();
        let (mut stuck, mut other) = (feed.watch(), feed.watch());
        for number in 0..100_000 {
            feed.tell(|| event(&number.to_string()));
            feed.wake();
            assert!(other.try_recv().is_some());
        }
        assert_eq!((stuck.lost(), other.lost()), (100_000 - MOST as u64, 0), "the one loses nothing by the other");
        let kept: Vec<_> = (100_000 - MOST..100_000).map(|number| number.to_string()).collect();
        assert_eq!(names(&mut stuck), kept, "the newest, in order");
        let size = lock_std(&stuck.queue).events.capacity() * size_of::<Event>();
        assert!(size < 1 << 20, "{size}");
    }

    #[test]
    fn who_waits_is_woken_when_told_and_at_the_end() {
        let feed = Feed::default();
        let mut events = task::spawn(feed.watch());
        assert_pending!(events.poll_next());
        feed.wake();
        assert!(!events.is_woken(), "for nothing");
        let told = event("a");
        feed.tell(|| told.clone());
        assert!(!events.is_woken(), "under the lock nobody's waker runs");
        feed.wake();
        assert!(events.is_woken());
        assert_ready_eq!(events.poll_next(), Some(told.clone()));
        assert_pending!(events.poll_next());
        feed.tell(|| told.clone());
        drop(feed);
        assert!(events.is_woken());
        assert_ready_eq!(events.poll_next(), Some(told));
        assert_ready_eq!(events.poll_next(), None, "what was told before the end is not lost");
    }
}
