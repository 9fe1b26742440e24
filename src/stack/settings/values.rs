//! Values as people write them in a file.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A length of time, written as a whole number and `ms`, `s`, `m` or `h`: `"30s"`. Zero is one, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A length of time that is not 0, written as a [`Span`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Duration);

/// A number of bytes, written as a whole number and `B`, `KiB`, `MiB` or `GiB`: `"64MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(f64);

/// An amount of US dollars, 0 or more.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Dollars(f64);

/// What a value should have looked like.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadValue {
    /// It is no [`Span`].
    #[error("expected a whole number with a unit, such as 500ms, 30s, 10m or 1h")]
    Span,
    /// A [`Time`] of 0.
    #[error("it is 0: it must be more, or left out for its default")]
    Zero,
    /// It is no [`Size`].
    #[error("expected a whole number with a unit, such as 512KiB, 64MiB or 1GiB")]
    Size,
    /// It is no [`Share`].
    #[error("it is {0}: it must be a share, from 0 to 1")]
    Share(f64),
    /// It is no amount of [`Dollars`].
    #[error("it is {0}: it must be an amount of dollars, 0 or more")]
    Dollars(f64),
}

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl Time {
    /// This long.
    ///
    /// # Errors
    /// When it is 0.
    pub const fn new(time: Duration) -> Result<Self, BadValue> {
        if time.is_zero() { Err(BadValue::Zero) } else { Ok(Self(time)) }
    }

    /// So many seconds.
    ///
    /// # Panics
    /// When it is 0.
    pub const fn seconds(seconds: u64) -> Self {
        assert!(seconds > 0);
        Self(Duration::from_secs(seconds))
    }

    pub(super) const fn millis(millis: u64) -> Self {
        assert!(millis > 0);
        Self(Duration::from_millis(millis))
    }

    /// How long.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Size {
    /// So many KiB; more than fit into a `u64` of bytes are that many.
    pub const fn kib(number: u64) -> Self {
        Self(number.saturating_mul(1 << 10))
    }

    /// So many MiB; more than fit into a `u64` of bytes are that many.
    pub const fn mib(number: u64) -> Self {
        Self(number.saturating_mul(1 << 20))
    }
}

impl Share {
    /// Such a share.
    ///
    /// # Errors
    /// When it is not within 0 to 1.
    pub fn new(share: f64) -> Result<Self, BadValue> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(BadValue::Share(share)) }
    }

    pub(super) const fn of(share: f64) -> Self {
        assert!(share >= 0.0 && share <= 1.0);
        Self(share)
    }

    /// How large.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Dollars {
    /// So many.
    ///
    /// # Errors
    /// When it is negative, or no number.
    pub fn new(dollars: f64) -> Result<Self, BadValue> {
        let is_amount = dollars.is_finite() && dollars >= 0.0;
        if is_amount { Ok(Self(dollars)) } else { Err(BadValue::Dollars(dollars)) }
    }

    pub(super) const fn of(dollars: f64) -> Self {
        assert!(dollars >= 0.0);
        Self(dollars)
    }

    /// How many.
    pub const fn get(self) -> f64 {
        self.0
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
        Self::new(text.parse::<Span>()?.0)
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
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Dollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
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
