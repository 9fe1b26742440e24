//! What a request becomes: pure, from its body to its body.

use super::{Config, OnFullPool, check::covers, preferences::Variant};
use crate::{
    json::Object,
    outcome::{Cause, Fault, Outcome, Scope},
    request::{Asks, Attempt},
};

/// What the endpoint of a request takes, by OpenRouter's schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Preferences, and a list of models.
    Models,
    /// Preferences.
    Preferences,
}

impl Takes {
    /// By its path; `None` for those whose `provider` is another thing, or none.
    pub(super) fn at(path: &str) -> Option<Self> {
        let ends = |with: &[&str]| with.iter().any(|end| path.ends_with(end));
        if ends(&["/completions", "/responses", "/messages"]) {
            Some(Self::Models)
        } else if ends(&["/embeddings", "/rerank"]) {
            Some(Self::Preferences)
        } else {
            None
        }
    }
}

/// What a request's earlier attempts have come to: those that found a provider pool full.
#[derive(Debug, Default)]
pub(super) struct Past {
    full: usize,
    providers: Vec<Box<str>>,
}

impl Past {
    pub(super) fn of(attempts: &[Attempt]) -> Self {
        let full = attempts.iter().filter(|attempt| match &attempt.outcome {
            Some(Outcome::Fault(fault)) => is_full_pool(fault),
            _ => false,
        });
        Self { full: full.clone().count(), providers: full.filter_map(|attempt| attempt.provider.clone()).collect() }
    }
}

/// Whether this is a provider's 429, which holds for every key.
pub(super) fn is_full_pool(fault: &Fault) -> bool {
    fault.scope == Scope::Pool && matches!(fault.cause, Cause::ProviderLimit | Cause::UnknownLimit)
}

/// The body with the preferences in it; `None` when it goes as it came.
pub(super) fn merge(config: &Config, takes: Takes, body: &[u8], asks: &Asks, past: &Past) -> Option<String> {
    let object = Object::read(body)?;
    // one of an odd type is the upstream's to refuse
    let provider = Object::read(object.get("provider").unwrap_or("{}").as_bytes())?;
    let asked: Option<String> = object.get("model").and_then(|model| serde_json::from_str(model).ok());
    // the caller's own word on the order of providers
    let sorted = asked.as_deref().and_then(|model| model.rsplit_once(':')).is_some_and(|(_, suffix)| {
        [Variant::Nitro, Variant::Floor, Variant::Exacto].iter().any(|variant| variant.as_str() == suffix)
    });
    let ordered = sorted || ["sort", "order"].into_iter().any(|name| provider.get(name).is_some());

    let mut edit = object.edit();
    let mut model = asked.clone();
    let listed = ["models", "fallbacks"].into_iter().any(|name| object.get(name).is_some());
    if takes == Takes::Models {
        if let Some(next) = next_model(config, past) {
            model = Some(next.into());
            ["models", "fallbacks"].into_iter().for_each(|name| edit.remove(name));
        } else if let Some(first) = asks.model.as_deref().filter(|_| !listed) {
            let others: Vec<_> = config.models.iter().filter(|other| ***other != *first).collect();
            if !others.is_empty() {
                edit.set("models", json(&others)?);
            }
        }
    }
    if let (Some(variant), Some(model)) = (config.variant, &mut model)
        && !(variant.sorts() && ordered)
        && !model.contains(':')
        && !model.starts_with("openrouter/")
    {
        model.push(':');
        model.push_str(variant.as_str());
    }
    if let Some(model) = model.filter(|model| Some(model) != asked.as_ref()) {
        edit.set("model", json(&model)?);
    }

    let mut merged = provider.edit();
    for (name, value) in &config.members {
        if provider.get(name).is_none() && !(ordered && name == "sort") {
            merged.set(name, value.clone());
        }
    }
    let (order, only, ignore) = lists(config, &provider, ordered, past);
    for (name, list) in [("order", order), ("only", only), ("ignore", ignore)] {
        if let Some(list) = list {
            merged.set(name, json(&list)?);
        }
    }
    if let Some(provider) = merged.finish() {
        edit.set("provider", provider);
    }
    edit.finish()
}

fn json<T: serde::Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

/// The last resort's model after this many full pools; the last one stays.
fn next_model<'a>(config: &'a Config, past: &Past) -> Option<&'a str> {
    let OnFullPool::NextModel(models) = &config.on_full_pool else { return None };
    let at = past.full.checked_sub(1)?;
    models.get(at).or(models.last()).map(AsRef::as_ref)
}

type List = Option<Vec<Box<str>>>;

/// What is to be set of `order`, `only` and `ignore`.
fn lists(config: &Config, own: &Object<'_>, ordered: bool, past: &Past) -> (List, List, List) {
    let owned = |name| -> List { serde_json::from_str(own.get(name)?).ok() };
    let ours = |name, list: &List| if own.get(name).is_none() { list.clone() } else { None };
    let drop_covered = |list: List, by: &[Box<str>]| {
        let kept: Vec<_> = list?.into_iter().filter(|name| !by.iter().any(|other| covers(other, name))).collect();
        (!kept.is_empty()).then_some(kept)
    };
    let (own_order, own_only, own_ignore) = (owned("order"), owned("only"), owned("ignore"));
    let left_out = own_ignore.as_deref().unwrap_or_default();
    // where ours contradicts the caller's, the caller's holds
    let order = drop_covered(ours("order", &config.preferences.order), left_out).filter(|_| !ordered);
    let only = drop_covered(ours("only", &config.preferences.only), left_out);
    let wanted: Vec<_> = own_order.into_iter().chain(own_only.clone()).flatten().collect();
    let ignore = ours("ignore", &config.preferences.ignore).and_then(|list| {
        let kept: Vec<_> = list.into_iter().filter(|name| !wanted.iter().any(|other| covers(name, other))).collect();
        (!kept.is_empty()).then_some(kept)
    });
    if config.on_full_pool != OnFullPool::IgnoreFailed || past.providers.is_empty() {
        return (order, only, ignore);
    }
    let mut longer = ignore.clone().or(own_ignore).unwrap_or_default();
    for failed in &past.providers {
        if !longer.iter().any(|name| covers(name, failed)) {
            longer.push(failed.clone());
        }
    }
    let fallbacks =
        own.get("allow_fallbacks").map_or(config.preferences.allow_fallbacks != Some(false), |own| own != "false");
    let allowed = only.as_ref().or(own_only.as_ref());
    let somebody_left =
        allowed.is_none_or(|only| only.iter().any(|name| !longer.iter().any(|other| covers(other, name))));
    // who wants one provider and no other is not sent elsewhere
    if fallbacks && somebody_left { (order, only, Some(longer)) } else { (order, only, ignore) }
}
