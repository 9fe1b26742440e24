//! One accepted inference: what it will say, what it costs, and who pays when it ends early.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Wall;
use super::draw;
use super::request::{Asked, Dialect};
use super::scenario::{Model, ProviderEndpoint, Reply};

/// An accepted request; fixed from the moment the provider said yes.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) id: String,
    pub(super) created: Wall,
    pub(super) dialect: Dialect,
    pub(super) model: String,
    pub(super) provider: String,
    pub(super) streamed: bool,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// Whether `max_tokens` or the context ended it.
    pub(super) cut_short: bool,
    pub(super) inputs: usize,
    /// USD per token.
    pub(super) prices: (f64, f64),
    pub(super) cancel: bool,
    pub(super) text_seed: u64,
    /// Tokens in one event of a stream.
    pub(super) per_event: u64,
    /// A text of this many bytes instead of words.
    pub(super) huge: Option<usize>,
    /// Out of the response cache: it has used nothing.
    pub(super) cached: bool,
    /// `openrouter_metadata`, when asked for.
    pub(super) routing: Option<serde_json::Value>,
}

impl Served {
    pub(super) fn new(
        (id, mut rng): (String, fastrand::Rng),
        created: Wall,
        asked: &Asked,
        (model, endpoint): (&Model, &ProviderEndpoint),
        reply: &Reply,
    ) -> Self {
        let wanted = rng.u64(reply.min_tokens..=reply.max_tokens);
        let room = model.context_length.saturating_sub(asked.prompt_tokens).max(1);
        let most = asked.max_tokens.unwrap_or(model.max_output).min(model.max_output).min(room);
        let embeds = asked.dialect == Dialect::Embeddings;
        Self {
            id,
            created,
            dialect: asked.dialect,
            model: model.id.clone(),
            provider: endpoint.provider.clone(),
            streamed: asked.stream,
            prompt_tokens: asked.prompt_tokens,
            completion_tokens: if embeds { 0 } else { wanted.min(most) },
            cut_short: wanted > most,
            inputs: asked.inputs,
            prices: (endpoint.prompt_price / 1e6, endpoint.completion_price / 1e6),
            cancel: endpoint.cancel,
            text_seed: rng.u64(..),
            per_event: reply.tokens_per_event,
            huge: None,
            cached: false,
            routing: None,
        }
    }

    /// The tokens of prompt and answer that are reported.
    pub(super) fn used(&self) -> (u64, u64) {
        if self.cached { (0, 0) } else { (self.prompt_tokens, self.completion_tokens) }
    }

    pub(super) fn cost(&self) -> f64 {
        self.cost_of(self.completion_tokens)
    }

    fn cost_of(&self, completion_tokens: u64) -> f64 {
        self.prompt_tokens as f64 * self.prices.0 + completion_tokens as f64 * self.prices.1
    }

    /// Whether the work ends when the caller leaves. Only some providers stop when a stream is closed; JSON requests never
    /// do.
    pub(super) fn stops(&self) -> bool {
        self.streamed && self.cancel
    }

    /// What an end after `sent` tokens is charged.
    pub(super) fn charge(&self, end: EndOf, sent: u64) -> f64 {
        match end {
            EndOf::Whole => self.cost(),
            // Zero completion insurance: an error finish, or nothing at all, is free.
            EndOf::Error => 0.0,
            EndOf::Broken => {
                if sent == 0 {
                    0.0
                } else {
                    self.cost_of(sent)
                }
            }
            EndOf::Left if self.stops() => {
                if sent == 0 {
                    0.0
                } else {
                    self.cost_of(sent)
                }
            }
            EndOf::Left => self.cost(),
        }
    }

    /// How many events have carried the first `tokens` tokens: the first one, the others as many as go in.
    pub(super) fn events(&self, tokens: u64) -> u64 {
        if tokens == 0 { 0 } else { 1 + (tokens - 1).div_ceil(self.per_event) }
    }

    /// The text of one token.
    fn piece(&self, index: u64) -> &'static str {
        let mut rng = draw::rng(self.text_seed, "word", index);
        let word = WORDS[rng.usize(..WORDS.len())];
        if index == 0 { word.trim_start() } else { word }
    }

    /// The first `tokens` tokens.
    pub(super) fn text(&self, tokens: u64) -> String {
        self.part(0, tokens).into_owned()
    }

    /// So many tokens from this one on.
    pub(super) fn part(&self, from: u64, tokens: u64) -> Cow<'static, str> {
        match (self.huge, tokens) {
            (Some(bytes), _) => "a".repeat(bytes).into(),
            (None, 1) => self.piece(from).into(),
            (None, _) => (from..from + tokens).map(|index| self.piece(index)).collect(),
        }
    }
}

/// How a served request ended, as billing sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndOf {
    Whole,
    Error,
    Broken,
    Left,
}

/// What `/generation` reports.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    pub(super) served: Arc<Served>,
    pub(super) account: usize,
    pub(super) workspace: usize,
    pub(super) started: Duration,
    pub(super) settled: Option<Settled>,
}

/// The end of a generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) at: Duration,
    pub(super) end: EndOf,
    pub(super) tokens: u64,
    pub(super) cost: f64,
}

/// Words without characters that JSON escapes, each with the space before it.
const WORDS: [&str; 32] = [
    " amber", " basin", " cedar", " delta", " ember", " fjord", " grove", " harbor", " inlet", " jasper", " kestrel",
    " lagoon", " meadow", " north", " orchard", " pebble", " quartz", " river", " stone", " timber", " umber",
    " valley", " willow", " yarrow", " zephyr", " and", " of", " the", " under", " over", " between", " beyond",
];
