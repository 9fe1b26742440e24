use std::fmt;

use tokio::time::Instant;
use tower::retry::budget::Budget;

use super::RetryError;
use crate::{
    clock,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        lock,
    },
};

/// How many retries all requests together may make: a share of the requests of the last 10 s, and a reserve.
///
/// A maximum of attempts bounds what one request may cost, not what a storm costs: when everything fails, three attempts
/// each are three times the load. A budget bounds that. Default: 0.2 retries a request, and 10 a second whatever the traffic
/// (Finagle's and tower's numbers).
///
/// Whenever a retry is granted, those granted in the 10 s before it, itself included, are at most ratio × requests of these
/// 10 s + 10 × reserve. Time is cut into half seconds, and the one that lies across the edge counts for retries but not for
/// requests, so the bound is never passed. Clones share one budget, and so may several layers.
///
/// It implements tower's [`Budget`], so it also serves tower's own policies.
#[derive(Clone)]
pub struct RetryBudget(Arc<Core>);

/// Parts per million, so that 0.6 is 0.6 and sums are exact.
const MILLION: u64 = 1_000_000;
/// Length of the window.
const WINDOW_SECS: u64 = 10;
/// Pieces of the window.
#[cfg(not(all(test, tower_openrouter_loom)))]
const SLOTS: u32 = 20;
#[cfg(all(test, tower_openrouter_loom))]
const SLOTS: u32 = 2;
const SLOT_NANOS: u64 = WINDOW_SECS * 1_000_000_000 / SLOTS as u64;
/// Slots kept: the window and the piece across its edge, to a power of two.
const RING: usize = (SLOTS as usize + 1).next_power_of_two();

/// Which half second it is.
type Tick = u32;

struct Core {
    /// Retries for a million requests.
    ratio: u64,
    /// Retries for each window whatever the requests.
    reserve: u64,
    /// Requests of a slot: its tick above, their number below. Every request adds to them, so they take no lock.
    requests: [AtomicU64; RING],
    /// Retries of a slot.
    granted: Mutex<[(Tick, u32); RING]>,
}

impl Core {
    fn new(ratio: u64, reserve: u64) -> Self {
        Self {
            ratio,
            reserve,
            requests: std::array::from_fn(|_| AtomicU64::new(0)),
            granted: Mutex::new([(0, 0); RING]),
        }
    }

    fn deposit(&self, tick: Tick) {
        let slot = &self.requests[tick as usize % RING];
        let mut seen = slot.load(Ordering::Relaxed);
        loop {
            let (of, count) = unpack(seen);
            let next = match of.cmp(&tick) {
                std::cmp::Ordering::Equal => pack(tick, count.saturating_add(1)),
                std::cmp::Ordering::Less => pack(tick, 1),
                // a whole ring later already: this request is out of every window
                std::cmp::Ordering::Greater => return,
            };
            match slot.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn withdraw(&self, tick: Tick) -> bool {
        let mut granted = lock(&self.granted);
        let requests: u64 = self
            .requests
            .iter()
            .map(|slot| unpack(slot.load(Ordering::Relaxed)))
            .filter(|(of, _)| *of <= tick && tick - of < SLOTS)
            .map(|(_, count)| u64::from(count))
            .sum();
        let retries: u64 =
            granted.iter().filter(|(of, _)| of.saturating_add(SLOTS) >= tick).map(|(_, count)| u64::from(*count)).sum();
        let allowed = self.ratio.saturating_mul(requests).saturating_add(self.reserve.saturating_mul(MILLION));
        if (retries + 1).saturating_mul(MILLION) > allowed {
            return false;
        }
        let slot = &mut granted[tick as usize % RING];
        match slot.0.cmp(&tick) {
            std::cmp::Ordering::Less => *slot = (tick, 1),
            // a slot newer than this call is the nearest that is still counted
            _ => slot.1 = slot.1.saturating_add(1),
        }
        true
    }

    fn refund(&self, tick: Tick) {
        let mut granted = lock(&self.granted);
        let slot = &mut granted[tick as usize % RING];
        if slot.0 == tick {
            slot.1 = slot.1.saturating_sub(1);
        }
    }
}

fn pack(tick: Tick, count: u32) -> u64 {
    u64::from(tick) << 32 | u64::from(count)
}

fn unpack(slot: u64) -> (Tick, u32) {
    ((slot >> 32) as u32, slot as u32)
}

/// Half seconds fit 32 bits for 68 years.
fn tick(now: Instant) -> Tick {
    (clock::nanos(now) / SLOT_NANOS) as u32
}

impl RetryBudget {
    /// A budget of `ratio` retries for each request of the last 10 s, and `reserve` more each second.
    ///
    /// # Errors
    /// When the ratio is not a number of 0 to 1.
    pub fn new(ratio: f64, reserve: u32) -> Result<Self, RetryError> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(RetryError::Ratio(ratio));
        }
        Ok(Self::of_parts((ratio * MILLION as f64).round() as u64, reserve))
    }

    fn of_parts(ratio: u64, reserve: u32) -> Self {
        Self(Arc::new(Core::new(ratio, u64::from(reserve) * WINDOW_SECS)))
    }

    /// Takes one retry out, or `None` when there is none left.
    pub(super) fn take(&self, now: Instant) -> Option<Ticket> {
        let tick = tick(now);
        self.0.withdraw(tick).then(|| Ticket { budget: Some(self.clone()), tick })
    }

    /// Counts a request that came at `arrived`.
    pub(super) fn deposit_at(&self, arrived: Instant) {
        self.0.deposit(tick(arrived));
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::of_parts(MILLION / 5, 10)
    }
}

impl Budget for RetryBudget {
    fn deposit(&self) {
        self.deposit_at(Instant::now());
    }

    fn withdraw(&self) -> bool {
        self.0.withdraw(tick(Instant::now()))
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("ratio", &(self.0.ratio as f64 / MILLION as f64))
            .field("reserve", &(self.0.reserve / WINDOW_SECS))
            .finish_non_exhaustive()
    }
}

/// A retry taken out of the budget; dropped before it was [spent](Self::spend), it goes back.
#[derive(Debug)]
pub(super) struct Ticket {
    budget: Option<RetryBudget>,
    tick: Tick,
}

impl Ticket {
    /// The retry starts.
    pub(super) fn spend(mut self) {
        self.budget = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.0.refund(self.tick);
        }
    }
}

#[cfg(all(test, not(tower_openrouter_loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn granted(budget: &RetryBudget) -> usize {
        (0..100_000).take_while(|_| budget.withdraw()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_0_6_means_0_6() {
        for (ratio, grants) in [
            (0.0, 0),
            (0.2, 200),
            (0.29, 290),
            (0.3, 300),
            (0.4, 400),
            (0.6, 600),
            (0.75, 750),
            (0.9, 900),
            (1.0, 1000),
        ] {
            let budget = RetryBudget::new(ratio, 0).unwrap();
            (0..1000).for_each(|_| budget.deposit());
            assert_eq!(granted(&budget), grants, "ratio {ratio}");
        }
    }

    #[test]
    fn r117_a_ratio_that_is_no_share_is_refused() {
        for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(RetryBudget::new(ratio, 0), Err(RetryError::Ratio(_))), "{ratio}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_reserve_is_there_without_traffic_and_comes_back() {
        let budget = RetryBudget::new(0.2, 10).unwrap();
        assert_eq!(granted(&budget), 100);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(granted(&budget), 0);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(granted(&budget), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_that_is_not_spent_goes_back() {
        let budget = RetryBudget::new(1.0, 0).unwrap();
        budget.deposit();
        drop(budget.take(Instant::now()).unwrap());
        budget.take(Instant::now()).unwrap().spend();
        assert!(budget.take(Instant::now()).is_none());
    }

    proptest! {
        /// Every step deposits, tries to withdraw, or lets time pass; each grant is checked against the exact window.
        #[test]
        fn r050_no_grant_passes_the_bound_of_its_window(
            ratio in 0.0..=1.0f64, reserve in 0u64..3,
            steps in prop::collection::vec((0u64..3, 1u64..40), 1..200),
        ) {
            let ratio = (ratio * MILLION as f64) as u64;
            let core = Core::new(ratio, reserve * WINDOW_SECS);
            let (mut now, mut deposits, mut grants) = (1_000_000_000_000u64, vec![], vec![]);
            for (step, amount) in steps {
                let tick = (now / SLOT_NANOS) as u32;
                match step {
                    0 => now += amount * 97_000_000,
                    1 => (0..amount).for_each(|_| { core.deposit(tick); deposits.push(now); }),
                    _ => for _ in 0..amount {
                        if !core.withdraw(tick) { break; }
                        grants.push(now);
                        let since = now - WINDOW_SECS * 1_000_000_000;
                        let inside = |times: &[u64]| times.iter().filter(|at| **at > since).count() as u64;
                        prop_assert!(inside(&grants) * MILLION <= ratio * inside(&deposits) + reserve * WINDOW_SECS * MILLION);
                    },
                }
            }
        }
    }

    #[test]
    fn r052_threads_share_one_budget_exactly() {
        let core = Core::new(MILLION / 2, 0);
        let grants: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .filter(|_| {
                                core.deposit(7);
                                core.withdraw(7)
                            })
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(grants <= 4000, "{grants}");
        assert!((grants..=4000).all(|last| core.withdraw(7) == (last < 4000)), "no deposit was lost");
    }
}

#[cfg(all(test, tower_openrouter_loom))]
mod model {
    use loom::thread;

    use super::*;

    #[test]
    fn r052_grants_never_exceed_deposits_times_ratio_plus_reserve() {
        loom::model(|| {
            let core = Arc::new(Core::new(MILLION / 2, 1));
            let other = core.clone();
            let thread = thread::spawn(move || {
                other.deposit(1);
                u64::from(other.withdraw(1)) + u64::from(other.withdraw(2))
            });
            core.deposit(1);
            let mine = u64::from(core.withdraw(1)) + u64::from(core.withdraw(1));
            let grants = mine + thread.join().unwrap();
            assert!(grants <= 2, "{grants} grants for 2 deposits at a half and a reserve of 1");
            let rest = (0..3).filter(|_| core.withdraw(2)).count() as u64;
            assert_eq!(grants + rest, 2, "no deposit is lost");
        });
    }

    #[test]
    fn a_refund_races_with_a_withdrawal_and_neither_is_lost() {
        loom::model(|| {
            let core = Arc::new(Core::new(0, 1));
            assert!(core.withdraw(1));
            let other = core.clone();
            let thread = thread::spawn(move || other.refund(1));
            let mine = core.withdraw(1);
            thread.join().unwrap();
            assert_eq!(core.withdraw(1), !mine);
        });
    }
}
