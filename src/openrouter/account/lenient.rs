//! Members of a JSON object, taken for what they are worth.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::{endpoint::Money, openrouter::calendar};

/// The `data` of an answer.
pub(super) fn data(body: &[u8]) -> Result<Value, &'static str> {
    match serde_json::from_slice::<Value>(body) {
        Ok(mut document) if document["data"].is_object() => Ok(document["data"].take()),
        Ok(_) => Err("it holds no `data`"),
        Err(_) => Err("it is not JSON"),
    }
}

/// A finite number, also as a string.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok(),
        value => value.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}

pub(super) fn whole(value: &Value) -> Option<u64> {
    number(value).filter(|number| *number >= 0.0).map(|number| number as u64)
}

pub(super) fn money(value: &Value) -> Option<Money> {
    number(value).map(Money::from_usd)
}

/// A name, unless it is empty or too long to be one.
pub(super) fn name(value: &Value) -> Option<Box<str>> {
    value.as_str().filter(|name| !name.is_empty() && name.len() <= 128).map(Into::into)
}

/// How long it is to a date; `None` when it is past.
pub(super) fn until(value: &Value, now: SystemTime) -> Option<Duration> {
    let at = calendar::parse_rfc3339(value.as_str()?)?;
    at.duration_since(now).ok().filter(|span| !span.is_zero())
}
