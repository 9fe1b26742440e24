//! Which key, how long to wait for one, and what money has to do with it.

use std::fmt;

use serde::Deserialize;

use super::{Dollars, SettingError, Share, Span};
use crate::{
    ApiKey, KeySelectLayer,
    endpoint::Money,
    select::{
        CreditFloor, CreditLimit, LeastInFlight, MostCredit, PeakEwma, Pick, PriorityTiers, Rendezvous, RoundRobin,
        SmoothWeighted, Sticky, WeightedRandom,
    },
};

/// `[select]`: which key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Select {
    /// How a key is picked among those that can serve; default [`PickName::LeastInFlight`].
    pub pick: PickName,
    /// Whether a conversation stays on its account; default no.
    pub sessions: bool,
    /// For [`PickName::Sticky`]: a key with less is left; default $1.
    pub sticky_floor: Dollars,
    /// For [`PickName::Sticky`]: a key with more is used again; default twice the floor.
    pub sticky_back: Option<Dollars>,
    /// The largest share of the keys that may be out at once because they fail; default 1.
    pub max_ejected: Share,
    /// The share of keys below which those that are out because they fail are used again; default 0, never.
    pub panic_below: Share,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            pick: PickName::default(),
            sessions: false,
            sticky_floor: Dollars::of(1.0),
            sticky_back: None,
            max_ejected: Share::of(1.0),
            panic_below: Share::of(0.0),
        }
    }
}

/// How a key is picked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PickName {
    /// [`LeastInFlight`].
    #[default]
    LeastInFlight,
    /// [`PeakEwma`].
    PeakEwma,
    /// [`RoundRobin`].
    RoundRobin,
    /// [`SmoothWeighted`].
    Weighted,
    /// [`WeightedRandom`].
    WeightedRandom,
    /// [`MostCredit`].
    MostCredit,
    /// [`Sticky`].
    Sticky,
}

impl fmt::Display for PickName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeastInFlight => "least-in-flight",
            Self::PeakEwma => "peak-ewma",
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::WeightedRandom => "weighted-random",
            Self::MostCredit => "most-credit",
            Self::Sticky => "sticky",
        })
    }
}

impl Select {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        if self.sticky_back.is_some_and(|back| back < self.sticky_floor) {
            let what = format_args!("it is less than sticky_floor, {}: make it at least that", self.sticky_floor);
            return Err(SettingError::new("select.sticky_back", what));
        }
        Ok(())
    }

    /// How one of `keys` is picked: by [tiers](ApiKey::tier) first, where these differ.
    pub fn policy<'a>(&self, keys: impl IntoIterator<Item = &'a ApiKey>) -> Box<dyn Pick> {
        let mut tiers = keys.into_iter().map(ApiKey::tier_of);
        let first = tiers.next();
        let pick = self.within_tier();
        if tiers.any(|tier| Some(tier) != first) { Box::new(PriorityTiers::new(pick)) } else { pick }
    }

    fn within_tier(&self) -> Box<dyn Pick> {
        let money = |amount: Dollars| Money::from_usd(amount.get());
        let inner: Box<dyn Pick> = match self.pick {
            PickName::LeastInFlight => Box::new(LeastInFlight::default()),
            PickName::PeakEwma => Box::new(PeakEwma::default()),
            PickName::RoundRobin => Box::new(RoundRobin::default()),
            PickName::Weighted => Box::new(SmoothWeighted::default()),
            PickName::WeightedRandom => Box::new(WeightedRandom::default()),
            PickName::MostCredit => Box::new(MostCredit::default()),
            PickName::Sticky => {
                let sticky = Sticky::new(money(self.sticky_floor));
                Box::new(match self.sticky_back {
                    Some(back) => sticky.back(money(back)),
                    None => sticky,
                })
            }
        };
        if self.sessions { Box::new(Rendezvous::new(inner)) } else { inner }
    }

    /// Sets on `layer` all but the pick.
    pub(super) fn bound<L, P: Pick>(&self, layer: KeySelectLayer<L, P>) -> Result<KeySelectLayer<L, P>, SettingError> {
        let layer = layer.max_ejected(self.max_ejected.get());
        let layer = layer.map_err(|error| SettingError::new("select.max_ejected", error))?;
        layer.panic_below(self.panic_below.get()).map_err(|error| SettingError::new("select.panic_below", error))
    }
}

/// `[waiting]`: how long to wait for a key, and how many may.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Waiting {
    /// How long a request may wait for a key when none can serve; default 30 s, zero never waits.
    pub max_wait: Span,
    /// How many may wait at once; default 4096.
    pub max_waiters: usize,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { max_wait: Span::seconds(30), max_waiters: 4096 }
    }
}

/// `[credit]`: what is known of money, and what is made of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credit {
    /// How often to ask the upstream what each key and account may still spend, a second at least; default 60 s, zero never.
    /// It is what an [`AccountPoller`](crate::AccountPoller) beside the stack does.
    pub poll_interval: Span,
    /// Whether a request goes only where its worst case can be paid; default no.
    pub limit: bool,
    /// The tokens that a request counts with which sets no bound for its answer; default 16384.
    pub max_tokens_unsaid: u64,
    /// A key, or its account, with less rests; default 0, none does.
    pub floor: Dollars,
}

impl Default for Credit {
    fn default() -> Self {
        Self { poll_interval: Span::seconds(60), limit: false, max_tokens_unsaid: 16_384, floor: Dollars::of(0.0) }
    }
}

impl Credit {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        if self.poll_interval > Span::seconds(0) && self.poll_interval < Span::seconds(1) {
            let what = "it is shorter than 1s: make it longer, or 0s for never";
            return Err(SettingError::new("credit.poll_interval", what));
        }
        Ok(())
    }

    /// What lets keys rest that are nearly spent; `None` where none does.
    pub fn floor_filter(&self) -> Option<CreditFloor> {
        (self.floor.get() > 0.0).then(|| CreditFloor::new(Money::from_usd(self.floor.get())))
    }

    /// What lets requests go only where they can be paid; `None` where that is off.
    pub fn limit_filter(&self) -> Option<CreditLimit> {
        self.limit.then(|| CreditLimit::new().max_tokens_unsaid(self.max_tokens_unsaid))
    }
}
