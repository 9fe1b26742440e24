use std::time::Duration;

use super::{Money, Spendable};

/// What a poll of `GET /key` says of one key. Spans count from the instant at which the poll was sent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeyReport {
    /// The key's own cap; `None` when it has none.
    pub limit: Option<Money>,
    /// What is left under the cap: unlimited without one, unknown when the answer does not say.
    pub left: Spendable,
    /// The cap's period, such as `daily`; `None` when it is for good.
    pub period: Option<Box<str>>,
    /// When the cap's period ends.
    pub resets_in: Option<Duration>,
    /// What the key has used in its life.
    pub used: Option<Money>,
    /// Budgets besides the cap that hold for the key.
    pub budgets: Vec<Budget>,
    /// The account's free requests of this day.
    pub free: Option<FreeRequests>,
    /// The rate limit the answer names, in its own words.
    pub rate_limit: Option<Box<str>>,
    /// Whether the account has never paid.
    pub free_tier: bool,
    /// Whether it is a management key, which cannot call models.
    pub management: bool,
    /// When the key expires, as the answer writes it.
    pub expires: Option<Box<str>>,
    /// The same as a span; zero when it has expired already.
    pub expires_in: Option<Duration>,
}

/// One budget that holds for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Whom it is for, as the answer writes it: `workspace`, `member`, `api_key`, …
    pub scope: Box<str>,
    /// What may be spent in a period.
    pub limit: Money,
    /// What is left of it; zero or less refuses every request.
    pub left: Money,
    /// When its period ends; `None` when it is for good.
    pub resets_in: Option<Duration>,
}

impl Budget {
    /// Whether it is shared by all keys of a workspace.
    pub fn is_of_workspace(&self) -> bool {
        &*self.scope == "workspace"
    }
}

/// An account's free requests of a UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeRequests {
    /// How many there are.
    pub limit: u64,
    /// How many were sent; refused ones count, so it may exceed the limit.
    pub used: u64,
}
