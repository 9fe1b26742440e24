//! The book of rests.
//!
//! A refusal usually names somebody: this key has spent its cap, that account is out of credit, this model's provider is full
//! for everybody. Gateways that bench "the key" for all of these burn healthy keys and keep asking exhausted accounts. The
//! book keeps each rest under the scope the outcome names, and only there. A later end wins over an earlier one; a guess of
//! our own that proves too short is doubled. A rest is not a breaker: it ends by itself at its instant. But who guessed that a
//! whole upstream fails knows no better afterwards, so one request goes ahead then, and the others wait for what it finds.
//!
//! Rests of a key, workspace or account hold for every request, so those endpoints leave the selector's snapshot. Rests of
//! an account's free tier, or of an account for one model, are looked up per proposal; those of a model's provider pool and
//! of our own address once per attempt. While nothing of a kind rests, each look-up is one atomic load.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock,
    endpoint::{Endpoint, EndpointId},
    outcome::{Cause, Fault, Rest, Scope},
    request::RequestContext,
};

/// Longest rest of any scope; beyond it the scope is tried again (R56).
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Guessed rests of a provider pool double up to this (row 18).
const POOL_MOST: Duration = Duration::from_secs(30);
/// Those of one that fails, rather than is full, double up to this: nobody said how long it will, and whoever waits loses what
/// a rest goes on after it has healed.
const FAILING_MOST: Duration = Duration::from_secs(4);
/// Guessed rests of our own address double up to this.
const EGRESS_MOST: Duration = Duration::from_secs(300);
/// After a rest for an upstream that fails, the next goes so long after the one before, until one is served.
const PROBE: Duration = Duration::from_secs(1);
/// While the platform refuses every key, we ask again after 1 s, doubling up to this (row 8).
const INCIDENT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A key refused this often over at least [`DEAD_AFTER`] is dead (row 7).
const DEAD_STRIKES: u32 = 3;
const DEAD_AFTER: Duration = Duration::from_secs(5 * 60);
/// Refusals of different keys this close together are one event.
const TOGETHER: Duration = Duration::from_secs(30);
/// A 429 that does not say whose is the account's once a second model of it fails so within this time (row 19), and then
/// rests it as another limit of the platform would.
const PROMOTION: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// How long an ended rest is remembered, to tell a repeat from a first time.
const MEMORY: Duration = Duration::from_secs(10 * 60);

/// The account of an endpoint: by name, or the endpoint alone while nobody has named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum AccountId {
    Named(Box<str>),
    Alone(EndpointId),
}

impl AccountId {
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        endpoint.account().map_or(Self::Alone(endpoint.id()), |name| Self::Named(name.into()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Key(EndpointId),
    Workspace(Box<str>),
    Account(AccountId),
    FreeTier(AccountId),
    AccountModel(AccountId, u64),
    Pool(u64),
    Egress,
}

impl Place {
    /// Where a fault of `scope` on `endpoint` is kept; `None` for the request's own.
    fn of(scope: Scope, endpoint: &Endpoint, request: &RequestContext) -> Option<Self> {
        Some(match scope {
            Scope::Request => return None,
            Scope::Key => Self::Key(endpoint.id()),
            Scope::Workspace => match endpoint.key().workspace_name() {
                Some(name) => Self::Workspace(name.into()),
                None => Self::Key(endpoint.id()),
            },
            Scope::Account => Self::Account(AccountId::of(endpoint)),
            Scope::FreeTier => Self::FreeTier(AccountId::of(endpoint)),
            Scope::AccountModel => Self::AccountModel(AccountId::of(endpoint), model_of(request)),
            Scope::Pool => Self::Pool(route_of(endpoint, request)),
            Scope::Egress => Self::Egress,
        })
    }

    fn shelf(&self) -> usize {
        match self {
            Self::Key(_) | Self::Workspace(_) | Self::Account(_) => 0,
            Self::FreeTier(_) | Self::AccountModel(..) => 1,
            Self::Pool(_) | Self::Egress => 2,
        }
    }
}

fn model_of(request: &RequestContext) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.asks().model.hash(&mut hasher);
    hasher.finish()
}

/// The provider pool behind a request: its model and its routing wishes, through this base URL.
fn route_of(endpoint: &Endpoint, request: &RequestContext) -> u64 {
    let mut hasher = DefaultHasher::new();
    let asks = request.asks();
    (&asks.model, asks.provider).hash(&mut hasher);
    endpoint.key().base().hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug, Clone)]
struct Entry {
    until: Instant,
    since: Instant,
    first: Instant,
    cause: Cause,
    strikes: u32,
    /// Whether it is a guess about an upstream that fails, rather than a limit somebody named.
    soft: bool,
    /// Whether it goes on only until the one that went ahead is back.
    probed: bool,
    /// Whose request met a limit of unknown owner last.
    account: Option<AccountId>,
}

/// A rest that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resting {
    /// When it ends.
    pub until: Instant,
    /// What it is for.
    pub cause: Cause,
    /// Whether it only spares an upstream that fails: who cannot wait may still try.
    pub(super) soft: bool,
}

/// The book. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: Mutex<HashMap<Place, Entry>>,
    /// When the last rest of each shelf ends, in nanoseconds.
    until: [AtomicU64; 3],
    /// How many entries there are, so that a success in good times takes no lock.
    marked: AtomicU64,
}

impl Book {
    fn entries(&self) -> MutexGuard<'_, HashMap<Place, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what a fault asks for. `live` is how many endpoints the pool has. Says whether endpoints are now out for
    /// everybody.
    pub(super) fn record(
        &self,
        endpoint: &Endpoint,
        request: &RequestContext,
        fault: &Fault,
        live: usize,
        now: Instant,
    ) -> bool {
        let (Some(rest), Some(place)) = (fault.rest, Place::of(fault.scope, endpoint, request)) else {
            return false;
        };
        let mut entries = self.entries();
        if fault.cause == Cause::UnknownLimit && second_model(&entries, endpoint, &place, now) {
            let account = Place::Account(AccountId::of(endpoint));
            write(&mut entries, account, Rest::guessed(PROMOTION.1), PROMOTION.1, Cause::PlatformLimit, now);
            self.publish(&mut entries, now);
            return true;
        }
        if fault.cause == Cause::InvalidKey && incident(&mut entries, endpoint.id(), live, now) {
            let (least, most) = INCIDENT;
            write(&mut entries, Place::Egress, Rest::guessed(least), most, Cause::PlatformAuth, now);
            self.publish(&mut entries, now);
            return true;
        }
        let most = match fault.scope {
            Scope::Pool if fault.cause.is_suspect() => FAILING_MOST,
            Scope::Pool => POOL_MOST,
            Scope::Egress => EGRESS_MOST,
            _ => rest.duration,
        };
        let shelf = place.shelf();
        let entry = write(&mut entries, place, rest, most, fault.cause, now);
        entry.account = (fault.cause == Cause::UnknownLimit).then(|| AccountId::of(endpoint));
        if fault.cause == Cause::InvalidKey && entry.strikes >= DEAD_STRIKES && now - entry.first >= DEAD_AFTER {
            entry.until = clock::after(now, clock::FOREVER);
        }
        self.publish(&mut entries, now);
        shelf == 0
    }

    /// Whether there is nothing in it, so that a success need not be told.
    pub(super) fn is_blank(&self) -> bool {
        self.marked.load(Ordering::Acquire) == 0
    }

    /// Notes that a request is sent. The first after a rest for an upstream that fails goes ahead of all others.
    pub(super) fn send(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) {
        let place = Place::Pool(route_of(endpoint, request));
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(&place).filter(|entry| entry.soft && entry.until <= now) {
            (entry.until, entry.probed) = (clock::after(now, PROBE), true);
            self.publish(&mut entries, now);
        }
    }

    /// A success of what was sent at `sent`, `None` if nothing rested then: what had rested there, and does so no more, starts
    /// from nothing next time; so does what rests until somebody who went ahead is back. And the platform does not refuse
    /// everybody, if it was sent since that was thought: one key that is really dead would prolong that rest for all, each
    /// time it ends. Says whether a rest has ended.
    pub(super) fn succeed(
        &self,
        endpoint: &Endpoint,
        request: &RequestContext,
        sent: Option<Instant>,
        now: Instant,
    ) -> bool {
        let mut entries = self.entries();
        let since = |begin: Instant| sent.is_some_and(|sent| sent > begin);
        let refuted = |entry: &Entry| {
            entry.cause == Cause::PlatformAuth && since(entry.first) || entry.probed && since(entry.since)
        };
        let mut lifted = false;
        for scope in [
            Scope::Key,
            Scope::Workspace,
            Scope::Account,
            Scope::FreeTier,
            Scope::AccountModel,
            Scope::Pool,
            Scope::Egress,
        ] {
            if let Some(place) = Place::of(scope, endpoint, request)
                && let Some(entry) = entries.get(&place)
                && (entry.until <= now || refuted(entry))
            {
                lifted |= entry.until > now;
                entries.remove(&place);
            }
        }
        self.publish(&mut entries, now);
        lifted
    }

    /// Ends a rest for a 401 of a key that upstream, `asked` about it since, accepts. A key that is refused again after that
    /// rests as long as it would otherwise, and one given up for dead starts anew. Says whether a rest has ended.
    pub(super) fn vouch(&self, endpoint: &Endpoint, asked: Instant, now: Instant) -> bool {
        if self.idle(0, now) {
            return false;
        }
        let place = Place::Key(endpoint.id());
        let mut entries = self.entries();
        let stands = |entry: &&mut Entry| entry.until > now && entry.since <= asked && entry.cause == Cause::InvalidKey;
        let Some(entry) = entries.get_mut(&place).filter(stands) else { return false };
        if entry.until > clock::after(now, LONGEST) {
            entries.remove(&place);
        } else if entry.strikes == 1 {
            entry.until = now;
        } else {
            return false;
        }
        self.publish(&mut entries, now);
        true
    }

    /// Forgets every rest of the endpoint itself, and of its account and workspace.
    pub(super) fn reset(&self, endpoint: &Endpoint, now: Instant) {
        let account = AccountId::of(endpoint);
        let mut entries = self.entries();
        entries.retain(|place, _| match place {
            Place::Key(id) => *id != endpoint.id(),
            Place::Workspace(name) => Some(&**name) != endpoint.key().workspace_name(),
            Place::Account(id) | Place::FreeTier(id) | Place::AccountModel(id, _) => *id != account,
            Place::Pool(_) | Place::Egress => true,
        });
        self.publish(&mut entries, now);
    }

    /// Whether the endpoint rests for every request.
    pub(super) fn out(&self, endpoint: &Endpoint, now: Instant) -> Option<Resting> {
        if self.idle(0, now) {
            return None;
        }
        let places = [
            Some(Place::Key(endpoint.id())),
            Some(Place::Account(AccountId::of(endpoint))),
            endpoint.key().workspace_name().map(|name| Place::Workspace(name.into())),
        ];
        self.latest(places.into_iter().flatten(), now)
    }

    /// Whether the endpoint rests for this request: its free tier, or its account for this model.
    pub(super) fn out_for(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<Resting> {
        if self.idle(1, now) {
            return None;
        }
        let account = AccountId::of(endpoint);
        let free = request.asks().is_free().then(|| Place::FreeTier(account.clone()));
        self.latest(free.into_iter().chain([Place::AccountModel(account, model_of(request))]), now)
    }

    /// Whether the endpoint's way to the model rests for everybody: the provider pool, or our own address.
    pub(super) fn upstream_out(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<Resting> {
        if self.idle(2, now) {
            return None;
        }
        self.latest([Place::Pool(route_of(endpoint, request)), Place::Egress].into_iter(), now)
    }

    /// The same, for who cannot wait: a rest that only spares an upstream that fails does not count.
    pub(super) fn upstream_closed(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> bool {
        let places = [Place::Pool(route_of(endpoint, request)), Place::Egress];
        let entries = self.entries();
        places.iter().filter_map(|place| entries.get(place)).any(|entry| entry.until > now && !entry.soft)
    }

    fn idle(&self, shelf: usize, now: Instant) -> bool {
        let until = self.until[shelf].load(Ordering::Acquire);
        until == 0 || until <= clock::nanos(now)
    }

    fn latest(&self, places: impl Iterator<Item = Place>, now: Instant) -> Option<Resting> {
        let entries = self.entries();
        places
            .filter_map(|place| entries.get(&place))
            .filter(|entry| entry.until > now)
            .map(|entry| Resting { until: entry.until, cause: entry.cause, soft: entry.soft })
            .max_by_key(|resting| resting.until)
    }

    fn publish(&self, entries: &mut HashMap<Place, Entry>, now: Instant) {
        entries.retain(|_, entry| clock::after(entry.until, MEMORY) > now);
        let mut until = [0; 3];
        for (place, entry) in entries.iter() {
            let shelf = &mut until[place.shelf()];
            *shelf = (*shelf).max(clock::nanos(entry.until));
        }
        for (shelf, until) in self.until.iter().zip(until) {
            shelf.store(until, Ordering::Release);
        }
        self.marked.store(entries.len() as u64, Ordering::Release);
    }
}

/// Enters a rest. Guesses do not stretch a rest that stands, since what comes in meanwhile was sent before it; a guess after
/// the last one ended doubles, up to `most`. Hints merge by the later end.
fn write(
    entries: &mut HashMap<Place, Entry>,
    place: Place,
    rest: Rest,
    most: Duration,
    cause: Cause,
    now: Instant,
) -> &mut Entry {
    let entry = entries.entry(place).or_insert(Entry {
        until: now,
        since: now,
        first: now,
        cause,
        strikes: 0,
        soft: false,
        probed: false,
        account: None,
    });
    let stands = entry.until > now && !entry.probed;
    if !stands {
        if entry.cause != cause {
            (entry.strikes, entry.first) = (0, now);
        }
        entry.strikes = entry.strikes.saturating_add(1);
        (entry.since, entry.probed) = (now, false);
    }
    if rest.hinted || !stands {
        let doublings = if rest.hinted { 0 } else { entry.strikes.saturating_sub(1).min(31) };
        let span = rest.duration.saturating_mul(1 << doublings).min(most.max(rest.duration)).min(LONGEST);
        let until = clock::after(now, span);
        if until > entry.until {
            (entry.until, entry.cause) = (until, cause);
            entry.soft = !rest.hinted && cause.is_suspect();
        }
    }
    entry
}

/// Whether this account met a limit of unknown owner on another model just now.
fn second_model(entries: &HashMap<Place, Entry>, endpoint: &Endpoint, place: &Place, now: Instant) -> bool {
    let account = AccountId::of(endpoint);
    entries.iter().any(|(other, entry)| {
        other != place
            && entry.cause == Cause::UnknownLimit
            && now.saturating_duration_since(entry.since) <= PROMOTION.0
            && entry.account.as_ref() == Some(&account)
    })
}

/// Whether a 401 is the platform's incident: it goes on, or more than half of the keys, and at least two, were refused at
/// once. The keys' own rests for it are then lifted.
fn incident(entries: &mut HashMap<Place, Entry>, this: EndpointId, live: usize, now: Instant) -> bool {
    if entries.get(&Place::Egress).is_some_and(|entry| entry.cause == Cause::PlatformAuth) {
        return true;
    }
    let recent = |place: &Place, entry: &Entry| {
        matches!(place, Place::Key(id) if *id != this)
            && entry.cause == Cause::InvalidKey
            && now.saturating_duration_since(entry.since) <= TOGETHER
    };
    let refused = 1 + entries.iter().filter(|(place, entry)| recent(place, entry)).count();
    let everybody = refused >= 2 && refused * 2 > live;
    if everybody {
        entries.retain(|place, entry| !recent(place, entry) && *place != Place::Key(this));
    }
    everybody
}

#[cfg(test)]
mod tests;
