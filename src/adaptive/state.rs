use std::time::Duration;

use tokio::time::Instant;

use super::AdaptivePolicy;
use crate::clock;

/// How long the cap stays below where it was refused.
const CEILING: Duration = Duration::from_secs(30);
/// How much slower than in the long run the first output may come, on the mean of a few. Netflix' gradient allows 1.5
/// times; times to the first token scatter more than those of the services there.
const TOLERANCE: f64 = 2.0;
/// How much of the way to where the gradient points is gone at once.
const SMOOTHING: f64 = 0.2;
/// The long run, in answers.
const LONG_RUN: f64 = 600.0;
/// Of how many answers the mean time is compared with the long run: as many as run at once, within these bounds. Few say
/// nothing, and many would be the long run themselves.
const COMPARED: (f64, f64) = (10.0, 30.0);

/// What one answer says about the cap. Streams that are cut, calls that are cancelled and faults of another kind say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sample {
    /// It was served.
    Served {
        /// How many ran when it was sent, itself included.
        in_flight: usize,
        /// How long its first output took, if it is a stream.
        first_output: Option<Duration>,
    },
    /// It was refused, or given up, because too much ran.
    Busy {
        /// How many ran when it was sent, itself included.
        in_flight: usize,
        /// When it was sent.
        sent: Instant,
    },
}

/// A cap, as learned so far.
#[derive(Debug)]
pub(crate) struct Learned {
    cap: f64,
    /// The most that was not refused, and until when that is believed.
    ceiling: Option<(f64, Instant)>,
    /// When it last shrank for a refusal.
    shrunk: Option<Instant>,
    /// Whether it has met a limit yet; until then it doubles.
    met: bool,
    round: Round,
    recent: Mean,
    long_run: Mean,
}

/// The answers since the cap last moved.
#[derive(Debug, Default)]
struct Round {
    served: usize,
    most_in_flight: usize,
}

#[derive(Debug, Default)]
struct Mean {
    seconds: f64,
    count: f64,
}

impl Mean {
    /// Adds so many, in place of the oldest beyond `most`.
    fn add(&mut self, other: &Self, most: f64) {
        self.count = (self.count + other.count).min(most);
        self.seconds += (other.seconds - self.seconds) * (other.count / self.count).min(1.0);
    }
}

impl Learned {
    pub(crate) fn new(policy: &AdaptivePolicy) -> Self {
        Self {
            cap: policy.first_cap() as f64,
            ceiling: None,
            shrunk: None,
            met: false,
            round: Round::default(),
            recent: Mean::default(),
            long_run: Mean::default(),
        }
    }

    /// How many may run at once.
    pub(crate) fn cap(&self) -> usize {
        // a cast from f64 saturates
        self.cap as usize
    }

    /// Takes a sample in, and says how many may run at once from here on.
    pub(crate) fn learn(&mut self, policy: &AdaptivePolicy, sample: Sample, now: Instant) -> usize {
        let cap = match sample {
            Sample::Served { in_flight, first_output } => self.served(policy, in_flight, first_output, now),
            Sample::Busy { in_flight, sent } => self.busy(policy, in_flight, sent, now),
        };
        self.cap = cap.clamp(policy.min as f64, policy.max as f64);
        self.cap()
    }

    fn served(
        &mut self,
        policy: &AdaptivePolicy,
        in_flight: usize,
        first_output: Option<Duration>,
        now: Instant,
    ) -> f64 {
        self.round.served += 1;
        self.round.most_in_flight = self.round.most_in_flight.max(in_flight);
        if let Some(span) = first_output.filter(|_| policy.by_time) {
            self.recent.add(&Mean { seconds: span.as_secs_f64(), count: 1.0 }, f64::INFINITY);
            let slower = self.slower();
            if slower < 1.0 {
                self.met = true;
                self.round = Round::default();
                let there = (self.cap * slower + self.cap.sqrt()).min(self.cap);
                return self.cap + (there - self.cap) * SMOOTHING;
            }
        }
        let used = |in_flight: usize| in_flight as f64 * 2.0 >= self.cap;
        if !self.met {
            return if used(in_flight) { self.cap + 1.0 } else { self.cap };
        }
        if self.round.served < self.cap() {
            return self.cap;
        }
        let grown = if used(self.round.most_in_flight) { self.cap + 1.0 } else { self.cap };
        self.round = Round::default();
        match self.ceiling {
            Some((ceiling, until)) if now < until => grown.min(ceiling.max(self.cap)),
            _ => grown,
        }
    }

    /// By which factor the gradient would shrink the cap, down to a half; 1 while times are as usual, or too few.
    fn slower(&mut self) -> f64 {
        if self.recent.count < self.cap.clamp(COMPARED.0, COMPARED.1) {
            return 1.0;
        }
        let recent = std::mem::take(&mut self.recent);
        let before = self.long_run.seconds;
        // what is far too slow must not soon become what is usual
        let usual = if before > 0.0 { recent.seconds.min(TOLERANCE * before) } else { recent.seconds };
        self.long_run.add(&Mean { seconds: usual, ..recent }, LONG_RUN);
        if before <= 0.0 || recent.seconds <= 0.0 {
            return 1.0;
        }
        // after a slow time the long run would take long to believe that it is over
        if before > 2.0 * recent.seconds {
            self.long_run.seconds *= 0.95;
        }
        (TOLERANCE * before / recent.seconds).clamp(0.5, 1.0)
    }

    fn busy(&mut self, policy: &AdaptivePolicy, in_flight: usize, sent: Instant, now: Instant) -> f64 {
        // the cap has shrunk since: it is not refused again
        if self.shrunk.is_some_and(|shrunk| sent <= shrunk) {
            return self.cap;
        }
        // what ran is the better measure where the cap was far from used or has just doubled, but one answer is not all
        let cap = (in_flight as f64 * policy.shrink).max(self.cap / 2.0).min(self.cap * policy.shrink);
        let held = (in_flight.saturating_sub(1) as f64).clamp(cap, self.cap);
        self.ceiling = Some((held, clock::after(now, CEILING)));
        self.shrunk = Some(now);
        self.met = true;
        (self.round, self.recent) = Default::default();
        cap
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn served(in_flight: usize) -> Sample {
        Sample::Served { in_flight, first_output: None }
    }

    fn timed(in_flight: usize, first_output: Duration) -> Sample {
        Sample::Served { in_flight, first_output: Some(first_output) }
    }

    /// A cap that has met its limit.
    fn settled(policy: &AdaptivePolicy, now: Instant) -> Learned {
        let mut learned = Learned::new(policy);
        learned.learn(policy, Sample::Busy { in_flight: learned.cap(), sent: now }, now);
        learned
    }

    fn times(count: usize, mut what: impl FnMut()) {
        (0..count).for_each(|_| what());
    }

    #[test]
    fn r049_it_does_not_grow_while_less_than_half_is_used() {
        let (policy, now) = (AdaptivePolicy::aimd(), Instant::now());
        let mut learned = Learned::new(&policy);
        times(1_000, || assert_eq!(learned.learn(&policy, served(9), now), 20));
        assert_eq!(learned.learn(&policy, served(10), now), 21);
        let mut learned = settled(&policy, now);
        times(1_000, || assert_eq!(learned.learn(&policy, served(8), now + CEILING), 18));
    }

    #[test]
    fn r049_a_refusal_shrinks_it_by_the_factor_and_its_companions_do_not() {
        let (policy, now) = (AdaptivePolicy::aimd().shrink(0.5).unwrap(), Instant::now());
        let mut learned = Learned::new(&policy);
        for (sent, at, cap) in [(0, 5, 10), (1, 6, 10), (5, 7, 10), (6, 8, 5), (9, 9, 2)] {
            let busy = Sample::Busy { in_flight: 20, sent: now + sent * MILLI };
            assert_eq!(learned.learn(&policy, busy, now + at * MILLI), cap, "sent at {sent}, back at {at}");
        }
    }

    #[test]
    fn it_doubles_in_each_round_until_it_meets_a_limit_and_then_grows_by_one() {
        let (policy, now) = (AdaptivePolicy::aimd().start(4).unwrap(), Instant::now());
        let mut learned = Learned::new(&policy);
        times(4, || _ = learned.learn(&policy, served(4), now));
        assert_eq!(learned.cap(), 8);
        times(8, || _ = learned.learn(&policy, served(8), now));
        assert_eq!(learned.cap(), 16);
        // 16 were let through at once, and the eleventh was one too many
        assert_eq!(learned.learn(&policy, Sample::Busy { in_flight: 11, sent: now }, now), 9);
        times(9, || _ = learned.learn(&policy, served(9), now));
        assert_eq!(learned.cap(), 10);
    }

    #[test]
    fn where_it_was_refused_it_stays_below_for_a_while() {
        let (policy, now) = (AdaptivePolicy::aimd(), Instant::now());
        let mut learned = settled(&policy, now);
        times(1_000, || _ = learned.learn(&policy, served(20), now + CEILING - MILLI));
        assert_eq!(learned.cap(), 19);
        times(19, || _ = learned.learn(&policy, served(20), now + CEILING));
        assert_eq!(learned.cap(), 20);
    }

    #[test]
    fn the_gradient_shrinks_while_the_first_output_is_slow_and_comes_back() {
        let (policy, now) = (AdaptivePolicy::gradient().range(1..=40).unwrap(), Instant::now());
        let mut learned = Learned::new(&policy);
        times(600, || _ = learned.learn(&policy, timed(40, 100 * MILLI), now));
        assert_eq!(learned.cap(), 40);
        times(60, || _ = learned.learn(&policy, timed(40, 190 * MILLI), now));
        assert_eq!(learned.cap(), 40, "within what is tolerated");
        times(120, || _ = learned.learn(&policy, timed(40, 600 * MILLI), now));
        let least = learned.cap();
        assert!((15..36).contains(&least), "{least}");
        times(2_000, || _ = learned.learn(&policy, timed(40, 100 * MILLI), now));
        assert_eq!(learned.cap(), 40);
    }

    #[test]
    fn aimd_does_not_look_at_times() {
        let (policy, now) = (AdaptivePolicy::aimd(), Instant::now());
        let mut learned = Learned::new(&policy);
        times(100, || _ = learned.learn(&policy, timed(20, MILLI), now));
        let before = learned.cap();
        times(1_000, || _ = learned.learn(&policy, timed(20, 1_000_000 * MILLI), now));
        assert!(learned.cap() >= before);
    }

    proptest! {
        #[test]
        fn r037_r049_r118_whatever_comes_it_stays_within_its_bounds(
            by_time: bool, min in 1usize..50, span in prop_oneof![0usize..50, Just(u32::MAX as usize - 50)],
            shrink in 0.000_001..0.999_999f64,
            samples in prop::collection::vec(
                (any::<bool>(), prop_oneof![0usize..400, any::<usize>()], any::<u64>(), 0u32..100_000), 1..400),
        ) {
            let law = if by_time { AdaptivePolicy::gradient() } else { AdaptivePolicy::aimd() };
            let policy = law.range(min..=min + span).unwrap().shrink(shrink).unwrap();
            let (mut learned, mut now) = (Learned::new(&policy), Instant::now());
            for (busy, in_flight, nanos, later) in samples {
                let sent = now;
                now += later * MILLI;
                let first_output = (nanos % 3 > 0).then(|| match nanos % 5 {
                    0 => Duration::MAX,
                    1 => Duration::ZERO,
                    _ => Duration::from_nanos(nanos),
                });
                let before = learned.cap();
                let sample = match busy {
                    true => Sample::Busy { in_flight, sent },
                    false => Sample::Served { in_flight, first_output },
                };
                let cap = learned.learn(&policy, sample, now);
                prop_assert!((min..=min + span).contains(&cap), "{cap} within {min} to {}", min + span);
                prop_assert_eq!(cap, learned.cap());
                prop_assert!(!busy || cap <= before, "a refusal never lets it grow");
            }
        }
    }
}
