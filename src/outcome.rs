//! What became of an attempt, said once.
//!
//! Every layer of a balancer wants to know whether an attempt went well and, if not, whom that speaks against. When each
//! reads the status code for itself they disagree: a provider's 429 benches a healthy key, an account's empty balance is
//! tried again on the next key of the same account. Here the leaf judges an answer once, into an [`Outcome`], and puts it
//! into the response's extensions as an [`OutcomeCell`]; every other layer reads that cell. A stack around some other
//! service says what an answer means with its own [`Classify`]; plain HTTP ([`HttpStatus`]) and gRPC ([`Grpc`]) are here.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::Response;

mod cause;
mod classify;
mod counts;
mod grpc;
mod said;

pub use cause::Cause;
pub(crate) use classify::Judge;
pub use classify::{Classify, HttpStatus, error_fault};
pub(crate) use counts::CauseCounts;
pub use grpc::Grpc;
pub(crate) use said::Said;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is what was asked for.
    Success,
    /// It is not, and this is what it says about whom.
    Fault(Fault),
}

impl Outcome {
    /// The fault, if it is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Success => None,
            Self::Fault(fault) => Some(fault),
        }
    }

    /// Whether this is a success.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Success)
    }
}

impl From<Fault> for Outcome {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A failed attempt: why, whom it speaks about, how long that one should rest, and whether trying again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Why it failed.
    pub cause: Cause,
    /// Whom the failure speaks about.
    pub scope: Scope,
    /// How long nothing should be sent to that scope; `None` when the fault asks for no rest.
    pub rest: Option<Rest>,
    /// Whether, and where, to try again.
    pub retry: Retry,
}

impl Fault {
    /// A fault of `cause` about `scope`, with neither rest nor retry.
    pub fn new(cause: Cause, scope: Scope) -> Self {
        Self { cause, scope, rest: None, retry: Retry::Never }
    }

    /// The same with a rest.
    #[must_use]
    pub fn rest(mut self, rest: Rest) -> Self {
        self.rest = Some(rest);
        self
    }

    /// The same with advice on retrying.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Whether the fault may be the key's or the upstream's, and only the luck of other keys can tell: 5xx, timeouts,
    /// resets, transport errors.
    pub fn is_suspect(&self) -> bool {
        self.cause.is_suspect()
    }

    /// Whether this speaks against the one key alone.
    pub fn is_of_key(&self) -> bool {
        self.scope == Scope::Key
    }
}

/// Whom a fault speaks about, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// This request only: it would fail the same way anywhere.
    Request,
    /// The key.
    Key,
    /// The workspace the key spends in.
    Workspace,
    /// The account the key belongs to, with all its keys.
    Account,
    /// The account's quota of free models; its paid models stay usable.
    FreeTier,
    /// The account for this one model.
    AccountModel,
    /// The upstream pool that serves this model for everybody; no key is to blame.
    Pool,
    /// The way out of this process: our address at the edge, or the network.
    Egress,
}

impl Scope {
    /// The scope's name in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Key => "key",
            Self::Workspace => "workspace",
            Self::Account => "account",
            Self::FreeTier => "free_tier",
            Self::AccountModel => "account_model",
            Self::Pool => "pool",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long a scope should rest, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// From the moment the answer arrived.
    pub duration: Duration,
    /// Whether the server named the time. A guess may be lengthened when it turns out too short; a hint is kept as it is.
    pub hinted: bool,
}

impl Rest {
    /// A rest the server asked for.
    pub fn hinted(duration: Duration) -> Self {
        Self { duration, hinted: true }
    }

    /// A rest by our own default.
    pub fn guessed(duration: Duration) -> Self {
        Self { duration, hinted: false }
    }
}

/// Whether, and where, to try again after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retry {
    /// The same would happen again.
    Never,
    /// At once, on a key outside the fault's scope: the answer proves that the model did not run.
    Elsewhere,
    /// On any key, after the hint or a back-off.
    Backoff,
    /// As [`Backoff`](Self::Backoff), a single time.
    Once,
    /// The request may have run, and been billed, without our seeing the answer: only if the caller accepts that.
    Unclear,
}

/// Tokens and money an answer reports.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer, reasoning included.
    pub completion_tokens: u64,
    /// What the account was charged, in US dollars.
    pub cost: f64,
}

/// Where the one outcome of an attempt is written and read: two write-once slots and what else the answer told.
///
/// It travels in the response's extensions. *At commit* is filled at the first real output, or by a failure before it;
/// *at end* when the body is over. A cell whose commit slot is empty belongs to a stream that has not said anything yet.
#[derive(Clone, Default)]
pub struct OutcomeCell(Arc<Slots>);

#[derive(Default)]
struct Slots {
    commit: OnceLock<Outcome>,
    end: OnceLock<Outcome>,
    usage: OnceLock<Usage>,
    account: OnceLock<Box<str>>,
    provider: OnceLock<Box<str>>,
    limit: OnceLock<u32>,
}

impl OutcomeCell {
    /// An empty cell.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills the commit slot; the first outcome stays.
    pub fn commit(&self, outcome: Outcome) {
        let _ = self.0.commit.set(outcome);
    }

    /// Fills the end slot, and the commit slot if it is still empty; the first outcome of each stays.
    pub fn end(&self, outcome: Outcome) {
        self.commit(outcome);
        let _ = self.0.end.set(outcome);
    }

    /// Notes what the answer reports to have used; the first report stays.
    pub fn report_usage(&self, usage: Usage) {
        let _ = self.0.usage.set(usage);
    }

    /// Notes the account that an error body names.
    pub fn report_account(&self, account: &str) {
        let _ = self.0.account.set(account.into());
    }

    /// Notes the provider that an error body names.
    pub fn report_provider(&self, provider: &str) {
        let _ = self.0.provider.set(provider.into());
    }

    /// Notes how many requests the limit admits that a refusal names.
    pub fn report_limit(&self, limit: u32) {
        let _ = self.0.limit.set(limit);
    }

    /// The outcome at commit, once known.
    pub fn at_commit(&self) -> Option<Outcome> {
        self.0.commit.get().copied()
    }

    /// The outcome at the end of the body, once known.
    pub fn at_end(&self) -> Option<Outcome> {
        self.0.end.get().copied()
    }

    /// What the answer reports to have used, once known.
    pub fn usage(&self) -> Option<Usage> {
        self.0.usage.get().copied()
    }

    /// The account that an error body named.
    pub fn account(&self) -> Option<&str> {
        self.0.account.get().map(AsRef::as_ref)
    }

    /// The provider that an error body named: the one that failed.
    pub fn provider(&self) -> Option<&str> {
        self.0.provider.get().map(AsRef::as_ref)
    }

    /// How many requests the limit admits that a refusal named.
    pub fn limit(&self) -> Option<u32> {
        self.0.limit.get().copied()
    }
}

impl fmt::Debug for OutcomeCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeCell")
            .field("at_commit", &self.at_commit())
            .field("at_end", &self.at_end())
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

/// When a response's outcome can be known.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Now.
    Known(Outcome),
    /// When the cell's commit slot is filled, which happens while the body flows.
    AtCommit(OutcomeCell),
    /// When the body is over: ask [`Classify::end`].
    AtEnd,
}

impl Verdict {
    /// Reads a response: its cell if the leaf put one in, else what `classify` makes of the head.
    pub fn of<B>(response: &Response<B>, classify: &dyn Classify) -> Self {
        match response.extensions().get::<OutcomeCell>() {
            Some(cell) => match cell.at_commit() {
                Some(outcome) => Self::Known(outcome),
                None => Self::AtCommit(cell.clone()),
            },
            None => match classify.head(response.status(), response.headers()) {
                Some(outcome) => Self::Known(outcome),
                None => Self::AtEnd,
            },
        }
    }
}
