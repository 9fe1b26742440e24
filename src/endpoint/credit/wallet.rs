use tokio::time::Instant;

use super::{Money, Spendable, brake::Brake, purse::Purse};
use crate::{
    clock,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
        lock,
    },
};

/// A purse and a brake that several requests, or several keys, share: changed under a lock, read without one.
#[derive(Debug)]
pub(super) struct Wallet {
    state: Mutex<State>,
    /// What may be spent, in nano-dollars, or one of the two below.
    spendable: AtomicI64,
    /// How much may still go into flight.
    room: AtomicI64,
    /// When the purse changes by itself, in nanoseconds.
    turns: AtomicU64,
}

const UNKNOWN: i64 = i64::MIN;
const UNLIMITED: i64 = i64::MAX;

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) purse: Purse,
    pub(super) brake: Brake,
}

impl State {
    /// What is held by those that run, and for a moment by those that ran.
    pub(super) fn in_flight(&self, now: Instant) -> Money {
        self.purse.reserved() + self.brake.settling(now)
    }
}

impl Default for Wallet {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            spendable: AtomicI64::new(UNKNOWN),
            room: AtomicI64::new(UNLIMITED),
            turns: AtomicU64::new(u64::MAX),
        }
    }
}

/// A wallet being changed; what others read of it is brought up to date when this is dropped.
pub(super) struct Open<'a> {
    wallet: &'a Wallet,
    now: Instant,
    state: MutexGuard<'a, State>,
}

impl std::ops::Deref for Open<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Open<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let State { purse, brake } = &*self.state;
        let spendable = match purse.spendable() {
            Spendable::Unknown => UNKNOWN,
            Spendable::Unlimited => UNLIMITED,
            Spendable::Money(money) => money.nanos().clamp(UNKNOWN + 1, UNLIMITED - 1),
        };
        let in_flight = self.state.in_flight(self.now);
        // nothing in flight is room for anything
        let cap = brake.cap().filter(|_| in_flight > Money::ZERO);
        let room = cap.map_or(UNLIMITED, |cap| (cap - in_flight).nanos());
        let turns = purse.turns_at().map_or(u64::MAX, clock::nanos);
        self.wallet.spendable.store(spendable, Ordering::Release);
        self.wallet.room.store(room, Ordering::Release);
        self.wallet.turns.store(turns, Ordering::Release);
    }
}

impl Wallet {
    pub(super) fn open(&self, now: Instant) -> Open<'_> {
        let mut open = Open { wallet: self, now, state: lock(&self.state) };
        open.purse.roll(now);
        open
    }

    pub(super) fn spendable(&self, now: Instant) -> Spendable {
        if self.turns.load(Ordering::Acquire) <= clock::nanos(now) {
            return self.open(now).purse.spendable();
        }
        match self.spendable.load(Ordering::Acquire) {
            UNKNOWN => Spendable::Unknown,
            UNLIMITED => Spendable::Unlimited,
            nanos => Spendable::Money(Money::from_nanos(nanos)),
        }
    }

    /// Whether the brake lets so much more go into flight. A no may have become a yes with time.
    pub(super) fn has_room(&self, amount: Money) -> bool {
        amount <= Money::ZERO || amount.nanos() <= self.room.load(Ordering::Acquire)
    }
}
