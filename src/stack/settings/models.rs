//! Models: what becomes of those that nobody serves.

use serde::Deserialize;

use crate::openrouter::Variant;

/// `[models]`: what becomes of models that no route, or no key, serves, and what requests that do not say ask for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Models {
    /// What becomes of a model that has no route; default [`Unrouted::AllKeys`].
    pub unrouted: Unrouted,
    /// Models to try, in order, when the one asked for provably was not served; default none. It is what a
    /// [`ModelRouter`](crate::ModelRouter) does.
    pub fallback: Vec<String>,
    /// Models that OpenRouter itself falls back on with the same key, for requests that name none; default none.
    pub upstream_fallback: Vec<String>,
    /// A variant for models that are asked for without one; default none.
    pub variant: Option<Variant>,
}

/// What becomes of a model that has no route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unrouted {
    /// All keys serve it.
    #[default]
    AllKeys,
    /// It is refused.
    Refuse,
}
