//! An upstream that behaves like OpenRouter.
