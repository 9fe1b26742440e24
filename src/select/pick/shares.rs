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

/// An order in which each endpoint comes first as often as its weight says (Efraimidis and Spirakis 2006). `random` in 0..1.
pub(super) fn order(endpoint: &Endpoint, random: f64) -> f64 {
    -(1.0 - random).ln() / endpoint.key().weight_of()
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

    proptest! {
        #[test]
        fn every_number_falls_to_somebody_with_a_weight(
            weights in proptest::collection::vec(0..5_u8, 1..50), number: u64, tail in any::<u8>(),
        ) {
            let weights: Vec<_> = weights.into_iter().map(f64::from).collect();
            if let Some(shares) = shares(&weights) {
                for number in [number, u64::MAX - u64::from(tail)] {
                    prop_assert!(weights[shares.at(number)] > 0.0);
                }
            }
        }
    }
}
