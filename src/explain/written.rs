//! How what a trace holds is written, where its own type does not say.

use serde::{Serialize, Serializer};

use crate::{
    body::Ending,
    error::Why,
    outcome::{Cause, Outcome, Scope, Usage},
};

pub(super) fn name_of_ending(ending: Ending) -> &'static str {
    match ending {
        Ending::Complete => "complete",
        Ending::HeadOnly => "head_only",
        Ending::Failed => "failed",
        Ending::Dropped => "dropped",
        Ending::FutureDropped => "future_dropped",
        Ending::NoResponse => "no_response",
    }
}

pub(super) fn name_of_cause<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.as_str())
}

pub(super) fn name_of_why<S: Serializer>(why: &Why, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(why.as_str())
}

pub(super) fn why<S: Serializer>(why: &Option<Why>, serializer: S) -> Result<S::Ok, S::Error> {
    why.map(|why| why.as_str()).serialize(serializer)
}

pub(super) fn ending<S: Serializer>(ending: &Option<Ending>, serializer: S) -> Result<S::Ok, S::Error> {
    ending.map(name_of_ending).serialize(serializer)
}

pub(super) fn usage<S: Serializer>(usage: &Option<Usage>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields {
        prompt_tokens: u64,
        completion_tokens: u64,
        cost_usd: f64,
    }
    let fields = |usage: &Usage| Fields {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cost_usd: usage.cost,
    };
    usage.as_ref().map(fields).serialize(serializer)
}

pub(super) fn outcome<S: Serializer>(outcome: &Option<Outcome>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields {
        success: bool,
        cause: Option<&'static str>,
        scope: Option<&'static str>,
        rest_ms: Option<u64>,
        hinted: Option<bool>,
    }
    let fields = |outcome: &Outcome| {
        let fault = outcome.fault();
        let rest = fault.and_then(|fault| fault.rest);
        Fields {
            success: outcome.is_success(),
            cause: fault.map(|fault| fault.cause.as_str()),
            scope: fault.map(|fault| Scope::as_str(&fault.scope)),
            rest_ms: rest.map(|rest| super::millis(rest.duration)),
            hinted: rest.map(|rest| rest.hinted),
        }
    };
    outcome.as_ref().map(fields).serialize(serializer)
}
