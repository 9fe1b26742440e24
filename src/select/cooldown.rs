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
    cmp::Reverse,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock,
    endpoint::Endpoint,
    events::Whose,
    outcome::{Cause, Fault, Rest, Scope},
    request::RequestContext,
    sync::lock_std,
};

mod entry;
mod place;
mod wide;

use entry::{Entries, Entry, LONGEST, Present};
pub(super) use place::AccountId;
use place::Place;
pub use wide::WideRest;

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
/// A 429 that does not say whose is the account's once a second model of it fails so within this time (row 19), and then
/// rests it as another limit of the platform would.
const PROMOTION: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

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
    entries: Mutex<Entries>,
    /// When the last rest of each shelf ends, in nanoseconds.
    until: [AtomicU64; 3],
    /// How many entries there are, so that a success in good times takes no lock.
    marked: AtomicU64,
}

impl Book {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        lock_std(&self.entries)
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
        let (mut entries, present) = (self.entries(), Present::of(endpoint, now));
        let name = || place.name(endpoint, request);
        if fault.cause == Cause::UnknownLimit && entries.second_model(endpoint, &place, PROMOTION.0, now) {
            let (account, rest) = (Place::Account(AccountId::of(endpoint)), Rest::guessed(PROMOTION.1));
            let name = || account.name(endpoint, request);
            entries.write(&account, (rest, PROMOTION.1, Cause::PlatformLimit), name, present, |_| ());
            self.publish(entries, present);
            return true;
        }
        if fault.cause == Cause::InvalidKey && entries.incident(endpoint.id(), live, present) {
            let (rest, name) = (Rest::guessed(INCIDENT.0), || Whose::new(Scope::Egress, None));
            entries.write(&Place::Egress, (rest, INCIDENT.1, Cause::PlatformAuth), name, present, |_| ());
            self.publish(entries, present);
            return true;
        }
        let most = match fault.scope {
            Scope::Pool if fault.cause.is_suspect() => FAILING_MOST,
            Scope::Pool => POOL_MOST,
            Scope::Egress => EGRESS_MOST,
            _ => rest.duration,
        };
        entries.write(&place, (rest, most, fault.cause), name, present, |entry| {
            entry.account = (fault.cause == Cause::UnknownLimit).then(|| AccountId::of(endpoint));
            if fault.cause == Cause::InvalidKey && entry.strikes >= DEAD_STRIKES && now - entry.first >= DEAD_AFTER {
                entry.until = clock::after(now, clock::FOREVER);
            }
        });
        self.publish(entries, present);
        place.shelf() == 0
    }

    /// Whether there is nothing in it, so that a success need not be told.
    pub(super) fn is_blank(&self) -> bool {
        self.marked.load(Ordering::Acquire) == 0
    }

    /// Notes that a request is sent. The first after a rest for an upstream that fails goes ahead of all others.
    pub(super) fn send(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) {
        let (place, mut entries) = (Place::pool(endpoint, request), self.entries());
        if entries.get(&place).is_some_and(|entry| entry.soft && entry.until <= now) {
            let present = Present::of(endpoint, now);
            let go_ahead = |entry: &mut Entry| (entry.until, entry.probed) = (clock::after(now, PROBE), true);
            entries.change(&place, present, go_ahead);
            self.publish(entries, present);
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
        let (mut entries, present) = (self.entries(), Present::of(endpoint, now));
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
                entries.remove(&place, present);
            }
        }
        self.publish(entries, present);
        lifted
    }

    /// Ends a rest for a 401 of a key that upstream, `asked` about it since, accepts. A key that is refused again after that
    /// rests as long as it would otherwise, and one given up for dead starts anew. Says whether a rest has ended.
    pub(super) fn vouch(&self, endpoint: &Endpoint, asked: Instant, now: Instant) -> bool {
        if self.idle(0, now) {
            return false;
        }
        let (place, present) = (Place::Key(endpoint.id()), Present::of(endpoint, now));
        let mut entries = self.entries();
        let stands = |entry: &&Entry| entry.until > now && entry.since <= asked && entry.cause == Cause::InvalidKey;
        let Some(entry) = entries.get(&place).filter(stands) else { return false };
        if entry.until > clock::after(now, LONGEST) {
            entries.remove(&place, present);
        } else if entry.strikes == 1 {
            entries.change(&place, present, |entry| entry.until = now);
        } else {
            return false;
        }
        self.publish(entries, present);
        true
    }

    /// Forgets every rest of the endpoint itself, and of its account and workspace.
    pub(super) fn reset(&self, endpoint: &Endpoint, now: Instant) {
        let (account, present) = (AccountId::of(endpoint), Present::of(endpoint, now));
        let mut entries = self.entries();
        entries.retain(present, |place, _| match place {
            Place::Key(id) => *id != endpoint.id(),
            Place::Workspace(name) => Some(&**name) != endpoint.key().workspace_name(),
            Place::Account(id) | Place::FreeTier(id) | Place::AccountModel(id, _) => *id != account,
            Place::Pool(_) | Place::Egress => true,
        });
        self.publish(entries, present);
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
        let free = request.asks().is_free().then(|| Place::FreeTier(AccountId::of(endpoint)));
        self.latest(free.into_iter().chain([Place::account_model(endpoint, request)]), now)
    }

    /// Whether the endpoint's way to the model rests for everybody: the provider pool, or our own address.
    pub(super) fn upstream_out(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> Option<Resting> {
        if self.idle(2, now) {
            return None;
        }
        self.latest([Place::pool(endpoint, request), Place::Egress].into_iter(), now)
    }

    /// The same, for who cannot wait: a rest that only spares an upstream that fails does not count.
    pub(super) fn upstream_closed(&self, endpoint: &Endpoint, request: &RequestContext, now: Instant) -> bool {
        let places = [Place::pool(endpoint, request), Place::Egress];
        let entries = self.entries();
        places.iter().filter_map(|place| entries.get(place)).any(|entry| entry.until > now && !entry.soft)
    }

    /// The rests that no single key has, the widest first, and of those that are alike in that the ones that end last.
    pub(super) fn wide(&self, now: Instant) -> Vec<WideRest> {
        if (0..3).all(|shelf| self.idle(shelf, now)) {
            return Vec::new();
        }
        let entries = self.entries();
        let wide = |(place, entry): &(&Place, &Entry)| entry.until > now && !matches!(place, Place::Key(_));
        let written = |(_, entry): (&Place, &Entry)| {
            let &Entry { cause, until, hinted, .. } = entry;
            WideRest { whose: entry.whose.clone(), cause, until, hinted }
        };
        let mut rests: Vec<_> = entries.iter().filter(wide).map(written).collect();
        drop(entries);
        rests.sort_by_key(|rest| Reverse((rest.whose.scope, rest.until)));
        rests
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

    /// Closes the book, and wakes those who were told of changes in it.
    fn publish(&self, mut entries: MutexGuard<'_, Entries>, present: Present<'_>) {
        entries.tidy(present.now);
        let mut until = [0; 3];
        for (place, entry) in entries.iter() {
            let shelf = &mut until[place.shelf()];
            *shelf = (*shelf).max(clock::nanos(entry.until));
        }
        for (shelf, until) in self.until.iter().zip(until) {
            shelf.store(until, Ordering::Release);
        }
        self.marked.store(entries.len() as u64, Ordering::Release);
        drop(entries);
        present.feed.wake();
    }
}

#[cfg(test)]
mod tests;
