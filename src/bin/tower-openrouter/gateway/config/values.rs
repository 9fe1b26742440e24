//! Values as people write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A length of time: a whole number and `ms`, `s`, `m` or `h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

/// A length of time that is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(Duration);

/// A number of bytes: a whole number and `B`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// A number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Share(pub(crate) f64);

/// An amount of money, 0 or more.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Dollars(pub(crate) f64);

/// What a value should have looked like.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum BadValue {
    #[error("expected a whole number with a unit, such as 500ms, 30s, 10m or 1h")]
    Span,
    #[error("it is 0: it must be more, or left out for its default")]
    Zero,
    #[error("expected a whole number with a unit, such as 512KiB, 64MiB or 1GiB")]
    Size,
    #[error("it is {0}: it must be a share, from 0 to 1")]
    Share(f64),
    #[error("it is {0}: it must be an amount of dollars, 0 or more")]
    Dollars(f64),
}

impl Span {
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl Time {
    pub(crate) const fn seconds(seconds: u64) -> Self {
        assert!(seconds > 0);
        Self(Duration::from_secs(seconds))
    }

    pub(crate) const fn millis(millis: u64) -> Self {
        assert!(millis > 0);
        Self(Duration::from_millis(millis))
    }

    pub(crate) fn get(self) -> Duration {
        self.0
    }
}

impl Size {
    pub(crate) const fn kib(number: u64) -> Self {
        Self(number << 10)
    }

    pub(crate) const fn mib(number: u64) -> Self {
        Self(number << 20)
    }
}

/// The number and the unit after it.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    Some((text[..text.len() - unit.len()].parse().ok()?, unit.trim_start()))
}

impl FromStr for Span {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (number, unit) = split(text).ok_or(BadValue::Span)?;
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs).ok_or(BadValue::Span);
        Ok(Self(match unit {
            "ms" => Duration::from_millis(number),
            "s" => seconds(1)?,
            "m" => seconds(60)?,
            "h" => seconds(3600)?,
            _ => return Err(BadValue::Span),
        }))
    }
}

impl FromStr for Time {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let Span(span) = text.parse()?;
        if span.is_zero() { Err(BadValue::Zero) } else { Ok(Self(span)) }
    }
}

impl FromStr for Size {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (number, unit) = split(text).ok_or(BadValue::Size)?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(BadValue::Size),
        };
        number.checked_mul(1 << shift).map(Self).ok_or(BadValue::Size)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
        match units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None => f.write_str("0s"),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Span(self.0).fmt(f)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.0)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, name)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let share = f64::deserialize(deserializer)?;
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(de::Error::custom(BadValue::Share(share))) }
    }
}

impl<'de> Deserialize<'de> for Dollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dollars = f64::deserialize(deserializer)?;
        let is_amount = dollars.is_finite() && dollars >= 0.0;
        if is_amount { Ok(Self(dollars)) } else { Err(de::Error::custom(BadValue::Dollars(dollars))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_read_as_written() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000), (" 2 s ", 2_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "30", "s", "-1s", "1.5s", "1d", "1e3s", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(text.parse::<Span>(), Err(BadValue::Span), "{text}");
        }
        assert_eq!("0ms".parse::<Time>(), Err(BadValue::Zero));
        for shown in ["90s", "1500ms", "10m", "1h", "0s"] {
            assert_eq!(shown.parse::<Span>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn numbers_of_bytes_read_as_written() {
        for (text, bytes) in [("0B", 0), ("512KiB", 512 << 10), ("64MiB", 64 << 20), ("1 GiB", 1 << 30)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "64", "64MB", "-1B", "17179869184GiB"] {
            assert_eq!(text.parse::<Size>(), Err(BadValue::Size), "{text}");
        }
        for shown in ["1GiB", "1536MiB", "1000B", "0B"] {
            assert_eq!(shown.parse::<Size>().unwrap().to_string(), shown);
        }
    }
}
