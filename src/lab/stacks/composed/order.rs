//! Which layers stand where, and which settings are theirs.

use serde::Deserialize;
use toml::{Table, Value};

use super::ComposedError;

/// A layer of a stack, by the name that `layers` has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Place {
    /// Comments for streams that have nothing to say yet: [`KeepAliveLayer`](crate::KeepAliveLayer).
    KeepAlive,
    /// Answers are read on whose clients have left: [`HearOutLayer`](crate::stream::HearOutLayer).
    HearOut,
    /// Errors become answers: [`RespondLayer`](crate::RespondLayer).
    Respond,
    /// One instant over all that a request does: [`DeadlineLayer`](crate::DeadlineLayer).
    Deadline,
    /// The body in memory: [`BufferLayer`](crate::BufferLayer).
    Buffer,
    /// Another model where one cannot serve: [`ModelRouter`](crate::ModelRouter).
    Route,
    /// [`RetryLayer`](crate::RetryLayer).
    Retry,
    /// Providers for requests that do not say: [`ProviderLayer`](crate::openrouter::ProviderLayer).
    Provider,
    /// [`HedgeLayer`](crate::HedgeLayer).
    Hedge,
    /// Heads are held for output: [`CommitGateLayer`](crate::CommitGateLayer).
    CommitGate,
    /// [`KeySelectLayer`](crate::KeySelectLayer).
    Select,
    /// [`LoadMonitorLayer`](crate::LoadMonitorLayer).
    Monitor,
    /// [`CircuitBreakerLayer`](crate::CircuitBreakerLayer).
    Breaker,
    /// [`ConcurrencyLimitLayer`](crate::ConcurrencyLimitLayer).
    Limit,
    /// The key is put on: [`AuthorizeLayer`](crate::AuthorizeLayer).
    Authorize,
    /// How long the upstream may be silent: [`TimeoutsLayer`](crate::TimeoutsLayer).
    Timeouts,
}

impl Place {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::HearOut => "hear-out",
            Self::Respond => "respond",
            Self::Deadline => "deadline",
            Self::Buffer => "buffer",
            Self::Route => "route",
            Self::Retry => "retry",
            Self::Provider => "provider",
            Self::Hedge => "hedge",
            Self::CommitGate => "commit-gate",
            Self::Select => "select",
            Self::Monitor => "monitor",
            Self::Breaker => "breaker",
            Self::Limit => "limit",
            Self::Authorize => "authorize",
            Self::Timeouts => "timeouts",
        }
    }

    /// Whether it belongs to one key.
    fn is_of_key(self) -> bool {
        matches!(self, Self::Monitor | Self::Breaker | Self::Limit | Self::Authorize)
    }
}

/// Whose a setting is, by the start of its path; the first that fits. What is not here is selection's, or the poller's.
const OWNERS: [(&str, Place); 17] = [
    ("deadline", Place::Deadline),
    ("timeouts.hear_out", Place::HearOut),
    ("timeouts.", Place::Timeouts),
    ("stream.keep_alive", Place::KeepAlive),
    ("stream.", Place::CommitGate),
    ("models.fallback", Place::Route),
    ("models.upstream_fallback", Place::Provider),
    ("models.variant", Place::Provider),
    ("provider.", Place::Provider),
    ("breaker.", Place::Breaker),
    ("retry.when_provider_full", Place::Provider),
    ("retry.next_models", Place::Provider),
    ("retry.", Place::Retry),
    ("hedge.", Place::Hedge),
    ("limits.max_in_flight", Place::Limit),
    // what is learned is a filter of selection
    ("limits.adaptive", Place::Select),
    ("limits.", Place::Buffer),
];

/// Layers from the outermost to the leaf, each once, with selection among them.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// Before a key is selected.
    pub(super) above: Vec<Place>,
    /// On each key.
    pub(super) below: Vec<Place>,
}

impl Order {
    pub(super) fn new(places: &[Place]) -> Result<Self, ComposedError> {
        let trouble = |place: Place, what: &str| Err(ComposedError(format!("layers: `{}` {what}", place.name())));
        for (at, place) in places.iter().enumerate() {
            if places[..at].contains(place) {
                return trouble(*place, "is there twice: name each layer once");
            }
        }
        let Some(select) = places.iter().position(|place| *place == Place::Select) else {
            return trouble(Place::Select, "is missing: without it no key is used");
        };
        let (above, below) = (&places[..select], &places[select + 1..]);
        if let Some(place) = above.iter().find(|place| place.is_of_key()) {
            return trouble(*place, "belongs to one key: put it after `select`");
        }
        if let Some(place) = below.iter().find(|place| matches!(place, Place::Route)) {
            return trouble(*place, "asks for other models, which other keys may have: put it before `select`");
        }
        Ok(Self { above: above.to_vec(), below: below.to_vec() })
    }

    pub(super) fn has(&self, place: Place) -> bool {
        place == Place::Select || self.above.contains(&place) || self.below.contains(&place)
    }

    /// Refuses settings of layers that are not there.
    pub(super) fn check(&self, said: &Table) -> Result<(), ComposedError> {
        for (section, value) in said {
            match value {
                Value::Table(section_of) => {
                    section_of.keys().try_for_each(|name| self.check_setting(&format!("{section}.{name}")))?;
                }
                _ => self.check_setting(section)?,
            }
        }
        Ok(())
    }

    fn check_setting(&self, path: &str) -> Result<(), ComposedError> {
        let owner = OWNERS.iter().find(|(start, _)| path.starts_with(start)).map(|(_, place)| *place);
        match owner.filter(|place| !self.has(*place)) {
            Some(place) => {
                let name = place.name();
                Err(ComposedError(format!("{path}: it is a setting of `{name}`, which `layers` leaves out")))
            }
            None => Ok(()),
        }
    }
}
