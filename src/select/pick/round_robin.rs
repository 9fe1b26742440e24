use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;

use super::{Candidates, Pick};

/// Each endpoint in turn. One counter for all clones, so that the turns are even across them.
///
/// ```
/// use tower_openrouter::select::RoundRobin;
/// let pick = RoundRobin::default();
/// # let _ = pick;
/// ```
///
/// In the stack, among the keys of the first tier that can serve:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{Pool, PriorityTiers, RoundRobin}};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?, ApiKey::new("sk-or-v1-spare")?.tier(2)])?;
/// let builder = Balancer::builder(pool).pick(PriorityTiers::new(RoundRobin::default()));
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Debug, Default)]
pub struct RoundRobin(AtomicUsize);

impl Pick for RoundRobin {
    fn propose(&self, candidates: &Candidates<'_>, _turn: usize, _rng: &mut Rng) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed) % candidates.endpoints.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;
    use crate::select::pick::support::{endpoints, picks, shares};

    #[test]
    fn r013_round_robin_is_even_across_threads() {
        let (pick, endpoints) = (Arc::new(RoundRobin::default()), endpoints(5, |_, key| key));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (pick, endpoints) = (pick.clone(), endpoints.clone());
                std::thread::spawn(move || shares(&picks(&pick, &endpoints, 12_500, |_| false), 5))
            })
            .collect();
        let mut sum = [0; 5];
        for thread in threads {
            for (sum, share) in sum.iter_mut().zip(thread.join().unwrap()) {
                *sum += share;
            }
        }
        assert_eq!(sum, [20_000; 5]);
    }

    proptest! {
        #[test]
        fn what_one_key_refuses_is_shared_by_all_others(count in 3..12_usize, out: usize) {
            let (out, endpoints) = (out % count, endpoints(count, |_, key| key));
            let mut rounds = shares(&picks(&RoundRobin::default(), &endpoints, 100 * (count - 1), |index| index == out), count);
            prop_assert_eq!(rounds.remove(out), 0);
            prop_assert_eq!(rounds, vec![100; count - 1]);
        }
    }
}
