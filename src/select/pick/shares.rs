//! Whom a number falls to, when each endpoint has a part of all numbers as large as its weight.

use crate::endpoint::Endpoint;

/// All of `u64` cut into parts, found in constant mean time however many there are (Chen and Asau's guide table, 1974).
#[derive(Debug)]
pub(super) struct Shares {
    /// Where each part ends; an endpoint of weight 0 has none.
    ends: Box<[u64]>,
    /// For as many equal stretches as there are endpoints, the first whose part reaches into it.
    guide: Box<[u32]>,
}

impl Shares {
    /// The parts of these endpoints, by their weights as they are; `None` when none has a weight.
    pub(super) fn of(endpoints: &[Endpoint]) -> Option<Self> {
        let weight = |endpoint: &Endpoint| endpoint.key().weight_of();
        let heaviest = endpoints.iter().map(weight).fold(0.0, f64::max);
        let last = endpoints.iter().rposition(|endpoint| weight(endpoint) > 0.0)?;
        // parts of the heaviest, so that no sum of weights overflows
        let part = |endpoint: &Endpoint| weight(endpoint) / heaviest;
        let total: f64 = endpoints.iter().map(part).sum();
        let mut sum = 0.0;
        let mut ends: Box<[u64]> = endpoints
            .iter()
            .map(|endpoint| {
                sum += part(endpoint);
                // a cast from f64 saturates
                (sum / total * 2_f64.powi(64)) as u64
            })
            .collect();
        ends[last..].fill(u64::MAX);
        let mut at = 0;
        let guide = (0..ends.len())
            .map(|stretch| {
                let start = (((stretch as u128) << 64) / ends.len() as u128) as u64;
                while ends[at] <= start {
                    at += 1;
                }
                at as u32
            })
            .collect();
        Some(Self { ends, guide })
    }

    /// Whom `number` falls to.
    pub(super) fn at(&self, number: u64) -> usize {
        let stretch = (u128::from(number) * self.guide.len() as u128) >> 64;
        let mut at = self.guide[stretch as usize] as usize;
        // the last part has no end, for the one number that is no less than it
        while self.ends[at] <= number && self.ends[at] != u64::MAX {
            at += 1;
        }
        at
    }
}

/// Whom chance falls to, by one look into one table (Walker's alias method, 1974): as many columns as there are endpoints,
/// each of one's own part and another's that fills it up.
#[derive(Debug)]
pub(super) struct Odds(Box<[Column]>);

#[derive(Debug, Clone, Copy)]
struct Column {
    /// How much of it is its own, as a part of 2³².
    own: u32,
    other: u32,
}

impl Odds {
    /// The odds of these endpoints, by their weights as they are; `None` when none has a weight.
    pub(super) fn of(endpoints: &[Endpoint]) -> Option<Self> {
        let weights = || endpoints.iter().map(|endpoint| endpoint.key().weight_of());
        let (heaviest, most) = weights().enumerate().reduce(|one, other| if other.1 > one.1 { other } else { one })?;
        if most <= 0.0 {
            return None;
        }
        // parts of the heaviest, so that no sum of weights overflows
        let total: f64 = weights().map(|weight| weight / most).sum();
        let mut left: Vec<f64> = weights().map(|weight| weight / most / total * endpoints.len() as f64).collect();
        let full = |index: usize| Column { own: u32::MAX, other: index as u32 };
        let mut columns: Box<[Column]> = (0..left.len()).map(full).collect();
        let (mut low, mut high): (Vec<_>, Vec<_>) = (0..left.len()).partition(|index| left[*index] < 1.0);
        while let Some(one) = low.pop() {
            let Some(other) = high.last().copied() else {
                // full but for what was rounded off
                if left[one] == 0.0 {
                    columns[one] = Column { own: 0, other: heaviest as u32 };
                }
                continue;
            };
            // a cast from f64 saturates
            columns[one] = Column { own: (left[one] * 2_f64.powi(32)) as u32, other: other as u32 };
            left[other] -= 1.0 - left[one];
            if left[other] < 1.0 {
                low.extend(high.pop());
            }
        }
        Some(Self(columns))
    }

    /// Whom a random number falls to.
    pub(super) fn at(&self, number: u64) -> usize {
        let product = u128::from(number) * self.0.len() as u128;
        let (column, part) = ((product >> 64) as usize, (product as u64 >> 32) as u32);
        let Column { own, other } = self.0[column];
        // no branch, since nobody could foretell it
        [other as usize, column][usize::from(part < own)]
    }
}

/// An order in which each endpoint comes first as often as its weight says (Efraimidis and Spirakis 2006). `random` in 0..1.
pub(super) fn order(endpoint: &Endpoint, random: f64) -> f64 {
    -libm::log(1.0 - random) / endpoint.key().weight_of()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;
    use crate::select::pick::support::endpoints;

    fn shares(weights: &[f64]) -> Option<Shares> {
        Shares::of(&endpoints(weights.len(), |index, key| key.weight(weights[index]).unwrap()))
    }

    #[test]
    fn numbers_fall_where_the_weights_say() {
        let half = 1 << 63;
        for (weights, number, expected) in [
            (&[1.0, 1.0][..], 0, 0),
            (&[1.0, 1.0], half - 1, 0),
            (&[1.0, 1.0], half, 1),
            (&[1.0, 1.0], u64::MAX, 1),
            (&[0.0, 1.0, 0.0], 0, 1),
            (&[0.0, 1.0, 0.0], u64::MAX, 1),
            (&[f64::MAX, f64::MAX], half, 1),
            (&[1e-300, 1e300], 0, 1),
            (&[3.0, 1.0], half + half / 2, 1),
        ] {
            assert_eq!(shares(weights).unwrap().at(number), expected, "{weights:?} {number}");
        }
        assert!(shares(&[0.0, 0.0]).is_none());
    }

    #[test]
    fn odds_are_as_the_weights() {
        for weights in [&[1.0, 1.0][..], &[3.0, 1.0], &[0.0, 5.0, 0.0], &[98.0, 1.0, 3.0], &[f64::MAX, f64::MAX, 0.0]] {
            let odds = Odds::of(&endpoints(weights.len(), |index, key| key.weight(weights[index]).unwrap())).unwrap();
            let total: f64 = weights.iter().map(|weight| weight / weights.iter().copied().fold(0.0, f64::max)).sum();
            let most = weights.iter().copied().fold(0.0, f64::max);
            let mut counts = vec![0; weights.len()];
            // all numbers, in even steps
            (0..100_000_u64).for_each(|step| counts[odds.at(step * (u64::MAX / 100_000))] += 1);
            for (count, weight) in counts.into_iter().zip(weights) {
                let due = weight / most / total * 100_000.0;
                assert!((f64::from(count) - due).abs() <= 3.0, "{count} of {due} in {weights:?}");
            }
        }
        assert!(Odds::of(&endpoints(2, |_, key| key.weight(0.0).unwrap())).is_none());
    }

    proptest! {
        #[test]
        fn every_number_falls_to_somebody_with_a_weight(
            weights in proptest::collection::vec(0..5_u8, 1..50), number: u64, tail in any::<u8>(),
        ) {
            let weights: Vec<_> = weights.into_iter().map(f64::from).collect();
            if let Some(shares) = shares(&weights) {
                let odds = Odds::of(&endpoints(weights.len(), |index, key| key.weight(weights[index]).unwrap())).unwrap();
                for number in [number, u64::MAX - u64::from(tail)] {
                    prop_assert!(weights[shares.at(number)] > 0.0);
                    prop_assert!(weights[odds.at(number)] > 0.0);
                }
            }
        }
    }
}
