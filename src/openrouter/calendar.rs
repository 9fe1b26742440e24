//! The little calendar that resets need: OpenRouter's budgets start anew at 00:00 UTC, on Mondays and on the first.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn until_day(now: SystemTime, day: u64) -> Duration {
    Duration::from_secs(day.saturating_mul(DAY)).saturating_sub(since_epoch(now))
}

/// From `now` to the next 00:00 UTC.
pub(super) fn to_next_day(now: SystemTime) -> Duration {
    until_day(now, since_epoch(now).as_secs() / DAY + 1)
}

/// From `now` to the next Monday, 00:00 UTC.
pub(super) fn to_next_week(now: SystemTime) -> Duration {
    let today = since_epoch(now).as_secs() / DAY;
    // day 0 was a Thursday
    until_day(now, today + 7 - (today + 3) % 7)
}

/// From `now` to the first of the next month, 00:00 UTC.
pub(super) fn to_next_month(now: SystemTime) -> Duration {
    let (year, month, _) = civil_of((since_epoch(now).as_secs() / DAY) as i64);
    let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    until_day(now, day_of(year, month, 1).max(0) as u64)
}

/// Reads `2026-11-21T08:00:00Z`, with or without a fraction or an offset.
pub(super) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    if !text.is_ascii() || text.len() < 20 || text.len() > 40 {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = &text[from..to];
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten()
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|&(at, mark)| text.as_bytes()[at] != mark) || !matches!(text.as_bytes()[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let zone = text[19..].trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] if [h1, h2, m1, m2].iter().all(|c| c.is_ascii_digit()) => {
            let pair = |a: &u8, b: &u8| i64::from(a - b'0') * 10 + i64::from(b - b'0');
            let seconds = pair(h1, h2) * 3600 + pair(m1, m2) * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = day_of(year, month, day) * DAY as i64 + hour * 3600 + minute * 60 + second - offset;
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Days since 1970-01-01 of a date of the Gregorian calendar; years start in March, so that the leap day is the last.
fn day_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The reverse of [`day_of`].
fn civil_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SystemTime {
        parse_rfc3339(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn periods_end_where_the_calendar_says() {
        let reach = |from: &str, span: fn(SystemTime) -> Duration| at(from) + span(at(from));
        // a Saturday
        let now = "2026-11-21T08:30:00Z";
        assert_eq!(reach(now, to_next_day), at("2026-11-22T00:00:00Z"));
        assert_eq!(reach(now, to_next_week), at("2026-11-23T00:00:00Z"));
        assert_eq!(reach(now, to_next_month), at("2026-12-01T00:00:00Z"));
        assert_eq!(reach("2026-11-23T00:00:00Z", to_next_week), at("2026-11-30T00:00:00Z"), "a Monday waits a week");
        assert_eq!(reach("2026-12-31T23:59:59Z", to_next_month), at("2027-01-01T00:00:00Z"));
        assert_eq!(reach("2028-02-29T12:00:00Z", to_next_month), at("2028-03-01T00:00:00Z"));
    }

    #[test]
    fn instants_are_read_with_fraction_and_offset() {
        assert_eq!(at("1970-01-01T00:00:10Z"), UNIX_EPOCH + Duration::from_secs(10));
        assert_eq!(at("2026-11-21T08:00:00.123+02:00"), at("2026-11-21T06:00:00Z"));
        for bad in [
            "",
            "2026-11-21",
            "2026-13-21T08:00:00Z",
            "1960-01-01T00:00:00Z",
            "2026-11-21T08:00:00",
            "ä".repeat(20).as_str(),
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn dates_and_days_are_each_other_s_reverse(days in -800_000i64..800_000) {
            let (year, month, day) = civil_of(days);
            prop_assert_eq!(day_of(year, month, day), days);
        }

        #[test]
        fn r119_any_text_is_an_instant_or_none(text in any::<String>()) {
            let _ = parse_rfc3339(&text);
        }
    }
}
