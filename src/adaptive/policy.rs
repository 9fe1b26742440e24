use std::ops::RangeInclusive;

/// How a learned cap moves, and within which bounds.
///
/// Two laws, both as in Netflix' concurrency-limits, whose numbers are the defaults: from 20, up to 200, times 0.9 when it
/// was too much. There the least is 20 too; here it is 1, since a key may be worth no more.
///
/// - [`aimd`](Self::aimd), additive increase and multiplicative decrease, goes by refusals alone;
/// - [`gradient`](Self::gradient) also shrinks while the time to the first output of streams is more than twice what it is
///   in the long run: upstream queues before it refuses.
///
/// Both double the cap in each round, that is for as many answers as the cap, until they first meet a refusal; from then on
/// it grows by about one a round. Where it was refused it stays below for 30 s before it tries again, so that a limit that
/// stands costs a refusal or two a minute. Refusals of what was sent before it last shrank count once, together. It does not
/// grow while less than half of it is used.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct AdaptivePolicy {
    pub(super) by_time: bool,
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) shrink: f64,
    start: Option<usize>,
}

/// Where it starts unless told.
const START: usize = 20;
/// More than anybody runs at once, and exact as a float.
const MOST: usize = u32::MAX as usize;

impl AdaptivePolicy {
    /// Goes by refusals alone.
    pub fn aimd() -> Self {
        Self { by_time: false, min: 1, max: 200, shrink: 0.9, start: None }
    }

    /// Goes by refusals and by the time to the first output of streams.
    pub fn gradient() -> Self {
        Self { by_time: true, ..Self::aimd() }
    }

    /// Sets the least and the largest cap; default 1 to 200.
    ///
    /// # Errors
    /// When the least is 0 or above the largest, the largest is above 4,294,967,295, or the start lies outside.
    pub fn range(mut self, range: RangeInclusive<usize>) -> Result<Self, AdaptiveError> {
        (self.min, self.max) = range.into_inner();
        if self.min == 0 || self.min > self.max || self.max > MOST {
            return Err(AdaptiveError::Range { min: self.min, max: self.max });
        }
        self.checked()
    }

    /// Sets the cap to start with; default 20, or the bound that is nearest to it.
    ///
    /// # Errors
    /// When it lies outside the [range](Self::range).
    pub fn start(mut self, cap: usize) -> Result<Self, AdaptiveError> {
        self.start = Some(cap);
        self.checked()
    }

    /// Sets by which factor the cap shrinks; default 0.9.
    ///
    /// # Errors
    /// When it is not above 0 and below 1.
    pub fn shrink(mut self, factor: f64) -> Result<Self, AdaptiveError> {
        if !(factor > 0.0 && factor < 1.0) {
            return Err(AdaptiveError::Shrink(factor));
        }
        self.shrink = factor;
        Ok(self)
    }

    fn checked(self) -> Result<Self, AdaptiveError> {
        let Self { min, max, .. } = self;
        match self.start {
            Some(start) if !(min..=max).contains(&start) => Err(AdaptiveError::Start { start, min, max }),
            _ => Ok(self),
        }
    }

    pub(crate) fn first_cap(&self) -> usize {
        self.start.unwrap_or(START).clamp(self.min, self.max)
    }
}

/// Settings of an [`AdaptivePolicy`] that make no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdaptiveError {
    /// The bounds are none.
    #[error(
        "the learned cap's range is {min} to {max}: it must begin at 1 or above, not end below that, and end at {MOST} at most"
    )]
    Range {
        /// The least.
        min: usize,
        /// The largest.
        max: usize,
    },
    /// It would start out of bounds.
    #[error("the learned cap starts at {start}: it must lie within its range, {min} to {max}")]
    Start {
        /// The start.
        start: usize,
        /// The least.
        min: usize,
        /// The largest.
        max: usize,
    },
    /// The factor would not shrink it.
    #[error("the learned cap shrinks by the factor {0}: it must be above 0 and below 1, such as 0.9")]
    Shrink(f64),
}
