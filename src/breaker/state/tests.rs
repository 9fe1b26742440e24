use proptest::prelude::*;

use super::*;
use crate::breaker::TripPolicy;

const GOOD: Sample = Sample::Success { slow: false };
const BAD: Sample = Sample::Failure(1);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A breaker that the first failure opens for 60 s, without jitter.
fn core() -> (Core, Instant) {
    (Core::new(BreakerPolicy::new(TripPolicy::consecutive(1).unwrap())), Instant::now())
}

fn pass(core: &mut Core, now: Instant) -> Ticket {
    match core.admit(now).0 {
        Admit::Pass(ticket) => ticket,
        Admit::Shut(until) => panic!("shut until {until:?}"),
    }
}

fn is_shut(core: &mut Core, now: Instant) -> bool {
    matches!(core.admit(now).0, Admit::Shut(_))
}

/// Opens the breaker and lets its first probe through.
fn probe() -> (Core, Ticket, Instant) {
    let (mut core, now) = core();
    let ticket = pass(&mut core, now);
    core.report(ticket, BAD, now, 0.0);
    let now = now + seconds(60);
    let probe = pass(&mut core, now);
    (core, probe, now)
}

#[test]
fn r025_opens_at_exactly_the_nth_failure_and_counts_anew_after_closing() {
    let mut core = Core::new(BreakerPolicy::default());
    let mut now = Instant::now();
    for _episode in 0..2 {
        for n in 1..=3 {
            let ticket = pass(&mut core, now);
            assert_eq!(core.report(ticket, BAD, now, 0.0).is_some(), n == 3);
        }
        assert!(is_shut(&mut core, now + Duration::from_millis(59_999)));
        now += seconds(60);
        let probe = pass(&mut core, now);
        assert_eq!(core.report(probe, GOOD, now, 0.0), Some(Change::Closed));
    }
    assert_eq!(core.snapshot(now).trips, 2);
    assert_eq!(core.snapshot(now).failures, 6);
}

#[test]
fn r028_half_open_admits_at_most_the_probes() {
    for probes in [1, 3] {
        let policy = BreakerPolicy::new(TripPolicy::consecutive(1).unwrap()).probes(probes).unwrap();
        let (mut core, now) = (Core::new(policy), Instant::now());
        let ticket = pass(&mut core, now);
        core.report(ticket, BAD, now, 0.0);
        let now = now + seconds(60);
        let admitted = (0..1000).filter(|_| !is_shut(&mut core, now)).count();
        assert_eq!(admitted, probes as usize);
    }
}

#[test]
fn r030_the_slot_of_a_hung_probe_is_taken_back_after_its_lease() {
    let (mut core, hung, now) = probe();
    assert!(is_shut(&mut core, now + Duration::from_millis(59_999)));
    let later = now + seconds(60);
    let next = pass(&mut core, later);
    assert_eq!(core.report(hung, BAD, later, 0.0), None, "a verdict after the lease does not count");
    assert_eq!(core.report(next, GOOD, later, 0.0), Some(Change::Closed));
}

#[test]
fn r030_a_late_verdict_counts_for_nothing_even_if_nobody_took_the_slot() {
    let (mut core, hung, now) = probe();
    assert_eq!(core.report(hung, GOOD, now + seconds(60), 0.0), Some(Change::Freed));
    assert!(!core.is_free());
}

#[test]
fn r031_a_slow_but_good_probe_closes_within_its_lease() {
    let (mut core, probe, now) = probe();
    let slow = Sample::Success { slow: true };
    assert_eq!(core.report(probe, slow, now + seconds(59), 0.0), Some(Change::Closed));
}

#[test]
fn r032_a_rest_keeps_a_probed_breaker_shut_for_the_hint_or_the_next_step() {
    let (mut core, first, now) = probe();
    assert_eq!(core.report(first, Sample::Rest(Some(seconds(7))), now, 0.0), Some(Change::Opened(seconds(7))));
    let now = now + seconds(7);
    let probe = pass(&mut core, now);
    assert_eq!(core.report(probe, Sample::Rest(None), now, 0.0), Some(Change::Opened(seconds(120))));
}

#[test]
fn r033_the_open_time_doubles_is_jittered_capped_and_heals() {
    let (mut core, now) = core();
    let mut at = now;
    for (low, high) in [(60, 75), (120, 150), (240, 300), (240, 300), (240, 300)] {
        for (random, expected) in [(0.0, low), (1.0, high)] {
            assert_eq!(cooldown(&core.policy, core.in_a_row, random), seconds(expected));
        }
        let ticket = pass(&mut core, at);
        let Some(Change::Opened(span)) = core.report(ticket, BAD, at, 0.5) else { panic!("opens") };
        assert!((seconds(low)..=seconds(high)).contains(&span));
        at += span;
    }
    let ticket = pass(&mut core, at);
    core.report(ticket, GOOD, at, 0.0);
    let ticket = pass(&mut core, at);
    assert_eq!(core.report(ticket, BAD, at, 0.0), Some(Change::Opened(seconds(60))));
}

#[test]
fn r034_reports_from_another_epoch_change_nothing() {
    let (mut core, now) = core();
    let stragglers: Vec<_> = (0..3).map(|_| pass(&mut core, now)).collect();
    core.report(stragglers[0], BAD, now, 0.0);
    let open = core.snapshot(now);
    for sample in [GOOD, BAD, Sample::Rest(None), Sample::Neutral] {
        assert_eq!(core.report(stragglers[1], sample, now + seconds(1), 0.0), None);
    }
    assert_eq!(core.snapshot(now), open, "neither state nor timers");
    let now = now + seconds(60);
    let probe = pass(&mut core, now);
    assert_eq!(core.report(stragglers[1], GOOD, now, 0.0), None, "cannot close it");
    core.report(probe, GOOD, now, 0.0);
    assert_eq!(core.report(stragglers[2], BAD, now, 0.0), None, "cannot open it again");
    assert_eq!(core.snapshot(now).state, BreakerState::Closed);
}

#[test]
fn r029_a_neutral_probe_returns_its_slot_and_changes_nothing() {
    let (mut core, mut ticket, now) = probe();
    let before = core.snapshot(now);
    for _ in 0..1000 {
        assert_eq!(core.report(ticket, Sample::Neutral, now, 0.0), Some(Change::Freed));
        ticket = pass(&mut core, now);
    }
    assert_eq!(core.snapshot(now), before);
}

#[test]
fn failures_that_were_held_back_count_together() {
    let (mut core, now) = (Core::new(BreakerPolicy::default()), Instant::now());
    let ticket = pass(&mut core, now);
    assert_eq!(core.report(ticket, Sample::Failure(3), now, 0.0), Some(Change::Opened(seconds(60))));
}

#[test]
fn r035_slow_calls_open_by_their_share() {
    let policy = BreakerPolicy::default().slow_calls(seconds(5), 0.5, seconds(60), 4).unwrap();
    let (mut core, now) = (Core::new(policy), Instant::now());
    for (slow, opens) in [(true, false), (true, false), (false, false), (true, true)] {
        let ticket = pass(&mut core, now);
        assert_eq!(core.report(ticket, Sample::Success { slow }, now, 0.0).is_some(), opens);
    }
}

#[test]
fn r038_by_hand_holds_at_once() {
    let (mut core, now) = core();
    let before = pass(&mut core, now);
    core.isolate();
    assert_eq!(core.shut(now + clock::FOREVER), Some(None));
    assert_eq!(core.report(before, BAD, now, 0.0), None);
    core.disable();
    for _ in 0..10 {
        let ticket = pass(&mut core, now);
        assert_eq!(core.report(ticket, BAD, now, 0.0), None, "nothing counts");
    }
    assert_eq!(core.enable(), Some(Change::Set));
    assert_eq!(core.enable(), None);
    assert!(core.is_free());
    core.isolate();
    core.reset();
    assert!(core.is_free());
}

#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Admit,
    Report(usize, Sample),
    Lose(usize),
    Isolate,
    Reset,
    Disable,
    Enable,
}

fn sample() -> impl Strategy<Value = Sample> {
    prop_oneof![
        any::<bool>().prop_map(|slow| Sample::Success { slow }),
        prop_oneof![Just(1), Just(3), Just(u32::MAX)].prop_map(Sample::Failure),
        prop_oneof![Just(None), (0_u64..100).prop_map(|n| Some(seconds(n)))].prop_map(Sample::Rest),
        Just(Sample::Neutral),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_u64..90).prop_map(Event::Wait),
        6 => Just(Event::Admit),
        6 => (any::<usize>(), sample()).prop_map(|(at, sample)| Event::Report(at, sample)),
        1 => any::<usize>().prop_map(Event::Lose),
        1 => prop_oneof![Just(Event::Isolate), Just(Event::Reset), Just(Event::Disable), Just(Event::Enable)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn r030_whatever_happens_it_never_wedges_and_never_over_admits(
        probes in 1_u32..4,
        events in prop::collection::vec(event(), 1..100),
        random in 0.0_f64..1.0,
    ) {
        let policy = BreakerPolicy::new(TripPolicy::consecutive(2).unwrap())
            .probes(probes).unwrap()
            .slow_calls(seconds(1), 0.5, seconds(10), 3).unwrap();
        let (mut core, mut now) = (Core::new(policy), Instant::now());
        let mut held = Vec::new();
        for event in events {
            match event {
                Event::Wait(span) => now += seconds(span),
                Event::Admit => {
                    if let Admit::Pass(ticket) = core.admit(now).0 {
                        held.push(ticket);
                    }
                }
                Event::Report(at, sample) if !held.is_empty() => {
                    let ticket = held.swap_remove(at % held.len());
                    core.report(ticket, sample, now, random);
                }
                // a probe that never comes back
                Event::Lose(at) if !held.is_empty() => { held.swap_remove(at % held.len()); }
                Event::Report(..) | Event::Lose(_) => {}
                Event::Isolate => { core.isolate(); }
                Event::Reset => { core.reset(); }
                Event::Disable => { core.disable(); }
                Event::Enable => { core.enable(); }
            }
            if let BreakerState::HalfOpen { probes: running } = core.snapshot(now).state {
                prop_assert!(running <= probes as usize);
            }
        }
        if core.snapshot(now).state != BreakerState::Isolated {
            // the lease of a lost probe, then at most one cooldown
            let later = now + core.policy.lease + core.policy.max_cooldown;
            prop_assert!(matches!(core.admit(later).0, Admit::Pass(_)));
        }
    }

    #[test]
    fn r037_extreme_times_and_counts_neither_overflow_nor_panic(
        base in prop_oneof![Just(Duration::from_nanos(1)), Just(seconds(60)), Just(Duration::MAX)],
        before in prop_oneof![Just(0), Just(31), Just(32), Just(u32::MAX)],
        random in prop_oneof![Just(0.0), Just(1.0), Just(-1.0), Just(f64::NAN), Just(f64::INFINITY)],
        hint in prop_oneof![Just(Duration::ZERO), Just(Duration::MAX)],
    ) {
        let policy = BreakerPolicy::new(TripPolicy::consecutive(1).unwrap())
            .cooldown(base, Duration::MAX).unwrap()
            .lease(Duration::MAX).unwrap()
            .probes(u32::MAX).unwrap();
        prop_assert!(cooldown(&policy, before, random) <= clock::FOREVER);
        let (mut core, now) = (Core::new(policy), Instant::now());
        (core.in_a_row, core.trips, core.failures) = (before, u64::MAX, u64::MAX);
        let ticket = pass(&mut core, now);
        core.report(ticket, Sample::Failure(u32::MAX), now, random);
        let later = now + clock::FOREVER;
        let probe = pass(&mut core, later);
        core.report(probe, Sample::Rest(Some(hint)), later, random);
        core.snapshot(later);
    }
}
