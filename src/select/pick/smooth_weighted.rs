use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::atomic::{AtomicU64, Ordering},
};

use fastrand::Rng;

use super::{
    Candidates, Pick, Prepared, Rank,
    shares::{self, Shares},
};
use crate::endpoint::Endpoint;

/// Longest sequence written out, 64 KiB; and the largest whole number that is made of a weight.
const SLOTS: f64 = 16_384.0;
/// Most parts into which the least weight is cut to make whole numbers of all: 1 to 1.015625 is 64 to 65.
const CUTS: u32 = 64;
/// The golden ratio's fraction of 2⁶⁴, odd: multiples of it, mod 2⁶⁴, fill all numbers more evenly than any other's.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Each endpoint as often as its [weight](crate::ApiKey::weight) says, evenly interleaved.
///
/// The usual smooth weighted round robin (nginx's) looks at every key for every pick, under a lock. Here the order is worked
/// out once for each snapshot, so that a pick is one atomic counter and a look-up, and turns are exact over all threads.
///
/// Weights in the ratio of small whole numbers are written out as a sequence of as many slots, which is repeated: 3:2:1 is
/// `A B A B A C`, so any six picks in a row are exactly three, two and one, and no key is ever a full turn ahead of or
/// behind its due (earliest deadline first over the slots' windows, as in Pfair scheduling). Keys of one weight share slots
/// and take turns in them, so ten thousand keys of three weights need no more slots than three kinds of key do. Whole
/// numbers are found by cutting the least weight into up to 64 parts; the slots must be at most 16,384. Other weights, such as 1:π, are not
/// rounded: the counter walks by the golden ratio through parts as large as the weights, which keeps each key within a few
/// picks of its due.
///
/// A key that is out gives its slots back to all others in their ratio: when it rests, by a new sequence; when it refuses
/// one request, because the next slot is taken instead, and where too many refuse in a row, by weighted chance.
///
/// By the weights of the keys:
///
/// ```
/// use tower_openrouter::{ApiKey, select::{Pool, SmoothWeighted}};
/// # use tower_openrouter::{Endpoint, KeySelectLayer, endpoint_fn};
/// # use tower::layer::util::Identity;
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.weight(3.0)?, ApiKey::new("sk-or-v1-b")?])?;
/// # let per_key = endpoint_fn(|_: &Endpoint| Identity::new());
/// let layer = KeySelectLayer::new(pool, per_key).pick(SmoothWeighted::default());
/// # let _ = layer;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// By weight among the keys of the first tier that can serve:
///
/// ```
/// use tower_openrouter::select::{PriorityTiers, SmoothWeighted};
///
/// let pick = PriorityTiers::new(SmoothWeighted::default());
/// # let _ = pick;
/// ```
#[derive(Debug, Default)]
pub struct SmoothWeighted(AtomicU64);

#[derive(Debug)]
enum Plan {
    Sequence(Sequence),
    Golden(Shares),
}

impl Pick for SmoothWeighted {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, _rng: &mut Rng) -> usize {
        let Some(plan) = candidates.prepared::<Plan>() else { return usize::MAX };
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        match plan {
            Plan::Sequence(sequence) => sequence.at(turn),
            Plan::Golden(shares) => shares.at(turn.wrapping_mul(GOLDEN)),
        }
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        let plan = match whole(endpoints).and_then(|counts| Sequence::of(&counts)) {
            Some(sequence) => Plan::Sequence(sequence),
            None => Plan::Golden(Shares::of(endpoints)?),
        };
        Some(Box::new(plan))
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, rng: &mut Rng) -> Option<Rank> {
        Some(shares::order(&candidates.endpoints[index], rng.f64()).into())
    }
}

/// The least whole numbers in the ratio of the weights, if they are small enough.
fn whole(endpoints: &[Endpoint]) -> Option<Vec<u32>> {
    let weights = || endpoints.iter().map(|endpoint| endpoint.key().weight_of());
    let least = weights().filter(|weight| *weight > 0.0).reduce(f64::min)?;
    (1..=CUTS).find_map(|cuts| {
        weights()
            .map(|weight| {
                let exact = weight / least * f64::from(cuts);
                let count = exact.round();
                // only what the division itself may have rounded off
                let is_whole = (exact - count).abs() <= exact * 4.0 * f64::EPSILON;
                (is_whole && count <= SLOTS).then_some(count as u32)
            })
            .collect()
    })
}

/// Slots that are repeated, each for keys of one weight, which take turns in theirs.
#[derive(Debug)]
struct Sequence {
    slots: Box<[Slot]>,
    classes: Box<[Class]>,
}

/// A slot's class, and how many slots before it are that class's too.
#[derive(Debug, Clone, Copy)]
struct Slot {
    class: u16,
    before: u16,
}

/// Keys of one weight.
#[derive(Debug)]
struct Class {
    slots: u64,
    size: u64,
    members: Members,
}

#[derive(Debug)]
enum Members {
    /// Every so manyth from this one on.
    Stride(usize, usize),
    Listed(Box<[u32]>),
}

impl Sequence {
    /// The sequence in which each index comes as often as its count says; `None` when it is too long.
    fn of(counts: &[u32]) -> Option<Self> {
        let mut by_count = BTreeMap::<u32, Vec<u32>>::new();
        for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            by_count.entry(*count).or_default().push(index as u32);
        }
        let mut classes: Vec<_> = by_count.into_iter().collect();
        // so that of two that are due at once the one with the earlier key comes first
        classes.sort_by_key(|(_, members)| members[0]);
        let turns = |(count, members): &(u32, Vec<u32>)| u64::from(*count) * members.len() as u64;
        let common = classes.iter().map(turns).fold(0, gcd);
        let slots: Vec<_> = classes.iter().map(|class| turns(class) / common).collect();
        if classes.len() > usize::from(u16::MAX) || slots.iter().sum::<u64>() > SLOTS as u64 {
            return None;
        }
        let slots: Vec<_> = slots.into_iter().map(|slots| slots as u32).collect();
        let mut before = vec![0; slots.len()];
        let sequence = interleave(&slots).into_iter().map(|class| {
            before[class as usize] += 1;
            Slot { class: class as u16, before: before[class as usize] - 1 }
        });
        let sequence = sequence.collect();
        let class = |(slots, (_, members)): (&u32, (u32, Vec<u32>))| Class {
            slots: u64::from(*slots),
            size: members.len() as u64,
            members: Members::of(members),
        };
        Some(Self { slots: sequence, classes: slots.iter().zip(classes).map(class).collect() })
    }

    fn at(&self, turn: u64) -> usize {
        let length = self.slots.len() as u64;
        let slot = self.slots[(turn % length) as usize];
        let class = &self.classes[usize::from(slot.class)];
        let turn = (turn / length).wrapping_mul(class.slots) + u64::from(slot.before);
        class.members.at((turn % class.size) as usize)
    }
}

impl Members {
    fn of(members: Vec<u32>) -> Self {
        let stride = members.get(1).map_or(1, |second| second - members[0]);
        let is_even = members.windows(2).all(|pair| pair[1] - pair[0] == stride);
        if is_even { Self::Stride(members[0] as usize, stride as usize) } else { Self::Listed(members.into()) }
    }

    fn at(&self, at: usize) -> usize {
        match self {
            Self::Stride(first, stride) => first + at * stride,
            Self::Listed(members) => members[at] as usize,
        }
    }
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// A sequence in which each index comes as often as its count says, as evenly as can be.
///
/// The `k`th turn of an index has a window from `k` to `k + 1` times the mean distance of its turns. In each slot goes, of
/// those whose window has begun, the one whose window ends first; then none misses its window.
fn interleave(counts: &[u32]) -> Vec<u32> {
    let slots: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let opens = |index: usize, turn: u64| turn * slots / u64::from(counts[index]);
    let closes = |index: usize, turn: u64| ((turn + 1) * slots).div_ceil(u64::from(counts[index]));
    let mut ahead: BinaryHeap<_> =
        (0..counts.len()).filter(|index| counts[*index] > 0).map(|index| Reverse((0, index, 0))).collect();
    let mut open = BinaryHeap::new();
    (0..slots)
        .filter_map(|slot| {
            while let Some(Reverse((at, index, turn))) = ahead.peek().copied()
                && at <= slot
            {
                ahead.pop();
                open.push(Reverse((closes(index, turn), index, turn)));
            }
            let Reverse((_, index, turn)) = open.pop()?;
            if turn + 1 < u64::from(counts[index]) {
                ahead.push(Reverse((opens(index, turn + 1), index, turn + 1)));
            }
            Some(index as u32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{f64::consts::PI, sync::Arc};

    use proptest::prelude::{prop_assert, proptest};

    use super::*;
    use crate::select::pick::support::{endpoints, picks, shares};

    fn weighted(weights: &[f64]) -> Vec<Endpoint> {
        endpoints(weights.len(), |index, key| key.weight(weights[index]).unwrap())
    }

    #[test]
    fn sequences_are_as_written() {
        for (weights, expected) in [
            (&[3.0, 2.0, 1.0][..], &[0, 1, 0, 1, 0, 2][..]),
            (&[0.3, 0.2, 0.1], &[0, 1, 0, 1, 0, 2]),
            (&[1.0, 1.0, 1.0], &[0, 1, 2]),
            (&[1.0, 1.5], &[1, 0, 1, 0, 1]),
            (&[4.0, 1.0, 1.0], &[0, 0, 1, 0, 0, 2]),
            (&[0.0, 2.0], &[1]),
            (&[5e300, 5e300], &[0, 1]),
        ] {
            let sequence = Sequence::of(&whole(&weighted(weights)).expect("small numbers")).expect("few slots");
            let twice = expected.iter().chain(expected);
            assert!((0..).map(|turn| sequence.at(turn)).zip(twice).all(|(found, due)| found == *due), "{weights:?}");
        }
        assert!(whole(&weighted(&[1.0, PI])).is_none() && whole(&weighted(&[1.0, 1e9])).is_none());
    }

    #[test]
    fn ten_thousand_keys_of_three_weights_are_as_exact_as_three() {
        let counts: Vec<_> = (0..10_000).map(|index| [3, 2, 1][(index / 7) % 3]).collect();
        let sequence = Sequence::of(&counts).expect("few slots");
        let total = counts.iter().sum::<u32>() as usize;
        let taken: Vec<_> = (0..2 * total as u64).map(|turn| sequence.at(turn)).collect();
        for (index, share) in shares(&taken[total / 3..][..total], counts.len()).into_iter().enumerate() {
            assert_eq!(share, counts[index] as usize, "of key {index}");
        }
    }

    #[test]
    fn any_six_picks_are_three_two_and_one() {
        let taken = picks(&SmoothWeighted::default(), &weighted(&[3.0, 2.0, 1.0]), 1000, |_| false);
        for six in taken.windows(6) {
            assert_eq!(shares(six, 3), [3, 2, 1]);
        }
    }

    #[test]
    fn turns_are_exact_across_threads() {
        let (pick, endpoints) = (Arc::new(SmoothWeighted::default()), weighted(&[3.0, 2.0, 1.0]));
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let (pick, endpoints) = (pick.clone(), endpoints.clone());
                std::thread::spawn(move || shares(&picks(&pick, &endpoints, 10_000, |_| false), 3))
            })
            .collect();
        let mut sum = [0; 3];
        for thread in threads {
            for (sum, share) in sum.iter_mut().zip(thread.join().unwrap()) {
                *sum += share;
            }
        }
        assert_eq!(sum, [30_000, 20_000, 10_000]);
    }

    #[test]
    fn what_one_key_refuses_goes_to_the_others_by_weight() {
        for (weights, out) in [
            (&[3.0, 2.0, 1.0][..], 0),
            (&[3.0, 2.0, 1.0], 1),
            (&[98.0, 1.0, 3.0, 1.0], 0),
            (&[PI, 1.0, 2.5], 0),
            (&[100.0 * PI, 1.0, 3.0], 0),
        ] {
            let taken = picks(&SmoothWeighted::default(), &weighted(weights), 20_000, |index| index == out);
            let left: f64 = weights.iter().sum::<f64>() - weights[out];
            for (index, share) in shares(&taken, weights.len()).into_iter().enumerate() {
                let due = if index == out { 0.0 } else { 20_000.0 * weights[index] / left };
                assert!((share as f64 - due).abs() <= due * 0.05, "{weights:?} without {out}: {share} of {due}");
            }
        }
    }

    #[test]
    fn keys_without_weight_propose_nobody() {
        assert!(SmoothWeighted::default().prepare(&weighted(&[0.0, 0.0])).is_none());
    }

    proptest! {
        #[test]
        fn nobody_is_a_full_turn_from_its_due(counts in proptest::collection::vec(0..40_u32, 1..30)) {
            let total: u32 = counts.iter().sum();
            let Some(sequence) = Sequence::of(&counts).filter(|_| total > 0) else {
                prop_assert!(total == 0);
                return Ok(());
            };
            let mut taken = vec![0; counts.len()];
            for slot in 0..2 * total {
                taken[sequence.at(u64::from(slot))] += 1;
                for (taken, count) in taken.iter().zip(&counts) {
                    let due = (f64::from(slot) + 1.0) * f64::from(*count) / f64::from(total);
                    prop_assert!((f64::from(*taken) - due).abs() < 1.0 + 1e-9, "{taken} of {due} at {slot}");
                }
            }
        }

        #[test]
        fn weights_of_any_kind_get_their_due(weights in proptest::collection::vec(0.1..100.0_f64, 1..30)) {
            let taken = picks(&SmoothWeighted::default(), &weighted(&weights), 20_000, |_| false);
            let total: f64 = weights.iter().sum();
            for (share, weight) in shares(&taken, weights.len()).into_iter().zip(&weights) {
                let due = 20_000.0 * weight / total;
                prop_assert!((share as f64 - due).abs() <= 8.0, "{share} of {due}");
            }
        }
    }
}
