//! When to ask, and about whom: pure, with the time and the dice as arguments.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

use crate::clock;

/// Questions under way at once. More would only be needed for thousands of keys, which are then asked about less often.
const AT_ONCE: usize = 8;
/// Least time between two questions, so that a start with many keys is no burst; less where so many keys could not be asked
/// about within their interval.
const GAP: Duration = Duration::from_millis(250);
/// How much faster than on average questions may follow each other (R87 allows 2).
const HASTE: f64 = 1.5;
/// A question that fails again and again is asked this seldom at last.
const SELDOM: Duration = Duration::from_secs(15 * 60);
/// A key in doubt is asked about this long after it was last.
const AGAIN: Duration = Duration::from_secs(10);
/// All questions pause this long after a 429 that does not say for how long.
const PAUSE: Duration = Duration::from_secs(5);

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// It was answered; ask again after this long.
    Told(Duration),
    /// It was not.
    Failed,
    /// We ask too much; come back after this long, where a time was named.
    TooMany(Option<Duration>),
}

/// Everything there is to ask about.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    interval: Duration,
    questions: HashMap<T, Question>,
    /// How many there ever were.
    added: u64,
    running: usize,
    /// When the next question may be asked at the earliest.
    next: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Question {
    /// Which it was: of those due at once the first is asked first.
    number: u64,
    due: Instant,
    /// Not before this, whatever happens.
    earliest: Instant,
    asked: Option<Instant>,
    urgent: bool,
    running: bool,
    failures: u32,
}

impl<T: Clone + Eq + Hash> Schedule<T> {
    /// Nothing to ask yet. `interval` is the time between two questions about the same.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, questions: HashMap::new(), added: 0, running: 0, next: now }
    }

    /// Asks about it from now on.
    pub(super) fn add(&mut self, about: T, now: Instant) {
        let Self { questions, added: number, .. } = self;
        questions.entry(about).or_insert_with(|| {
            *number += 1;
            let (number, due, earliest) = (*number, now, now);
            Question { number, due, earliest, asked: None, urgent: false, running: false, failures: 0 }
        });
    }

    /// Asks only about these any more.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.questions.retain(|about, _| keep(about));
        self.running = self.questions.values().filter(|question| question.running).count();
    }

    /// Asks about it soon, before all others.
    pub(super) fn hurry(&mut self, about: &T, now: Instant) {
        if let Some(question) = self.questions.get_mut(about) {
            let soon = question.asked.map_or(now, |asked| clock::after(asked, AGAIN).max(now));
            question.due = question.due.min(soon.max(question.earliest));
            question.urgent = true;
        }
    }

    /// How often it failed since it was last answered.
    pub(super) fn failures(&self, about: &T) -> u32 {
        self.questions.get(about).map_or(0, |question| question.failures)
    }

    /// What to ask about now.
    pub(super) fn take(&mut self, now: Instant) -> Option<T> {
        if self.running >= AT_ONCE || now < self.next {
            return None;
        }
        let due = self.questions.iter_mut().filter(|(_, question)| !question.running && question.due <= now);
        let (about, question) = due.min_by_key(|(_, question)| (!question.urgent, question.due, question.number))?;
        (question.running, question.asked, question.urgent) = (true, Some(now), false);
        let about = about.clone();
        self.running += 1;
        self.next = clock::after(now, self.gap());
        Some(about)
    }

    /// When to look again, unless something happens before.
    pub(super) fn wake(&self) -> Option<Instant> {
        if self.running >= AT_ONCE {
            return None;
        }
        let waiting = self.questions.values().filter(|question| !question.running);
        waiting.map(|question| question.due).min().map(|due| due.max(self.next))
    }

    /// Notes what became of a question. `dice` is drawn from 0 to 1.
    pub(super) fn done(&mut self, about: &T, reply: Reply, now: Instant, dice: f64) {
        let interval = self.interval;
        // it may be gone meanwhile, and then counts no more
        let Some(question) = self.questions.get_mut(about).filter(|question| question.running) else { return };
        question.running = false;
        self.running -= 1;
        let spread = |span: Duration| clock::after(now, span.mul_f64(0.8 + 0.4 * dice));
        if let Reply::Told(after) = reply {
            question.failures = 0;
            question.due = spread(after);
        } else {
            question.failures = question.failures.saturating_add(1);
            let grown = interval.saturating_mul(1 << question.failures.min(16));
            question.due = spread(grown.min(SELDOM.max(interval)));
        }
        question.earliest = now;
        if let Reply::TooMany(hint) = reply {
            // never before the hint, and not all at once after it
            let hint = hint.unwrap_or_default().min(SELDOM);
            question.earliest = clock::after(now, hint.mul_f64(1.0 + 0.2 * dice));
            question.due = question.due.max(question.earliest);
            self.next = self.next.max(clock::after(now, hint.max(PAUSE).min(interval)));
        }
        if question.urgent {
            // what put it in doubt came after the question was asked
            question.due = question.due.min(clock::after(now, AGAIN).max(question.earliest));
        }
    }

    fn gap(&self) -> Duration {
        GAP.min(self.interval.div_f64(HASTE * self.questions.len().max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn of(keys: u32, now: Instant) -> Schedule<u32> {
        let mut schedule = Schedule::new(MINUTE, now);
        (0..keys).for_each(|key| schedule.add(key, now));
        schedule
    }

    /// Asks for so long, each question answered at once; returns when which was asked.
    fn run(schedule: &mut Schedule<u32>, mut now: Instant, until: Instant, reply: Reply) -> Vec<(Instant, u32)> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut asked = Vec::new();
        while now < until {
            while let Some(key) = schedule.take(now) {
                asked.push((now, key));
                schedule.done(&key, reply, now, rng.f64());
            }
            now = schedule.wake().unwrap();
        }
        asked
    }

    #[test]
    fn r087_a_thousand_keys_started_together_are_spread() {
        let now = Instant::now();
        let asked = run(&mut of(1000, now), now, now + 10 * MINUTE, Reply::Told(MINUTE));
        let mean = asked.len() as f64 / 600.0;
        assert!((14.0..18.0).contains(&mean), "{mean} a second");
        for second in 0..600 {
            let from = now + second * SECOND;
            let here = asked.iter().filter(|(at, _)| (from..from + SECOND).contains(at)).count();
            assert!(here as f64 <= 2.0 * mean, "{here} in second {second}, {mean} on average");
        }
    }

    #[test]
    fn a_few_keys_are_all_known_within_seconds() {
        let now = Instant::now();
        let asked = run(&mut of(5, now), now, now + 2 * SECOND, Reply::Told(MINUTE));
        assert_eq!(asked.len(), 5);
        assert!(asked.windows(2).all(|pair| pair[1].0 - pair[0].0 >= GAP));
    }

    #[test]
    fn r087_what_fails_is_asked_ever_more_seldom_and_one_answer_ends_that() {
        let now = Instant::now();
        let mut schedule = of(1, now);
        let asked = run(&mut schedule, now, now + 100 * MINUTE, Reply::Failed);
        let gaps: Vec<_> = asked.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs()).collect();
        for (gap, minutes) in gaps.iter().zip([2, 4, 8, 15, 15, 15]) {
            let span = minutes * 48..=minutes * 72;
            assert!(span.contains(gap), "{gaps:?}");
        }
        let at = schedule.wake().unwrap();
        assert_eq!(schedule.take(at), Some(0));
        schedule.done(&0, Reply::Told(MINUTE), at, 0.5);
        assert_eq!(schedule.wake(), Some(at + MINUTE));
    }

    #[test]
    fn too_many_questions_pause_them_all_and_this_one_until_the_hint() {
        let now = Instant::now();
        let mut schedule = of(2, now);
        let key = schedule.take(now).unwrap();
        schedule.done(&key, Reply::TooMany(Some(30 * SECOND)), now, 0.0);
        schedule.hurry(&key, now + SECOND);
        assert_eq!(schedule.wake(), Some(now + 30 * SECOND));
        assert_eq!(schedule.take(now + 29 * SECOND), None);
        assert_eq!(schedule.take(now + 30 * SECOND), Some(key), "it was in a hurry");
        assert!(schedule.take(now + 31 * SECOND).is_some());
    }

    #[test]
    fn a_key_in_doubt_is_asked_about_at_once_but_not_again_and_again() {
        let now = Instant::now();
        let mut schedule = of(3, now);
        run(&mut schedule, now, now + 2 * SECOND, Reply::Told(MINUTE));
        let later = now + 20 * SECOND;
        assert_eq!(schedule.take(later), None);
        schedule.hurry(&2, later);
        assert_eq!(schedule.take(later), Some(2));
        schedule.hurry(&2, later + SECOND);
        schedule.done(&2, Reply::Told(MINUTE), later + SECOND, 0.5);
        assert_eq!(schedule.wake(), Some(later + SECOND + AGAIN));
        schedule.hurry(&9, later);
    }

    #[test]
    fn no_more_than_some_are_under_way_and_who_is_gone_is_not_counted() {
        let now = Instant::now();
        let mut schedule = of(100, now);
        let mut at = now;
        let mut taken = Vec::new();
        while let Some(next) = schedule.wake() {
            at = next;
            taken.extend(schedule.take(at));
        }
        assert_eq!(taken.len(), AT_ONCE);
        schedule.retain(|key| *key != taken[0]);
        schedule.done(&taken[0], Reply::Failed, at, 0.0);
        assert!(schedule.wake().is_some(), "there is room for one more");
        schedule.retain(|_| false);
        assert_eq!((schedule.wake(), schedule.take(at + MINUTE)), (None, None));
    }

    proptest! {
        #[test]
        fn nobody_is_forgotten_whatever_happens(
            keys in 1u32..20,
            events in prop::collection::vec((0u32..20, 0u8..5, 0u64..100_000, 0.0f64..1.0), 0..200),
        ) {
            let mut now = Instant::now();
            let mut schedule = of(keys, now);
            let mut running = Vec::new();
            for (key, event, ms, dice) in events {
                now += Duration::from_millis(ms);
                match event {
                    0 => schedule.hurry(&key, now),
                    1 => running.extend(schedule.take(now)),
                    _ => {
                        let reply = match event {
                            2 => Reply::Told(MINUTE),
                            3 => Reply::Failed,
                            _ => Reply::TooMany(Some(Duration::from_millis(ms))),
                        };
                        if let Some(key) = running.pop() {
                            schedule.done(&key, reply, now, dice);
                        }
                    }
                }
            }
            for key in running {
                schedule.done(&key, Reply::Failed, now, 0.5);
            }
            // within the longest time between two questions, with its jitter, everybody is asked about once
            let asked = run(&mut schedule, now, now + SELDOM * 2, Reply::Told(MINUTE));
            for key in 0..keys {
                prop_assert!(asked.iter().any(|(_, other)| *other == key), "{key} of {keys}");
            }
        }
    }
}
