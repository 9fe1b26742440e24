//! How long a place in line will take.
//!
//! A queue that serves 14 a second, with 600 in it, makes the last wait 43 s: if it will not wait that long it should hear so
//! at once, not at the end of its patience. The rate is what the group itself was served at over the last half minute, rests
//! included, so several windows of a quota are in it. When in doubt it waits: with fewer than [`LEAST`] served, or less than
//! [`WARM`] of standing, nothing is predicted. Refusing wrongly costs a request, waiting in vain costs half a minute.

use std::time::Duration;

use tokio::time::Instant;

/// What the rate is taken over, in buckets of a second.
const SPAN: usize = 30;
/// Before this much of it has been seen there is no rate.
const WARM: Duration = Duration::from_secs(10);
/// Nor with fewer served.
const LEAST: u32 = 10;
/// A rate of the last half minute is off by up to a tenth in the next (quotas of 20 to 80 per 10 s without hints, 20 seeds), so who
/// comes must have so much more patience.
const DOUBT: f64 = 0.15;
/// Who stands already is refused for a prediction only if that is longer than its patience by this share, so that a rate that
/// wavers does not thin out the line.
const SLACK: f64 = 0.25;

/// How many of a group were served, second by second.
#[derive(Debug)]
pub(super) struct Flow {
    since: Instant,
    /// Boxed, and there only once somebody was served: most groups are short-lived.
    seconds: Option<Box<Seconds>>,
}

#[derive(Debug)]
struct Seconds {
    served: [u32; SPAN],
    /// The second that is counted in now, since the beginning.
    latest: u64,
}

impl Flow {
    /// Nobody was served since `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, seconds: None }
    }

    /// Counts one in who is served.
    pub(super) fn serve(&mut self, now: Instant) {
        let second = self.second(now);
        let seconds = self.seconds.get_or_insert_with(|| Box::new(Seconds { served: [0; SPAN], latest: second }));
        seconds.advance(second);
        seconds.served[second as usize % SPAN] += 1;
    }

    /// How many are served a second; `None` while that cannot be told.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = self.seconds.as_ref()?;
        let stood = now.saturating_duration_since(self.since);
        if stood < WARM {
            return None;
        }
        let second = self.second(now);
        let first = (second + 1).saturating_sub(SPAN as u64);
        let served: u32 = (first..=second.min(seconds.latest))
            .filter(|second| second + SPAN as u64 > seconds.latest)
            .map(|second| seconds.served[second as usize % SPAN])
            .sum();
        let seen = stood - Duration::from_secs(first);
        (served >= LEAST).then(|| f64::from(served) / seen.as_secs_f64())
    }

    /// Whether nobody was served for so long that there is nothing to foretell.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let second = self.second(now);
        self.seconds.as_ref().is_none_or(|seconds| second >= seconds.latest + SPAN as u64)
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs()
    }
}

impl Seconds {
    fn advance(&mut self, second: u64) {
        let skipped = second.saturating_sub(self.latest).min(SPAN as u64);
        for gone in 0..skipped {
            self.served[(second - gone) as usize % SPAN] = 0;
        }
        self.latest = self.latest.max(second);
    }
}

/// When one before whom `ahead` others go will start: not before those are served at `rate` a second, and not before the
/// `earliest` return. The rate holds the rests already, so the two are not added up.
pub(super) fn start(now: Instant, earliest: Option<Instant>, ahead: usize, rate: f64) -> Instant {
    // within 10 years, so nothing overflows
    let turn = now + Duration::from_secs_f64((ahead as f64 / rate).min(3e8));
    earliest.map_or(turn, |earliest| earliest.max(turn))
}

/// Whether that is too late for one who comes, or so near the end of its patience that half of such would be.
pub(super) fn is_hopeless(start: Instant, give_up: Instant, now: Instant) -> bool {
    start + start.saturating_duration_since(now).mul_f64(DOUBT) > give_up
}

/// Whether that is too late for one who has waited already.
pub(super) fn is_too_late(start: Instant, give_up: Instant, now: Instant) -> bool {
    start > give_up + give_up.saturating_duration_since(now).mul_f64(SLACK) + Duration::from_secs(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn nothing_is_predicted_before_enough_was_seen() {
        let begin = Instant::now();
        let mut flow = Flow::new(begin);
        for served in 0..100 {
            flow.serve(at(begin, f64::from(served) * 0.09));
        }
        assert_eq!(flow.rate(at(begin, 9.9)), None, "too soon");
        assert!((flow.rate(at(begin, 10.0)).unwrap() - 10.0).abs() < 0.1);
        let mut slow = Flow::new(begin);
        for served in 0..9 {
            slow.serve(at(begin, f64::from(served)));
        }
        assert_eq!(slow.rate(at(begin, 15.0)), None, "too few");
        assert_eq!(flow.rate(at(begin, 100.0)), None, "too long ago");
    }

    #[test]
    fn bursts_at_window_edges_count_as_what_they_are_in_the_mean() {
        let begin = Instant::now();
        for seconds in [31.0, 36.0, 44.9, 52.0] {
            let mut flow = Flow::new(begin);
            for edge in (0..6).map(|window| f64::from(window) * 10.0 + 5.0).filter(|edge| *edge <= seconds) {
                (0..140).for_each(|_| flow.serve(at(begin, edge)));
            }
            let rate = flow.rate(at(begin, seconds)).unwrap();
            assert!((13.5..19.5).contains(&rate), "{rate} after {seconds} s");
        }
    }

    #[test]
    fn a_start_is_the_later_of_ones_turn_and_the_first_return() {
        let now = Instant::now();
        for (earliest, ahead, rate, starts) in [
            (None, 0, 1.0, 0.0),
            (None, 140, 14.0, 10.0),
            (Some(3.0), 140, 14.0, 10.0),
            (Some(30.0), 140, 14.0, 30.0),
            (None, usize::MAX, f64::MIN_POSITIVE, 3e8),
        ] {
            assert_eq!(start(now, earliest.map(|span| at(now, span)), ahead, rate), at(now, starts));
        }
        let give_up = at(now, 20.0);
        for (start, late) in [(20.0, false), (25.9, false), (26.1, true)] {
            assert_eq!(is_too_late(at(now, start), give_up, now), late);
        }
        for (start, hopeless) in [(0.0, false), (17.3, false), (17.5, true), (21.0, true)] {
            assert_eq!(is_hopeless(at(now, start), give_up, now), hopeless, "{start}");
        }
    }

    proptest! {
        /// The rate is that of a count done with all instants at hand.
        #[test]
        fn it_counts_the_last_half_minute(
            mut served in prop::collection::vec(0..90_000_u64, 0..400),
            asked in 10_000..90_000_u64,
        ) {
            let begin = Instant::now();
            let mut flow = Flow::new(begin);
            served.retain(|millis| *millis <= asked);
            served.sort_unstable();
            for millis in &served {
                flow.serve(begin + Duration::from_millis(*millis));
            }
            let first = (asked / 1000 + 1).saturating_sub(30) * 1000;
            let count = served.iter().filter(|millis| **millis >= first).count();
            let rate = flow.rate(begin + Duration::from_millis(asked));
            match rate {
                None => prop_assert!(count < 10),
                Some(rate) => {
                    prop_assert!((rate - count as f64 * 1000.0 / (asked - first) as f64).abs() < 1e-6);
                }
            }
            prop_assert_eq!(rate.is_some(), count >= 10);
        }
    }
}
