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
    // a model may have no provider but the failed one: only where another is named does ignoring that one help
    let named = order.iter().chain(&only).flatten().chain(&wanted);
    let left = named.filter(|name| !longer.iter().any(|other| covers(other, name))).count();
    if fallbacks && left > 0 { (order, only, Some(longer)) } else { (order, only, ignore) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        openrouter::provider::{DataCollection, ProviderLayer, ProviderPreferences, SortBy},
        request::RequestContext,
    };

    fn merged(layer: &ProviderLayer, takes: Takes, body: &str, past: &Past) -> String {
        let context = RequestContext::new();
        context.set_body(body.to_owned().into());
        merge(&layer.config, takes, body.as_bytes(), context.asks(), past).unwrap_or_else(|| body.into())
    }

    fn layer(preferences: ProviderPreferences) -> ProviderLayer {
        ProviderLayer::new(preferences).unwrap()
    }

    #[test]
    fn the_callers_own_wins_member_by_member() {
        let new = ProviderPreferences::new;
        let (lists, sorted) = (new().only(["a", "b"]).ignore(["c", "d"]), new().sort(SortBy::Price).zdr(true));
        for (preferences, body, expected) in [
            (new().zdr(true), r#"{"model":"m"}"#, r#"{"model":"m","provider":{"zdr":true}}"#),
            (new().zdr(true), r#"{"provider":null,"n":1}"#, r#"{"provider":{"zdr":true},"n":1}"#),
            (new().zdr(true), r#"{"provider":{"zdr":false} }"#, r#"{"provider":{"zdr":false} }"#),
            (new().zdr(true), r#"{"provider":"x"}"#, r#"{"provider":"x"}"#),
            (new().zdr(true), "[]", "[]"),
            (
                new().data_collection(DataCollection::Deny).allow_fallbacks(false),
                r#"{"provider":{"x" : 1e0}}"#,
                r#"{"provider":{"x" : 1e0,"allow_fallbacks":false,"data_collection":"deny"}}"#,
            ),
            // ours gives way where it would contradict
            (lists.clone(), r#"{"provider":{"only":["c"]}}"#, r#"{"provider":{"only":["c"],"ignore":["d"]}}"#),
            (
                lists.clone(),
                r#"{"provider":{"order":["C","D"]}}"#,
                r#"{"provider":{"order":["C","D"],"only":["a","b"]}}"#,
            ),
            (lists, r#"{"provider":{"ignore":["a"]}}"#, r#"{"provider":{"ignore":["a"],"only":["b"]}}"#),
            (new().only(["a"]), r#"{"provider":{"ignore":["A"]}}"#, r#"{"provider":{"ignore":["A"]}}"#),
            (sorted.clone(), r#"{"provider":{"order":["a"]}}"#, r#"{"provider":{"order":["a"],"zdr":true}}"#),
            (sorted, r#"{"model":"m:floor"}"#, r#"{"model":"m:floor","provider":{"zdr":true}}"#),
            (new().order(["a"]), r#"{"provider":{"sort":"price"}}"#, r#"{"provider":{"sort":"price"}}"#),
        ] {
            assert_eq!(merged(&layer(preferences), Takes::Models, body, &Past::default()), expected, "{body}");
        }
    }

    #[test]
    fn models_and_variants_are_for_who_names_none() {
        let layer = layer(ProviderPreferences::new()).models(["m", "n"]).unwrap().variant(Variant::Nitro).unwrap();
        for (takes, body, expected) in [
            (Takes::Models, r#"{"model":"m"}"#, r#"{"model":"m:nitro","models":["n"]}"#),
            (Takes::Preferences, r#"{"model":"m"}"#, r#"{"model":"m:nitro"}"#),
            (Takes::Models, r#"{"model":"x:free","models":["y"]}"#, r#"{"model":"x:free","models":["y"]}"#),
            (Takes::Models, r#"{"model":"x","fallbacks":[]}"#, r#"{"model":"x:nitro","fallbacks":[]}"#),
            (Takes::Models, r#"{"models":["x"]}"#, r#"{"models":["x"]}"#),
            (Takes::Models, r#"{"n":1}"#, r#"{"n":1}"#),
            (Takes::Models, r#"{"model":"openrouter/auto"}"#, r#"{"model":"openrouter/auto","models":["m","n"]}"#),
            (
                Takes::Models,
                r#"{"model":"x","models":null,"provider":{"sort":"price"}}"#,
                r#"{"model":"x","models":["m","n"],"provider":{"sort":"price"}}"#,
            ),
        ] {
            assert_eq!(merged(&layer, takes, body, &Past::default()), expected, "{body}");
        }
    }

    #[test]
    fn after_a_full_pool_another_is_asked_only_where_that_is_known_to_help() {
        let past =
            |full, providers: &[&str]| Past { full, providers: providers.iter().map(|name| (*name).into()).collect() };
        let ignoring = |preferences| layer(preferences).on_full_pool(OnFullPool::IgnoreFailed).unwrap();
        let new = ProviderPreferences::new;
        for (preferences, body, expected) in [
            (new(), r#"{"provider":{"order":["a","b"]}}"#, r#"{"provider":{"order":["a","b"],"ignore":["A"]}}"#),
            (
                new(),
                r#"{"provider":{"only":["a","b"],"ignore":["c"]}}"#,
                r#"{"provider":{"only":["a","b"],"ignore":["c","A"]}}"#,
            ),
            (new().order(["a", "b"]).ignore(["c"]), "{}", r#"{"provider":{"order":["a","b"],"ignore":["c","A"]}}"#),
            (new(), r#"{"provider":{"only":["a"]}}"#, r#"{"provider":{"only":["a"]}}"#),
            (new(), "{}", "{}"),
            (
                new(),
                r#"{"provider":{"order":["a","b"],"allow_fallbacks":false}}"#,
                r#"{"provider":{"order":["a","b"],"allow_fallbacks":false}}"#,
            ),
        ] {
            assert_eq!(merged(&ignoring(preferences), Takes::Models, body, &past(1, &["A"])), expected, "{body}");
        }
        let models = OnFullPool::NextModel(vec!["x".into(), "y".into()]);
        let next = layer(new()).models(["n"]).unwrap().on_full_pool(models).unwrap();
        for (full, expected) in [
            (0, r#"{"model":"m","k":1,"models":["n"]}"#),
            (1, r#"{"model":"x","k":1}"#),
            (2, r#"{"model":"y","k":1}"#),
            (3, r#"{"model":"y","k":1}"#),
        ] {
            assert_eq!(merged(&next, Takes::Models, r#"{"model":"m","k":1}"#, &past(full, &["A"])), expected, "{full}");
        }
        let listed = merged(&next, Takes::Models, r#"{"models":["m"],"fallbacks":[]}"#, &past(1, &[]));
        assert_eq!(listed, r#"{"model":"x"}"#);
    }
}
