//! Composable [`tower`] layers that balance LLM requests over many OpenRouter API keys.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "simulator")]
pub mod simulator;
