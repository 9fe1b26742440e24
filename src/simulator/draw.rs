//! Random numbers that are the same on any machine.
//!
//! The platform's own `exp` and `ln` differ in the last digit from one libc to the next, and one digit is another order of
//! events; `libm` is the same code everywhere.

use std::f64::consts::TAU;

/// A random source of its own for one purpose, independent of the order of other draws.
pub(crate) fn rng(seed: u64, purpose: &str, number: u64) -> fastrand::Rng {
    // SplitMix64's increment spreads consecutive numbers over the state space.
    let name = purpose.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mixed = seed ^ name.rotate_left(32) ^ number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut rng = fastrand::Rng::with_seed(mixed);
    fastrand::Rng::with_seed(rng.u64(..))
}

/// A number from the standard normal distribution, of two draws.
pub(crate) fn normal(rng: &mut fastrand::Rng) -> f64 {
    // `f64` is below 1, so the logarithm is finite
    let radius = (-2.0 * libm::log(1.0 - rng.f64())).sqrt();
    radius * libm::cos(TAU * rng.f64())
}

/// A log-normal factor with median 1; `sigma` is the standard deviation of its logarithm. Without one nothing is drawn.
pub(crate) fn spread(rng: &mut fastrand::Rng, sigma: f64) -> f64 {
    if sigma > 0.0 { libm::exp(sigma * normal(rng)) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::{normal, spread};

    #[test]
    fn a_spread_has_median_one_and_the_tail_its_sigma_says() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut drawn: Vec<f64> = (0..100_000).map(|_| spread(&mut rng, 0.5)).collect();
        drawn.sort_by(f64::total_cmp);
        let at = |part: f64| drawn[(drawn.len() as f64 * part) as usize];
        for (part, wanted) in [(0.05, 0.4394), (0.5, 1.0), (0.95, 2.276), (0.99, 3.200)] {
            assert!((at(part) / wanted - 1.0).abs() < 0.02, "{part}: {} for {wanted}", at(part));
        }
    }

    #[test]
    fn the_numbers_are_those_of_any_machine_and_without_sigma_none_is_drawn() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!((spread(&mut rng, 0.0), rng.get_seed()), (1.0, fastrand::Rng::with_seed(1).get_seed()));
        let bits: Vec<u64> = (0..3).map(|_| normal(&mut rng).to_bits()).collect();
        assert_eq!(bits, [13_832_484_259_009_570_500, 4_593_978_772_337_631_905, 4_583_458_220_920_026_633]);
    }
}
