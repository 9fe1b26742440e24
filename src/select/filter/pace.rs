use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{Ended, Filter, Fit};
use crate::{
    clock,
    endpoint::{Endpoint, EndpointId},
    outcome::{Cause, Fault, Outcome, Scope},
    pace::{Pace, PacePolicy, PaceScope, Refusal},
    request::RequestContext,
    sync::lock_std,
};

/// A quota that asks for a longer pause than this is not one to keep pace with: whoever met it rests.
const LONGEST_WINDOW: Duration = Duration::from_secs(10 * 60);
/// So few keys are not looked through for those that are gone.
const FEWEST: usize = 8;
/// An answer that says nothing of its length counts with so many tokens until it is over.
const UNSAID: u64 = 1_000;

/// Sends no faster than the limits of keys and accounts admit, given by hand or learned from refusals.
///
/// A limit that several keys share cannot live in the stack of each; here the selector asks before it chooses, the slot is
/// taken with the choice, and a request for which no key has a slot waits in the selector's line until the very instant of
/// the next one. What a [`PacePolicy`] learns, it learns for an account as a whole, for its free and for its paid requests:
/// before the first refusal nothing is held back; from then on the account is sent what its quota seems to admit, and such a
/// refusal asks for no other rest. A refusal that names a time more than ten minutes away does, as it would without this.
///
/// A clone shares everything with its original, so it can watch and change the limits of a stack that runs.
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, OpenRouter, pace::{PacePolicy, Rate}, select::{Pacing, Pool}};
/// # use tower_openrouter::simulator::{Scenario, Simulator};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let pool = Pool::new([ApiKey::new("key-a")?.account("acme"), ApiKey::new("key-b")?.account("zeta")])?;
/// let pacing = Pacing::new(PacePolicy::default());
/// let balancer = Balancer::builder(pool).filter(pacing.clone()).build(OpenRouter::new(transport));
/// # let _: &Balancer<String> = &balancer;
///
/// // later: a limit that has become known, beside what is learned
/// pacing.set(PacePolicy::default().requests(Rate::per_minute(20.0)?));
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone)]
pub struct Pacing(Arc<Inner>);

struct Inner {
    /// The limits that were given; `scope` and `learn` do not change.
    policy: Mutex<PacePolicy>,
    scope: PaceScope,
    learn: bool,
    counts_tokens: AtomicBool,
    known: RwLock<Known>,
    wall_clock: fn() -> SystemTime,
}

#[derive(Default)]
struct Known {
    paces: HashMap<EndpointId, Arc<Paces>, BuildHasherDefault<Spread>>,
    /// How many there may be before those of keys that are gone are looked for: a count of ours, since that at which a map
    /// grows differs from process to process once something was taken out of it.
    room: usize,
}

/// Hashes ids, which are numbers we have counted ourselves: they need only be spread. Each request looks three times, and a hash
/// that withstands numbers somebody has chosen would be half of that.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // by the golden ratio, after Knuth
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What paces one endpoint, in part or in whole together with others.
struct Paces {
    endpoint: Endpoint,
    /// Whether the account was known when it was made.
    named: bool,
    given: Arc<Mutex<Pace>>,
    /// For paid requests, and for free ones.
    learned: [Arc<Mutex<Pace>>; 2],
}

impl Pacing {
    /// Paces by `policy`.
    pub fn new(policy: PacePolicy) -> Self {
        Self::with_wall_clock(policy, clock::wall)
    }

    /// The same with another wall clock, which says when the day of a daily limit ends.
    pub fn with_wall_clock(policy: PacePolicy, wall_clock: fn() -> SystemTime) -> Self {
        let (scope, learn, counts_tokens) = (policy.scope, policy.learn, AtomicBool::new(policy.tokens.is_some()));
        let policy = Mutex::new(policy);
        Self(Arc::new(Inner { policy, scope, learn, counts_tokens, known: RwLock::default(), wall_clock }))
    }

    /// Changes the limits while requests run: what is owed stays owed, and what was learned stays known. Whose they are, and
    /// whether to learn, stays as it was.
    pub fn set(&self, policy: PacePolicy) {
        let now = Instant::now();
        let mut held = lock_std(&self.0.policy);
        self.0.counts_tokens.store(policy.tokens.is_some(), Ordering::Relaxed);
        *held = PacePolicy { scope: self.0.scope, learn: self.0.learn, ..policy };
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut done = Vec::new();
        for paces in known.paces.values() {
            if !done.contains(&Arc::as_ptr(&paces.given)) {
                done.push(Arc::as_ptr(&paces.given));
                lock_std(&paces.given).set(&held, self.0.wall_clock, now);
            }
        }
    }

    /// How many requests per second an endpoint's account is sent, by what was learned of it: its paid requests, and its
    /// free ones. `None` before the first refusal.
    pub fn learned(&self, endpoint: &Endpoint) -> [Option<f64>; 2] {
        let paces = self.0.paces(endpoint, Instant::now());
        [0, 1].map(|kind| lock_std(&paces.learned[kind]).learned_rate())
    }
}

impl Inner {
    fn paces(&self, endpoint: &Endpoint, now: Instant) -> Arc<Paces> {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.paces.get(&endpoint.id())
                && found.named == endpoint.account().is_some()
            {
                return found.clone();
            }
        }
        let policy = lock_std(&self.policy).clone();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Known { paces, room } = &mut *known;
        // at each doubling, so that keys that are gone cost no room, and looking for them next to no time
        if paces.len() >= *room {
            paces.retain(|_, paces| !paces.endpoint.is_removed());
            *room = (2 * paces.len()).max(FEWEST);
        }
        let account = endpoint.account();
        let kin = |paces: &&Arc<Paces>| account.is_some() && paces.endpoint.account() == account && paces.named;
        let of_account = paces.values().find(kin).cloned();
        let before = paces.get(&endpoint.id()).cloned();
        let fresh = || Arc::new(Mutex::new(Pace::given(&policy, self.wall_clock, now)));
        let given = match self.scope {
            PaceScope::Pool => paces.values().next().map(|any| any.given.clone()),
            PaceScope::Account => of_account.as_ref().or(before.as_ref()).map(|paces| paces.given.clone()),
            PaceScope::Key => before.as_ref().map(|paces| paces.given.clone()),
        };
        let learned = match of_account.or(before) {
            Some(paces) => paces.learned.clone(),
            None => [(); 2].map(|()| Arc::new(Mutex::new(Pace::learned(now)))),
        };
        let made = Arc::new(Paces {
            endpoint: endpoint.clone(),
            named: account.is_some(),
            given: given.unwrap_or_else(fresh),
            learned,
        });
        paces.insert(endpoint.id(), made.clone());
        made
    }

    fn tokens(&self, request: &RequestContext) -> u64 {
        if !self.counts_tokens.load(Ordering::Relaxed) {
            return 0;
        }
        let prompt = request.body().map_or(0, |body| body.len() as u64 / 4);
        prompt.saturating_add(request.asks().max_tokens.unwrap_or(UNSAID)).min(u64::MAX >> 2)
    }
}

/// What was set aside, as the one number a filter is given back: tokens, whether free, and that it is not nothing.
struct Slot {
    tokens: u64,
    free: bool,
}

impl Slot {
    fn amount(self) -> u64 {
        (self.tokens << 2) | (u64::from(self.free) << 1) | 1
    }

    fn of(amount: u64) -> Self {
        Self { tokens: amount >> 2, free: amount & 2 != 0 }
    }
}

impl Filter for Pacing {
    fn judge(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Fit {
        let paces = self.0.paces(endpoint, now);
        let kind = usize::from(request.asks().is_free());
        let given = lock_std(&paces.given).next(self.0.tokens(request), now);
        let next = given.max(lock_std(&paces.learned[kind]).next(0, now));
        if next > now { Fit::NotBefore(next) } else { Fit::Yes }
    }

    fn kind(&self, request: &RequestContext) -> Option<u64> {
        let tokens = self.0.tokens(request);
        let step = tokens.checked_ilog2().map_or(0, |step| u64::from(step) + 1);
        Some((step << 1) | u64::from(request.asks().is_free()))
    }

    fn reserves(&self) -> bool {
        true
    }

    fn reserve(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<u64> {
        let paces = self.0.paces(endpoint, now);
        let (tokens, free) = (self.0.tokens(request), request.asks().is_free());
        let (mut given, mut learned) = (lock_std(&paces.given), lock_std(&paces.learned[usize::from(free)]));
        if given.next(tokens, now).max(learned.next(0, now)) > now {
            return None;
        }
        given.take(tokens, now);
        learned.take(0, now);
        Some(Slot { tokens, free }.amount())
    }

    fn settle(&self, endpoint: &Endpoint, amount: u64, ended: &Ended) -> bool {
        let paces = self.0.paces(endpoint, ended.now);
        let Slot { tokens, free } = Slot::of(amount);
        let (mut given, mut learned) = (lock_std(&paces.given), lock_std(&paces.learned[usize::from(free)]));
        if !ended.sent {
            given.give_back(tokens);
            learned.give_back(0);
            return false;
        }
        let used = ended.usage.map(|usage| usage.prompt_tokens.saturating_add(usage.completion_tokens));
        match ended.outcome {
            Some(Outcome::Success) => {
                given.reconcile(tokens, used.unwrap_or(tokens), ended.now);
                learned.serve(ended.since);
                false
            }
            Some(Outcome::Fault(fault)) => {
                given.reconcile(tokens, used.unwrap_or(0), ended.now);
                match refusal(&fault, ended.limit) {
                    Some(refusal) if self.0.learn => learned.refuse(ended.since, ended.now, refusal),
                    _ if is_before_quota(&fault) => {
                        learned.give_back(0);
                        false
                    }
                    _ => {
                        learned.serve(ended.since);
                        false
                    }
                }
            }
            // what a caller that left would have used nobody knows
            None => false,
        }
    }
}

/// What a fault says of a quota, if it is by one.
fn refusal(fault: &Fault, limit: Option<u32>) -> Option<Refusal> {
    if !matches!(fault.cause, Cause::PlatformLimit | Cause::FreeTierMinute) {
        return None;
    }
    let reset = fault.rest.filter(|rest| rest.hinted).map(|rest| rest.duration);
    (reset.unwrap_or_default() <= LONGEST_WINDOW).then_some(Refusal { reset, limit })
}

/// Whether the platform refused for a reason that it looks at before it counts a request, or it never came so far.
fn is_before_quota(fault: &Fault) -> bool {
    matches!(fault.scope, Scope::Key | Scope::Workspace | Scope::Account | Scope::FreeTier | Scope::Egress)
}

impl fmt::Debug for Pacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pacing").field("policy", &*lock_std(&self.0.policy)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ApiKey,
        outcome::{Rest, Retry, Usage},
        pace::Rate,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint(secret: &str, account: Option<&str>) -> Endpoint {
        let key = ApiKey::new(secret).unwrap();
        Endpoint::new(account.map_or(key.clone(), |account| key.account(account)))
    }

    fn asking(body: &str) -> RequestContext {
        let request = RequestContext::new();
        request.set_body(body.to_owned().into());
        request
    }

    fn ended(now: Instant, outcome: Option<Outcome>) -> Ended {
        Ended { since: now, now, sent: true, first_output: None, outcome, usage: None, limit: None }
    }

    fn limited(cause: Cause, rest: Rest) -> Option<Outcome> {
        Some(Fault::new(cause, Scope::Account).rest(rest).retry(Retry::Elsewhere).into())
    }

    #[test]
    fn a_refusal_holds_the_account_back_for_requests_of_its_kind() {
        let (now, pacing) = (Instant::now(), Pacing::new(PacePolicy::default()));
        let (one, kin, other) = (endpoint("a", Some("x")), endpoint("b", Some("x")), endpoint("c", Some("y")));
        let (paid, free) = (asking(r#"{"model":"m"}"#), asking(r#"{"model":"m:free"}"#));
        let amount = pacing.reserve(&one, &paid, now).expect("nothing is known yet");
        let refusal = limited(Cause::PlatformLimit, Rest::hinted(7 * SECOND));
        assert!(pacing.settle(&one, amount, &ended(now, refusal)), "nobody need rest for it");
        assert_eq!(pacing.judge(&kin, &paid, now), Fit::NotBefore(now + 7 * SECOND));
        assert_eq!(pacing.reserve(&kin, &paid, now), None);
        assert_eq!(pacing.judge(&one, &free, now), Fit::Yes, "free requests have a quota of their own");
        assert_eq!(pacing.judge(&other, &paid, now), Fit::Yes);
        assert!(pacing.learned(&kin)[0].is_some() && pacing.learned(&other) == [None, None]);
    }

    #[test]
    fn r056_what_names_a_long_time_or_is_no_quota_of_requests_rests_as_ever() {
        let (now, pacing, paid) = (Instant::now(), Pacing::new(PacePolicy::default()), asking("{}"));
        let one = endpoint("a", None);
        for (cause, rest) in [
            (Cause::PlatformLimit, Rest::hinted(LONGEST_WINDOW + SECOND)),
            (Cause::FreeTierDaily, Rest::hinted(SECOND)),
            (Cause::NoCredit, Rest::guessed(SECOND)),
        ] {
            let amount = pacing.reserve(&one, &paid, now).unwrap();
            assert!(!pacing.settle(&one, amount, &ended(now, limited(cause, rest))), "{cause}");
            assert_eq!(pacing.judge(&one, &paid, now), Fit::Yes, "{cause}");
        }
    }

    #[test]
    fn tokens_are_estimated_before_and_reconciled_after() {
        let now = Instant::now();
        let tokens = Rate::per_second(10.0).unwrap().burst(1_000).unwrap();
        let (pacing, one) = (Pacing::new(PacePolicy::default().tokens(tokens)), endpoint("a", None));
        let request = asking(r#"{"model":"m","max_tokens":990}"#);
        let first = pacing.reserve(&one, &request, now).unwrap();
        assert!(matches!(pacing.judge(&one, &request, now), Fit::NotBefore(_)));
        let usage = Some(Usage { prompt_tokens: 4, completion_tokens: 1, cost: 0.0 });
        pacing.settle(&one, first, &Ended { usage, ..ended(now, Some(Outcome::Success)) });
        let Fit::NotBefore(at) = pacing.judge(&one, &request, now) else { panic!("5 are missing") };
        assert!(at <= now + SECOND, "{:?}", at - now);
        assert_ne!(pacing.kind(&request), pacing.kind(&asking(r#"{"max_tokens":10}"#)), "the amount matters");
    }

    #[test]
    fn what_was_not_sent_is_given_back() {
        let now = Instant::now();
        let policy = PacePolicy::default().requests(Rate::per_second(1.0).unwrap()).per_day(1).unwrap();
        let (pacing, one, request) = (Pacing::new(policy), endpoint("a", None), asking("{}"));
        let amount = pacing.reserve(&one, &request, now).unwrap();
        assert_eq!(pacing.reserve(&one, &request, now), None);
        pacing.settle(&one, amount, &Ended { sent: false, ..ended(now, None) });
        assert!(pacing.reserve(&one, &request, now).is_some());
    }

    #[test]
    fn an_account_named_later_shares_what_is_known_of_it() {
        let (now, pacing, paid) = (Instant::now(), Pacing::new(PacePolicy::default()), asking("{}"));
        let (known, late) = (endpoint("a", Some("x")), endpoint("b", None));
        let amount = pacing.reserve(&known, &paid, now).unwrap();
        pacing.settle(&known, amount, &ended(now, limited(Cause::PlatformLimit, Rest::hinted(SECOND))));
        assert_eq!(pacing.judge(&late, &paid, now), Fit::Yes);
        late.learn_account("x");
        assert_eq!(pacing.judge(&late, &paid, now), Fit::NotBefore(now + SECOND));
    }
}
