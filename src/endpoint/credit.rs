//! What a key may still spend.
//!
//! A key can be stopped by its own cap, by a budget of its workspace, and by the balance of its account, which all keys of
//! that account draw on at once. What upstream says of them is old when it arrives: requests that run have not been billed
//! yet, and counters lag. So each of the three is kept as an account of our own, a sum that polls and refusals correct and
//! from which every request that runs has its worst case set aside. A request may go where all three can pay it.
//!
//! Null is unlimited, unknown is not zero, and what a request met beats an older poll.
//!
//! Polls come from an [`AccountPoller`](crate::AccountPoller) or from whoever else knows. What requests cost, set aside and
//! meet is booked by a [`CreditLimit`](crate::select::CreditLimit); without one, only polls move these figures.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{clock, sync::lock_std};

mod brake;
#[cfg(all(test, tower_openrouter_loom))]
mod model;
mod money;
mod prices;
mod purse;
mod report;
mod wallet;

pub use money::{Money, Spendable};
pub use prices::{Price, Prices};
pub(crate) use purse::Fits;
pub use report::{Budget, FreeRequests, KeyReport};
use wallet::{Open, Wallet};

/// Least that must be left under a cap or budget for any request to pass, a free one too.
const LEAST: Money = Money::from_nanos(1);

/// What one endpoint may spend: its key's cap, its workspace's budget, and its account's balance.
///
/// ```
/// use tokio::time::Instant;
/// use tower_openrouter::{ApiKey, endpoint::{KeyReport, Money, Spendable}, select::Pool};
///
/// let pool = Pool::new([ApiKey::new("key-a")?.account("acme"), ApiKey::new("key-b")?.account("acme")])?;
/// let endpoints = pool.endpoints();
/// let (a, b) = (endpoints[0].credit(), endpoints[1].credit());
///
/// let now = Instant::now();
/// a.report_key(KeyReport { left: Spendable::Money(Money::from_usd(5.0)), ..KeyReport::default() }, now);
/// b.report_key(KeyReport { left: Spendable::Unlimited, ..KeyReport::default() }, now);
/// a.report_balance(Spendable::Money(Money::from_usd(2.0)), now);
///
/// // the account's two dollars are there for both
/// assert_eq!(a.spendable(now), Spendable::Money(Money::from_usd(2.0)));
/// assert_eq!(b.spendable(now), Spendable::Money(Money::from_usd(2.0)));
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Default)]
pub struct Credit {
    key: Wallet,
    workspace: Option<Arc<Wallet>>,
    /// That of the account until its name is known; then the one below.
    own: Wallet,
    account: OnceLock<Arc<Wallet>>,
    report: Mutex<Option<(Arc<KeyReport>, Instant)>>,
}

/// Purses that several endpoints of a pool share, by the names of their accounts and workspaces.
#[derive(Debug, Default)]
pub(super) struct Purses {
    accounts: Mutex<Named>,
    workspaces: Mutex<Named>,
}

/// Weak, so that a purse goes with the last key that draws on it.
type Named = HashMap<Box<str>, Weak<Wallet>>;

fn named(wallets: &Mutex<Named>, name: &str) -> Arc<Wallet> {
    let mut wallets = lock_std(wallets);
    if let Some(wallet) = wallets.get(name).and_then(Weak::upgrade) {
        return wallet;
    }
    // before it would grow, so that what is gone costs no room, and looking for it next to no time
    if wallets.len() == wallets.capacity() {
        wallets.retain(|_, wallet| wallet.strong_count() > 0);
    }
    let wallet = Arc::<Wallet>::default();
    wallets.insert(name.into(), Arc::downgrade(&wallet));
    wallet
}

/// How a reservation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paid {
    /// The answer is what was asked for.
    Served,
    /// It is not, and says nothing about money.
    Nothing,
    /// Too much of the account's is in flight.
    InFlight,
    /// This request is too dear for what is left under the key's cap.
    TooDearForKey,
    /// This request is too dear for what the account has.
    TooDearForAccount,
    /// Nothing is left under the key's cap, for so long as far as we know.
    KeySpent(Duration),
    /// Nothing is left of the workspace's budget.
    WorkspaceSpent(Duration),
    /// Nothing is left in the account.
    AccountSpent(Duration),
}

impl Credit {
    pub(super) fn new(workspace: Option<&str>, purses: &Purses) -> Self {
        Self { workspace: workspace.map(|name| named(&purses.workspaces, name)), ..Self::default() }
    }

    /// Puts the endpoint's money together with that of its account, once that has a name.
    pub(super) fn join(&self, account: &str, purses: &Purses) {
        let shared = named(&purses.accounts, account);
        // own before shared, here and nowhere else
        let own = self.own.open(Instant::now());
        if self.account.get().is_none() {
            let mut open = shared.open(Instant::now());
            open.purse.absorb(&own.purse);
            open.brake.absorb(&own.brake);
            drop(open);
            let _ = self.account.set(shared);
        }
    }

    pub(super) fn has_joined(&self) -> bool {
        self.account.get().is_some()
    }

    fn wallet(&self) -> &Wallet {
        self.account.get().map_or(&self.own, AsRef::as_ref)
    }

    /// The account's purse, opened; it cannot move to another one meanwhile.
    fn open_account(&self, now: Instant) -> Open<'_> {
        if let Some(shared) = self.account.get() {
            return shared.open(now);
        }
        let own = self.own.open(now);
        match self.account.get() {
            None => own,
            Some(shared) => {
                drop(own);
                shared.open(now)
            }
        }
    }

    /// Notes what a poll of the key said that was sent at `at`. Budgets of the workspace hold for all keys of that workspace
    /// where the key [names](crate::ApiKey::workspace) it, else for this key.
    pub fn report_key(&self, report: KeyReport, at: Instant) {
        let shared = self.workspace.as_ref();
        let layer = |left: Spendable, limit: Option<Money>, resets_in: Option<Duration>| Layer {
            left,
            limit: limit.map_or(Spendable::Unlimited, Spendable::Money),
            resets_in,
        };
        let mut key = layer(report.left, report.limit, report.resets_in);
        let mut workspace = layer(Spendable::Unlimited, None, None);
        for budget in report.budgets.iter().filter(|budget| &*budget.scope != "key_limit") {
            let of = if budget.is_of_workspace() && shared.is_some() { &mut workspace } else { &mut key };
            *of = of.and(layer(Spendable::Money(budget.left), Some(budget.limit), budget.resets_in));
        }
        key.tell(&self.key, at);
        if let Some(shared) = shared {
            workspace.tell(shared, at);
        }
        let mut last = lock_std(&self.report);
        if last.as_ref().is_none_or(|(_, before)| *before <= at) {
            *last = Some((Arc::new(report), at));
        }
    }

    /// Notes what a poll sent at `at` said of the account's balance.
    pub fn report_balance(&self, balance: Spendable, at: Instant) {
        self.open_account(at).purse.report(balance, None, at);
    }

    /// When the narrowest of cap, budget and balance changes by itself, such as with a new period of the cap; `None` when
    /// nobody knows.
    pub fn turns_at(&self, now: Instant) -> Option<Instant> {
        let least = self.spendable(now).money()?;
        let taking = Taking::open(self, now);
        let purses = [Some(&taking.key), taking.workspace.as_ref(), Some(&taking.account)];
        let narrowest = purses.into_iter().flatten().map(|open| &open.purse);
        narrowest.filter(|purse| purse.spendable() == Spendable::Money(least)).find_map(purse::Purse::turns_at)
    }

    /// What the last poll of the key said, and when it was sent.
    pub fn report(&self) -> Option<(Arc<KeyReport>, Instant)> {
        lock_std(&self.report).clone()
    }

    /// What the key may spend now: the least of cap, budget and balance, less what is reserved for requests that run.
    pub fn spendable(&self, now: Instant) -> Spendable {
        self.key_spendable(now).and(self.account_spendable(now))
    }

    /// The same by the key's own cap and budgets.
    pub fn key_spendable(&self, now: Instant) -> Spendable {
        let key = self.key.spendable(now);
        self.workspace.as_ref().map_or(key, |workspace| match workspace.spendable(now) {
            Spendable::Unknown => key,
            left => key.and(left),
        })
    }

    /// The same by the account's balance.
    pub fn account_spendable(&self, now: Instant) -> Spendable {
        self.wallet().spendable(now)
    }

    /// What is left in the account, reserved or not.
    pub fn balance(&self, now: Instant) -> Spendable {
        self.open_account(now).purse.left()
    }

    /// What is reserved for requests that run on the key.
    pub fn reserved(&self, now: Instant) -> Money {
        self.key.open(now).purse.reserved()
    }

    /// What is reserved for requests that run on the account.
    pub fn account_reserved(&self, now: Instant) -> Money {
        self.open_account(now).purse.reserved()
    }

    /// What the account has in flight: what is reserved, and for two seconds the bills of what has ended.
    pub fn account_in_flight(&self, now: Instant) -> Money {
        self.open_account(now).in_flight(now)
    }

    /// How much of the account's money may be in flight at once, as its refusals have taught; `None` before the first.
    pub fn in_flight_cap(&self, now: Instant) -> Option<Money> {
        self.open_account(now).brake.cap()
    }

    /// Whether a request that costs `amount` at most may go now.
    pub(crate) fn fits(&self, amount: Money, now: Instant) -> Fits {
        let enough = |wallet: &Wallet, amount: Money| {
            wallet.spendable(now).money().is_none_or(|left| left >= amount) && wallet.has_room(amount)
        };
        let least = amount.max(LEAST);
        let workspace = self.workspace.as_ref().is_none_or(|workspace| enough(workspace, least));
        if workspace && enough(&self.key, least) && enough(self.wallet(), amount) {
            return Fits::Yes;
        }
        Taking::open(self, now).fits(amount, now)
    }

    /// Reserves `amount` if it may go now.
    pub(crate) fn take(&self, amount: Money, now: Instant) -> bool {
        let mut taking = Taking::open(self, now);
        let fits = taking.fits(amount, now) == Fits::Yes;
        if fits {
            taking.each(|purse| purse.take(amount));
        }
        fits
    }

    /// Ends a reservation of `amount`, made at `taken`, whose request cost `cost`. Says whether a full account is seen to, so
    /// that it need not rest.
    pub(crate) fn settle(&self, amount: Money, cost: Money, paid: Paid, taken: Instant, now: Instant) -> bool {
        let mut open = Taking::open(self, now);
        let in_flight = open.account.in_flight(now);
        open.each(|purse| purse.settle(amount, cost, now));
        open.account.brake.bill(cost, now);
        let until = |span| clock::after(now, span);
        match paid {
            Paid::Nothing => {}
            Paid::Served => open.account.brake.served(amount, in_flight),
            Paid::InFlight => return open.account.brake.refused(amount, in_flight, taken, now),
            Paid::TooDearForKey => open.key.purse.too_dear(amount, now),
            Paid::TooDearForAccount => open.account.purse.too_dear(amount, now),
            Paid::KeySpent(span) => open.key.purse.spent_out(until(span), now),
            Paid::WorkspaceSpent(span) => {
                open.workspace.as_mut().unwrap_or(&mut open.key).purse.spent_out(until(span), now);
            }
            Paid::AccountSpent(span) => open.account.purse.spent_out(until(span), now),
        }
        false
    }
}

/// All purses a request draws on, opened in one order, so that what fits is still there when it is taken.
struct Taking<'a> {
    account: Open<'a>,
    workspace: Option<Open<'a>>,
    key: Open<'a>,
}

impl<'a> Taking<'a> {
    fn open(credit: &'a Credit, now: Instant) -> Self {
        Self {
            account: credit.open_account(now),
            workspace: credit.workspace.as_ref().map(|workspace| workspace.open(now)),
            key: credit.key.open(now),
        }
    }

    fn fits(&self, amount: Money, now: Instant) -> Fits {
        let least = amount.max(LEAST);
        let money = [
            Some(self.key.purse.fits(least)),
            self.workspace.as_ref().map(|workspace| workspace.purse.fits(least)),
            Some(self.account.purse.fits(amount)),
        ];
        let brake = &self.account.brake;
        let in_flight = match (brake.admits(self.account.in_flight(now), amount), brake.eases_at(now)) {
            (true, _) => Fits::Yes,
            (false, None) => Fits::Held,
            (false, at) => Fits::Short(at),
        };
        money.into_iter().flatten().fold(in_flight, Fits::and)
    }

    fn each(&mut self, change: impl Fn(&mut purse::Purse)) {
        change(&mut self.account.purse);
        if let Some(workspace) = &mut self.workspace {
            change(&mut workspace.purse);
        }
        change(&mut self.key.purse);
    }
}

/// What is left under one of several budgets that hold at once, and what there will be in its next period.
#[derive(Clone, Copy)]
struct Layer {
    left: Spendable,
    limit: Spendable,
    resets_in: Option<Duration>,
}

impl Layer {
    /// Both: the narrower one with its reset. The next period brings no more than the lesser of their limits.
    fn and(self, other: Self) -> Self {
        let left = self.left.and(other.left);
        let resets_in = if left == other.left { other.resets_in } else { self.resets_in };
        Self { left, limit: self.limit.and(other.limit), resets_in }
    }

    fn tell(self, wallet: &Wallet, at: Instant) {
        let turn = self.resets_in.map(|span| (clock::after(at, span), self.limit));
        wallet.open(at).purse.report(self.left, turn, at);
    }
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credit").field("key", &self.key).field("account", self.wallet()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r132_accounts_whose_keys_are_gone_take_no_room() {
        let purses = Purses::default();
        let stays = named(&purses.accounts, "stays");
        for number in 0..10_000 {
            named(&purses.accounts, &number.to_string());
        }
        assert!(lock_std(&purses.accounts).len() < 10);
        assert!(Arc::ptr_eq(&stays, &named(&purses.accounts, "stays")));
    }
}
