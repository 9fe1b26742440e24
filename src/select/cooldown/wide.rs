use serde::{Serialize, Serializer};
use tokio::time::Instant;

#[cfg(feature = "metrics")]
use crate::outcome::Scope;
use crate::{events::Whose, outcome::Cause};

/// A rest that stands, with whom it holds for; see [`Pool::rests`](crate::Pool::rests).
///
/// Serialised it has the members `scope`, `name`, `model`, `cause`, `left_ms` and `hinted`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WideRest {
    /// Whom it holds for.
    pub whose: Whose,
    /// What it is for.
    pub cause: Cause,
    /// When it ends.
    pub until: Instant,
    /// Whether the server named the time; else it is a guess.
    pub hinted: bool,
}

impl WideRest {
    /// The scopes that such a rest can have, from narrow to wide.
    #[cfg(feature = "metrics")]
    pub(crate) const SCOPES: [Scope; 6] =
        [Scope::Workspace, Scope::Account, Scope::FreeTier, Scope::AccountModel, Scope::Pool, Scope::Egress];
}

impl Serialize for WideRest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            scope: &'static str,
            name: Option<&'a str>,
            model: Option<&'a str>,
            cause: &'static str,
            left_ms: u64,
            hinted: bool,
        }
        let Self { whose, cause, until, hinted } = self;
        let left = until.saturating_duration_since(Instant::now());
        let written = Written {
            scope: whose.scope.as_str(),
            name: whose.name.as_deref(),
            model: whose.model.as_deref(),
            cause: cause.as_str(),
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            hinted: *hinted,
        };
        written.serialize(serializer)
    }
}
