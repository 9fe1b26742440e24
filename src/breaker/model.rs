//! Interleavings of half-open admission, explored by loom.

use std::time::Duration;

use loom::{
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    thread,
};
use tokio::time::Instant;

use super::{
    BreakerPolicy, BreakerState, TripPolicy,
    shared::Breaker,
    state::{Admit, Sample, Ticket},
};

/// A breaker whose first failure opens it, and the instant at which probes begin.
fn open_breaker(probes: u32) -> (Arc<Breaker>, Ticket, Instant) {
    let policy = BreakerPolicy::new(TripPolicy::consecutive(1).unwrap()).probes(probes).unwrap();
    let (breaker, now) = (Breaker::new(policy), Instant::now());
    let straggler = breaker.free().unwrap();
    breaker.report(straggler, Sample::Failure(1), None, now);
    assert!(breaker.free().is_none());
    (Arc::new(breaker), straggler, now + Duration::from_secs(100))
}

#[test]
fn r028_never_more_than_the_probes_and_no_slot_is_lost() {
    for probes in [1, 2] {
        let mut model = loom::model::Builder::new();
        // every interleaving of two racers; of three, those with up to three preemptions, as all of them do not end within minutes
        model.preemption_bound = (probes > 1).then_some(3);
        model.check(move || {
            let (breaker, _, now) = open_breaker(probes);
            let running = Arc::new(AtomicUsize::new(0));
            let race = move |breaker: Arc<Breaker>, running: Arc<AtomicUsize>| {
                if let Admit::Pass(ticket) = breaker.admit(now) {
                    assert!(running.fetch_add(1, SeqCst) < probes as usize);
                    running.fetch_sub(1, SeqCst);
                    breaker.report(ticket, Sample::Neutral, None, now);
                }
            };
            let others: Vec<_> = (0..=probes)
                .map(|_| {
                    let (breaker, running) = (breaker.clone(), running.clone());
                    thread::spawn(move || race(breaker, running))
                })
                .collect();
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(breaker.snapshot(now).state, BreakerState::HalfOpen { probes: 0 });
            assert!(matches!(breaker.admit(now), Admit::Pass(_)));
        });
    }
}

#[test]
fn r034_a_straggler_never_changes_what_a_probe_decides() {
    loom::model(|| {
        let (breaker, straggler, now) = open_breaker(1);
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.report(straggler, Sample::Failure(1), None, now))
        };
        let Admit::Pass(probe) = breaker.admit(now) else { panic!("nobody else asks") };
        breaker.report(probe, Sample::Success { slow: false }, None, now);
        other.join().unwrap();
        assert_eq!(breaker.snapshot(now).state, BreakerState::Closed);
        assert!(breaker.free().is_some(), "the word agrees with the state");
    });
}

#[test]
fn r004_a_waiter_is_woken_or_sees_the_change() {
    use std::task::{Wake, Waker};

    struct Flag(AtomicUsize);
    impl Wake for Flag {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    loom::model(|| {
        let (breaker, _, now) = open_breaker(1);
        let Admit::Pass(probe) = breaker.admit(now) else { panic!("nobody else asks") };
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.report(probe, Sample::Neutral, None, now))
        };
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        let waits = breaker.wait(&mut None, &Waker::from(flag.clone()), now).is_some();
        other.join().unwrap();
        assert_eq!(flag.0.load(SeqCst), usize::from(waits));
        assert!(breaker.shut(now).is_none());
    });
}
