//! How many endpoints may be out at once because they fail.

/// Bounds on how many of a pool's endpoints may be out for failures that pass by themselves, such as those that open a
/// breaker. What a refusal says for certain (no credit, no such key, a limit) is no part of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ejection {
    /// The largest share of all that may be out at once; at least one endpoint may be.
    pub(super) max_ejected: f64,
    /// The share of all that must be in use; below it, all who only fail are used again.
    pub(super) panic_below: f64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { max_ejected: 1.0, panic_below: 0.0 }
    }
}

impl Ejection {
    /// How many of the `ejected` are to be used all the same, where `usable` others are in use and `resting` ones are out
    /// for certain.
    pub(super) fn readmitted(&self, usable: usize, ejected: usize, resting: usize) -> usize {
        let all = (usable + ejected + resting) as f64;
        let may_be_out = (all * self.max_ejected).floor().max(1.0) as usize;
        let above = ejected.saturating_sub(may_be_out);
        if ((usable + above) as f64) < all * self.panic_below { ejected } else { above }
    }
}

/// Why a selector cannot be made as asked.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// A share is not usable.
    #[error("{name} is {value}: it must be a share, from 0 to 1")]
    BadShare {
        /// Which setting.
        name: &'static str,
        /// What it was set to.
        value: f64,
    },
}

/// The share, if it is one.
pub(super) fn share(name: &'static str, value: f64) -> Result<f64, SelectError> {
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(SelectError::BadShare { name, value }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    #[test]
    fn r017_r018_who_is_used_again() {
        for (max_ejected, panic_below, usable, ejected, resting, expected) in [
            // neither is asked for
            (1.0, 0.0, 0, 10, 0, 0),
            // no more than a tenth are out, but one may be
            (0.1, 0.0, 5, 5, 0, 4),
            (0.1, 0.0, 2, 1, 0, 0),
            (0.0, 0.0, 0, 3, 0, 2),
            // those out for certain do not count towards the cap
            (0.5, 0.0, 0, 2, 2, 0),
            // fewer than half are left
            (1.0, 0.5, 5, 5, 0, 0),
            (1.0, 0.5, 4, 6, 0, 6),
            (1.0, 0.5, 4, 1, 5, 1),
            // the cap comes first
            (0.5, 0.5, 0, 10, 0, 5),
            (0.5, 0.6, 0, 10, 0, 10),
        ] {
            let ejection = Ejection { max_ejected, panic_below };
            let found = ejection.readmitted(usable, ejected, resting);
            assert_eq!(found, expected, "{ejection:?} {usable} {ejected} {resting}");
        }
    }

    #[test]
    fn r117_shares_are_checked() {
        for value in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(share("max_ejected", value).is_err(), "{value}");
        }
        assert_eq!(share("x", 1.0), Ok(1.0));
    }

    proptest! {
        #[test]
        fn r018_the_cap_holds(
            share in 0.0..=1.0_f64, panic in 0.0..=1.0_f64, usable in 0..500_usize, ejected in 0..500_usize, resting in 0..500_usize,
        ) {
            let readmitted = Ejection { max_ejected: share, panic_below: panic }.readmitted(usable, ejected, resting);
            prop_assert!(readmitted <= ejected);
            let out = ejected - readmitted;
            let all = usable + ejected + resting;
            prop_assert!(out <= 1 || out as f64 <= all as f64 * share);
            if readmitted < ejected {
                prop_assert!((usable + readmitted) as f64 >= all as f64 * panic);
            }
        }
    }
}
