use std::time::Duration;

use super::trip::{TripPolicy, at_least_one, some_time, valid_share};

/// When a breaker opens, for how long, and how it finds out that things are well again.
///
/// ```
/// use std::time::Duration;
/// use tower_openrouter::breaker::{BreakerPolicy, TripPolicy};
///
/// let policy = BreakerPolicy::new(TripPolicy::consecutive(5)?)
///     .cooldown(Duration::from_secs(5), Duration::from_secs(300))?
///     .lease(Duration::from_secs(120))?;
/// # let _ = policy;
/// # Ok::<(), tower_openrouter::breaker::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct BreakerPolicy {
    pub(super) trip: TripPolicy,
    pub(super) cooldown: Duration,
    pub(super) max_cooldown: Duration,
    pub(super) probes: u32,
    pub(super) lease: Duration,
    pub(super) slow: Option<SlowCalls>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SlowCalls {
    pub(super) after: Duration,
    pub(super) share: f64,
    pub(super) within: Duration,
    pub(super) least: u32,
}

impl BreakerPolicy {
    /// Opens as `trip` says; everything else by default.
    pub fn new(trip: TripPolicy) -> Self {
        Self {
            trip,
            cooldown: Duration::from_secs(60),
            max_cooldown: Duration::from_secs(300),
            probes: 1,
            lease: Duration::from_secs(60),
            slow: None,
        }
    }

    /// How long it stays open the first time, and at most: each opening without a success between doubles the time. To
    /// that comes a jitter of up to a quarter, within the most. Default: 60 s, the span in which
    /// limits count, and 300 s, where Envoy and Finagle end too.
    ///
    /// # Errors
    /// When `base` is 0 or above `max`.
    pub fn cooldown(mut self, base: Duration, max: Duration) -> Result<Self, PolicyError> {
        some_time("cooldown", base)?;
        if base > max {
            return Err(PolicyError::CooldownOrder { base, max });
        }
        (self.cooldown, self.max_cooldown) = (base, max);
        Ok(self)
    }

    /// How many requests may try at once whether things are well again; the first verdict decides. Default: 1, since each
    /// is somebody's request.
    ///
    /// # Errors
    /// When it is 0.
    pub fn probes(mut self, probes: u32) -> Result<Self, PolicyError> {
        at_least_one("probes", probes)?;
        self.probes = probes;
        Ok(self)
    }

    /// How long a probe may take to its verdict; then another is let through, and the late verdict no longer counts.
    /// Default: 60 s, as long as the first cooldown.
    ///
    /// # Errors
    /// When it is 0.
    pub fn lease(mut self, lease: Duration) -> Result<Self, PolicyError> {
        some_time("lease", lease)?;
        self.lease = lease;
        Ok(self)
    }

    /// Opens also when, of at least `least` successes within a window of `within`, at least this share took longer than
    /// `after` to their first output. How long an answer then takes to its end does not matter. Default: off.
    ///
    /// # Errors
    /// When `share` is not above 0 and at most 1, or another number is 0.
    pub fn slow_calls(
        mut self,
        after: Duration,
        share: f64,
        within: Duration,
        least: u32,
    ) -> Result<Self, PolicyError> {
        some_time("after", after)?;
        valid_share(share)?;
        some_time("within", within)?;
        at_least_one("least", least)?;
        self.slow = Some(SlowCalls { after, share, within, least });
        Ok(self)
    }
}

impl Default for BreakerPolicy {
    /// 3 failures in 60 s open it, for 60 s growing to 300 s; one probe at a time, 60 s each.
    fn default() -> Self {
        Self::new(TripPolicy::default())
    }
}

/// A number that makes no sense for a breaker.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A count is 0.
    #[error("the breaker's {0} is 0: it must be at least 1")]
    ZeroCount(&'static str),
    /// A time is 0.
    #[error("the breaker's {0} is 0: it must be longer")]
    ZeroTime(&'static str),
    /// A share is not one.
    #[error("the breaker's share is {0}: it must be above 0 and at most 1")]
    BadShare(f64),
    /// The cooldowns are the wrong way round.
    #[error("the breaker's cooldown {base:?} is longer than the longest, {max:?}: give the shorter one first")]
    CooldownOrder {
        /// The first cooldown.
        base: Duration,
        /// The longest.
        max: Duration,
    },
}
