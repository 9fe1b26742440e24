//! Means, spreads, and what is more than chance.

use std::f64::consts::FRAC_2_PI;

use serde::Serialize;

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation (n - 1); `None` with a single value.
    pub sd: Option<f64>,
    /// Of how many seeds; those without a value are left out.
    pub seeds: usize,
}

impl Spread {
    /// Of these values; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let seeds = values.len();
        let (first, rest) = values.split_first()?;
        // equal values are their own mean to the last bit, which a sum would not be
        let mean = match rest.iter().all(|value| value == first) {
            true => *first,
            false => values.iter().sum::<f64>() / seeds as f64,
        };
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        let sd = (seeds > 1).then(|| libm::sqrt(squares / (seeds - 1) as f64));
        Some(Self { mean, sd, seeds })
    }
}

/// How likely a paired t test holds a mean of differences as far from 0 as this to be, were it chance alone, two-sided;
/// `None` for fewer than three.
///
/// Student, "The probable error of a mean", Biometrika 6 (1908). The test of signs, or of all flips of signs, would need no
/// assumption on how differences are distributed, but cannot fall below 2/32 with five seeds, whatever the differences.
pub(super) fn paired_t(differences: &[f64]) -> Option<f64> {
    let spread = Spread::of(differences).filter(|spread| spread.seeds >= 3)?;
    let error = spread.sd? / libm::sqrt(spread.seeds as f64);
    Some(match (error > 0.0, spread.mean == 0.0) {
        (true, _) => two_sided(spread.mean / error, spread.seeds - 1),
        (false, true) => 1.0,
        (false, false) => 0.0,
    })
}

/// The part of Student's distribution with `freedom` degrees of freedom that lies outside -|t| to |t|.
///
/// Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
fn two_sided(t: f64, freedom: usize) -> f64 {
    let freedom_f = freedom as f64;
    let theta = libm::atan(t.abs() / libm::sqrt(freedom_f));
    let cos2 = freedom_f / (freedom_f + t * t);
    let sin = libm::sqrt(1.0 - cos2);
    let cos = libm::sqrt(cos2);
    // the sums of 26.7.3 (odd) and 26.7.4 (even) differ in where they start
    let odd = freedom % 2 == 1;
    let (mut term, mut sum) = if odd { (cos, if freedom == 1 { 0.0 } else { cos }) } else { (1.0, 1.0) };
    let mut step = if odd { 3 } else { 2 };
    while step + 2 <= freedom {
        term *= cos2 * (step - 1) as f64 / step as f64;
        sum += term;
        step += 2;
    }
    let inside = if odd { FRAC_2_PI * (theta + sin * sum) } else { sin * sum };
    (1.0 - inside).clamp(0.0, 1.0)
}

/// The same probabilities, each made so much larger that even one of them falls below a level by chance no more often than
/// that level says. Order is kept.
///
/// Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
pub(super) fn holm(chances: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<_> = chances.iter().enumerate().filter_map(|(index, p)| Some((index, (*p)?))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let mut adjusted = vec![None; chances.len()];
    let mut floor = 0.0_f64;
    for (place, (index, p)) in order.iter().enumerate() {
        floor = floor.max((p * (order.len() - place) as f64).min(1.0));
        adjusted[*index] = Some(floor);
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_mean_and_sample_standard_deviation() {
        let spread = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((spread.mean, spread.seeds), (5.0, 8));
        assert!((spread.sd.unwrap() - 2.138_089_935).abs() < 1e-9);
        assert_eq!(Spread::of(&[0.1; 5]), Some(Spread { mean: 0.1, sd: Some(0.0), seeds: 5 }));
        assert_eq!((Spread::of(&[]), Spread::of(&[3.0]).unwrap().sd), (None, None));
    }

    #[test]
    fn students_distribution_has_the_values_of_the_tables() {
        // the two-sided 5 % and 1 % points
        for (freedom, five, one) in [
            (1, 12.706_205, 63.656_741),
            (2, 4.302_653, 9.924_843),
            (3, 3.182_446, 5.840_909),
            (4, 2.776_445, 4.604_095),
            (5, 2.570_582, 4.032_143),
            (9, 2.262_157, 3.249_836),
            (10, 2.228_139, 3.169_273),
            (29, 2.045_230, 2.756_386),
        ] {
            assert!((two_sided(five, freedom) - 0.05).abs() < 1e-6, "{freedom}: {}", two_sided(five, freedom));
            assert!((two_sided(-one, freedom) - 0.01).abs() < 1e-6, "{freedom}: {}", two_sided(-one, freedom));
        }
        assert_eq!(two_sided(0.0, 4), 1.0);
    }

    #[test]
    fn the_same_difference_with_every_seed_is_no_chance_and_none_is_no_difference() {
        assert_eq!(paired_t(&[0.5; 5]), Some(0.0));
        assert_eq!(paired_t(&[0.0; 5]), Some(1.0));
        assert_eq!(paired_t(&[0.5, 0.6]), None);
        let p = paired_t(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((p - 0.013_236_6).abs() < 1e-5, "{p}");
    }

    #[test]
    fn many_tests_are_held_to_one_level() {
        let adjusted = holm(&[Some(0.01), None, Some(0.04), Some(0.03), Some(0.005)]);
        let expected = [Some(0.03), None, Some(0.06), Some(0.06), Some(0.02)];
        for (adjusted, expected) in adjusted.iter().zip(expected) {
            assert_eq!(adjusted.is_some(), expected.is_some());
            assert!((adjusted.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 1e-12, "{adjusted:?} {expected:?}");
        }
    }
}
