use std::{any::type_name, fmt};

use fastrand::Rng;

use super::{Candidates, Pick};

/// A [`Pick`] from a closure, which proposes as [`Pick::propose`] does.
///
/// The parameters' types must be written out. It has no order for those who come after its proposals; a pick that wants one
/// implements the trait.
///
/// Always a key chosen at random:
///
/// ```
/// use tower_openrouter::select::{Candidates, Rng, pick_fn};
///
/// let pick = pick_fn(|candidates: &Candidates<'_>, _turn: usize, rng: &mut Rng| rng.usize(..candidates.endpoints.len()));
/// # let _ = pick;
/// ```
///
/// The key that the caller names in a header, and no other unless that one cannot serve:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{Candidates, Pool, Rng, pick_fn}};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b")])?;
/// let by_name = pick_fn(|candidates: &Candidates<'_>, _turn: usize, _rng: &mut Rng| {
///     let wanted = candidates.headers.get("x-key").and_then(|name| name.to_str().ok());
///     let mut names = candidates.endpoints.iter().map(|endpoint| endpoint.key().name());
///     names.position(|name| Some(name) == wanted).unwrap_or(usize::MAX)
/// });
/// let builder = Balancer::builder(pool).pick(by_name);
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
pub fn pick_fn<F>(propose: F) -> PickFn<F>
where
    F: Fn(&Candidates<'_>, usize, &mut Rng) -> usize + Send + Sync + 'static,
{
    PickFn(propose)
}

/// See [`pick_fn`].
#[derive(Clone, Copy)]
pub struct PickFn<F>(F);

impl<F> fmt::Debug for PickFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PickFn").field(&type_name::<F>()).finish()
    }
}

impl<F> Pick for PickFn<F>
where
    F: Fn(&Candidates<'_>, usize, &mut Rng) -> usize + Send + Sync + 'static,
{
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, rng: &mut Rng) -> usize {
        (self.0)(candidates, turn, rng)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;
    use crate::select::pick::support::{endpoints, picks};

    #[test]
    fn a_closure_proposes_by_turns() {
        let pick = pick_fn(|candidates: &Candidates<'_>, turn: usize, _: &mut Rng| turn % candidates.endpoints.len());
        for (out, expected) in [(None, 0), (Some(0), 1), (Some(1), 0)] {
            assert_eq!(picks(&pick, &endpoints(3, |_, key| key), 2, |index| Some(index) == out), [expected; 2]);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_closure_says_who_can_serve_is_found(says: usize, count in 1..20_usize, only: usize) {
            let (pick, only) = (pick_fn(move |_: &Candidates<'_>, _: usize, _: &mut Rng| says), only % count);
            let taken = picks(&pick, &endpoints(count, |_, key| key), 3, |index| index != only);
            prop_assert!(taken == [only; 3]);
        }
    }
}
