//! What changes in a pool, told as it happens: breakers, rests, and what an operator does.
//!
//! Who wants to know that a key died can ask once a second, and misses what came and went in between; or hang a callback into
//! the balancer, and then a slow one delays every request, and one that calls back in wedges them all. Here a change is put
//! into the queues of those who watch, while the lock is held under which it was decided: so each change is told once, and
//! those of a key in the order in which they happened, whichever thread they happened on. Nobody's code runs under that lock,
//! and nobody is waited for: a queue holds [`MOST`] events, and from one that is full the oldest is lost, and
//! [counted](Events::lost). While nobody watches, a change costs one atomic load; a request that changes nothing costs
//! nothing either way. There is no task.
//!
//! What merely comes about as time passes is no event: a rest and a breaker's opening say `until` when they last, and a breaker
//! is half-open when the first request tries it. Who has lost events, or comes late, reads how things stand:
//! [`Pool::endpoints`](crate::Pool::endpoints), [`Pool::resting`](crate::Pool::resting), [`Pool::rests`](crate::Pool::rests)
//! and a [breaker's snapshot](crate::breaker::BreakerHandle::snapshot).
//!
//! # Examples
//!
//! ```
//! use tower_openrouter::{ApiKey, Pool, events::Change};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_openrouter::KeyError> {
//! let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("a"), ApiKey::new("sk-or-v1-b")?.label("b")])?;
//! let mut events = pool.events();
//! let watcher = tokio::spawn(async move {
//!     let mut seen = Vec::new();
//!     while let Some(event) = events.recv().await {
//!         println!("{}: {:?}", event.whose, event.change);
//!         seen.push((event.whose.name.unwrap_or_default().to_string(), event.change));
//!     }
//!     // the pool is gone
//!     (seen, events.lost())
//! });
//!
//! pool.drain("a");
//! pool.reset("a");
//! pool.remove("b");
//! drop(pool);
//! let (seen, lost) = watcher.await.expect("it does not panic");
//! let expected = [("a", Change::Drained), ("a", Change::Reset), ("b", Change::Removed)];
//! assert_eq!(seen, expected.map(|(key, change)| (key.to_owned(), change)));
//! assert_eq!(lost, 0);
//! # Ok(()) }
//! ```

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use crate::{
    endpoint::{Endpoint, EndpointId},
    outcome::{Cause, Scope},
};

mod feed;

pub(crate) use feed::Feed;
pub use feed::{Events, MOST};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// When it was decided. Events come in the order of the decisions; instants that two threads read may differ from that by
    /// a hair.
    pub at: Instant,
    /// Whom it is about.
    pub whose: Whose,
    /// The key, where it is about a single one: labels need not differ, and a key that is given other settings is another.
    pub endpoint: Option<EndpointId>,
    /// What changed.
    pub change: Change,
}

impl Event {
    pub(crate) fn of(endpoint: &Endpoint, change: Change, at: Instant) -> Self {
        Self { at, whose: Whose::key(endpoint), endpoint: Some(endpoint.id()), change }
    }
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The key came into the pool.
    Added,
    /// The key was taken out of the pool. Keys that go with their pool, such as those a [new set](crate::Pool::share) leaves
    /// out, are not told of.
    Removed,
    /// An operator has the key take [nothing new](crate::Pool::drain).
    Drained,
    /// An operator has the key [left alone](crate::Pool::isolate).
    Isolated,
    /// An operator has [put the key back](crate::Pool::reset), told even where there was nothing to forgive. The rests that
    /// ended by it, and its breaker if that closed by it, are told before.
    Reset,
    /// The key's breaker lets nothing through, by its own decision.
    BreakerOpened {
        /// When probes begin.
        until: Instant,
        /// What the last fault was; `None` where it was slowness.
        cause: Option<Cause>,
    },
    /// The first request tries whether the key is well again.
    BreakerHalfOpen,
    /// The key's breaker lets everything through: a probe was served, or an operator said so.
    BreakerClosed,
    /// An operator has the key's breaker let nothing through.
    BreakerIsolated,
    /// An operator has switched the key's breaker off.
    BreakerDisabled,
    /// A rest began. It ends by itself at `until`, which is no event.
    RestBegun {
        /// What it is for.
        cause: Cause,
        /// When it ends; years ahead for a key that is given up for dead.
        until: Instant,
        /// Whether the server named the time.
        hinted: bool,
    },
    /// A rest that stands ends at another time than was told.
    RestExtended {
        /// What it is for now.
        cause: Cause,
        /// When it ends now.
        until: Instant,
        /// Whether the server named the time.
        hinted: bool,
    },
    /// A rest ended before its time: a request was served, upstream vouched for the key, all keys turned out to be refused
    /// alike, or an operator said so.
    RestLifted {
        /// What it was for.
        cause: Cause,
    },
}

impl Change {
    /// Its name in logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Drained => "drained",
            Self::Isolated => "isolated",
            Self::Reset => "reset",
            Self::BreakerOpened { .. } => "breaker_opened",
            Self::BreakerHalfOpen => "breaker_half_open",
            Self::BreakerClosed => "breaker_closed",
            Self::BreakerIsolated => "breaker_isolated",
            Self::BreakerDisabled => "breaker_disabled",
            Self::RestBegun { .. } => "rest_begun",
            Self::RestExtended { .. } => "rest_extended",
            Self::RestLifted { .. } => "rest_lifted",
        }
    }
}

/// Whom a change or a rest is about, by name; never by a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Whose {
    /// How wide that is.
    pub scope: Scope,
    /// The key's label, or the name of the workspace or account; for an account nobody has named, the label of its only known
    /// key. For a pool, the host of the base URL that a key brings along; else `None`.
    pub name: Option<Arc<str>>,
    /// The model, where it is one model's, as the client wrote it; after 100 characters it is cut.
    pub model: Option<Arc<str>>,
}

/// The longest name of a model that is kept: a client may write anything.
const LONGEST_MODEL: usize = 100;

impl Whose {
    pub(crate) fn new(scope: Scope, name: Option<&str>) -> Self {
        Self { scope, name: name.map(Arc::from), model: None }
    }

    pub(crate) fn key(endpoint: &Endpoint) -> Self {
        Self::new(Scope::Key, Some(endpoint.key().name()))
    }

    pub(crate) fn of_model(mut self, model: Option<&str>) -> Self {
        self.model = model.map(|model| match model.char_indices().nth(LONGEST_MODEL) {
            Some((end, _)) => format!("{}…", &model[..end]).into(),
            None => model.into(),
        });
        self
    }
}

impl fmt::Display for Whose {
    /// Such as `key team-a`, `account_model acme of acme/swift-1`, `pool of acme/swift-1`, `egress`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scope.as_str())?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        match &self.model {
            Some(model) => write!(f, " of {model}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_it_is_is_told_in_one_line_and_a_models_name_is_cut() {
        let long = "ü".repeat(LONGEST_MODEL + 1);
        let cut = format!("pool of {}…", "ü".repeat(LONGEST_MODEL));
        for (whose, told) in [
            (Whose::new(Scope::Key, Some("a")), "key a"),
            (Whose::new(Scope::AccountModel, Some("acme")).of_model(Some("m")), "account_model acme of m"),
            (Whose::new(Scope::Pool, None).of_model(Some(&long)), &cut),
            (Whose::new(Scope::Pool, None).of_model(Some(&long[2..])), &format!("pool of {}", &long[2..])),
            (Whose::new(Scope::Egress, None).of_model(None), "egress"),
        ] {
            assert_eq!(whose.to_string(), told);
        }
    }
}
