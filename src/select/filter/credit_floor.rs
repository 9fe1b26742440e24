use tokio::time::Instant;

use super::{Filter, Fit};
use crate::{
    endpoint::{Endpoint, Money, Spendable},
    request::RequestContext,
};

/// Rests a key while less than so much may be spent with it: the least of its cap, its workspace's budget and its account's
/// balance, less what is set aside for requests that run.
///
/// It keeps something back, for a person, or for a route that must not fail. It comes back with a poll that finds more, or
/// when the cap's period ends. Where nothing is known, nothing is held back. For sending no more than can be paid there is
/// [`CreditLimit`](super::CreditLimit).
///
/// ```
/// use tower_openrouter::{endpoint::Money, select::CreditFloor};
/// let filter = CreditFloor::new(Money::from_usd(1.0));
/// # let _ = filter;
/// ```
///
/// In a stack, with a floor of five dollars:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, endpoint::Money, select::{CreditFloor, Pool}};
/// let pool = Pool::new([ApiKey::new("key-a")?, ApiKey::new("key-b")?])?;
/// let balancer = Balancer::builder(pool).filter(CreditFloor::new(Money::from_usd(5.0)));
/// # let _ = balancer;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CreditFloor(Money);

impl CreditFloor {
    /// Holds back the last `floor` of every key.
    pub fn new(floor: Money) -> Self {
        Self(floor)
    }
}

impl Filter for CreditFloor {
    fn kind(&self, _request: &RequestContext) -> Option<u64> {
        Some(0)
    }

    fn judge(&self, endpoint: &Endpoint, _request: &RequestContext, now: Instant) -> Fit {
        let credit = endpoint.credit();
        match credit.spendable(now) {
            Spendable::Money(left) if left < self.0 => credit.turns_at(now).map_or(Fit::No, Fit::NotBefore),
            _ => Fit::Yes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{ApiKey, endpoint::KeyReport};

    fn judge(floor: Money, report: KeyReport) -> Fit {
        let (now, endpoint) = (Instant::now(), Endpoint::new(ApiKey::new("key").unwrap()));
        endpoint.credit().report_key(report, now);
        CreditFloor::new(floor).judge(&endpoint, &RequestContext::new(), now)
    }

    fn report(left: Spendable) -> KeyReport {
        KeyReport { left, ..KeyReport::default() }
    }

    #[test]
    fn r085_a_key_under_the_floor_rests_and_what_is_unknown_does_not() {
        let floor = Money::from_usd(1.0);
        for (left, fit) in [
            (Spendable::Unknown, Fit::Yes),
            (Spendable::Unlimited, Fit::Yes),
            (Spendable::Money(Money::from_usd(1.0)), Fit::Yes),
            (Spendable::Money(Money::from_usd(0.99)), Fit::No),
            (Spendable::Money(Money::from_usd(-3.0)), Fit::No),
        ] {
            assert_eq!(judge(floor, report(left)), fit, "{left}");
        }
    }

    #[test]
    fn r085_it_returns_with_a_poll_above_the_floor_or_at_the_reset() {
        let (now, endpoint) = (Instant::now(), Endpoint::new(ApiKey::new("key").unwrap()));
        let (filter, request) = (CreditFloor::new(Money::from_usd(1.0)), RequestContext::new());
        let day = Duration::from_secs(86_400);
        let low = report(Spendable::Money(Money::from_usd(0.5)));
        endpoint
            .credit()
            .report_key(KeyReport { limit: Some(Money::from_usd(5.0)), resets_in: Some(day), ..low.clone() }, now);
        assert_eq!(filter.judge(&endpoint, &request, now), Fit::NotBefore(now + day));
        assert_eq!(filter.judge(&endpoint, &request, now + day), Fit::Yes);
        endpoint.credit().report_key(low, now + day);
        assert_eq!(filter.judge(&endpoint, &request, now + day), Fit::No);
        endpoint.credit().report_key(report(Spendable::Money(Money::from_usd(2.0))), now + day);
        assert_eq!(filter.judge(&endpoint, &request, now + day), Fit::Yes);
    }

    proptest! {
        #[test]
        fn it_says_yes_from_the_floor_on(floor in 0i64..10_000, left in -10_000i64..20_000) {
            let fit = judge(Money::from_nanos(floor), report(Spendable::Money(Money::from_nanos(left))));
            prop_assert_eq!(fit == Fit::Yes, left >= floor);
        }
    }
}
