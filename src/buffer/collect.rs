//! Pieces of a body put together, and the memory they may take.

use std::fmt;

use bytes::Bytes;

use crate::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// First allocation for a body of several pieces: what is declared need not come, so more is taken only as it does.
const FIRST_ALLOCATION: usize = 64 * 1024;

/// Bytes that may be in memory, over all who share it.
#[derive(Clone)]
pub(super) struct Budget(Arc<Account>);

struct Account {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self(Arc::new(Account { limit, used: AtomicU64::new(0) }))
    }

    pub(super) fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    pub(super) fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("limit", &self.0.limit).field("used", &self.used()).finish()
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Reservation {
    /// Reserves more; `false` and nothing changed when the budget has no room.
    #[must_use]
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let Account { limit, used } = &*self.budget.0;
        // the count guards no other memory, so no ordering is needed
        let room = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| sum <= limit)
        });
        if room.is_ok() {
            self.bytes += bytes;
        }
        room.is_ok()
    }

    /// Ties the reservation to `data`: it ends with the last clone of it.
    pub(super) fn tie(self, data: Bytes) -> Bytes {
        if data.is_empty() { data } else { Bytes::from_owner(Reserved { data, _reservation: self }) }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Reserved {
    data: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The pieces of a body so far. A single one is kept as it came; more are copied together, since many small ones would take
/// far more memory than their bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    first: Bytes,
    all: Vec<u8>,
    /// What the whole can have at most, by its declared length and the cap.
    ceiling: usize,
    reservation: Reservation,
}

impl Pieces {
    pub(super) fn new(budget: &Budget, ceiling: u64) -> Self {
        let ceiling = usize::try_from(ceiling).unwrap_or(usize::MAX);
        Self { first: Bytes::new(), all: Vec::new(), ceiling, reservation: budget.reservation() }
    }

    pub(super) fn len(&self) -> u64 {
        self.reservation.bytes
    }

    /// Adds a piece; `false` when the budget has no room for it.
    #[must_use]
    pub(super) fn push(&mut self, piece: Bytes) -> bool {
        if !self.reservation.grow(piece.len() as u64) {
            return false;
        }
        if self.all.is_empty() && self.first.is_empty() {
            self.first = piece;
            return true;
        }
        let first = std::mem::take(&mut self.first);
        let needed = self.all.len() + first.len() + piece.len();
        if needed > self.all.capacity() {
            // doubled, as a vector does, but never past what can come
            let roomy = (self.all.capacity() * 2).max(FIRST_ALLOCATION).min(self.ceiling).max(needed);
            self.all.reserve_exact(roomy - self.all.len());
        }
        self.all.extend_from_slice(&first);
        self.all.extend_from_slice(&piece);
        true
    }

    /// All of it in one piece, which holds the reservation.
    pub(super) fn join(self) -> Bytes {
        let data = if self.all.is_empty() { self.first } else { self.all.into() };
        self.reservation.tie(data)
    }
}

#[cfg(all(test, not(tower_openrouter_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_single_piece_is_not_copied() {
        let piece = Bytes::from("a single piece");
        let mut pieces = Pieces::new(&Budget::new(100), 100);
        assert!(pieces.push(piece.clone()));
        assert_eq!(pieces.join().as_ptr(), piece.as_ptr());
    }

    #[test]
    fn r062_memory_grows_no_further_than_what_can_come() {
        let mut pieces = Pieces::new(&Budget::new(u64::MAX), 100_000);
        for _ in 0..100_000 {
            assert!(pieces.push(Bytes::from_static(b"x")));
            assert!(pieces.all.capacity() <= 100_000);
        }
        assert_eq!(pieces.join().len(), 100_000);
    }

    #[test]
    fn a_reservation_ends_with_the_last_clone_of_the_bytes() {
        let budget = Budget::new(10);
        let mut pieces = Pieces::new(&budget, 10);
        assert!(pieces.push(Bytes::from("12345")));
        assert!(pieces.push(Bytes::from("67890")));
        assert!(!pieces.push(Bytes::from("x")));
        let data = pieces.join();
        let slice = data.slice(3..4);
        drop(data);
        assert_eq!(budget.used(), 10);
        drop(slice);
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #[test]
        fn r063_pieces_joined_are_the_body(body in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let budget = Budget::new(u64::MAX);
            let mut pieces = Pieces::new(&budget, u64::MAX);
            for piece in &body {
                prop_assert!(pieces.push(Bytes::copy_from_slice(piece)));
            }
            let whole = body.concat();
            prop_assert_eq!(pieces.len(), whole.len() as u64);
            let joined = pieces.join();
            prop_assert_eq!(&joined[..], &whole[..]);
            drop(joined);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}

#[cfg(all(test, tower_openrouter_loom))]
mod model {
    use loom::thread;

    use super::*;

    #[test]
    fn r127_the_budget_is_never_passed_and_comes_back() {
        loom::model(|| {
            let budget = Budget::new(3);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let budget = budget.clone();
                    thread::spawn(move || {
                        let mut reservation = budget.reservation();
                        let granted = reservation.grow(2);
                        assert!(budget.used() <= 3);
                        drop(reservation);
                        granted
                    })
                })
                .collect();
            let granted = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count();
            assert!(granted >= 1);
            assert_eq!(budget.used(), 0);
        });
    }
}
