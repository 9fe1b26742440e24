//! Which disturbance strikes which request, where on its way.

use std::time::Duration;

use super::scenario::{Fault, What};
use super::world::{AccountState, KeyState, World};

/// A fault with its window as times since the simulator's start, and how often it struck.
#[derive(Clone, Debug)]
pub(super) struct FaultState {
    fault: Fault,
    from: Duration,
    until: Option<Duration>,
    struck: u64,
}

impl FaultState {
    pub(super) fn new(fault: Fault, base: Duration) -> Self {
        let after = |start: Duration, seconds: f64| {
            Duration::try_from_secs_f64(seconds).ok().and_then(|length| start.checked_add(length))
        };
        let from = after(base, fault.at_s).unwrap_or(Duration::MAX);
        let until = fault.for_s.and_then(|seconds| after(from, seconds));
        Self { fault, from, until, struck: 0 }
    }

    /// Whether it may strike now, whatever its probability.
    fn meets(&self, stage: Stage, names: Names<'_>, elapsed: Duration) -> bool {
        let fault = &self.fault;
        let meant =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        fault.what.stage() == stage
            && elapsed >= self.from
            && self.until.is_none_or(|until| elapsed < until)
            && fault.times.is_none_or(|times| self.struck < times)
            && meant(&fault.key, names.label)
            && meant(&fault.account, names.account)
            && meant(&fault.provider, names.provider)
            && fault.model.as_ref().is_none_or(|model| names.models.contains(model))
    }
}

/// A [`Target`] by the names that faults know.
#[derive(Clone, Copy)]
struct Names<'a> {
    label: Option<&'a str>,
    account: Option<&'a str>,
    models: &'a [String],
    provider: Option<&'a str>,
}

impl<'a> Names<'a> {
    fn of(target: Target<'a>, keys: &'a [KeyState], accounts: &'a [AccountState]) -> Self {
        let key = target.key.map(|index| &keys[index]);
        Self {
            label: key.map(|key| &*key.label),
            account: key.map(|key| &*accounts[key.account].name),
            models: target.models,
            provider: target.provider,
        }
    }
}

/// Where on a request's way a fault acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In front of the API: it looks at nothing.
    Edge,
    /// When the key is looked up.
    Authentication,
    /// After the key is known, in place of the platform's checks.
    Platform,
    /// When a provider is asked.
    Provider,
    /// The time a provider takes.
    Delay,
    /// After the 200.
    Body,
}

impl What {
    const fn stage(&self) -> Stage {
        match self {
            Self::Reset | Self::Stall | Self::Html { .. } | Self::Raw { .. } => Stage::Edge,
            Self::Unauthorized => Stage::Authentication,
            Self::Refuse { .. } | Self::Status { .. } => Stage::Platform,
            Self::PoolFull { .. } | Self::ProviderFails { .. } => Stage::Provider,
            Self::Slow { .. } => Stage::Delay,
            Self::InBand { .. }
            | Self::Eof { .. }
            | Self::Cut { .. }
            | Self::Hang { .. }
            | Self::Malformed
            | Self::PaddingOnly
            | Self::Huge { .. } => Stage::Body,
        }
    }
}

/// Whom a request concerns, as far as known at the stage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) key: Option<usize>,
    pub(super) models: &'a [String],
    pub(super) provider: Option<&'a str>,
}

impl World {
    /// The first active fault of `stage` that matches, counted as struck.
    pub(super) fn strike(&mut self, stage: Stage, target: Target<'_>, elapsed: Duration) -> Option<What> {
        if self.faults.is_empty() {
            return None;
        }
        let names = Names::of(target, &self.keys, &self.accounts);
        let rng = &mut self.rng;
        let state = self.faults.iter_mut().find(|state| {
            // Drawn last, so a fault that cannot strike does not move the random sequence.
            state.meets(stage, names, elapsed)
                && (state.fault.probability >= 1.0 || rng.f64() < state.fault.probability)
        })?;
        state.struck += 1;
        Some(state.fault.what.clone())
    }

    /// The first fault of `stage` that would strike such a request for sure, and when its window ends, or another's begins that
    /// goes before it.
    #[cfg(feature = "lab")]
    pub(super) fn sure(
        &self,
        stage: Stage,
        target: Target<'_>,
        elapsed: Duration,
    ) -> Option<(&What, Option<Duration>)> {
        let names = Names::of(target, &self.keys, &self.accounts);
        let sure = |at| move |state: &FaultState| state.fault.probability >= 1.0 && state.meets(stage, names, at);
        let index = self.faults.iter().position(sure(elapsed))?;
        let next = self.faults[..index].iter().filter(|state| state.from > elapsed && sure(state.from)(state));
        let found = &self.faults[index];
        Some((&found.fault.what, next.map(|state| state.from).chain(found.until).min()))
    }
}
