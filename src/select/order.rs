//! The order in which endpoints are asked: what the pick proposes, then everybody.

use std::{cmp::Reverse, collections::BinaryHeap};

use fastrand::Rng;
use smallvec::SmallVec;

use super::pick::{Candidates, Pick};

/// Fewest proposals before everybody is asked. With half of the endpoints refusing, three miss one time in eight.
const PROPOSALS: usize = 3;

/// What came of asking an endpoint.
pub(super) enum Asked<T> {
    /// It serves.
    Found(T),
    /// It does not.
    Refused,
    /// It may, but others are to be preferred.
    Later,
}

/// Why an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The pick proposes it.
    Proposed,
    /// Everybody is asked.
    Everybody,
    /// There is nobody left to prefer.
    Last,
}

/// Asks until one is found. `ask` gets the index and the reason.
pub(super) fn find<P: Pick + ?Sized, T>(
    pick: &P,
    candidates: &Candidates<'_>,
    rng: &mut Rng,
    mut ask: impl FnMut(usize, Turn) -> Asked<T>,
) -> Option<T> {
    let count = candidates.endpoints.len();
    if count == 0 {
        return None;
    }
    // one more for each doubling, so that with half of them refusing a look at everybody costs next to nothing in the mean
    for turn in 0..PROPOSALS.max(count.ilog2() as usize) {
        let proposed = pick.propose(candidates, turn, rng);
        if proposed >= count {
            break;
        }
        if let Asked::Found(found) = ask(proposed, Turn::Proposed) {
            return Some(found);
        }
    }
    let mut later = SmallVec::<[usize; 8]>::new();
    for index in everybody(pick, candidates, rng) {
        match ask(index, Turn::Everybody) {
            Asked::Found(found) => return Some(found),
            Asked::Refused => {}
            Asked::Later => later.push(index),
        }
    }
    later.into_iter().find_map(|index| match ask(index, Turn::Last) {
        Asked::Found(found) => Some(found),
        Asked::Refused | Asked::Later => None,
    })
}

/// Everybody once, by rank where the pick has one.
fn everybody<P: Pick + ?Sized>(pick: &P, candidates: &Candidates<'_>, rng: &mut Rng) -> impl Iterator<Item = usize> {
    let count = candidates.endpoints.len();
    let first = pick.rank(candidates, 0, rng);
    let mut ranked = BinaryHeap::new();
    let mut mixed = None;
    match first {
        None => mixed = Some(walk(count, rng)),
        Some(first) => {
            let others = (1..count).filter_map(|index| Some(Reverse((pick.rank(candidates, index, rng)?, index))));
            ranked = [Reverse((first, 0))].into_iter().chain(others).collect();
        }
    }
    mixed.into_iter().flatten().chain(std::iter::from_fn(move || ranked.pop().map(|Reverse((_, index))| index)))
}

/// All numbers below `count` in strides of a random length from a random place on: so nobody always gets what the one
/// before it in the list refuses, and nothing need be kept.
fn walk(count: usize, rng: &mut Rng) -> impl Iterator<Item = usize> {
    let start = rng.usize(..count);
    // 1 is among them, so it ends
    let stride = std::iter::repeat_with(|| rng.usize(1..count.max(2))).find(|stride| gcd(*stride, count) == 1);
    let stride = stride.unwrap_or(1);
    (0..count).scan(start, move |at, _| {
        let here = *at;
        *at = (here + stride) % count;
        Some(here)
    })
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use http::HeaderMap;
    use proptest::prelude::{prop_assert_eq, proptest};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        RequestContext,
        select::pick::{Rank, support::endpoints},
    };

    proptest! {
        #[test]
        fn a_walk_meets_everybody_once(count in 1..2000_usize, seed: u64) {
            let mut met: Vec<_> = walk(count, &mut Rng::with_seed(seed)).collect();
            met.sort_unstable();
            prop_assert_eq!(met, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_neighbour_gets_what_another_refuses() {
        let rng = &mut Rng::with_seed(7);
        let mut shares = [0; 7];
        for _ in 0..60_000 {
            shares[walk(7, rng).find(|index| *index != 3).unwrap()] += 1;
        }
        assert_eq!(shares[3], 0);
        for share in shares.iter().filter(|share| **share > 0) {
            assert!((9_500..10_500).contains(share), "{shares:?}");
        }
    }

    /// Proposes nobody.
    struct Ranked(Vec<Option<Rank>>);

    impl Pick for Ranked {
        fn propose(&self, _: &Candidates<'_>, _: usize, _: &mut Rng) -> usize {
            usize::MAX
        }

        fn rank(&self, _: &Candidates<'_>, index: usize, _: &mut Rng) -> Option<Rank> {
            self.0[index]
        }
    }

    fn asked(pick: &Ranked, later: &[usize]) -> Vec<usize> {
        let endpoints = endpoints(pick.0.len(), |_, key| key);
        let (request, headers, mut asked) = (RequestContext::new(), HeaderMap::new(), Vec::new());
        let candidates = Candidates::new(&endpoints, &request, &headers, Instant::now());
        find::<_, ()>(pick, &candidates, &mut Rng::new(), |index, turn| {
            asked.push(index);
            if turn != Turn::Last && later.contains(&index) { Asked::Later } else { Asked::Refused }
        });
        asked
    }

    #[test]
    fn everybody_is_asked_tier_by_tier_and_second_choices_last() {
        let rank = |tier, order| Some(Rank { tier, order });
        let pick = Ranked(vec![rank(2, 0.0), rank(1, 5.0), rank(1, f64::NAN), rank(1, -1.0), rank(2, -9.0)]);
        assert_eq!(asked(&pick, &[]), [3, 1, 2, 4, 0]);
        assert_eq!(asked(&pick, &[3, 4]), [3, 1, 2, 4, 0, 3, 4]);
    }

    #[test]
    fn without_proposals_or_ranks_everybody_is_still_asked() {
        let mut met = asked(&Ranked(vec![None; 5]), &[]);
        met.sort_unstable();
        assert_eq!(met, [0, 1, 2, 3, 4]);
    }
}
