//! Streams: how long the upstream may be silent, and what is done before there is output.

use futures_core::future::BoxFuture;
use serde::Deserialize;

use super::{SettingError, Size, Span, Time};
use crate::{CommitGateLayer, KeepAliveLayer, TimeoutsLayer, stream::HearOutLayer};

/// `[timeouts]`: how long the upstream may be silent, and how long it is heard out for a client that left.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From an attempt's start to the head of its answer; default 5 minutes.
    pub headers: Time,
    /// From there to its first real output: text, reasoning or a tool call; default 5 minutes.
    pub first_output: Time,
    /// The longest silence after that; default 2 minutes.
    pub gap: Time,
    /// An attempt in all; default 30 minutes.
    pub total: Time,
    /// For how long an answer is read on when its client has left, to learn what it cost; default 0, not at all.
    pub hear_out: Span,
    /// For how many bytes; default 1 MiB.
    pub hear_out_bytes: Size,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            headers: Time::seconds(300),
            first_output: Time::seconds(300),
            gap: Time::seconds(120),
            total: Time::seconds(1800),
            hear_out: Span::seconds(0),
            hear_out_bytes: Size::mib(1),
        }
    }
}

impl Timeouts {
    /// What ends attempts that are silent for too long.
    ///
    /// # Errors
    /// None that a [`Time`] could have.
    pub fn layer(&self) -> Result<TimeoutsLayer, SettingError> {
        let layer = TimeoutsLayer::default().headers(self.headers.get());
        let layer = layer.and_then(|layer| layer.first_output(self.first_output.get()));
        let layer = layer.and_then(|layer| layer.gap(self.gap.get()));
        layer.and_then(|layer| layer.total(self.total.get())).map_err(|error| SettingError::new("timeouts", error))
    }

    /// What hears answers out whose clients have left, run by `spawn`; `None` where nothing does. It goes outermost.
    pub fn hear_out(&self, spawn: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static) -> Option<HearOutLayer> {
        let Span(time) = self.hear_out;
        (!time.is_zero()).then(|| HearOutLayer::new(spawn).time(time).bytes(self.hear_out_bytes.0))
    }
}

/// `[stream]`: what is done before an answer has begun.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stream {
    /// How long the head of a 200 is held until there is output behind it; default 30 s, zero not at all.
    pub hold: Span,
    /// For how many bytes; default 64 KiB, zero not at all.
    pub hold_bytes: Size,
    /// After how long a client that asked for a stream and has no answer gets comments; default 10 s, zero never.
    pub keep_alive_after: Span,
    /// How far apart the comments are; default 15 s.
    pub keep_alive_interval: Time,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            hold: Span::seconds(30),
            hold_bytes: Size::kib(64),
            keep_alive_after: Span::seconds(10),
            keep_alive_interval: Time::seconds(15),
        }
    }
}

impl Stream {
    /// What holds heads for output.
    pub fn commit_gate(&self) -> CommitGateLayer {
        let Self { hold: Span(time), hold_bytes: Size(bytes), .. } = *self;
        CommitGateLayer::new().hold(time).hold_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// What opens streams that have nothing to say yet. It goes above the stack.
    ///
    /// # Errors
    /// None that a [`Time`] could have.
    pub fn keep_alive(&self) -> Result<KeepAliveLayer, SettingError> {
        let layer = KeepAliveLayer::new().after(self.keep_alive_after.0).interval(self.keep_alive_interval.get());
        layer.map_err(|error| SettingError::new("stream.keep_alive_interval", error))
    }
}
