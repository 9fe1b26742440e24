//! Who stands where, and whether that is more than chance.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    METRICS, Metric, ORACLE, Spread,
    statistics::{holm, paired_t},
};
use crate::lab::Figures;

/// Below this chance a difference is called significant.
pub(super) const LEVEL: f64 = 0.05;

/// How a stack stands in a scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// The stack's name.
    pub stack: String,
    /// From 1; `None` for the oracle.
    pub rank: Option<usize>,
    /// Mean goodput over the oracle's; `None` where the oracle did not run, or served nothing.
    pub goodput_to_oracle: Option<f64>,
    /// Goodput against the stack of rank 1; `None` for that one, and for the oracle.
    pub goodput_to_best: Option<Difference>,
    /// Upstream 429s per success against the stack of rank 1.
    pub upstream_429_to_best: Option<Difference>,
    /// Each of [`METRICS`] over the seeds, in their order.
    #[serde(skip)]
    pub spreads: Vec<Option<Spread>>,
    /// How many keys in trouble the stack did not see to be lost, in all seeds together.
    pub undetected: usize,
    /// How many keys whose trouble was over did not come back, in all seeds together.
    pub unrecovered: usize,
    /// How many bursts were felt to the end, in all seeds together.
    pub uncalmed: usize,
}

impl Standing {
    /// A figure by the name it has in [`METRICS`].
    pub fn spread(&self, id: &str) -> Option<Spread> {
        let place = METRICS.iter().position(|metric| metric.id == id)?;
        self.spreads[place]
    }
}

/// A difference to the best stack, taken seed by seed.
///
/// Tested is by a paired t test, two-sided, with Holm's correction for the number of stacks, at 5 %: a difference of the
/// same size with every seed is significant, however small. With fewer than three seeds nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// This stack's value less the best one's, over the seeds both ran with.
    pub spread: Spread,
    /// How likely chance alone is to bring about as much, corrected; `None` for fewer than three seeds.
    pub chance: Option<f64>,
    /// Whether that is below 5 %.
    pub significant: bool,
}

type BySeed = BTreeMap<u64, Figures>;

/// By rank, and last what has none.
pub(super) fn rank(stacks: &[(&str, &BySeed)]) -> Vec<Standing> {
    let spread = |seeds: &BySeed, metric: &Metric| {
        Spread::of(&seeds.values().filter_map(|figures| metric.of(figures)).collect::<Vec<_>>())
    };
    let mut standings: Vec<_> = stacks
        .iter()
        .map(|(name, seeds)| Standing {
            stack: (*name).to_owned(),
            rank: None,
            goodput_to_oracle: None,
            goodput_to_best: None,
            upstream_429_to_best: None,
            spreads: METRICS.iter().map(|metric| spread(seeds, metric)).collect(),
            undetected: seeds.values().map(|figures| figures.reaction.undetected).sum(),
            unrecovered: seeds.values().map(|figures| figures.reaction.unrecovered).sum(),
            uncalmed: seeds.values().map(|figures| figures.uncalmed).sum(),
        })
        .collect();
    let mean = |standing: &Standing, id| standing.spread(id).map(|spread| spread.mean);
    // stable: equals stay in the order in which they were named
    standings.sort_by(|a, b| {
        let goodput = |standing| mean(standing, "goodput").unwrap_or(0.0);
        let refusals = |standing| mean(standing, "upstream_429_per_success").unwrap_or(f64::INFINITY);
        let oracle = (a.stack == ORACLE).cmp(&(b.stack == ORACLE));
        oracle.then(goodput(b).total_cmp(&goodput(a))).then(refusals(a).total_cmp(&refusals(b)))
    });
    let oracle = standings.iter().find(|standing| standing.stack == ORACLE).and_then(|oracle| mean(oracle, "goodput"));
    for (place, standing) in standings.iter_mut().enumerate() {
        standing.rank = (standing.stack != ORACLE).then_some(place + 1);
        let oracle = oracle.filter(|oracle| *oracle > 0.0);
        standing.goodput_to_oracle = oracle.and_then(|oracle| Some(mean(standing, "goodput")? / oracle));
    }
    let seeds_of = |name: &str| stacks.iter().find(|(stack, _)| *stack == name).map(|(_, seeds)| *seeds);
    let ranked = standings.iter().filter(|standing| standing.rank.is_some()).count();
    if let Some((best, others)) = standings[..ranked].split_first_mut()
        && let Some(best) = seeds_of(&best.stack)
    {
        let others_seeds: Vec<_> = others.iter().filter_map(|other| seeds_of(&other.stack)).collect();
        let goodput = differences("goodput", best, &others_seeds);
        let refusals = differences("upstream_429_per_success", best, &others_seeds);
        for ((other, goodput), refusals) in others.iter_mut().zip(goodput).zip(refusals) {
            (other.goodput_to_best, other.upstream_429_to_best) = (goodput, refusals);
        }
    }
    standings
}

/// Of each of the others to the best, by one figure.
fn differences(id: &str, best: &BySeed, others: &[&BySeed]) -> Vec<Option<Difference>> {
    let Some(metric) = Metric::named(id) else { return vec![None; others.len()] };
    let pairs = |other: &BySeed| -> Vec<f64> {
        let pair = |(seed, figures)| Some(metric.of(figures)? - metric.of(best.get(seed)?)?);
        other.iter().filter_map(pair).collect()
    };
    let values: Vec<_> = others.iter().map(|other| pairs(other)).collect();
    let chances = holm(&values.iter().map(|values| paired_t(values)).collect::<Vec<_>>());
    let difference = |(values, chance): (&Vec<f64>, Option<f64>)| {
        let spread = Spread::of(values)?;
        Some(Difference { spread, chance, significant: chance.is_some_and(|chance| chance < LEVEL) })
    };
    values.iter().zip(chances).map(difference).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Errors, Latency, Reaction};

    fn figures(goodput: f64, refusals: f64) -> Figures {
        Figures {
            offered: 100,
            served: 100,
            goodput,
            served_share: Some(1.0),
            errors: Errors::default(),
            error_share: Some(0.0),
            attempts: 100,
            attempts_per_request: Some(1.0),
            upstream_429: 0,
            upstream_429_per_success: Some(refusals),
            added_wait: Latency::default(),
            first_output: Latency::default(),
            fairness: None,
            reaction: Reaction::default(),
            calm_s: None,
            uncalmed: 0,
            spent: 1.0,
            wasted: 0.0,
            wasted_share: Some(0.0),
        }
    }

    fn seeds(values: &[(f64, f64)]) -> BySeed {
        (1..).zip(values).map(|(seed, (goodput, refusals))| (seed, figures(*goodput, *refusals))).collect()
    }

    fn percent(share: Option<f64>) -> Option<f64> {
        share.map(|share| (share * 100.0).round())
    }

    #[test]
    fn rank_is_by_goodput_then_by_fewer_refusals_and_the_oracle_has_none() {
        let (good, better) = (seeds(&[(9.0, 0.5), (9.2, 0.5)]), seeds(&[(9.2, 0.1), (9.0, 0.1)]));
        let (bad, oracle) = (seeds(&[(5.0, 0.0), (5.0, 0.0)]), seeds(&[(10.0, 0.0), (10.0, 0.0)]));
        let standings = rank(&[("bad", &bad), (ORACLE, &oracle), ("good", &good), ("better", &better)]);
        let told: Vec<_> = standings.iter().map(|s| (&*s.stack, s.rank, percent(s.goodput_to_oracle))).collect();
        let expected = [
            ("better", Some(1), Some(91.0)),
            ("good", Some(2), Some(91.0)),
            ("bad", Some(3), Some(50.0)),
            (ORACLE, None, Some(100.0)),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_differs_with_every_seed_is_significant_and_what_does_so_by_chance_is_not() {
        let best = seeds(&[(9.0, 0.1), (9.4, 0.1), (8.9, 0.1), (9.2, 0.1), (9.1, 0.1)]);
        let same = seeds(&[(9.1, 0.1), (9.2, 0.1), (9.0, 0.1), (9.1, 0.1), (9.1, 0.1)]);
        let worse = seeds(&[(8.8, 0.1), (9.2, 0.1), (8.6, 0.1), (9.0, 0.1), (8.9, 0.1)]);
        let standings = rank(&[("best", &best), ("same", &same), ("worse", &worse)]);
        let significant = |place: usize| standings[place].goodput_to_best.map(|to| to.significant);
        assert_eq!((significant(0), significant(1), significant(2)), (None, Some(false), Some(true)));
        assert_eq!(standings[2].upstream_429_to_best.map(|to| (to.spread.mean, to.significant)), Some((0.0, false)));
    }

    #[test]
    fn of_two_seeds_nothing_is_significant() {
        let (best, worse) = (seeds(&[(9.0, 0.0), (9.0, 0.0)]), seeds(&[(1.0, 0.0), (1.0, 0.0)]));
        let to = rank(&[("best", &best), ("worse", &worse)])[1].goodput_to_best.unwrap();
        assert_eq!((to.spread.mean, to.chance, to.significant), (-8.0, None, false));
    }
}
