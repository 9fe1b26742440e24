use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::endpoint::{Credit, Money, Spendable};

/// What one endpoint may spend, in US dollars. Amounts that nobody has told are `null`; where there is no limit it says
/// `unlimited`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CreditSnapshot {
    /// What may be spent now: the least of the key's cap, its budgets and the account's balance, less what is reserved.
    #[serde(serialize_with = "spendable")]
    pub spendable_usd: Spendable,
    /// The same by the key's cap and budgets alone.
    #[serde(serialize_with = "spendable")]
    pub key_spendable_usd: Spendable,
    /// What the account has left, reserved or not.
    #[serde(serialize_with = "spendable")]
    pub balance_usd: Spendable,
    /// What is reserved for requests that run on the key.
    #[serde(serialize_with = "dollars")]
    pub reserved_usd: Money,
    /// How much of the account's money may be in flight at once, as its refusals have taught; `null` before the first.
    #[serde(serialize_with = "some_dollars")]
    pub in_flight_cap_usd: Option<Money>,
    /// The key's own cap, as last told.
    #[serde(serialize_with = "some_dollars")]
    pub limit_usd: Option<Money>,
    /// What the key has used in its life, as last told.
    #[serde(serialize_with = "some_dollars")]
    pub used_usd: Option<Money>,
    /// How old what was last told of the key is, in seconds; `null` when nobody has asked.
    pub told_s_ago: Option<f64>,
}

impl CreditSnapshot {
    pub(super) fn of(credit: &Credit, now: Instant) -> Self {
        let (report, at) = credit.report().unzip();
        Self {
            spendable_usd: credit.spendable(now),
            key_spendable_usd: credit.key_spendable(now),
            balance_usd: credit.balance(now),
            reserved_usd: credit.reserved(now),
            in_flight_cap_usd: credit.in_flight_cap(now),
            limit_usd: report.as_ref().and_then(|report| report.limit),
            used_usd: report.as_ref().and_then(|report| report.used),
            told_s_ago: at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
        }
    }
}

fn spendable<S: Serializer>(spendable: &Spendable, serializer: S) -> Result<S::Ok, S::Error> {
    match spendable {
        Spendable::Unknown => serializer.serialize_none(),
        Spendable::Unlimited => serializer.serialize_str("unlimited"),
        Spendable::Money(money) => dollars(money, serializer),
    }
}

fn dollars<S: Serializer>(money: &Money, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(money.usd())
}

fn some_dollars<S: Serializer>(money: &Option<Money>, serializer: S) -> Result<S::Ok, S::Error> {
    money.map(Money::usd).serialize(serializer)
}
