//! Every order in which threads can take from, and settle with, the same wallets.

use std::time::Duration;

use loom::thread;
use tokio::time::Instant;

use super::{Money, Spendable, wallet::Wallet};
use crate::sync::Arc;

fn cents(cents: i64) -> Money {
    Money::from_nanos(cents * 10_000_000)
}

/// As a request does it: account before key, both open at once.
fn take(account: &Wallet, key: &Wallet, amount: Money, now: Instant) -> bool {
    let (mut account, mut key) = (account.open(now), key.open(now));
    let fits = |wallet: &super::Open<'_>| wallet.purse.fits(amount) == super::Fits::Yes;
    let both = fits(&account) && fits(&key);
    if both {
        account.purse.take(amount);
        key.purse.take(amount);
    }
    both
}

#[test]
fn the_last_dollar_of_an_account_is_given_once() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let now = Instant::now();
        let account = Arc::new(Wallet::default());
        account.open(now).purse.report(Spendable::Money(cents(100)), None, now);
        let other = {
            let account = account.clone();
            thread::spawn(move || {
                let key = Wallet::default();
                let taken = take(&account, &key, cents(60), now);
                if taken {
                    account.open(now).purse.settle(cents(60), cents(50), now);
                }
                taken
            })
        };
        let key = Wallet::default();
        let mine = take(&account, &key, cents(60), now);
        let seen = account.spendable(now).money();
        assert!(seen >= Some(Money::ZERO), "{seen:?} was read without the lock");
        let theirs = other.join().unwrap();
        assert!(mine || theirs);
        let left = 100 - if theirs { 50 } else { 0 } - if mine { 60 } else { 0 };
        assert_eq!(account.spendable(now + Duration::from_secs(1)), Spendable::Money(cents(left)));
    });
}
