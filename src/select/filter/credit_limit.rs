use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use super::{Ended, Filter, Fit};
use crate::{
    endpoint::{Endpoint, Fits, Money, Paid},
    outcome::{Cause, Fault, Outcome, Retry},
    request::RequestContext,
};

/// Answers longer than this are rare, and where one comes of a request that set no bound, the next poll says so.
const UNSAID: u64 = 16_384;
/// What a request of unknown price counts with: some thousand tokens of a dear model.
const UNPRICED: Money = Money::from_nanos(10_000_000);

/// Sends a request only where its worst case can be paid, and sets that aside until the bill is known.
///
/// Upstream refuses what a key or its account could not pay at worst, and bills what has run when it has run. So of two
/// requests at once for the same last dollar, one is refused, or both run and the cap is overrun. Here the worst case, the
/// whole prompt and as many tokens as the answer may have at the model's [prices](crate::endpoint::Prices), is taken from
/// what [the key](crate::endpoint::Credit) may spend when the key is chosen, and settled with what the answer says it cost.
///
/// - What is too dear for one key goes to a richer one; where it would fit if others were done, it waits for them.
/// - An account has its cost in flight limited once it has refused a request for that (a 402 by its in-flight budget), at a
///   level that follows its refusals; before the first there is no limit, and the refused request waits or changes account.
/// - What upstream refused as too dear, or for a cap that is spent, is remembered until a newer poll or the cap's reset.
/// - Where nothing is known, nothing is held back.
///
/// A request whose caller leaves early, or whose connection breaks, may be billed in full whatever was seen of it: most
/// providers run on. It is settled with all that was set aside, so a key may look poorer than it is, until the poll after the
/// next minute; never richer.
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, OpenRouter, select::{CreditLimit, MostCredit, Pool}};
/// # use tower_openrouter::{simulator::{Scenario, Simulator}, stack::Balancer as B};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let pool = Pool::new([ApiKey::new("key-a")?.account("acme"), ApiKey::new("key-b")?.account("acme")])?;
/// let balancer = Balancer::builder(pool).filter(CreditLimit::new()).pick(MostCredit::default()).build(OpenRouter::new(transport));
/// # let _: &B<String> = &balancer;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
///
/// With prices given by hand, and requests without `max_tokens` counted with no more than 1,000:
///
/// ```
/// use tower_openrouter::{ApiKey, endpoint::Price, select::{CreditLimit, Pool}};
///
/// let pool = Pool::new([ApiKey::new("key-a")?])?;
/// pool.prices().set([("acme/swift-1".into(), Price::per_million(0.5, 2.0))]);
/// let filter = CreditLimit::new().max_tokens_unsaid(1_000);
/// # let _ = filter;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CreditLimit {
    unsaid: u64,
}

impl Default for CreditLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl CreditLimit {
    /// The filter; see the type's own page for what it does.
    pub fn new() -> Self {
        Self { unsaid: UNSAID }
    }

    /// Sets with how many tokens a request counts at most that sets no bound for its answer; default 16,384. Without it such
    /// a request would count with all the model can say, and no key be rich enough.
    #[must_use]
    pub fn max_tokens_unsaid(mut self, tokens: u64) -> Self {
        self.unsaid = tokens;
        self
    }

    /// The most a request can cost: with the dearest of the models it may be served by.
    fn worst_case(&self, endpoint: &Endpoint, request: &RequestContext) -> Money {
        let asks = request.asks();
        let bytes = request.body().map_or(0, |body| body.len() as u64);
        let prices = endpoint.prices();
        let cost = |model: &str| match prices.get(model) {
            Some(price) => price.worst_case(bytes, asks.max_tokens, self.unsaid),
            None if asks.is_free() => Money::ZERO,
            None => UNPRICED,
        };
        let models = asks.model.iter().chain(&asks.models);
        models.map(|model| cost(model)).max().unwrap_or(UNPRICED)
    }
}

impl Filter for CreditLimit {
    /// The models it may be served by, the most it may say, and its length to a quarter.
    fn kind(&self, request: &RequestContext) -> Option<u64> {
        let asks = request.asks();
        let bytes = request.body().map_or(0, |body| body.len() as u64);
        let quarter = bytes.checked_ilog2().map_or(0, |power| (power << 2) | (bytes << 2 >> power) as u32 & 3);
        let mut hasher = DefaultHasher::new();
        (&asks.models, asks.max_tokens, quarter).hash(&mut hasher);
        Some(hasher.finish())
    }

    fn judge(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Fit {
        match endpoint.credit().fits(self.worst_case(endpoint, request), now) {
            Fits::Yes => Fit::Yes,
            Fits::Held => Fit::Full,
            Fits::Short(Some(until)) => Fit::NotBefore(until),
            Fits::Short(None) => Fit::No,
        }
    }

    fn reserves(&self) -> bool {
        true
    }

    fn reserve(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<u64> {
        let amount = self.worst_case(endpoint, request);
        endpoint.credit().take(amount, now).then(|| amount.nanos().unsigned_abs())
    }

    fn settle(&self, endpoint: &Endpoint, amount: u64, ended: &Ended) -> bool {
        let amount = Money::from_nanos(i64::try_from(amount).unwrap_or(i64::MAX));
        let (cost, paid) = settled(amount, ended);
        endpoint.credit().settle(amount, cost, paid, ended.since, ended.now)
    }
}

/// What a request with a worst case of `amount` is taken to have cost, and what its end says of the money.
fn settled(amount: Money, ended: &Ended) -> (Money, Paid) {
    let cost = match (ended.usage, ended.outcome) {
        _ if !ended.sent => Money::ZERO,
        (Some(usage), _) => Money::from_usd(usage.cost.max(0.0)),
        (None, Some(Outcome::Fault(fault))) if !may_have_run(&fault) => Money::ZERO,
        (None, _) => amount,
    };
    let paid = match ended.outcome {
        Some(Outcome::Success) => Paid::Served,
        Some(Outcome::Fault(fault)) => {
            let rest = fault.rest.map(|rest| rest.duration).unwrap_or_default();
            match fault.cause {
                Cause::InFlightBudget => Paid::InFlight,
                Cause::TooDearForKey => Paid::TooDearForKey,
                Cause::TooDearForAccount => Paid::TooDearForAccount,
                Cause::KeyLimit | Cause::GuardrailBudget => Paid::KeySpent(rest),
                Cause::WorkspaceBudget => Paid::WorkspaceSpent(rest),
                Cause::NoCredit => Paid::AccountSpent(rest),
                _ => Paid::Nothing,
            }
        }
        None => Paid::Nothing,
    };
    (cost, paid)
}

/// Whether tokens may have been made, and billed, before the fault.
fn may_have_run(fault: &Fault) -> bool {
    fault.retry == Retry::Unclear
        || matches!(
            fault.cause,
            Cause::MidStream
                | Cause::Truncated
                | Cause::UpstreamTimeout
                | Cause::Timeout
                | Cause::HeadersTimeout
                | Cause::FirstOutputTimeout
                | Cause::GapTimeout
                | Cause::Reset
        )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ApiKey,
        endpoint::{KeyReport, Price, Spendable},
        outcome::{Rest, Scope, Usage},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn usd(usd: f64) -> Money {
        Money::from_usd(usd)
    }

    /// An endpoint with so much under its cap, for a model at one dollar a million tokens of answer.
    fn endpoint(left: Spendable, now: Instant) -> Endpoint {
        let endpoint = Endpoint::new(ApiKey::new("key").unwrap());
        endpoint
            .prices()
            .set([("m".into(), Price::per_million(0.0, 1.0)), ("dear".into(), Price::per_million(0.0, 9.0))]);
        endpoint.credit().report_key(KeyReport { left, ..KeyReport::default() }, now);
        endpoint
    }

    fn asking(body: &str) -> RequestContext {
        let request = RequestContext::new();
        request.set_body(body.to_owned().into());
        request
    }

    fn ended(now: Instant, outcome: Option<Outcome>, cost: Option<f64>) -> Ended {
        let usage = cost.map(|cost| Usage { cost, ..Usage::default() });
        Ended { since: now, now: now + SECOND, sent: true, first_output: None, outcome, usage, limit: None }
    }

    #[test]
    fn a_worst_case_counts_the_dearest_model_and_the_tokens_allowed() {
        let now = Instant::now();
        let endpoint = endpoint(Spendable::Unlimited, now);
        let filter = CreditLimit::new().max_tokens_unsaid(1_000_000);
        for (body, worst) in [
            (r#"{"model":"m","max_tokens":500000}"#, usd(0.5)),
            (r#"{"model":"m"}"#, usd(1.0)),
            (r#"{"model":"m","models":["dear"],"max_tokens":500000}"#, usd(4.5)),
            (r#"{"model":"m:free"}"#, Money::ZERO),
            (r#"{"model":"openrouter/free"}"#, Money::ZERO),
            (r#"{"model":"of/unknown-price"}"#, UNPRICED),
            ("not JSON", UNPRICED),
        ] {
            assert_eq!(filter.worst_case(&endpoint, &asking(body)), worst, "{body}");
        }
    }

    #[test]
    fn a_request_goes_where_its_worst_case_can_be_paid() {
        let (now, filter) = (Instant::now(), CreditLimit::new());
        let request = asking(r#"{"model":"m","max_tokens":1000000}"#);
        for (left, fit) in [
            (Spendable::Unlimited, Fit::Yes),
            (Spendable::Unknown, Fit::Yes),
            (Spendable::Money(usd(1.0)), Fit::Yes),
            (Spendable::Money(usd(0.999_999)), Fit::No),
            (Spendable::Money(usd(-1.0)), Fit::No),
        ] {
            assert_eq!(filter.judge(&endpoint(left, now), &request, now), fit, "{left}");
        }
        let endpoint = endpoint(Spendable::Money(usd(1.5)), now);
        let amount = filter.reserve(&endpoint, &request, now).expect("there is enough for one");
        assert_eq!(filter.reserve(&endpoint, &request, now), None);
        assert_eq!(filter.judge(&endpoint, &request, now), Fit::Full, "it may cost less than it might");
        filter.settle(&endpoint, amount, &ended(now, Some(Outcome::Success), Some(0.4)));
        assert_eq!(endpoint.credit().spendable(now), Spendable::Money(usd(1.1)));
    }

    #[test]
    fn each_end_is_settled_by_what_may_have_been_billed() {
        let now = Instant::now();
        let fault = |cause, retry| Some(Outcome::Fault(Fault::new(cause, Scope::Key).retry(retry)));
        let reserved = usd(1.0);
        for (name, outcome, usage, sent, cost) in [
            ("never sent", None, None, false, Money::ZERO),
            ("done", Some(Outcome::Success), Some(0.25), true, usd(0.25)),
            ("done without a bill", Some(Outcome::Success), None, true, reserved),
            ("the caller left", None, None, true, reserved),
            ("the caller left after the bill", None, Some(0.25), true, usd(0.25)),
            ("refused", fault(Cause::KeyLimit, Retry::Elsewhere), None, true, Money::ZERO),
            ("a reset", fault(Cause::Reset, Retry::Unclear), None, true, reserved),
            ("cut off", fault(Cause::MidStream, Retry::Never), None, true, reserved),
            ("never connected", fault(Cause::Connect, Retry::Backoff), None, true, Money::ZERO),
        ] {
            let ended = Ended { sent, ..ended(now, outcome, usage) };
            assert_eq!(settled(reserved, &ended).0, cost, "{name}");
        }
    }

    #[test]
    fn refusals_for_money_are_remembered_where_they_belong() {
        let now = Instant::now();
        let later = now + 2 * SECOND;
        let request = asking(r#"{"model":"m","max_tokens":1000000}"#);
        let cheap = asking(r#"{"model":"m","max_tokens":1}"#);
        let rest = Rest::guessed(60 * SECOND);
        for (cause, same, cheaper) in [
            (Cause::TooDearForKey, false, true),
            (Cause::TooDearForAccount, false, true),
            (Cause::KeyLimit, false, false),
            (Cause::NoCredit, false, false),
            (Cause::Refused, true, true),
        ] {
            let (filter, endpoint) = (CreditLimit::new(), endpoint(Spendable::Unknown, now));
            let amount = filter.reserve(&endpoint, &request, now).unwrap();
            let fault = Fault::new(cause, Scope::Key).rest(rest);
            filter.settle(&endpoint, amount, &ended(now, Some(fault.into()), None));
            let goes = |request| filter.judge(&endpoint, request, later) == Fit::Yes;
            assert_eq!((goes(&request), goes(&cheap)), (same, cheaper), "{cause}");
        }
    }

    #[test]
    fn an_in_flight_budget_is_seen_to_while_something_else_runs() {
        let now = Instant::now();
        let (filter, endpoint) = (CreditLimit::new(), endpoint(Spendable::Unlimited, now));
        let request = asking(r#"{"model":"m","max_tokens":1000000}"#);
        let full = Fault::new(Cause::InFlightBudget, Scope::Account).rest(Rest::hinted(3 * SECOND));
        let take = || filter.reserve(&endpoint, &request, now);
        let (one, two) = (take().unwrap(), take().unwrap());
        assert!(filter.settle(&endpoint, two, &ended(now, Some(full.into()), None)));
        assert_eq!(take(), None, "the account is full with what runs");
        assert_eq!(filter.judge(&endpoint, &request, now), Fit::Full);
        filter.settle(&endpoint, one, &ended(now, Some(Outcome::Success), Some(0.0)));
        let alone = take().expect("one may always try");
        assert!(!filter.settle(&endpoint, alone, &ended(now + SECOND, Some(full.into()), None)), "only a rest helps");
    }

    proptest! {
        #[test]
        fn whatever_ends_how_the_cap_is_kept(
            steps in prop::collection::vec((1u64..500_000, 0u8..5, any::<bool>()), 1..200),
        ) {
            let now = Instant::now();
            let (filter, endpoint) = (CreditLimit::new(), endpoint(Spendable::Money(usd(2.0)), now));
            let (mut running, mut billed) = (Vec::new(), Money::ZERO);
            for (tokens, end, start) in steps {
                if start {
                    let request = asking(&format!(r#"{{"model":"m","max_tokens":{tokens}}}"#));
                    running.extend(filter.reserve(&endpoint, &request, now));
                } else if let Some(amount) = running.pop() {
                    let worst = Money::from_nanos(amount as i64);
                    // what upstream bills is what the answer says, or unknown to us and at most the worst case
                    let (bill, outcome, usage) = match end {
                        0 => (worst, Some(Outcome::Success), Some(worst.usd())),
                        1 => (Money::ZERO, Some(Outcome::Success), Some(0.0)),
                        2 => (worst, None, None),
                        3 => (Money::ZERO, Some(Fault::new(Cause::ServerError, Scope::Pool).into()), None),
                        _ => (worst, Some(Fault::new(Cause::Reset, Scope::Egress).retry(Retry::Unclear).into()), None),
                    };
                    billed = billed + bill;
                    filter.settle(&endpoint, amount, &ended(now, outcome, usage));
                }
                prop_assert!(billed <= usd(2.0));
            }
        }
    }
}
