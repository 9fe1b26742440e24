use proptest::prelude::*;
use tokio_test::{assert_pending, assert_ready, task};

use super::*;

fn ticket(permits: &Permits) -> Ticket {
    match permits.enqueue(usize::MAX) {
        Enqueued::Queued(ticket) => ticket,
        other => panic!("expected a place in the queue, got {other:?}"),
    }
}

#[test]
fn r044_permits_are_handed_out_in_order_of_arrival() {
    let permits = Permits::new(1);
    let running = take(&permits).unwrap();
    let mut tickets: Vec<_> = (0..5).map(|_| task::spawn(ticket(&permits))).collect();
    for ticket in &mut tickets {
        assert_pending!(ticket.enter(|cx, mut ticket| ticket.poll(cx)));
    }
    drop(running);
    for i in 0..5 {
        assert!(take(&permits).is_none(), "nobody overtakes the queue");
        assert!(tickets[i].is_woken());
        assert!(tickets[i + 1..].iter().all(|later| !later.is_woken()));
        drop(assert_ready!(tickets[i].enter(|cx, mut ticket| ticket.poll(cx))));
    }
    assert_eq!((permits.in_flight(), permits.queued()), (0, 0));
}

#[test]
fn r045_a_granted_ticket_that_is_dropped_passes_its_permit_on() {
    let permits = Permits::new(1);
    let running = take(&permits).unwrap();
    let first = ticket(&permits);
    let mut second = task::spawn(ticket(&permits));
    assert_pending!(second.enter(|cx, mut ticket| ticket.poll(cx)));
    drop(running);
    assert!(!second.is_woken());
    drop(first);
    assert!(second.is_woken());
    drop(assert_ready!(second.enter(|cx, mut ticket| ticket.poll(cx))));
    assert_eq!(permits.in_flight(), 0);
}

#[test]
fn a_watch_forgets_itself_when_dropped() {
    let permits = Permits::new(1);
    let running = take(&permits).unwrap();
    let mut watch = task::spawn(Watch::new(permits.clone()));
    for _ in 0..3 {
        assert_pending!(watch.enter(|cx, mut watch| watch.poll_free(cx)));
    }
    assert_eq!(permits.0.lock().watchers.len(), 1);
    drop(watch);
    assert_eq!(permits.0.lock().watchers.len(), 0);
    drop(running);
}

#[derive(Debug, Clone)]
enum Op {
    Take,
    Queue,
    Poll(usize),
    LeaveQueue(usize),
    Release(usize),
    SetCap(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Take),
        Just(Op::Queue),
        any::<usize>().prop_map(Op::Poll),
        any::<usize>().prop_map(Op::LeaveQueue),
        any::<usize>().prop_map(Op::Release),
        (1..6usize).prop_map(Op::SetCap),
    ]
}

proptest! {
    #[test]
    fn r046_counts_hold_whatever_happens(ops in proptest::collection::vec(op(), 1..200)) {
        let permits = Permits::new(2);
        let (mut held, mut tickets, mut cap) = (Vec::new(), Vec::new(), 2);
        let mut cx = Context::from_waker(Waker::noop());
        for op in ops {
            let before = permits.in_flight();
            match op {
                Op::Take => held.extend(take(&permits)),
                Op::Queue => match permits.enqueue(4) {
                    Enqueued::Granted(permit) => held.push(permit),
                    Enqueued::Queued(ticket) => tickets.push(ticket),
                    Enqueued::Full => prop_assert_eq!(permits.queued(), 4),
                },
                Op::Poll(i) if !tickets.is_empty() => {
                    let i = i % tickets.len();
                    if let Poll::Ready(permit) = tickets[i].poll(&mut cx) {
                        held.push(permit);
                        tickets.remove(i);
                    }
                }
                Op::LeaveQueue(i) if !tickets.is_empty() => drop(tickets.remove(i % tickets.len())),
                Op::Release(i) if !held.is_empty() => drop(held.swap_remove(i % held.len())),
                Op::SetCap(to) => {
                    permits.set_cap(to);
                    cap = to;
                }
                _ => {}
            }
            let (now, queued) = (permits.in_flight(), permits.queued());
            prop_assert!(now <= before.max(cap), "admitted past the cap");
            prop_assert!(queued == 0 || now >= cap, "somebody waits while a permit is free");
            prop_assert_eq!(now + queued, held.len() + tickets.len());
        }
        drop((held, tickets));
        prop_assert_eq!((permits.in_flight(), permits.queued()), (0, 0));
    }
}
