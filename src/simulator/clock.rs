//! Quotas end at calendar boundaries: the minute, 00:00 UTC, Monday, the first of the month.
//!
//! A [`Wall`] is a UTC instant in milliseconds. The [`Clock`] derives it from a configured start plus what
//! `tokio::time` says has passed, so a paused clock moves the calendar too and no real clock is read.

use std::fmt;

use tokio::time::Instant;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const DAY: i64 = 24 * 60 * MINUTE;

/// A UTC instant, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wall(i64);

impl Wall {
    pub(super) const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub(super) const fn millis(self) -> i64 {
        self.0
    }

    /// So many milliseconds later, or earlier when they are negative.
    pub(super) fn later(self, ms: f64) -> Self {
        Self(self.0.saturating_add(ms as i64))
    }

    pub(super) const fn seconds(self) -> i64 {
        self.0.div_euclid(SECOND)
    }

    /// The number of the minute, which changes when the per-minute quota starts anew.
    pub(super) const fn minute(self) -> i64 {
        self.0.div_euclid(MINUTE)
    }

    pub(super) const fn next_minute(self) -> Self {
        Self((self.minute() + 1) * MINUTE)
    }

    pub(super) const fn day(self) -> i64 {
        self.0.div_euclid(DAY)
    }

    pub(super) const fn next_day(self) -> Self {
        Self((self.day() + 1) * DAY)
    }

    /// The number of the week, Monday to Sunday. Day 0 of the era was a Thursday, hence the 3.
    pub(super) const fn week(self) -> i64 {
        (self.day() + 3).div_euclid(7)
    }

    pub(super) const fn next_week(self) -> Self {
        Self(((self.week() + 1) * 7 - 3) * DAY)
    }

    /// The number of the month, counted from year 0.
    pub(super) const fn month(self) -> i64 {
        let (year, month, _) = civil(self.day());
        year * 12 + month - 1
    }

    pub(super) const fn next_month(self) -> Self {
        let next = self.month() + 1;
        Self(days(next.div_euclid(12), next.rem_euclid(12) + 1, 1) * DAY)
    }

    /// Reads `2026-01-15T12:00:00Z` (seconds required, fractions allowed, UTC only).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_suffix('Z')?;
        let (date, time) = rest.split_once('T')?;
        let mut date = date.splitn(3, '-').map(digits);
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let mut time = whole.splitn(3, ':').map(digits);
        let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
        let fraction = digits(fraction.get(..3).unwrap_or(fraction))
            .map(|value| value * 10_i64.pow(3_u32.saturating_sub(fraction.len().min(3) as u32)))?;
        let valid = (1970..10_000).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && civil(days(year, month, day)) == (year, month, day)
            && hour < 24
            && minute < 60
            && second < 60;
        valid.then(|| {
            let seconds = (hour * 60 + minute) * 60 + second;
            Self(days(year, month, day) * DAY + seconds * SECOND + fraction)
        })
    }
}

/// RFC 3339 with milliseconds, as the API writes its dates.
impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.day());
        let rest = self.0.rem_euclid(DAY);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            rest / (60 * MINUTE),
            rest / MINUTE % 60,
            rest / SECOND % 60,
            rest % SECOND
        )
    }
}

fn digits(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Year, month and day of a day number, by counting from a year that begins in March.
const fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// The day number of a date; the inverse of [`civil`].
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = (month + 9) % 12;
    let of_year = (153 * march_month + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

/// The simulator's calendar, driven by `tokio::time`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: Wall,
    started: Instant,
}

impl Clock {
    pub(super) fn starting_at(base: Wall) -> Self {
        Self { base, started: Instant::now() }
    }

    pub(super) fn now(&self) -> Now {
        let instant = Instant::now();
        let elapsed = instant.saturating_duration_since(self.started);
        let passed = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        Now { instant, elapsed, wall: Wall(self.base.0.saturating_add(passed)) }
    }
}

impl Now {
    /// What `elapsed` will be when the calendar shows this, exactly.
    #[cfg(feature = "lab")]
    pub(super) fn elapsed_at(&self, wall: Wall) -> std::time::Duration {
        let passed = i64::try_from(self.elapsed.as_millis()).unwrap_or(i64::MAX);
        let millis = wall.millis() - (self.wall.millis() - passed);
        std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

/// One reading of the clock, in the three forms the simulator needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Since the simulator was made.
    pub(super) elapsed: std::time::Duration,
    pub(super) wall: Wall,
}

#[cfg(test)]
mod tests {
    use super::Wall;

    #[test]
    fn boundaries_follow_the_utc_calendar() {
        let cases = [
            ("2026-01-15T12:00:30Z", "2026-01-16", "2026-01-19", "2026-02-01"),
            ("2026-12-31T23:59:59.999Z", "2027-01-01", "2027-01-04", "2027-01-01"),
            ("2028-02-28T00:00:00Z", "2028-02-29", "2028-03-06", "2028-03-01"),
            ("2026-03-01T00:00:00Z", "2026-03-02", "2026-03-02", "2026-04-01"),
        ];
        for (at, day, week, month) in cases {
            let at = Wall::parse(at).expect("a valid date");
            for (found, wanted) in [(at.next_day(), day), (at.next_week(), week), (at.next_month(), month)] {
                assert_eq!(found.to_string(), format!("{wanted}T00:00:00.000Z"), "after {at}");
            }
        }
    }

    #[test]
    fn dates_survive_a_round_trip_and_nonsense_is_refused() {
        for text in ["1970-01-01T00:00:00.000Z", "2024-02-29T23:59:59.120Z", "2100-03-01T05:06:07.008Z"] {
            assert_eq!(Wall::parse(text).expect("a valid date").to_string(), text);
        }
        for text in ["", "2026-01-15", "2026-02-30T00:00:00Z", "2026-01-15T24:00:00Z", "2026-01-15T12:00Z", "x"] {
            assert_eq!(Wall::parse(text), None, "{text}");
        }
    }
}
