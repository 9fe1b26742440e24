//! The OpenRouter service.

/// The leaf.
#[derive(Debug)]
pub struct OpenRouter;
