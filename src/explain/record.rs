//! What a trace holds: plain data.

use std::{fmt, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::written;
use crate::{
    body::Ending,
    error::Why,
    outcome::{Cause, Outcome, Usage},
};

/// The most names that are kept of any group of keys.
pub(super) const FEW: usize = 8;
/// The most figures that are kept of one look.
const MOST_COMPARED: usize = 12;
/// The most groups of refused keys; only filters with names made up as they go can reach it.
const MOST_GROUPS: usize = 64;

/// What was decided for a request, as far as it is known.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The attempts, in order; the first 32.
    pub attempts: Vec<Attempt>,
    /// How many attempts there were beyond those.
    pub left_out: usize,
    /// What the caller got; `None` while it waits.
    pub result: Option<Finish>,
}

/// One attempt: the search for a key, the key, and what came of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The model asked for, where the body is known.
    pub model: Option<Box<str>>,
    /// When the search began, in milliseconds from the start of the trace.
    pub at_ms: u64,
    /// What selection saw when it looked at the pool: the first time and, if it had to wait, the last.
    pub looks: Vec<Look>,
    /// How often it looked.
    pub looked: usize,
    /// The key it went to, by label; `None` while, or if, none could be had.
    pub key: Option<Box<str>>,
    /// Whether it was sent beside one that ran, by a [`HedgeLayer`](crate::HedgeLayer).
    pub hedge: bool,
    /// How that key was found.
    pub by: Option<By>,
    /// Why selection gave up the search.
    #[serde(serialize_with = "written::why")]
    pub rejected: Option<Why>,
    /// How long it stood in line for a key.
    pub waited_ms: u64,
    /// The answer's status.
    pub status: Option<u16>,
    /// From sending to the answer's head, or the error in its place.
    pub head_ms: Option<u64>,
    /// What a [`CommitGateLayer`](crate::CommitGateLayer) found behind the head.
    pub gate: Option<Gate>,
    /// What became of it, as known last: an answer may still fail in its body.
    #[serde(serialize_with = "written::outcome")]
    pub outcome: Option<Outcome>,
    /// The provider that failed, where the answer names it.
    pub provider: Option<Box<str>>,
    /// How the exchange ended. `None` while it goes on, and for a failure that was known before.
    #[serde(serialize_with = "written::ending")]
    pub ending: Option<Ending>,
    /// From sending to the end of the body, or to the failure.
    pub took_ms: Option<u64>,
    /// Tokens and money the answer reported.
    #[serde(serialize_with = "written::usage")]
    pub usage: Option<Usage>,
    /// What was done about a failure. `None` after a success, and where no [`RetryLayer`](crate::RetryLayer) or
    /// [`ModelRouter`](crate::ModelRouter) decides.
    pub next: Option<Next>,
}

/// What selection saw at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Look {
    /// When, in milliseconds from the start of the trace.
    pub at_ms: u64,
    /// The [pick](crate::select::Pick), by name.
    pub pick: Box<str>,
    /// How many keys the pool held.
    pub keys: usize,
    /// Those against whom nothing stood.
    pub candidates: Keys,
    /// The others, by reason.
    pub refused: Vec<Refused>,
    /// What the pick compared; the first 12 figures.
    pub compared: Vec<Compared>,
}

/// Some keys: how many, and the labels of the first 8.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Keys {
    /// How many.
    pub count: usize,
    /// The first of them.
    pub keys: Vec<Box<str>>,
}

/// Keys that were out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refused {
    /// The reason; in JSON its name is `reason`, and beside it `cause` or `filter`.
    #[serde(flatten)]
    pub reason: Reason,
    /// Which keys; in JSON `count` and `keys`.
    #[serde(flatten)]
    pub keys: Keys,
    /// In how many milliseconds the first of them comes back, where that is known.
    pub back_in_ms: Option<u64>,
}

/// Why a key was out. The first reason found, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Its weight is 0, or an operator [drains](crate::select::Pool::drain) it.
    Drained,
    /// An operator has [isolated](crate::select::Pool::isolate) it.
    Isolated,
    /// Its patterns do not name the model.
    OtherModel,
    /// It lacks a tag that the request [demands](crate::RequestContext::require).
    MissingTag,
    /// An earlier attempt of this request failed for the key, or for an account or workspace that holds it.
    RuledOut,
    /// It rests, or its account or workspace does, for this cause.
    Resting {
        /// What it rests for.
        #[serde(serialize_with = "written::name_of_cause")]
        cause: Cause,
    },
    /// Its breaker is open.
    BreakerOpen,
    /// The providers of the model, or the way to them, rest for this cause.
    UpstreamResting {
        /// What they rest for.
        #[serde(serialize_with = "written::name_of_cause")]
        cause: Cause,
    },
    /// A [filter](crate::select::Filter) refused it.
    Filtered {
        /// The filter, by name.
        filter: Box<str>,
    },
    /// Its stack was not ready, as when a limit is full, or others wait for it.
    Busy,
    /// Its stack said that it is finished; it is built anew.
    Broken,
    /// An earlier attempt of this request went there, so others are preferred.
    Tried,
    /// It is new and busy proving itself while others are proven.
    Proving,
}

/// A figure a pick compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Compared {
    /// What it measures, as the pick calls it.
    pub figure: &'static str,
    /// Of which key.
    pub key: Box<str>,
    /// How much; in JSON `null` when it is no finite number.
    pub value: f64,
}

/// How a key was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum By {
    /// The pick proposed it.
    Pick,
    /// What the pick proposed could not serve, and a scan of the pool found it.
    Scan,
    /// It came free while the request stood in line.
    Line,
}

/// What a gate found behind the head of an answer, and how long it held that for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Gate {
    /// What it found.
    pub found: Found,
    /// How long it held the head, in milliseconds.
    pub held_ms: u64,
}

/// What a gate found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Found {
    /// Something of the answer.
    Output,
    /// A failure before that; the attempt's outcome says which.
    Failure,
    /// Nothing, as long as it was to look.
    Time,
    /// Nothing, as far as it was to look.
    Bytes,
}

/// What was done about a failed attempt, or one that found no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Next {
    /// Another key was tried at once.
    Failover,
    /// It was tried again after a wait.
    Retry {
        /// How long.
        wait_ms: u64,
    },
    /// The request went on to the next model, with another stack.
    OtherModel,
    /// The answer was passed on.
    GiveUp {
        /// Why: a name of [`GiveUp`](crate::retry::GiveUp), or `unreplayable` for a body that cannot be sent again.
        why: &'static str,
    },
}

/// What the caller got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finish {
    /// The answer of an attempt.
    Answered {
        /// When its head was passed on, in milliseconds from the start of the trace.
        at_ms: u64,
        /// Its status.
        status: u16,
    },
    /// A refusal of our own.
    Rejected {
        /// When, in milliseconds from the start of the trace.
        at_ms: u64,
        /// The status of the answer made of it; `None` where no [`RespondLayer`](crate::RespondLayer) made one.
        status: Option<u16>,
        /// Why.
        #[serde(serialize_with = "written::name_of_why")]
        why: Why,
        /// What was wrong, in a sentence.
        detail: Box<str>,
        /// How long until it makes sense to come back.
        retry_after_ms: Option<u64>,
    },
    /// An error.
    Failed {
        /// When, in milliseconds from the start of the trace.
        at_ms: u64,
    },
    /// Nothing: it left before there was an answer.
    Left {
        /// When, in milliseconds from the start of the trace.
        at_ms: u64,
    },
}

impl Next {
    pub(crate) fn retry_after(wait: Duration) -> Self {
        Self::Retry { wait_ms: super::millis(wait) }
    }
}

impl Look {
    /// Enters a key against which nothing stands.
    pub(crate) fn candidate(&mut self, label: &str) {
        self.candidates.add(label);
    }

    /// Enters a key that is out.
    pub(crate) fn refuse(&mut self, reason: Reason, label: &str, until: Option<Instant>, now: Instant) {
        let at = match self.refused.iter().position(|group| group.reason == reason) {
            Some(at) => at,
            None if self.refused.len() == MOST_GROUPS => return,
            None => {
                self.refused.push(Refused { reason, keys: Keys::default(), back_in_ms: None });
                self.refused.len() - 1
            }
        };
        let group = &mut self.refused[at];
        group.keys.add(label);
        let back_in_ms = until.map(|until| super::millis(until.saturating_duration_since(now)));
        group.back_in_ms = group.back_in_ms.into_iter().chain(back_in_ms).min();
    }

    pub(super) fn compare(compared: &mut Vec<Compared>, figure: &'static str, label: &str, value: f64) {
        if compared.len() < MOST_COMPARED {
            compared.push(Compared { figure, key: label.into(), value });
        }
    }
}

impl Keys {
    fn add(&mut self, label: &str) {
        if self.keys.len() < FEW {
            self.keys.push(label.into());
        }
        self.count += 1;
    }
}

impl fmt::Display for Reason {
    /// The reason's name, and after a colon the cause or the filter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Isolated => f.write_str("isolated"),
            Self::OtherModel => f.write_str("other_model"),
            Self::MissingTag => f.write_str("missing_tag"),
            Self::RuledOut => f.write_str("ruled_out"),
            Self::Resting { cause } => write!(f, "resting:{cause}"),
            Self::BreakerOpen => f.write_str("breaker_open"),
            Self::UpstreamResting { cause } => write!(f, "upstream_resting:{cause}"),
            Self::Filtered { filter } => write!(f, "filtered:{filter}"),
            Self::Busy => f.write_str("busy"),
            Self::Broken => f.write_str("broken"),
            Self::Tried => f.write_str("tried"),
            Self::Proving => f.write_str("proving"),
        }
    }
}

impl By {
    /// Its name in JSON and events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pick => "pick",
            Self::Scan => "scan",
            Self::Line => "line",
        }
    }
}

impl Found {
    /// Its name in JSON and events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Failure => "failure",
            Self::Time => "time",
            Self::Bytes => "bytes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_keys_counts_and_the_first_few_names_are_kept() {
        let (mut look, now) = (Look::default(), Instant::now());
        for key in 0..10_000 {
            let (label, until) = (format!("k{key}"), now + Duration::from_millis(20_000 - key));
            match key % 3 {
                0 => look.candidate(&label),
                1 => look.refuse(Reason::Busy, &label, None, now),
                _ => look.refuse(Reason::Resting { cause: Cause::KeyLimit }, &label, Some(until), now),
            }
        }
        assert_eq!((look.candidates.count, look.candidates.keys.len()), (3334, FEW));
        let groups: Vec<_> = look.refused.iter().map(|group| (group.keys.count, group.back_in_ms)).collect();
        assert_eq!(groups, [(3333, None), (3333, Some(10_002))]);
        assert!(serde_json::to_string(&look).unwrap().len() < 1000);
    }

    #[test]
    fn names_in_json_are_those_of_the_compact_form() {
        let reasons = [
            Reason::Drained,
            Reason::Isolated,
            Reason::OtherModel,
            Reason::MissingTag,
            Reason::RuledOut,
            Reason::Resting { cause: Cause::KeyLimit },
            Reason::BreakerOpen,
            Reason::UpstreamResting { cause: Cause::ProviderLimit },
            Reason::Filtered { filter: "Tags".into() },
            Reason::Busy,
            Reason::Broken,
            Reason::Tried,
            Reason::Proving,
        ];
        for reason in reasons {
            let json = serde_json::to_value(&reason).unwrap();
            let of = json.get("cause").or_else(|| json.get("filter"));
            let of = of.map(|of| format!(":{}", of.as_str().unwrap())).unwrap_or_default();
            assert_eq!(format!("{}{of}", json["reason"].as_str().unwrap()), reason.to_string());
        }
    }
}
