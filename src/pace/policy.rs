use super::Rate;

/// What is wrong with a setting of the pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PaceError {
    /// A rate out of range.
    #[error("a rate must be from one in a day to a billion per second")]
    Rate,
    /// Nothing could ever be sent.
    #[error("a burst of 0 would let nothing through: give at least 1")]
    Burst,
    /// Nothing could ever be sent.
    #[error("0 requests per day would let nothing through: give at least 1")]
    PerDay,
    /// No limit is given, and none is to be learned.
    #[error("neither a limit nor learning: give requests, tokens or per_day, or leave learning on")]
    Nothing,
}

/// Whose the configured limits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum PaceScope {
    /// Each key has its own.
    Key,
    /// The keys of an account share them; a key whose account is unknown stands alone.
    #[default]
    Account,
    /// All keys of the pool share them.
    Pool,
}

/// How fast a selector may send, to each key, to each account, or in all.
///
/// By default nothing is held back before the first refusal, and what a 429 of the platform (rows 17 and 17b of the
/// [table](crate::openrouter#the-classification-table)) refuses is learned, for each account's free and paid requests
/// apart. Limits that are known can be given beside it, or instead.
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, OpenRouter, pace::PacePolicy, select::Pool};
/// # use tower_openrouter::simulator::{Scenario, Simulator};
/// # let transport = Simulator::new(Scenario::default())?.service();
///
/// let pool = Pool::new([ApiKey::new("key-a")?.account("acme"), ApiKey::new("key-b")?.account("zeta")])?;
/// let balancer = Balancer::builder(pool).pace(PacePolicy::default()).build(OpenRouter::new(transport));
/// # let _: &Balancer<String> = &balancer;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
///
/// With limits one knows: 20 requests and 40,000 tokens a minute, and 1,000 requests a day, of each account.
///
/// ```
/// use tower_openrouter::pace::{PacePolicy, PaceScope, Rate};
///
/// let policy = PacePolicy::default()
///     .requests(Rate::per_minute(20.0)?)
///     .tokens(Rate::per_minute(40_000.0)?.burst(40_000)?)
///     .per_day(1_000)?
///     .scope(PaceScope::Account)
///     .learn(false)?;
/// # let _ = policy;
/// # Ok::<(), tower_openrouter::pace::PaceError>(())
/// ```
#[derive(Debug, Clone)]
pub struct PacePolicy {
    pub(crate) requests: Option<Rate>,
    pub(crate) tokens: Option<Rate>,
    pub(crate) per_day: Option<u64>,
    pub(crate) scope: PaceScope,
    pub(crate) learn: bool,
}

impl Default for PacePolicy {
    fn default() -> Self {
        Self { requests: None, tokens: None, per_day: None, scope: PaceScope::default(), learn: true }
    }
}

impl PacePolicy {
    /// Limits requests; default no limit.
    #[must_use]
    pub fn requests(mut self, rate: Rate) -> Self {
        self.requests = Some(rate);
        self
    }

    /// Limits tokens, of prompt and answer together; default no limit. A request counts with an estimate when it is sent, a
    /// quarter of its bytes and what its answer may have at most (1,000 if it does not say), and with what its answer
    /// reports when that is over. Give a burst that holds a large request: beyond it one goes only when nothing is owed.
    #[must_use]
    pub fn tokens(mut self, rate: Rate) -> Self {
        self.tokens = Some(rate);
        self
    }

    /// Limits requests from one 00:00 UTC to the next, refused ones included, as OpenRouter counts free requests; default no
    /// limit.
    ///
    /// # Errors
    /// When it is 0.
    pub fn per_day(mut self, requests: u64) -> Result<Self, PaceError> {
        if requests == 0 {
            return Err(PaceError::PerDay);
        }
        self.per_day = Some(requests);
        Ok(self)
    }

    /// Sets whose the given limits are; default each account's. What is learned is always an account's.
    #[must_use]
    pub fn scope(mut self, scope: PaceScope) -> Self {
        self.scope = scope;
        self
    }

    /// Sets whether to learn from refusals what was not given; default yes. Turned off after the limits are given.
    ///
    /// # Errors
    /// When there would be neither a limit nor learning.
    pub fn learn(mut self, learn: bool) -> Result<Self, PaceError> {
        if !learn && self.requests.is_none() && self.tokens.is_none() && self.per_day.is_none() {
            return Err(PaceError::Nothing);
        }
        self.learn = learn;
        Ok(self)
    }
}
