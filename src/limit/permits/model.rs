//! Every interleaving of a few threads on one cap.

use std::task::Wake as StdWake;

use loom::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
};

use super::*;

struct Flag(AtomicBool);

impl StdWake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

fn flag() -> (std::sync::Arc<Flag>, Waker) {
    let flag = std::sync::Arc::new(Flag(AtomicBool::new(false)));
    (flag.clone(), flag.into())
}

#[test]
fn r040_the_cap_is_never_passed_and_nothing_is_lost() {
    loom::model(|| {
        let permits = Permits::new(1);
        let running = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (permits, running) = (permits.clone(), running.clone());
                thread::spawn(move || {
                    if let Some(permit) = take(&permits) {
                        assert_eq!(running.fetch_add(1, SeqCst), 0);
                        running.fetch_sub(1, SeqCst);
                        drop(permit);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(permits.in_flight(), 0);
    });
}

#[test]
fn r045_a_waiter_is_woken_though_the_one_before_it_leaves() {
    loom::model(|| {
        let permits = Permits::new(1);
        let held = take(&permits).unwrap();
        let Enqueued::Queued(leaver) = permits.enqueue(2) else { unreachable!() };
        let Enqueued::Queued(mut stayer) = permits.enqueue(2) else { unreachable!() };
        let (woken, waker) = flag();
        assert!(stayer.poll(&mut Context::from_waker(&waker)).is_pending());
        let release = thread::spawn(move || drop(held));
        let leave = thread::spawn(move || drop(leaver));
        release.join().unwrap();
        leave.join().unwrap();
        assert!(woken.0.load(SeqCst));
        assert!(stayer.poll(&mut Context::from_waker(&waker)).is_ready());
        drop(stayer);
        assert_eq!((permits.in_flight(), permits.queued()), (0, 0));
    });
}

#[test]
fn r045_a_permit_released_while_its_waiter_polls_or_gives_up_is_not_lost() {
    for gives_up in [false, true] {
        loom::model(move || {
            let permits = Permits::new(1);
            let held = take(&permits).unwrap();
            let Enqueued::Queued(mut ticket) = permits.enqueue(1) else { unreachable!() };
            let release = thread::spawn(move || drop(held));
            let (woken, waker) = flag();
            let polled = ticket.poll(&mut Context::from_waker(&waker));
            if gives_up {
                drop(polled);
                drop(ticket);
                release.join().unwrap();
            } else {
                release.join().unwrap();
                assert!(polled.is_ready() || woken.0.load(SeqCst));
                drop(polled);
                drop(ticket);
            }
            assert_eq!((permits.in_flight(), permits.queued()), (0, 0));
        });
    }
}

#[test]
fn r004_a_watcher_hears_of_every_release_it_could_have_missed() {
    loom::model(|| {
        let permits = Permits::new(1);
        let held = take(&permits).unwrap();
        let mut watch = Watch::new(permits.clone());
        let release = thread::spawn(move || drop(held));
        let (woken, waker) = flag();
        let polled = watch.poll_acquire(&mut Context::from_waker(&waker));
        release.join().unwrap();
        assert!(polled.is_ready() || woken.0.load(SeqCst));
        drop(polled);
        assert_eq!(permits.in_flight(), 0);
    });
}

#[test]
fn r046_a_raised_cap_reaches_the_queue_beside_a_release() {
    loom::model(|| {
        let permits = Permits::new(1);
        let held = take(&permits).unwrap();
        let Enqueued::Queued(mut ticket) = permits.enqueue(1) else { unreachable!() };
        let raise = {
            let permits = permits.clone();
            thread::spawn(move || permits.set_cap(2))
        };
        drop(held);
        raise.join().unwrap();
        let granted = ticket.poll(&mut Context::from_waker(Waker::noop()));
        assert!(granted.is_ready());
        assert_eq!(permits.in_flight(), 1);
    });
}
