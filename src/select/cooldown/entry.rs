//! The entries of the book, and what a fault makes of them.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::place::{AccountId, Place};
use crate::{
    clock,
    endpoint::{Endpoint, EndpointId},
    events::{Change, Event, Feed, Whose},
    outcome::{Cause, Rest},
};

/// Longest rest of any scope; beyond it the scope is tried again (R56).
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Refusals of different keys this close together are one event.
const TOGETHER: Duration = Duration::from_secs(30);
/// How long an ended rest is remembered, to tell a repeat from a first time.
const MEMORY: Duration = Duration::from_secs(10 * 60);
/// How many rests of models are kept, since it is clients who name models. Of more, the one that ends first goes.
pub(super) const MODELS: usize = 4096;

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) until: Instant,
    pub(super) since: Instant,
    pub(super) first: Instant,
    pub(super) cause: Cause,
    pub(super) strikes: u32,
    /// Whether the server named the time.
    pub(super) hinted: bool,
    /// Whether it is a guess about an upstream that fails, rather than a limit somebody named.
    pub(super) soft: bool,
    /// Whether it goes on only until the one that went ahead is back.
    pub(super) probed: bool,
    /// Whose request met a limit of unknown owner last.
    pub(super) account: Option<AccountId>,
    pub(super) whose: Whose,
}

/// All entries. Every change of a rest that stands is told from here.
#[derive(Debug, Default)]
pub(super) struct Entries(HashMap<Place, Entry>);

/// When something happens, and who is told.
#[derive(Clone, Copy)]
pub(super) struct Present<'a> {
    pub(super) now: Instant,
    pub(super) feed: &'a Feed,
}

impl<'a> Present<'a> {
    pub(super) fn of(endpoint: &'a Endpoint, now: Instant) -> Self {
        Self { now, feed: endpoint.pool().events() }
    }

    /// Tells what became of a rest that ended at `before`.
    fn tell(self, place: &Place, before: Instant, entry: &Entry) {
        let Self { now, feed } = self;
        let &Entry { until, cause, hinted, .. } = entry;
        let change = match (before > now, until > now) {
            (false, true) => Change::RestBegun { cause, until, hinted },
            (true, true) if until != before => Change::RestExtended { cause, until, hinted },
            (true, false) => Change::RestLifted { cause },
            _ => return,
        };
        let endpoint = match place {
            Place::Key(id) => Some(*id),
            _ => None,
        };
        feed.tell(|| Event { at: now, whose: entry.whose.clone(), endpoint, change });
    }

    fn lifted(self, place: &Place, entry: &Entry) {
        if entry.until > self.now {
            self.tell(place, entry.until, &Entry { until: self.now, ..entry.clone() });
        }
    }
}

impl Entries {
    pub(super) fn get(&self, place: &Place) -> Option<&Entry> {
        self.0.get(place)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Place, &Entry)> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Changes an entry that is there.
    pub(super) fn change(&mut self, place: &Place, present: Present<'_>, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.0.get_mut(place) {
            let before = entry.until;
            change(entry);
            present.tell(place, before, entry);
        }
    }

    /// Keeps only entries of which `keep` says so.
    pub(super) fn retain(&mut self, present: Present<'_>, keep: impl Fn(&Place, &Entry) -> bool) {
        self.0.retain(|place, entry| {
            let kept = keep(place, entry);
            if !kept {
                present.lifted(place, entry);
            }
            kept
        });
    }

    pub(super) fn remove(&mut self, place: &Place, present: Present<'_>) {
        if let Some(entry) = self.0.remove(place) {
            present.lifted(place, &entry);
        }
    }

    /// Forgets what ended too long ago to matter.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.0.retain(|_, entry| clock::after(entry.until, MEMORY) > now);
    }

    /// Enters a rest. Guesses do not stretch a rest that stands, since what comes in meanwhile was sent before it; a guess after
    /// the last one ended doubles, up to `most`. Hints merge by the later end. `amend` has the last word.
    pub(super) fn write(
        &mut self,
        place: &Place,
        (rest, most, cause): (Rest, Duration, Cause),
        name: impl FnOnce() -> Whose,
        present: Present<'_>,
        amend: impl FnOnce(&mut Entry),
    ) {
        let now = present.now;
        if place.is_of_model() && !self.0.contains_key(place) {
            self.make_room(present);
        }
        let entry = self.0.entry(place.clone()).or_insert_with(|| Entry {
            until: now,
            since: now,
            first: now,
            cause,
            strikes: 0,
            hinted: false,
            soft: false,
            probed: false,
            account: None,
            whose: name(),
        });
        let before = entry.until;
        let stands = before > now && !entry.probed;
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
                (entry.until, entry.cause, entry.hinted) = (until, cause, rest.hinted);
                entry.soft = !rest.hinted && cause.is_suspect();
            }
        }
        amend(entry);
        present.tell(place, before, entry);
    }

    /// Forgets the rest of a model that ends first, if there are as many as there may be.
    fn make_room(&mut self, present: Present<'_>) {
        let of_models = || self.0.iter().filter(|(place, _)| place.is_of_model());
        if self.0.len() >= MODELS && of_models().count() >= MODELS {
            let first = of_models().min_by_key(|(_, entry)| entry.until).map(|(place, _)| place.clone());
            if let Some(first) = first {
                self.remove(&first, present);
            }
        }
    }

    /// Whether this account met a limit of unknown owner on another model within this time.
    pub(super) fn second_model(&self, endpoint: &Endpoint, place: &Place, within: Duration, now: Instant) -> bool {
        let account = AccountId::of(endpoint);
        self.0.iter().any(|(other, entry)| {
            other != place
                && entry.cause == Cause::UnknownLimit
                && now.saturating_duration_since(entry.since) <= within
                && entry.account.as_ref() == Some(&account)
        })
    }

    /// Whether a 401 is the platform's incident: it goes on, or more than half of the keys, and at least two, were refused at
    /// once. The keys' own rests for it are then lifted.
    pub(super) fn incident(&mut self, this: EndpointId, live: usize, present: Present<'_>) -> bool {
        if self.get(&Place::Egress).is_some_and(|entry| entry.cause == Cause::PlatformAuth) {
            return true;
        }
        let recent = |place: &Place, entry: &Entry| {
            matches!(place, Place::Key(id) if *id != this)
                && entry.cause == Cause::InvalidKey
                && present.now.saturating_duration_since(entry.since) <= TOGETHER
        };
        let refused = 1 + self.0.iter().filter(|(place, entry)| recent(place, entry)).count();
        let everybody = refused >= 2 && refused * 2 > live;
        if everybody {
            self.retain(present, |place, entry| !recent(place, entry) && *place != Place::Key(this));
        }
        everybody
    }
}
