use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{Ended, Filter, Fit};
use crate::{
    adaptive::{AdaptivePolicy, Learned, Sample, is_busy},
    endpoint::Endpoint,
    outcome::Outcome,
    request::RequestContext,
    sync::lock_std,
};

/// The most caps that are kept. Models are named by requests, which may name anything.
const MOST_PLACES: usize = 4_096;
/// So few are not looked through for those that are forgotten.
const FEWEST_PLACES: usize = 8;
/// How long a cap is remembered that nobody uses.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Limits how many requests run at once on an account, over all its keys, to what it turns out to bear.
///
/// A limit in the stack of each key learns the same account's limit once for each of them, and none of them sees what the
/// others run. Here the cap is the account's, or with [`by_model`](Self::by_model) that of each model on it, and follows the
/// answers as the [`AdaptivePolicy`] says: down at a 429 of key or account, a 402 for its cost in flight, a 503 or a timeout,
/// and up as requests end well. A key whose account nobody has named counts alone.
///
/// At the cap other accounts are used, and when all are full the request waits in the pool's line. With
/// [`AdaptivePolicy::gradient`] only requests that ask for a stream tell times.
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, OpenRouter, limit::AdaptivePolicy, select::{AdaptiveLimit, Pool}};
/// # use tower_openrouter::{simulator::{Scenario, Simulator}, stack::Balancer as B};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let pool = Pool::new([ApiKey::new("key-a")?.account("acme"), ApiKey::new("key-b")?.account("acme")])?;
/// let limit = AdaptiveLimit::new(AdaptivePolicy::aimd());
/// let balancer = Balancer::builder(pool).filter(limit).build(OpenRouter::new(transport));
/// # let _: &B<String> = &balancer;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
///
/// For each model of an account, minding how soon streams begin, and watched from outside:
///
/// ```
/// use tower_openrouter::{ApiKey, Endpoint, limit::AdaptivePolicy, select::AdaptiveLimit};
///
/// let limit = AdaptiveLimit::new(AdaptivePolicy::gradient().range(1..=50)?).by_model();
/// let watched = limit.clone();
/// let endpoint = Endpoint::new(ApiKey::new("key-a")?.account("acme"));
/// assert_eq!(watched.cap(&endpoint, Some("acme/swift-1")), 20);
/// # let _ = limit;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct AdaptiveLimit {
    policy: AdaptivePolicy,
    by_model: bool,
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    /// Where in `all` an account, or a model on it, is.
    at: HashMap<u64, usize>,
    all: Vec<Place>,
    free: Vec<usize>,
    /// How many there may be before those that are forgotten are looked for: a count of ours, since that at which a map
    /// grows differs from process to process once something was taken out of it.
    room: usize,
}

struct Place {
    learned: Learned,
    in_flight: usize,
    /// When something was sent last.
    used: Instant,
}

/// What was reserved, as the number that a claim is: the place, how many ran there then, and whether it is a stream.
struct Claim {
    place: usize,
    in_flight: usize,
    stream: bool,
}

const STREAM: u64 = 1 << 63;

impl Claim {
    fn pack(&self) -> u64 {
        let in_flight = u32::try_from(self.in_flight).unwrap_or(u32::MAX);
        (self.place as u64) << 32 | u64::from(in_flight) | if self.stream { STREAM } else { 0 }
    }

    fn unpack(amount: u64) -> Self {
        let place = ((amount & !STREAM) >> 32) as usize;
        Self { place, in_flight: amount as u32 as usize, stream: amount & STREAM != 0 }
    }
}

impl AdaptiveLimit {
    /// A cap for each account.
    pub fn new(policy: AdaptivePolicy) -> Self {
        Self { policy, by_model: false, places: Arc::default() }
    }

    /// A cap for each model of an account, since providers differ; for the first 4,096 in use, and one for all others of the
    /// account. One that is not used for ten minutes may be forgotten.
    pub fn by_model(mut self) -> Self {
        self.by_model = true;
        self
    }

    /// The cap of an endpoint's account, for this model if there is one for each.
    pub fn cap(&self, endpoint: &Endpoint, model: Option<&str>) -> usize {
        let places = lock_std(&self.places);
        let place = places.find(self.number(endpoint, model));
        place.map_or(self.policy.first_cap(), |place| place.learned.cap())
    }

    fn number(&self, endpoint: &Endpoint, model: Option<&str>) -> u64 {
        let mut hasher = DefaultHasher::new();
        match endpoint.account() {
            Some(account) => account.hash(&mut hasher),
            None => endpoint.id().hash(&mut hasher),
        }
        model.filter(|_| self.by_model).hash(&mut hasher);
        hasher.finish()
    }
}

impl Places {
    fn find(&self, number: u64) -> Option<&Place> {
        self.at.get(&number).map(|at| &self.all[*at])
    }

    /// Where a number is, made if it is new; `None` when there are `most` in use.
    fn at(&mut self, number: u64, policy: &AdaptivePolicy, now: Instant, most: usize) -> Option<usize> {
        if let Some(at) = self.at.get(&number) {
            return Some(*at);
        }
        // at each doubling, so that looking for what is forgotten costs next to no time
        if self.at.len() >= self.room.min(most) {
            let Self { at, all, free, room } = self;
            at.retain(|_, at| {
                let place = &all[*at];
                let kept = place.in_flight > 0 || now.saturating_duration_since(place.used) < REMEMBERED;
                if !kept {
                    free.push(*at);
                }
                kept
            });
            *room = (2 * at.len()).max(FEWEST_PLACES);
            if self.at.len() >= most {
                return None;
            }
        }
        let place = Place { learned: Learned::new(policy), in_flight: 0, used: now };
        let at = match self.free.pop() {
            Some(at) => {
                self.all[at] = place;
                at
            }
            None => {
                self.all.push(place);
                self.all.len() - 1
            }
        };
        self.at.insert(number, at);
        Some(at)
    }
}

impl Filter for AdaptiveLimit {
    fn judge(&self, endpoint: &Endpoint, request: &RequestContext, _: Instant) -> Fit {
        let number = self.number(endpoint, request.asks().model.as_deref());
        let places = lock_std(&self.places);
        match places.find(number) {
            Some(place) if place.in_flight >= place.learned.cap() => Fit::Full,
            _ => Fit::Yes,
        }
    }

    /// Only the model matters, which every kind tells apart.
    fn kind(&self, _: &RequestContext) -> Option<u64> {
        Some(0)
    }

    fn reserves(&self) -> bool {
        true
    }

    fn reserve(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<u64> {
        let asks = request.asks();
        let number = self.number(endpoint, asks.model.as_deref());
        let mut places = lock_std(&self.places);
        // of accounts there are no more than keys
        let (of_account, any) = (|| self.number(endpoint, None), usize::MAX);
        let at = places.at(number, &self.policy, now, MOST_PLACES);
        let at = at.or_else(|| places.at(of_account(), &self.policy, now, any))?;
        let place = &mut places.all[at];
        if place.in_flight >= place.learned.cap() {
            return None;
        }
        place.in_flight += 1;
        place.used = now;
        Some(Claim { place: at, in_flight: place.in_flight, stream: asks.stream }.pack())
    }

    fn settle(&self, _: &Endpoint, amount: u64, ended: &Ended) -> bool {
        let claim = Claim::unpack(amount);
        let mut places = lock_std(&self.places);
        let place = &mut places.all[claim.place];
        place.in_flight = place.in_flight.saturating_sub(1);
        let in_flight = claim.in_flight;
        let sample = match ended.outcome {
            Some(Outcome::Success) => {
                let first_output = ended.first_output.filter(|_| claim.stream);
                let first_output = first_output.map(|at| at.saturating_duration_since(ended.since));
                Sample::Served { in_flight, first_output }
            }
            Some(Outcome::Fault(fault)) if is_busy(&fault) => Sample::Busy { in_flight, sent: ended.since },
            Some(Outcome::Fault(_)) | None => return false,
        };
        place.learned.learn(&self.policy, sample, ended.now);
        false
    }
}

impl fmt::Debug for AdaptiveLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveLimit")
            .field("policy", &self.policy)
            .field("by_model", &self.by_model)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ApiKey,
        outcome::{Cause, Fault, Scope},
    };

    fn endpoint(secret: &str, account: Option<&str>) -> Endpoint {
        let key = ApiKey::new(secret).unwrap();
        Endpoint::new(account.map_or(key.clone(), |account| key.account(account)))
    }

    fn asking(model: &str) -> RequestContext {
        let request = RequestContext::new();
        request.set_body(format!(r#"{{"model":"{model}"}}"#).into());
        request
    }

    fn limit(cap: usize) -> AdaptiveLimit {
        AdaptiveLimit::new(AdaptivePolicy::aimd().start(cap).unwrap())
    }

    fn ended(now: Instant, outcome: Option<Outcome>) -> Ended {
        let since = now;
        let now = now + Duration::from_secs(1);
        Ended { since, now, sent: true, first_output: None, outcome, usage: None, limit: None }
    }

    #[test]
    fn the_keys_of_an_account_share_its_cap_and_strangers_do_not() {
        let (now, limit, request) = (Instant::now(), limit(2), asking("m"));
        let (one, two) = (endpoint("a", Some("acme")), endpoint("b", Some("acme")));
        let (other, alone) = (endpoint("c", Some("other")), endpoint("d", None));
        let taken = limit.reserve(&one, &request, now).unwrap();
        limit.reserve(&two, &request, now).unwrap();
        assert_eq!(limit.judge(&one, &request, now), Fit::Full);
        assert_eq!(limit.reserve(&two, &request, now), None);
        assert_eq!(limit.judge(&other, &request, now), Fit::Yes);
        assert_eq!(limit.judge(&alone, &request, now), Fit::Yes);
        limit.settle(&one, taken, &ended(now, None));
        assert_eq!(limit.judge(&two, &request, now), Fit::Yes);
    }

    #[test]
    fn each_model_of_an_account_has_its_cap_where_that_is_asked_for() {
        let (now, limit, one) = (Instant::now(), limit(1).by_model(), endpoint("a", Some("acme")));
        limit.reserve(&one, &asking("m"), now).unwrap();
        assert_eq!(limit.judge(&one, &asking("m"), now), Fit::Full);
        assert_eq!(limit.judge(&one, &asking("n"), now), Fit::Yes);
    }

    #[test]
    fn only_what_says_something_about_load_moves_the_cap() {
        let (now, one, request) = (Instant::now(), endpoint("a", Some("acme")), asking("m"));
        let fault = |cause| Some(Outcome::Fault(Fault::new(cause, Scope::Account)));
        for (outcome, cap) in [
            (Some(Outcome::Success), 2),
            (None, 1),
            (fault(Cause::MidStream), 1),
            (fault(Cause::BadRequest), 1),
            (fault(Cause::FreeTierMinute), 1),
        ] {
            let limit = limit(1);
            let taken = limit.reserve(&one, &request, now).unwrap();
            limit.settle(&one, taken, &ended(now, outcome));
            assert_eq!(limit.cap(&one, Some("m")), cap, "{outcome:?}");
        }
        let limit = limit(10);
        let taken: Vec<_> = (0..10).map(|_| limit.reserve(&one, &request, now).unwrap()).collect();
        limit.settle(&one, taken[9], &ended(now, fault(Cause::InFlightBudget)));
        limit.settle(&one, taken[8], &ended(now, fault(Cause::InFlightBudget)));
        assert_eq!(limit.cap(&one, Some("m")), 9, "both were sent before it shrank");
    }

    #[test]
    fn r132_models_made_up_by_requests_take_bounded_room_and_cannot_pass_the_account() {
        let (now, limit, one) = (Instant::now(), limit(1).by_model(), endpoint("a", Some("acme")));
        let mut running = Vec::new();
        for number in 0..MOST_PLACES * 2 {
            running.extend(limit.reserve(&one, &asking(&format!("made-up/{number}")), now));
        }
        assert_eq!(running.len(), MOST_PLACES + 1, "the others share one");
        for amount in running {
            limit.settle(&one, amount, &ended(now, None));
        }
        let later = now + REMEMBERED;
        limit.reserve(&one, &asking("new"), later).unwrap();
        assert_eq!(lock_std(&limit.places).at.len(), 1);
    }
}
