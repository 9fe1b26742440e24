use super::*;

/// A quota as upstream keeps it, seconds since the start.
enum Hidden {
    Window { limit: u32, length: f64, phase: f64, window: u64, used: u32 },
    Bucket { rate: f64, size: f64, saved: f64, at: f64 },
}

impl Hidden {
    fn window(limit: u32, phase: f64) -> Self {
        Self::Window { limit, length: 10.0, phase, window: 0, used: 0 }
    }

    fn bucket(limit: u32) -> Self {
        let size = f64::from(limit);
        Self::Bucket { rate: size / 10.0, size, saved: size, at: 0.0 }
    }

    /// Takes one, or says after how many seconds there is one.
    fn take(&mut self, at: f64) -> Result<(), f64> {
        match self {
            Self::Window { limit, length, phase, window, used } => {
                let number = ((at + *phase) / *length) as u64;
                if number != *window {
                    (*window, *used) = (number, 0);
                }
                if *used >= *limit {
                    return Err((number + 1) as f64 * *length - *phase - at);
                }
                *used += 1;
            }
            Self::Bucket { rate, size, saved, at: last } => {
                *saved = (*saved + (at - *last) * *rate).min(*size);
                *last = at;
                if *saved < 1.0 - 1e-9 {
                    return Err((1.0 - *saved) / *rate);
                }
                *saved -= 1.0;
            }
        }
        Ok(())
    }
}

/// Sends as fast as the learner lets, but no faster than `demand` per second. Says how many were served and how many
/// refused after the first 30 s.
fn run(hidden: &mut Hidden, hint: Option<u32>, demand: f64, seconds: f64) -> (u32, u32) {
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let (mut learner, mut now, mut served, mut refused) = (Learner::new(start), 0.0, 0, 0);
    while now < seconds {
        learner.take(at(now));
        match hidden.take(now) {
            Ok(()) => {
                learner.serve(at(now));
                served += u32::from(now > 30.0);
            }
            Err(wait) => {
                learner.refuse(at(now), at(now), hint.map(|_| Duration::from_secs_f64(wait + 0.002)), hint);
                refused += u32::from(now > 30.0);
            }
        }
        let next = learner.next(at(now)).saturating_duration_since(start).as_secs_f64();
        now = next.max(now + 1.0 / demand) + 1e-6;
    }
    (served, refused)
}

#[test]
fn quiet_hours_before_the_first_refusal_say_nothing_of_the_quota() {
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut learner = Learner::new(start);
    // one a minute for an hour, then three a second, of which a minute has room for 60
    for minute in 0..60 {
        learner.take(at(f64::from(minute) * 60.0));
    }
    for number in 0..=60 {
        learner.take(at(3_600.0 + f64::from(number) / 3.0));
    }
    learner.refuse(at(3_620.0), at(3_620.0), None, None);
    let rate = learner.rate().unwrap();
    assert!((2.0..=3.2).contains(&rate), "{rate}");
}

#[test]
fn an_unknown_quota_is_spent_nearly_whole_with_few_refusals() {
    for limit in [20, 40, 80] {
        for hint in [None, Some(limit)] {
            for phase in [0.0, 3.3, 7.1] {
                for mut hidden in [Hidden::window(limit, phase), Hidden::bucket(limit)] {
                    let (served, refused) = run(&mut hidden, hint, 50.0, 630.0);
                    let (share, wasted) =
                        (f64::from(served) / (f64::from(limit) * 60.0), f64::from(refused) / f64::from(served));
                    assert!(share >= 0.95, "{limit} {hint:?} {phase}: {share}");
                    assert!(wasted <= 0.03, "{limit} {hint:?} {phase}: {wasted}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_held_back_before_the_first_refusal() {
    let now = Instant::now();
    let mut learner = Learner::new(now);
    for _ in 0..10_000 {
        assert_eq!(learner.next(now), now);
        learner.take(now);
    }
    assert_eq!(learner.rate(), None);
}

#[test]
fn nothing_is_sent_before_the_time_that_a_refusal_names() {
    let now = Instant::now();
    let mut learner = Learner::new(now);
    learner.take(now);
    learner.refuse(now, now, Some(Duration::from_secs(7)), Some(20));
    assert_eq!(learner.next(now), now + Duration::from_secs(7));
    // one that was under way then may name a later one
    learner.refuse(now, now, Some(Duration::from_secs(9)), None);
    assert_eq!(learner.next(now), now + Duration::from_secs(9));
}

#[test]
fn without_a_time_each_refusal_in_a_row_waits_twice_as_long() {
    let mut now = Instant::now();
    let mut learner = Learner::new(now);
    let mut waits = Vec::new();
    for _ in 0..12 {
        learner.take(now);
        learner.refuse(now, now, None, None);
        let next = learner.next(now);
        waits.push((next - now).as_secs_f64());
        now = next + Duration::from_millis(1);
    }
    assert!(waits.windows(2).all(|pair| pair[1] >= pair[0]), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LONGEST_GUESS), "{waits:?}");
}

#[test]
fn a_quota_that_grew_is_found() {
    let mut hidden = Hidden::bucket(20);
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let (mut learner, mut now) = (Learner::new(start), 0.0);
    while now < 1200.0 {
        if now > 300.0
            && let Hidden::Bucket { rate, .. } = &mut hidden
        {
            *rate = 4.0;
        }
        learner.take(at(now));
        match hidden.take(now) {
            Ok(()) => learner.serve(at(now)),
            Err(_) => learner.refuse(at(now), at(now), None, None),
        }
        now = learner.next(at(now)).saturating_duration_since(start).as_secs_f64().max(now) + 1e-3;
    }
    assert!(learner.rate().is_some_and(|rate| rate > 3.8), "{:?}", learner.rate());
}

#[test]
fn after_a_pause_the_limit_that_was_named_may_be_sent_at_once() {
    let now = Instant::now();
    let mut learner = Learner::new(now);
    for second in 0..=20 {
        learner.take(now + Duration::from_millis(500 * second));
    }
    let refused = now + Duration::from_secs(10);
    learner.refuse(refused, refused, Some(Duration::from_secs(1)), Some(20));
    let later = now + Duration::from_secs(60);
    let mut sent = 0;
    while learner.next(later) <= later {
        learner.take(later);
        sent += 1;
        assert!(sent <= 30);
    }
    assert!((20..=21).contains(&sent), "{sent}");
}

#[test]
fn a_quota_nobody_met_for_long_is_forgotten() {
    let now = Instant::now();
    let mut learner = Learner::new(now);
    learner.take(now);
    learner.refuse(now, now, None, None);
    let later = now + FORGET * 2;
    learner.take(later);
    assert_eq!(learner.rate(), None);
}

proptest::proptest! {
    #[test]
    fn r118_any_course_of_events_leaves_a_sane_rate(
        events in proptest::collection::vec((0u8..5, 0u64..u64::MAX, proptest::option::of(0u32..u32::MAX)), 1..200),
    ) {
        let start = Instant::now();
        let (mut learner, mut now) = (Learner::new(start), start);
        for (what, amount, limit) in events {
            match what {
                0 => learner.take(now),
                1 => learner.serve(now),
                2 => learner.refuse(now, now, Some(Duration::from_secs(amount)), limit),
                3 => learner.refuse(start, now, None, limit),
                _ => now = clock::after(now, Duration::from_nanos(amount % 10_000_000_000_000)),
            }
            learner.next(now);
            proptest::prop_assert!(learner.rate().is_none_or(|rate| (RATES.0..=RATES.1).contains(&rate)));
        }
    }
}
