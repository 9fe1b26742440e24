//! Where a request goes, where next, and when: pure.

use super::table::{At, Table};
use crate::{
    error::{Rejected, UpstreamError, UpstreamErrorKind, Why},
    json::Object,
    outcome::{Cause, Fault},
    request::Asks,
};

/// A part of a request's models, and the route that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) at: At,
    pub(super) model: Box<str>,
    /// What upstream may fall back on by itself.
    pub(super) models: Vec<Box<str>>,
}

/// The hops of a request, in order; empty when its body goes as it came to where its model says.
pub(super) fn plan<S>(table: &Table<S>, asks: &Asks) -> Vec<Hop> {
    let Some(model) = &asks.model else { return Vec::new() };
    let own = asks.models.is_empty();
    let others = if own { table.models() } else { &asks.models };
    // an unknown model is refused, unless the caller itself named others
    if others.is_empty() || (own && table.find(Some(model)).is_none()) {
        return Vec::new();
    }
    let mut hops = Vec::<Hop>::new();
    for model in std::iter::once(model).chain(others.iter().filter(|other| *other != model)) {
        let Some(at) = table.find(Some(model)) else { continue };
        match hops.last_mut().filter(|last| last.at == at && !own) {
            Some(last) => last.models.push(model.clone()),
            None => hops.push(Hop { at, model: model.clone(), models: Vec::new() }),
        }
    }
    let untouched = hops.len() == 1 && hops[0].models.len() == asks.models.len();
    if untouched { Vec::new() } else { hops }
}

/// The body that asks for a hop's models and no others, if it differs from `body`.
pub(super) fn rewrite(body: &[u8], hop: &Hop) -> Option<String> {
    let object = Object::read(body)?;
    let mut edit = object.edit();
    let text = |value: &str| serde_json::Value::from(value).to_string();
    if object.get("model").and_then(|model| serde_json::from_str::<Box<str>>(model).ok()).as_ref() != Some(&hop.model) {
        edit.set("model", text(&hop.model));
    }
    let list = |of: &dyn Fn(&str) -> String| {
        let models: Vec<_> = hop.models.iter().map(|model| of(model)).collect();
        format!("[{}]", models.join(","))
    };
    let (models, fallbacks) = (object.get("models").is_some(), object.get("fallbacks").is_some());
    match (models, fallbacks, hop.models.is_empty()) {
        (true, _, true) => edit.remove("models"),
        (true, _, false) => edit.set("models", list(&text)),
        (false, true, false) => edit.set("fallbacks", list(&|model| format!("{{\"model\":{}}}", text(model)))),
        (false, _, _) => {}
    }
    if fallbacks && (models || hop.models.is_empty()) {
        edit.remove("fallbacks");
    }
    edit.finish()
}

/// Whether an answer proves that the model was not served here, so that the next may be tried.
pub(super) fn goes_on(fault: &Fault) -> bool {
    match fault.cause {
        // the keys are out, each by a refusal from before the model ran
        Cause::InvalidKey
        | Cause::PlatformAuth
        | Cause::InFlightBudget
        | Cause::TooDearForAccount
        | Cause::TooDearForKey
        | Cause::NoCredit
        | Cause::KeyLimit
        | Cause::WorkspaceBudget
        | Cause::GuardrailBudget
        | Cause::ManagementKey
        | Cause::FreeTierMinute
        | Cause::FreeTierDaily
        | Cause::PlatformLimit
        | Cause::ByokLimit => true,
        // the providers are
        Cause::ProviderLimit
        | Cause::UnknownLimit
        | Cause::ProviderUnavailable
        | Cause::NoProvider
        | Cause::Unroutable
        | Cause::NotFound => true,
        // nothing was sent
        Cause::Connect => true,
        Cause::MidStream
        | Cause::Truncated
        | Cause::BadRequest
        | Cause::Refused
        | Cause::EdgeBlock
        | Cause::EdgeError
        | Cause::UpstreamTimeout
        | Cause::TooLarge
        | Cause::ServerError
        | Cause::Reset
        | Cause::Timeout
        | Cause::HeadersTimeout
        | Cause::FirstOutputTimeout
        | Cause::GapTimeout => false,
    }
}

/// Whether a refusal of our own means that this stack cannot serve now, and another may.
pub(super) fn refused_here(refusal: &Rejected) -> bool {
    matches!(refusal.why(), Why::NoKey | Why::QueueFull | Why::LimitReached | Why::BreakerOpen)
}

/// The same for an error: a refusal, or no connection.
pub(super) fn failed_here(error: &(dyn std::error::Error + 'static)) -> bool {
    match (Rejected::find(error), UpstreamError::find(error)) {
        (Some(refusal), _) => refused_here(refusal),
        (None, Some(error)) => error.kind() == UpstreamErrorKind::Connect,
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::request::RequestContext;

    fn table(fallback: bool, models: &[&str]) -> Table<char> {
        let mut table = Table::new(fallback.then_some('f'));
        for (patterns, stack) in [(vec!["a/*", "also-a"], 'a'), (vec!["b/*"], 'b'), (vec!["a/special"], 's')] {
            table.add(&patterns.into_iter().map(Into::into).collect::<Vec<_>>(), stack).unwrap();
        }
        table.set_models(models.iter().map(|model| (*model).into()).collect()).unwrap();
        table
    }

    fn hops(table: &Table<char>, body: &str) -> String {
        let context = RequestContext::new();
        context.set_body(body.to_owned().into());
        let hops = plan(table, context.asks());
        let hop = |hop: &Hop| format!("{}:{}", table.stack(hop.at), rewrite(body.as_bytes(), hop).unwrap_or_default());
        hops.iter().map(hop).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_list_is_cut_where_the_route_changes_and_left_alone_where_it_does_not() {
        let table = table(false, &[]);
        for (body, expected) in [
            (r#"{"model":"a/1"}"#, ""),
            (r#"{"model":"a/1","models":["a/2","a/3"]}"#, ""),
            (r#"{"models":["a/1","a/2"]}"#, ""),
            // two patterns, one route
            (r#"{"models":["a/1","also-a"]}"#, ""),
            (r#"{"model":"a/1","models":["b/1"]}"#, r#"a:{"model":"a/1"} b:{"model":"b/1"}"#),
            (
                r#"{"models":["a/1","a/2","b/1","a/3"],"n":1}"#,
                concat!(
                    r#"a:{"models":["a/2"],"n":1,"model":"a/1"} "#,
                    r#"b:{"n":1,"model":"b/1"} a:{"n":1,"model":"a/3"}"#
                ),
            ),
            (
                r#"{"model":"a/1","fallbacks":[{"model":"a/2"},{"model":"b/1"}]}"#,
                r#"a:{"model":"a/1","fallbacks":[{"model":"a/2"}]} b:{"model":"b/1"}"#,
            ),
            // the more specific route is a route of its own
            (r#"{"model":"a/1","models":["a/special"]}"#, r#"a:{"model":"a/1"} s:{"model":"a/special"}"#),
            // nobody serves it
            (r#"{"model":"a/1","models":["x/1"]}"#, r#"a:{"model":"a/1"}"#),
            (r#"{"model":"x/1","models":["b/1"]}"#, r#"b:{"model":"b/1"}"#),
        ] {
            assert_eq!(hops(&table, body), expected, "{body}");
        }
    }

    #[test]
    fn configured_models_are_for_those_who_name_none() {
        let table = table(true, &["b/1", "a/2"]);
        for (body, expected) in [
            (r#"{"model":"a/1"}"#, r#"a: b:{"model":"b/1"} a:{"model":"a/2"}"#),
            (r#"{"model":"b/1"}"#, r#"b: a:{"model":"a/2"}"#),
            (r#"{"model":"x"}"#, r#"f: b:{"model":"b/1"} a:{"model":"a/2"}"#),
            (r#"{"model":"a/1","models":["a/3"]}"#, ""),
            (r#"{"n":1}"#, ""),
        ] {
            assert_eq!(hops(&table, body), expected, "{body}");
        }
        let strict = self::table(false, &["b/1"]);
        assert_eq!(hops(&strict, r#"{"model":"x"}"#), "", "an unknown model is served by no other")
    }

    #[test]
    fn what_may_have_run_is_asked_of_no_other_model() {
        use crate::outcome::{Retry, Scope};
        let on = |cause| goes_on(&Fault::new(cause, Scope::Pool).retry(Retry::Backoff));
        for cause in [Cause::Reset, Cause::Timeout, Cause::UpstreamTimeout, Cause::ServerError, Cause::MidStream] {
            assert!(!on(cause), "{cause}");
        }
        let of_error = |kind| failed_here(&UpstreamError::new(kind, None));
        assert!(of_error(UpstreamErrorKind::Connect) && !of_error(UpstreamErrorKind::Reset));
        for (why, expected) in
            [(Why::NoKey, true), (Why::BreakerOpen, true), (Why::Deadline, false), (Why::Draining, false)]
        {
            assert_eq!(failed_here(&Rejected::new(why, "no")), expected, "{why:?}");
        }
    }

    proptest! {
        #[test]
        fn every_hop_asks_for_its_own_models_and_keeps_the_rest(
            models in prop::collection::vec("[abx]/[1-4]", 1..8), named: bool, of_messages: bool, text in ".{0,20}",
        ) {
            let (first, others) = models.split_first().unwrap();
            let (mut body, mut others) = (serde_json::json!({"messages": text, "n": 1e3}), others.to_vec());
            if named { body["model"] = first.as_str().into() } else { others.insert(0, first.clone()) }
            if of_messages {
                body["fallbacks"] = others.iter().map(|model| serde_json::json!({"model": model})).collect();
            } else {
                body["models"] = others.into();
            }
            let table = table(false, &[]);
            let context = RequestContext::new();
            context.set_body(body.to_string().into());
            let hops = plan(&table, context.asks());
            for hop in &hops {
                let out: Value = serde_json::from_str(&rewrite(body.to_string().as_bytes(), hop).unwrap_or(body.to_string())).unwrap();
                let after = RequestContext::new();
                after.set_body(out.to_string().into());
                prop_assert_eq!(after.asks().model.as_ref(), Some(&hop.model));
                prop_assert_eq!(&after.asks().models, &hop.models);
                prop_assert!(hop.models.iter().all(|model| table.find(Some(model)) == Some(hop.at)));
                prop_assert_eq!((&out["messages"], &out["n"]), (&body["messages"], &body["n"]));
            }
            let planned: Vec<_> = hops.iter().flat_map(|hop| std::iter::once(&hop.model).chain(&hop.models)).collect();
            let mut asked: Vec<_> = context.asks().model.iter().chain(&context.asks().models).collect();
            asked.retain(|model| !model.starts_with('x'));
            prop_assert!(hops.is_empty() || planned == asked, "{:?} {:?}", planned, asked);
        }
    }
}
