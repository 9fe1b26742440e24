//! How the answers are shown: to people, and to programs.

use std::{fmt, time::Duration};

use serde_json::{Value, json};
use tower_openrouter::endpoint::{KeyReport, Money, Spendable};

use super::{Asked, Status};

const HEAD: [&str; 9] = ["KEY", "ACCOUNT", "LIMIT", "USED", "LEFT", "RESET", "BALANCE", "RATE LIMIT", "STATUS"];
/// Columns of amounts, which stand at the right.
const AMOUNTS: [usize; 4] = [2, 3, 4, 6];

/// A line for each key.
pub(super) struct Table<'a>(pub(super) &'a [Asked]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = std::iter::once(HEAD.map(str::to_owned)).chain(self.0.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                line +=
                    &if AMOUNTS.contains(&column) { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn row(asked: &Asked) -> [String; HEAD.len()] {
    let known = asked.info.as_ref().ok().map(|info| &info.report);
    let of = |read: fn(&KeyReport) -> String| known.map_or_else(|| "?".to_owned(), read);
    [
        asked.key.name().to_owned(),
        // it may be upstream's word
        asked.account().map_or_else(|| "?".to_owned(), |name| name.chars().filter(|c| !c.is_control()).collect()),
        of(|report| match (report.limit, report.left) {
            (Some(limit), _) => dollars(limit),
            (None, Spendable::Unlimited) => "none".to_owned(),
            (None, _) => "?".to_owned(),
        }),
        of(|report| report.used.map_or_else(|| "?".to_owned(), dollars)),
        of(|report| match report.left {
            Spendable::Money(left) => dollars(left),
            Spendable::Unlimited => "unlimited".to_owned(),
            Spendable::Unknown => "?".to_owned(),
        }),
        of(|report| match (&report.period, report.resets_in) {
            (Some(period), Some(span)) => format!("{period}, in {}", short(span)),
            (Some(period), None) => period.to_string(),
            (None, _) if report.limit.is_some() => "never".to_owned(),
            (None, _) => "-".to_owned(),
        }),
        asked.balance.map_or_else(|| "?".to_owned(), dollars),
        of(rate_limit),
        Status::of(asked).to_string(),
    ]
}

/// The old limit, which is no more, and the one there is for free models.
fn rate_limit(report: &KeyReport) -> String {
    let free = report.free.map(|free| format!("free {} of {} today", free.used, free.limit));
    let old = report.rate_limit.as_deref().filter(|limit| *limit != "none").map(str::to_owned);
    match (old, free) {
        (None, None) if report.rate_limit.is_some() => "none".to_owned(),
        (None, None) => "?".to_owned(),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(old), Some(free)) => format!("{old}, {free}"),
    }
}

/// Cents, and more digits only for what is less than a cent.
fn dollars(money: Money) -> String {
    let usd = money.usd();
    if money == Money::ZERO || usd.abs() >= 0.01 { format!("${usd:.2}") } else { format!("${usd:.6}") }
}

/// The two largest units: `3d 4h`, `11h 3m`, `59s`.
fn short(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// The same for programs. `null` is unknown; no limit is the word `unlimited`.
pub(super) fn json(asked: &[Asked]) -> Value {
    let keys: Vec<_> = asked.iter().map(object).collect();
    let usable = asked.iter().filter(|asked| Status::of(asked).is_usable()).count();
    json!({"keys": keys, "usable": usable})
}

fn object(asked: &Asked) -> Value {
    let status = Status::of(asked);
    let usd = |money: Option<Money>| money.map(Money::usd);
    let mut object = json!({
        "key": asked.key.name(),
        "account": asked.account(),
        "balance_usd": usd(asked.balance),
        "status": status.as_str(),
        "usable": status.is_usable()
    });
    match &asked.info {
        Err(error) => object["error"] = super::told(error).into(),
        Ok(info) => {
            let report = &info.report;
            object["workspace"] = info.workspace.as_deref().into();
            object["limit_usd"] = match (report.limit, report.left) {
                (None, Spendable::Unlimited) => "unlimited".into(),
                (limit, _) => usd(limit).into(),
            };
            object["used_usd"] = usd(report.used).into();
            object["remaining_usd"] = match report.left {
                Spendable::Unlimited => "unlimited".into(),
                left => usd(left.money()).into(),
            };
            object["reset"] = report.period.as_deref().into();
            object["resets_in_s"] = report.resets_in.map(|span| span.as_secs()).into();
            object["rate_limit"] = report.rate_limit.as_deref().into();
            object["free_requests_today"] =
                report.free.map(|free| json!({"limit": free.limit, "used": free.used})).into();
            object["expires_at"] = report.expires.as_deref().into();
            let budget = |budget: &tower_openrouter::endpoint::Budget| {
                json!({
                    "scope": budget.scope,
                    "limit_usd": budget.limit.usd(),
                    "remaining_usd": budget.left.usd(),
                    "resets_in_s": budget.resets_in.map(|span| span.as_secs())
                })
            };
            object["budgets"] = report.budgets.iter().map(budget).collect();
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tower_openrouter::{
        ApiKey,
        openrouter::{LookupError, account::KeyInfo},
    };

    use super::*;

    fn asked(label: &str, data: &Value, balance: Option<f64>) -> Asked {
        let body = json!({"data": data}).to_string();
        Asked {
            key: ApiKey::new("sk-or-v1-secret").unwrap().label(label),
            info: Ok(KeyInfo::read(body.as_bytes(), SystemTime::UNIX_EPOCH).unwrap()),
            balance: balance.map(Money::from_usd),
        }
    }

    #[test]
    fn the_table_lines_up_and_tells_unknown_from_none() {
        let capped = json!({
            "limit": 20, "limit_remaining": 0.0042, "limit_reset": "daily", "usage": 19.9958, "creator_user_id": "user_a\u{1b}[2J",
            "free_model_daily_requests": {"limit": 50, "used": 12}, "rate_limit": {"requests": -1, "interval": "10s"}
        });
        let open = json!({"limit": null, "limit_remaining": null, "limit_reset": null, "usage": 0});
        let failed = LookupError::TimedOut { path: "/key", after: Duration::from_secs(10) };
        let rows = [
            asked("team-a", &capped, Some(-1.5)),
            asked("b", &open, None),
            Asked { info: Err(failed), ..asked("gone", &json!({}), None) },
        ];
        let expected = "\
KEY     ACCOUNT     LIMIT    USED       LEFT  RESET           BALANCE  RATE LIMIT           STATUS
team-a  user_a[2J  $20.00  $20.00  $0.004200  daily, in 1d 0h  $-1.50  free 12 of 50 today  negative balance
b       ?            none   $0.00  unlimited  -                     ?  ?                    ok
gone    ?               ?       ?          ?  ?                     ?  ?                    unreachable
";
        assert_eq!(Table(&rows).to_string().replace(' ', ""), expected.replace(' ', ""));
        let table = Table(&rows).to_string();
        let starts: Vec<_> = table.lines().map(|line| line.rfind("  ").unwrap()).collect();
        assert!(starts.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
    }

    #[test]
    fn programs_get_numbers_null_for_unknown_and_the_word_for_unlimited() {
        let open = asked("b", &json!({"limit": null, "limit_remaining": null, "usage": 0.5}), None);
        let value = json(&[open]);
        assert_eq!(value["usable"], 1);
        let key = &value["keys"][0];
        assert_eq!((&key["limit_usd"], &key["remaining_usd"]), (&json!("unlimited"), &json!("unlimited")));
        assert_eq!((&key["used_usd"], &key["balance_usd"]), (&json!(0.5), &Value::Null));
        assert!(!value.to_string().contains("secret"));
    }

    #[test]
    fn spans_are_told_in_their_two_largest_units() {
        for (seconds, shown) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (3_599, "59m"), (40_000, "11h 6m"), (273_600, "3d 4h")]
        {
            assert_eq!(short(Duration::from_secs(seconds)), shown);
        }
    }
}
