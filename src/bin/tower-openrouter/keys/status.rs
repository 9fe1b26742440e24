//! Whether a key can be used, and why not: decided from what was told.

use std::fmt;

use tower_openrouter::{
    endpoint::{Money, Spendable},
    openrouter::LookupError,
};

use super::Asked;

/// What can be said of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Nothing is in its way.
    Fine,
    /// Its account has no credit left; free models still answer.
    FreeOnly,
    /// It is given no traffic.
    Drained,
    /// The upstream does not know it, or does not want it.
    Refused,
    /// It manages keys, and cannot call models.
    Management,
    /// It has expired.
    Expired,
    /// Its own cap is spent.
    CapSpent,
    /// A budget that holds for it is spent.
    BudgetSpent,
    /// Its account owes.
    InDebt,
    /// No answer came.
    Unreachable,
    /// An answer came that tells nothing.
    Unclear,
}

impl Status {
    pub(super) fn of(asked: &Asked) -> Self {
        let report = match &asked.info {
            Err(error) => return Self::of_error(error),
            Ok(info) => &info.report,
        };
        let spent = |left: Money| left <= Money::ZERO;
        if report.management {
            Self::Management
        } else if report.expires_in.is_some_and(|span| span.is_zero()) {
            Self::Expired
        } else if matches!(report.left, Spendable::Money(left) if spent(left)) {
            Self::CapSpent
        } else if report.budgets.iter().any(|budget| spent(budget.left)) {
            Self::BudgetSpent
        } else if asked.balance.is_some_and(|balance| balance < Money::ZERO) {
            Self::InDebt
        } else if asked.key.weight_of() <= 0.0 {
            Self::Drained
        } else if asked.balance == Some(Money::ZERO) {
            Self::FreeOnly
        } else {
            Self::Fine
        }
    }

    fn of_error(error: &LookupError) -> Self {
        match error.status().map(|status| status.as_u16()) {
            Some(401 | 403) => Self::Refused,
            None if !matches!(error, LookupError::Unreadable { .. }) => Self::Unreachable,
            _ => Self::Unclear,
        }
    }

    /// Whether some request may succeed with it.
    pub(super) fn is_usable(self) -> bool {
        matches!(self, Self::Fine | Self::FreeOnly)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::FreeOnly => "free models only",
            Self::Drained => "drained (weight 0)",
            Self::Refused => "refused",
            Self::Management => "management key",
            Self::Expired => "expired",
            Self::CapSpent => "limit spent",
            Self::BudgetSpent => "budget spent",
            Self::InDebt => "negative balance",
            Self::Unreachable => "unreachable",
            Self::Unclear => "unknown",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tower_openrouter::{ApiKey, openrouter::account::KeyInfo};

    use super::*;

    fn told(data: &serde_json::Value, balance: Option<f64>) -> Asked {
        let body = json!({"data": data}).to_string();
        let info = KeyInfo::read(body.as_bytes(), std::time::SystemTime::UNIX_EPOCH);
        let key = ApiKey::new("sk-or-v1-a").unwrap();
        Asked { key, info: Ok(info.unwrap()), balance: balance.map(Money::from_usd) }
    }

    #[test]
    fn a_key_is_fine_until_something_is_known_against_it() {
        let budget = |left: i32| json!({"scope": "workspace", "limit_usd": 5, "remaining_usd": left});
        for (data, balance, status) in [
            (json!({}), None, Status::Fine),
            (json!({"limit_remaining": null}), Some(1.0), Status::Fine),
            (json!({"limit_remaining": 0.01, "budgets": [budget(1)]}), None, Status::Fine),
            (json!({"limit_remaining": 0}), Some(1.0), Status::CapSpent),
            (json!({"limit_remaining": 1, "budgets": [budget(1), budget(0)]}), None, Status::BudgetSpent),
            (json!({"limit_remaining": 1}), Some(0.0), Status::FreeOnly),
            (json!({"limit_remaining": 1}), Some(-0.1), Status::InDebt),
            (json!({"is_management_key": true, "limit_remaining": 0}), None, Status::Management),
            (json!({"expires_at": "1970-01-01T00:00:00Z"}), None, Status::Expired),
            (json!({"expires_at": "1970-01-01T00:00:01Z"}), None, Status::Fine),
        ] {
            assert_eq!(Status::of(&told(&data, balance)), status, "{data} {balance:?}");
        }
        let mut drained = told(&json!({}), None);
        drained.key = drained.key.weight(0.0).unwrap();
        assert_eq!(Status::of(&drained), Status::Drained);
    }

    #[test]
    fn only_what_may_answer_is_usable() {
        let usable = [Status::Fine, Status::FreeOnly];
        let other = [Status::Drained, Status::Refused, Status::CapSpent, Status::Unreachable, Status::Unclear];
        assert!(usable.into_iter().all(Status::is_usable) && !other.into_iter().any(Status::is_usable));
        let late = LookupError::TimedOut { path: "/key", after: Duration::from_secs(1) };
        assert_eq!(Status::of_error(&late), Status::Unreachable);
        let odd = LookupError::Unreadable { path: "/key", what: "it is not JSON" };
        assert_eq!(Status::of_error(&odd), Status::Unclear);
    }
}
