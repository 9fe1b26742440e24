//! What a pool tells of itself: changes as they happen, and rests that no single key has.

use tokio::time::Instant;

use super::Pool;
use crate::{
    endpoint::{AdminState, Endpoint},
    events::{Change, Event, Events},
    select::cooldown::WideRest,
};

impl Pool {
    /// What changes from now on in this pool, and in those that [share](Self::share) with it: breakers, rests, keys that come
    /// and go, and what operators do. See [`events`](crate::events).
    pub fn events(&self) -> Events {
        self.state().events().watch()
    }

    /// The rests that stand now and that no single key has: of workspaces, accounts, accounts' free tiers and single models, of
    /// a model at all its providers, and of our own address. The widest first, and of those that are alike in that the ones
    /// that end last. What one key has says [`resting`](Self::resting).
    ///
    /// A model that rests for requests with different wishes for providers is listed once for each. Rests are kept of at most
    /// 4,096 models at a time. To ask costs three atomic loads while nothing rests, and else a short look into the book.
    ///
    /// ```
    /// use tower_openrouter::{ApiKey, Pool};
    ///
    /// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a")])?;
    /// for rest in pool.rests() {
    ///     println!("{} rests for {}", rest.whose, rest.cause);
    /// }
    /// # assert!(pool.rests().is_empty());
    /// # Ok::<(), tower_openrouter::KeyError>(())
    /// ```
    pub fn rests(&self) -> Vec<WideRest> {
        self.book().wide(Instant::now())
    }

    /// Tells of those of its keys that are `fresh`.
    pub(super) fn introduce(&self, fresh: &[bool]) {
        for (endpoint, _) in self.endpoints().iter().zip(fresh).filter(|(_, fresh)| **fresh) {
            self.note(endpoint, Change::Added);
            match endpoint.admin_state() {
                AdminState::InService => {}
                AdminState::Draining => self.note(endpoint, Change::Drained),
                AdminState::Isolated => self.note(endpoint, Change::Isolated),
            }
        }
        self.state().events().wake();
    }

    /// Tells a change of a key; the caller wakes those who watch.
    pub(super) fn note(&self, endpoint: &Endpoint, change: Change) {
        self.state().events().tell(|| Event::of(endpoint, change, Instant::now()));
    }

    /// Has the key do this from now on, and tells it where that is new.
    pub(super) fn order(&self, endpoint: &Endpoint, state: AdminState) {
        let change = match state {
            AdminState::InService => Change::Reset,
            AdminState::Draining => Change::Drained,
            AdminState::Isolated => Change::Isolated,
        };
        if endpoint.set_admin_state(state) != state || state == AdminState::InService {
            self.note(endpoint, change);
        }
    }
}
