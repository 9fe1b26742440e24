//! `GET /key` and `GET /credits`.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::lenient::{data, money, name, number, until, whole};
use crate::{
    endpoint::{Budget, FreeRequests, KeyReport, Money, Spendable},
    openrouter::calendar,
};

/// What `GET /key` tells a key about itself.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The account the key belongs to: the organisation that owns it, else the user who made it. Error bodies name accounts
    /// the same way.
    pub account: Option<Box<str>>,
    /// The workspace it spends in.
    pub workspace: Option<Box<str>>,
    /// What it may spend.
    pub report: KeyReport,
}

impl KeyInfo {
    /// Reads the body of an answer that came when the wall clock showed `now`.
    ///
    /// # Errors
    /// When it is not JSON, or holds no `data`; says which.
    pub fn read(body: &[u8], now: SystemTime) -> Result<Self, &'static str> {
        let data = &data(body)?;
        let is = |member: &str| data[member].as_bool() == Some(true);
        let period = name(&data["limit_reset"]);
        let expires = &data["expires_at"];
        Ok(Self {
            account: name(&data["organization_id"]).or_else(|| name(&data["creator_user_id"])),
            workspace: name(&data["workspace_id"]),
            report: KeyReport {
                limit: money(&data["limit"]),
                left: left(data),
                resets_in: period.as_deref().and_then(|period| to_reset(period, now)),
                period,
                used: money(&data["usage"]),
                budgets: budgets(data, now),
                free: free(&data["free_model_daily_requests"]),
                rate_limit: rate_limit(&data["rate_limit"]),
                free_tier: is("is_free_tier"),
                management: is("is_management_key") || is("is_provisioning_key"),
                expires_in: expires
                    .as_str()
                    .and_then(calendar::parse_rfc3339)
                    .map(|_| until(expires, now).unwrap_or_default()),
                expires: name(expires),
            },
        })
    }
}

/// What is left under the cap. Older answers have only the cap and what the key has used in its life, which can be told
/// apart only where the cap never starts anew.
fn left(data: &Value) -> Spendable {
    match (data.get("limit_remaining"), data.get("limit")) {
        (Some(Value::Null), _) | (None, Some(Value::Null)) => Spendable::Unlimited,
        (Some(left), _) => money(left).map_or(Spendable::Unknown, Spendable::Money),
        (None, Some(limit)) if data["limit_reset"].is_null() => {
            let left = money(limit).zip(money(&data["usage"])).map(|(limit, used)| limit - used);
            left.map_or(Spendable::Unknown, Spendable::Money)
        }
        (None, _) => Spendable::Unknown,
    }
}

/// Caps start anew at 00:00 UTC.
fn to_reset(period: &str, now: SystemTime) -> Option<Duration> {
    match period {
        "daily" => Some(calendar::to_next_day(now)),
        "weekly" => Some(calendar::to_next_week(now)),
        "monthly" => Some(calendar::to_next_month(now)),
        _ => None,
    }
}

/// Every budget, or the one that blocks first where only that is told; those that do not say what is left are left out.
fn budgets(data: &Value, now: SystemTime) -> Vec<Budget> {
    let listed = data["budgets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let listed = if listed.is_empty() { std::slice::from_ref(&data["effective_budget"]) } else { listed };
    let read = |budget: &Value| {
        Some(Budget {
            scope: name(&budget["scope"])?,
            limit: money(&budget["limit_usd"])?,
            left: money(&budget["remaining_usd"])?,
            resets_in: until(&budget["resets_at"], now).or_else(|| to_reset(budget["reset_interval"].as_str()?, now)),
        })
    };
    listed.iter().filter_map(read).collect()
}

fn free(counter: &Value) -> Option<FreeRequests> {
    Some(FreeRequests { limit: whole(&counter["limit"])?, used: whole(&counter["used"])? })
}

/// Less than zero requests is how the API says that there is no such limit any more.
fn rate_limit(limit: &Value) -> Option<Box<str>> {
    let requests = number(&limit["requests"])?;
    let interval = name(&limit["interval"])?;
    Some(if requests < 0.0 { "none".into() } else { format!("{requests} per {interval}").into() })
}

/// What `GET /credits` tells about an account. Many keys may not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credits {
    /// Bought so far.
    pub total: Money,
    /// Spent so far.
    pub used: Money,
}

impl Credits {
    /// Reads the body of an answer.
    ///
    /// # Errors
    /// When it is not JSON, or lacks one of the two amounts; says which.
    pub fn read(body: &[u8]) -> Result<Self, &'static str> {
        let data = data(body)?;
        let (total, used) = (money(&data["total_credits"]), money(&data["total_usage"]));
        total.zip(used).map(|(total, used)| Self { total, used }).ok_or("it lacks total_credits or total_usage")
    }

    /// What is left; below zero when more was spent than bought.
    pub fn balance(&self) -> Money {
        self.total - self.used
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// 2026-10-08, a Thursday, 12:00 UTC.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_791_460_800)
    }

    fn read(data: &Value) -> KeyInfo {
        KeyInfo::read(json!({"data": data}).to_string().as_bytes(), now()).unwrap()
    }

    fn usd(usd: f64) -> Money {
        Money::from_usd(usd)
    }

    const DAY: Duration = Duration::from_secs(86_400);
    const HALF_A_DAY: Duration = Duration::from_secs(43_200);

    #[test]
    fn everything_the_documented_answer_holds_is_read() {
        let info = read(&json!({
            "label": "sk-or-v1-au7...890", "limit": 100, "limit_remaining": 74.5, "limit_reset": "monthly",
            "include_byok_in_limit": false, "usage": 25.5, "usage_daily": 25.5, "usage_weekly": 25.5, "usage_monthly": 25.5,
            "byok_usage": 17.38, "is_free_tier": false, "is_management_key": false, "is_provisioning_key": false,
            "creator_user_id": "user_2dHF", "organization_id": null, "workspace_id": "0df9e665",
            "allowed_data_regions": ["global"], "free_model_daily_requests": {"limit": 50, "remaining": 38, "used": 12},
            "budgets": [{
                "scope": "member", "guardrail_id": "0df9", "budget_id": null, "limit_usd": 50, "spend_usd": 32.5,
                "remaining_usd": 17.5, "reset_interval": "weekly", "resets_at": "2026-10-12T00:00:00.000Z", "include_byok": false
            }],
            "effective_budget": null, "rate_limit": {"interval": "1h", "note": "deprecated", "requests": 1000},
            "expires_at": "2026-10-09T12:00:00Z"
        }));
        let budget =
            Budget { scope: "member".into(), limit: usd(50.0), left: usd(17.5), resets_in: Some(DAY * 4 - HALF_A_DAY) };
        let report = KeyReport {
            limit: Some(usd(100.0)),
            left: Spendable::Money(usd(74.5)),
            period: Some("monthly".into()),
            resets_in: Some(DAY * 24 - HALF_A_DAY),
            used: Some(usd(25.5)),
            budgets: vec![budget],
            free: Some(FreeRequests { limit: 50, used: 12 }),
            rate_limit: Some("1000 per 1h".into()),
            free_tier: false,
            management: false,
            expires: Some("2026-10-09T12:00:00Z".into()),
            expires_in: Some(DAY),
        };
        assert_eq!(info, KeyInfo { account: Some("user_2dHF".into()), workspace: Some("0df9e665".into()), report });
    }

    #[test]
    fn null_is_unlimited_and_missing_or_odd_is_unknown() {
        for (data, left) in [
            (json!({"limit_remaining": null}), Spendable::Unlimited),
            (json!({}), Spendable::Unknown),
            (json!({"limit_remaining": "plenty"}), Spendable::Unknown),
            (json!({"limit_remaining": {}}), Spendable::Unknown),
            (json!({"limit_remaining": 0}), Spendable::Money(Money::ZERO)),
            (json!({"limit_remaining": "1.5"}), Spendable::Money(usd(1.5))),
            (json!({"limit_remaining": -2}), Spendable::Money(usd(-2.0))),
            (json!({"limit": null, "usage": 3}), Spendable::Unlimited),
            (json!({"limit": 5, "usage": 3}), Spendable::Money(usd(2.0))),
            (json!({"limit": 5}), Spendable::Unknown),
            (json!({"limit": 5, "usage": 3, "limit_reset": "daily"}), Spendable::Unknown),
        ] {
            assert_eq!(read(&data).report.left, left, "{data}");
        }
        let nothing =
            KeyInfo { report: KeyReport { left: Spendable::Unknown, ..KeyReport::default() }, ..KeyInfo::default() };
        assert_eq!(read(&json!({})), nothing);
    }

    #[test]
    fn an_organisation_comes_before_the_user_who_made_the_key() {
        let account = |data: Value| read(&data).account;
        let user = json!({"creator_user_id": "user_a", "organization_id": null});
        assert_eq!(account(user).as_deref(), Some("user_a"));
        assert_eq!(account(json!({"creator_user_id": "user_a", "organization_id": "org_b"})).as_deref(), Some("org_b"));
        assert_eq!(account(json!({"creator_user_id": "", "organization_id": 7})), None);
    }

    #[test]
    fn a_budget_that_lacks_its_amounts_is_left_out_and_a_reset_in_the_past_is_told_by_its_interval() {
        let whole = json!({"scope": "workspace", "limit_usd": 5, "remaining_usd": -1, "resets_at": "2026-01-01T00:00:00Z", "reset_interval": "daily"});
        let budgets = |data: Value| read(&data).report.budgets;
        let expected =
            Budget { scope: "workspace".into(), limit: usd(5.0), left: usd(-1.0), resets_in: Some(HALF_A_DAY) };
        assert_eq!(budgets(json!({"budgets": [{"scope": "member"}, 7, whole]})), std::slice::from_ref(&expected));
        assert_eq!(budgets(json!({"effective_budget": whole})), [expected]);
        assert_eq!(budgets(json!({"budgets": "none", "effective_budget": null})), []);
    }

    #[test]
    fn the_deprecated_rate_limit_is_none_when_it_is_below_zero() {
        for (limit, shown) in [
            (json!({"requests": -1, "interval": "10s", "note": "x"}), Some("none")),
            (json!({"requests": 20, "interval": "10s"}), Some("20 per 10s")),
            (json!({"requests": 20}), None),
            (json!(null), None),
        ] {
            assert_eq!(read(&json!({"rate_limit": limit})).report.rate_limit.as_deref(), shown);
        }
    }

    #[test]
    fn what_is_no_answer_says_so() {
        for (body, what) in [
            ("", "it is not JSON"),
            ("<html>", "it is not JSON"),
            ("[]", "it holds no `data`"),
            (r#"{"data":[]}"#, "it holds no `data`"),
        ] {
            assert_eq!(KeyInfo::read(body.as_bytes(), now()).unwrap_err(), what);
            assert_eq!(Credits::read(body.as_bytes()).unwrap_err(), what);
        }
        assert!(Credits::read(br#"{"data":{"total_credits":1}}"#).is_err());
        let credits = Credits::read(br#"{"data":{"total_credits":1.5,"total_usage":2}}"#).unwrap();
        assert_eq!(credits.balance(), usd(-0.5));
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[-0-9TZ:.+a-z]{0,30}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            let member = prop::sample::select(vec![
                "limit",
                "limit_remaining",
                "limit_reset",
                "usage",
                "budgets",
                "scope",
                "limit_usd",
                "remaining_usd",
                "resets_at",
                "expires_at",
                "rate_limit",
                "requests",
                "interval",
                "free_model_daily_requests",
                "used",
                "organization_id",
                "total_credits",
                "total_usage",
                "pricing",
                "id",
            ]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(member.prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn r086_no_answer_is_too_odd_to_read(data in anything()) {
            let body = json!({"data": data}).to_string();
            let _ = KeyInfo::read(body.as_bytes(), now());
            let _ = Credits::read(body.as_bytes());
            let _ = super::super::ModelInfo::read_list(body.as_bytes());
        }
    }
}
