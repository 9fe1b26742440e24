use std::fmt;

/// US dollars, in whole nano-dollars: sums of it do not drift as sums of floats do. Saturates instead of overflowing.
///
/// ```
/// use tower_openrouter::endpoint::Money;
/// let cent = Money::from_usd(0.01);
/// assert_eq!(cent.to_string(), "$0.01");
/// assert_eq!((Money::from_usd(1.0) - cent).usd(), 0.99);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Money(i64);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The most there can be, some nine billion dollars.
    pub const MAX: Self = Self(i64::MAX);

    /// An amount of nano-dollars.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// An amount of dollars, to the nearest nano-dollar; what is not a number is nothing.
    pub fn from_usd(usd: f64) -> Self {
        // the cast saturates, and makes zero of what is not a number
        Self((usd * 1e9).round() as i64)
    }

    /// The amount in nano-dollars.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// The amount in dollars.
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The share `factor` of it.
    pub(crate) fn share(self, factor: f64) -> Self {
        Self((self.0 as f64 * factor) as i64)
    }
}

impl std::ops::Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::Sub for Money {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::iter::Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, |sum, amount| sum + amount)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (dollars, nanos) = (self.0.unsigned_abs() / 1_000_000_000, self.0.unsigned_abs() % 1_000_000_000);
        let fraction = format!("{nanos:09}");
        let digits = fraction.trim_end_matches('0').len().max(2);
        f.pad(&format!("{sign}${dollars}.{}", &fraction[..digits]))
    }
}

impl fmt::Debug for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What may still be spent somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spendable {
    /// Nobody has said. It is not nothing: whoever asks upstream learns.
    #[default]
    Unknown,
    /// As much as one likes: there is no cap.
    Unlimited,
    /// This much. Below zero when more was spent than there was.
    Money(Money),
}

impl Spendable {
    /// What the API means by a number or `null`.
    pub fn null_is_unlimited(usd: Option<f64>) -> Self {
        usd.map_or(Self::Unlimited, |usd| Self::Money(Money::from_usd(usd)))
    }

    /// The amount, where there is one.
    pub fn money(self) -> Option<Money> {
        match self {
            Self::Money(money) => Some(money),
            Self::Unknown | Self::Unlimited => None,
        }
    }

    /// The narrower of two that hold both: the lesser amount; without any, unknown before unlimited.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Money(one), Self::Money(other)) => Self::Money(one.min(other)),
            (Self::Money(money), _) | (_, Self::Money(money)) => Self::Money(money),
            (Self::Unlimited, Self::Unlimited) => Self::Unlimited,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Spendable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.pad("unknown"),
            Self::Unlimited => f.pad("unlimited"),
            Self::Money(money) => fmt::Display::fmt(money, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn money_reads_as_dollars_and_saturates() {
        for (nanos, shown) in
            [(0, "$0.00"), (1, "$0.000000001"), (1_500_000_000, "$1.50"), (-20_000_000, "-$0.02"), (7, "$0.000000007")]
        {
            assert_eq!(Money::from_nanos(nanos).to_string(), shown);
        }
        assert_eq!(Money::from_usd(f64::NAN), Money::ZERO);
        assert_eq!(Money::from_usd(f64::INFINITY) + Money::MAX, Money::MAX);
        assert_eq!(Money::from_usd(0.1) + Money::from_usd(0.2), Money::from_usd(0.3), "no drift");
    }

    #[test]
    fn the_narrower_of_two_holds() {
        use Spendable::{Unknown, Unlimited};
        let money = |cents: i64| Spendable::Money(Money::from_nanos(cents * 10_000_000));
        for (one, other, both) in [
            (Unlimited, Unlimited, Unlimited),
            (Unlimited, Unknown, Unknown),
            (Unknown, money(5), money(5)),
            (Unlimited, money(5), money(5)),
            (money(7), money(5), money(5)),
        ] {
            assert_eq!(one.and(other), both);
            assert_eq!(other.and(one), both);
        }
    }

    proptest! {
        #[test]
        fn r118_any_number_is_money_and_shows(usd in any::<f64>()) {
            let _ = Money::from_usd(usd).to_string();
        }
    }
}
