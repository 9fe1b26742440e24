//! Whether to try again: pure, with the remaining time and the random number as arguments.

use std::time::Duration;

use super::Backoff;
use crate::{
    endpoint::Endpoint,
    outcome::{Cause, Fault, Retry, Scope},
    request::Ledger,
};

/// Failovers one request may make.
pub(super) const MOST_FAILOVERS: u32 = 8;
/// Retries one request may make after a platform's own 500 (row 25 of the classification table).
const MOST_AFTER_SERVER_ERROR: u32 = 2;

/// What is configured.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Attempts of one request, the first included, failovers not.
    pub(super) attempts: u32,
    /// The longest hint that is waited for.
    pub(super) wait_cap: Duration,
    pub(super) backoff: Backoff,
    /// Whether what may have run is repeated.
    pub(super) unclear: bool,
}

/// What one request has used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    retries: u32,
    failovers: u32,
    /// Attempts that were sent beside others.
    pub(super) hedges: u32,
    server_errors: u32,
    once: bool,
}

impl Progress {
    /// Notes that `decision` was taken after `fault`.
    pub(super) fn note(&mut self, fault: &Fault, decision: Decision) {
        match decision {
            Decision::GiveUp(_) => {}
            Decision::Failover => self.failovers += 1,
            Decision::After(_) => {
                self.retries += 1;
                self.server_errors += u32::from(fault.cause == Cause::ServerError);
                self.once |= fault.retry == Retry::Once;
            }
        }
    }
}

/// What selection tells of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// There is no selection below.
    One,
    /// There is.
    Many {
        /// The failed scope refused this request before.
        again: bool,
        /// The next attempt could go outside the failed scope now.
        elsewhere: bool,
    },
}

impl Keys {
    /// Reads the ledger, whose latest attempt failed by `fault`.
    pub(super) fn of(ledger: &Ledger, fault: &Fault) -> Self {
        let Some((last, mut others)) = ledger.ended() else {
            return Self::One;
        };
        let again = others.any(|attempt| {
            attempt.outcome.as_ref().and_then(|outcome| outcome.fault()).is_some_and(|before| {
                before.scope == fault.scope
                    && before.retry == Retry::Elsewhere
                    && same(fault.scope, &attempt.endpoint, &last.endpoint)
            })
        });
        Self::Many { again, elsewhere: ledger.elsewhere() }
    }
}

/// Whether two endpoints lie in one scope. An unknown account is its key's own.
fn same(scope: Scope, one: &Endpoint, other: &Endpoint) -> bool {
    let account = || one.account().is_some() && one.account() == other.account();
    let workspace = || one.key().workspace_name() == other.key().workspace_name();
    one == other
        || match scope {
            Scope::Key => false,
            Scope::Workspace => account() && workspace(),
            Scope::Account | Scope::FreeTier | Scope::AccountModel => account(),
            Scope::Request | Scope::Pool | Scope::Egress => true,
        }
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Decision {
    /// Pass the answer on.
    GiveUp(GiveUp),
    /// Try another key at once.
    Failover,
    /// Try again after a wait, if the budget allows.
    After(Duration),
}

/// Why a failed attempt was not followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum GiveUp {
    /// The same would happen again.
    Final,
    /// The request may have run, and repeating that was not asked for.
    Unclear,
    /// The attempts, or the failovers, are used up.
    Attempts,
    /// No key outside the failed scope can serve.
    NoOtherKey,
    /// The server asks for a longer wait than the cap.
    LongWait,
    /// The wait would end beyond the request's deadline.
    Deadline,
    /// The retry budget is used up.
    Budget,
}

impl GiveUp {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::Final, Self::Unclear, Self::Attempts, Self::NoOtherKey, Self::LongWait, Self::Deadline, Self::Budget];

    /// The reason's name in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Unclear => "unclear",
            Self::Attempts => "attempts",
            Self::NoOtherKey => "no_other_key",
            Self::LongWait => "long_wait",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
        }
    }
}

/// Decides what follows `fault`; `remaining` is the time to the deadline, `random` a number of `0.0..1.0`.
pub(super) fn decide(
    limits: &Limits,
    progress: &Progress,
    fault: &Fault,
    keys: Keys,
    remaining: Option<Duration>,
    random: f64,
) -> Decision {
    use Decision::{After, Failover};
    let give_up = Decision::GiveUp;
    match fault.retry {
        Retry::Never => return give_up(GiveUp::Final),
        Retry::Unclear if !limits.unclear => return give_up(GiveUp::Unclear),
        _ if remaining.is_some_and(|remaining| remaining.is_zero()) => return give_up(GiveUp::Deadline),
        Retry::Elsewhere => match keys {
            Keys::Many { elsewhere: false, .. } if is_of_size(fault.cause) => return give_up(GiveUp::NoOtherKey),
            // what fills an account for a moment may do so again: then it is a wait like any other
            Keys::Many { again: true, .. } if fault.cause.is_momentary() => {}
            Keys::Many { again: true, .. } => return give_up(GiveUp::Attempts),
            Keys::Many { .. } if progress.failovers >= MOST_FAILOVERS => return give_up(GiveUp::Attempts),
            Keys::Many { .. } => return Failover,
            Keys::One if !passes(fault.cause) => return give_up(GiveUp::NoOtherKey),
            Keys::One => {}
        },
        Retry::Once if progress.once => return give_up(GiveUp::Attempts),
        Retry::Once | Retry::Backoff | Retry::Unclear => {}
    }
    if progress.retries + progress.hedges + 1 >= limits.attempts
        || (fault.cause == Cause::ServerError && progress.server_errors >= MOST_AFTER_SERVER_ERROR)
    {
        return give_up(GiveUp::Attempts);
    }
    // the next attempt asks for another provider or model, which the full one's time does not bind
    if fault.scope == Scope::Pool && matches!(keys, Keys::Many { elsewhere: true, .. }) {
        return After(Duration::ZERO);
    }
    let hint = fault.rest.filter(|rest| rest.hinted).map(|rest| rest.duration);
    if hint.is_some_and(|hint| hint > limits.wait_cap) {
        return give_up(GiveUp::LongWait);
    }
    let wait = limits.backoff.delay(progress.retries + 1, hint, random);
    if remaining.is_some_and(|remaining| wait >= remaining) {
        return give_up(GiveUp::Deadline);
    }
    After(wait)
}

/// Whether the request is too dear for this key or account, which waiting does not change.
fn is_of_size(cause: Cause) -> bool {
    matches!(cause, Cause::TooDearForAccount | Cause::TooDearForKey)
}

/// Whether a fault of a key passes by itself in a moment.
fn passes(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::InFlightBudget
            | Cause::FreeTierMinute
            | Cause::PlatformLimit
            | Cause::ProviderLimit
            | Cause::ByokLimit
            | Cause::UnknownLimit
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ApiKey, outcome::Rest};

    fn limits() -> Limits {
        Limits { attempts: 3, wait_cap: Duration::from_secs(120), backoff: Backoff::default(), unclear: false }
    }

    fn fault(cause: Cause, scope: Scope, retry: Retry) -> Fault {
        Fault::new(cause, scope).retry(retry)
    }

    const OTHERS: Keys = Keys::Many { again: false, elsewhere: true };
    const NO_OTHERS: Keys = Keys::Many { again: false, elsewhere: false };

    fn after(fault: &Fault, progress: Progress, keys: Keys, remaining: Option<Duration>) -> Decision {
        decide(&limits(), &progress, fault, keys, remaining, 0.0)
    }

    #[test]
    fn each_advice_is_followed_within_its_bound() {
        use Retry::{Backoff, Elsewhere, Never, Once, Unclear};
        let (fresh, used) = (Progress::default(), |retries| Progress { retries, ..Progress::default() });
        let wait = |millis| Decision::After(Duration::from_millis(millis));
        for (name, cause, scope, retry, progress, keys, expected) in [
            ("a bad request", Cause::BadRequest, Scope::Request, Never, fresh, OTHERS, Decision::GiveUp(GiveUp::Final)),
            ("a dead key", Cause::InvalidKey, Scope::Key, Elsewhere, fresh, OTHERS, Decision::Failover),
            ("attempts used", Cause::InvalidKey, Scope::Key, Elsewhere, used(2), OTHERS, Decision::Failover),
            ("no key now", Cause::InvalidKey, Scope::Key, Elsewhere, fresh, NO_OTHERS, Decision::Failover),
            (
                "too dear everywhere",
                Cause::TooDearForAccount,
                Scope::Account,
                Elsewhere,
                fresh,
                NO_OTHERS,
                Decision::GiveUp(GiveUp::NoOtherKey),
            ),
            ("too dear here", Cause::TooDearForKey, Scope::Key, Elsewhere, fresh, OTHERS, Decision::Failover),
            (
                "no selector, dead key",
                Cause::InvalidKey,
                Scope::Key,
                Elsewhere,
                fresh,
                Keys::One,
                Decision::GiveUp(GiveUp::NoOtherKey),
            ),
            ("no selector, limit", Cause::PlatformLimit, Scope::Key, Elsewhere, fresh, Keys::One, wait(400)),
            ("a full pool", Cause::ProviderLimit, Scope::Pool, Backoff, fresh, NO_OTHERS, wait(400)),
            ("a full pool, and a detour", Cause::ProviderLimit, Scope::Pool, Backoff, fresh, OTHERS, wait(0)),
            (
                "the third",
                Cause::ProviderLimit,
                Scope::Pool,
                Backoff,
                used(2),
                OTHERS,
                Decision::GiveUp(GiveUp::Attempts),
            ),
            ("a timeout", Cause::UpstreamTimeout, Scope::Pool, Once, fresh, NO_OTHERS, wait(400)),
            (
                "a second timeout",
                Cause::UpstreamTimeout,
                Scope::Pool,
                Once,
                Progress { once: true, retries: 1, ..fresh },
                OTHERS,
                Decision::GiveUp(GiveUp::Attempts),
            ),
            ("a reset", Cause::Reset, Scope::Egress, Unclear, fresh, OTHERS, Decision::GiveUp(GiveUp::Unclear)),
        ] {
            assert_eq!(after(&fault(cause, scope, retry), progress, keys, None), expected, "{name}");
        }
    }

    #[test]
    fn failovers_are_bounded_by_scope_and_by_number() {
        let dead = fault(Cause::InvalidKey, Scope::Key, Retry::Elsewhere);
        let again = Keys::Many { again: true, elsewhere: true };
        assert_eq!(after(&dead, Progress::default(), again, None), Decision::GiveUp(GiveUp::Attempts));
        let used = Progress { failovers: MOST_FAILOVERS, ..Progress::default() };
        assert_eq!(after(&dead, used, OTHERS, None), Decision::GiveUp(GiveUp::Attempts));
    }

    #[test]
    fn a_server_error_is_repeated_at_most_twice() {
        let (limits, error) =
            (Limits { attempts: 5, ..limits() }, fault(Cause::ServerError, Scope::Pool, Retry::Backoff));
        let mut progress = Progress::default();
        for repeat in [true, true, false] {
            let decision = decide(&limits, &progress, &error, OTHERS, None, 0.5);
            assert_eq!(matches!(decision, Decision::After(_)), repeat, "{decision:?}");
            progress.note(&error, decision);
        }
    }

    #[test]
    fn r056_r057_what_cannot_be_waited_for_is_given_up_at_once() {
        let full = |hint| fault(Cause::ProviderLimit, Scope::Pool, Retry::Backoff).rest(Rest::hinted(hint));
        let (second, fresh) = (Duration::from_secs(1), Progress::default());
        assert_eq!(after(&full(121 * second), fresh, NO_OTHERS, None), Decision::GiveUp(GiveUp::LongWait));
        assert_eq!(after(&full(120 * second), fresh, NO_OTHERS, None), Decision::After(120 * second));
        assert_eq!(after(&full(5 * second), fresh, NO_OTHERS, Some(5 * second)), Decision::GiveUp(GiveUp::Deadline));
        assert_eq!(after(&full(5 * second), fresh, NO_OTHERS, Some(6 * second)), Decision::After(5 * second));
        let dead = fault(Cause::InvalidKey, Scope::Key, Retry::Elsewhere);
        assert_eq!(after(&dead, fresh, NO_OTHERS, Some(Duration::ZERO)), Decision::GiveUp(GiveUp::Deadline));
    }

    #[test]
    fn a_guessed_rest_is_no_hint() {
        let full =
            fault(Cause::ProviderLimit, Scope::Pool, Retry::Backoff).rest(Rest::guessed(Duration::from_secs(500)));
        assert_eq!(after(&full, Progress::default(), NO_OTHERS, None), Decision::After(Duration::from_millis(400)));
    }

    #[test]
    fn the_ledger_tells_scopes_apart() {
        let endpoint = |secret: &str, account: Option<&str>| {
            let key = ApiKey::new(secret).unwrap();
            Endpoint::new(account.map_or(key.clone(), |account| key.account(account)))
        };
        let (a1, a2, b) = (endpoint("a1", Some("a")), endpoint("a2", Some("a")), endpoint("b", Some("b")));
        let (lone, other) = (endpoint("lone", None), endpoint("other", None));
        let empty = fault(Cause::NoCredit, Scope::Account, Retry::Elsewhere);
        let dead = fault(Cause::InvalidKey, Scope::Key, Retry::Elsewhere);
        assert_eq!(Keys::of(&Ledger::default(), &dead), Keys::One);
        for (fault, first, second, again) in [
            (empty, &a1, &a2, true),
            (empty, &a1, &b, false),
            (empty, &lone, &other, false),
            (dead, &a1, &a2, false),
            (dead, &a1, &a1, true),
        ] {
            let mut ledger = Ledger::default();
            for endpoint in [first, second] {
                let attempt = ledger.start(endpoint);
                ledger.end(attempt, fault.into(), true);
            }
            assert_eq!(Keys::of(&ledger, &fault), Keys::Many { again, elsewhere: true }, "{first:?} {second:?}");
        }
    }

    proptest! {
        #[test]
        fn r051_no_mix_of_faults_passes_the_bounds(
            faults in prop::collection::vec((0..Cause::ALL.len(), 0..5usize), 1..60), attempts in 1u32..=5,
            unclear: bool, random in 0.0..1.0,
        ) {
            let (limits, mut progress) = (Limits { attempts, unclear, ..limits() }, Progress::default());
            let advice = [Retry::Never, Retry::Elsewhere, Retry::Backoff, Retry::Once, Retry::Unclear];
            let (mut retries, mut failovers) = (0, 0);
            for (cause, retry) in faults {
                let fault = fault(Cause::ALL[cause], Scope::Key, advice[retry]);
                let decision = decide(&limits, &progress, &fault, OTHERS, None, random);
                progress.note(&fault, decision);
                match decision {
                    Decision::GiveUp(_) => break,
                    Decision::Failover => failovers += 1,
                    Decision::After(_) => retries += 1,
                }
            }
            prop_assert!(retries < attempts && failovers <= MOST_FAILOVERS);
        }
    }
}
