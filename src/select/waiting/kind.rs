use std::hash::{BuildHasher, Hash, RandomState};

use crate::{outcome::Outcome, request::RequestContext, select::filter::Filter};

/// What a request waits for: those of one kind can be served by the same endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::select) enum Kind {
    /// A hash of what the verdicts on it depend on.
    Like(u64),
    /// Like no other, as far as a filter knows.
    Alone(u64),
}

/// Kinds as one room tells them apart; a stranger cannot guess which requests it would take for the same.
#[derive(Debug, Default)]
pub(super) struct Kinds(RandomState);

impl Kinds {
    /// The kind of a request; `None` when a filter knows of none.
    pub(super) fn of<'a>(
        &self,
        request: &RequestContext,
        filters: impl Iterator<Item = &'a dyn Filter>,
    ) -> Option<Kind> {
        let mut hasher = self.0.build_hasher();
        let asks = request.asks();
        (&asks.model, asks.provider, request.required()).hash(&mut hasher);
        for attempt in request.ledger().current() {
            let fault = match attempt.outcome {
                Some(Outcome::Fault(fault)) => Some((fault.scope, fault.cause)),
                _ => None,
            };
            (attempt.endpoint.id(), fault).hash(&mut hasher);
        }
        for filter in filters {
            filter.kind(request)?.hash(&mut hasher);
        }
        Some(Kind::Like(std::hash::Hasher::finish(&hasher)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ApiKey, Endpoint,
        outcome::{Cause, Fault, Scope},
        select::{CreditLimit, RequireTags, filter_fn},
    };

    fn asking(body: &'static str) -> RequestContext {
        let request = RequestContext::new();
        request.set_body(body.into());
        request
    }

    #[test]
    fn requests_are_of_one_kind_when_the_same_keys_can_serve_them() {
        let kinds = Kinds::default();
        let kind = |request: &RequestContext| kinds.of(request, [&RequireTags::new(["eu"]) as &dyn Filter].into_iter());
        let plain = asking(r#"{"model":"a","max_tokens":1}"#);
        assert_eq!(kind(&plain), kind(&asking(r#"{"model":"a","max_tokens":2000}"#)));
        assert_ne!(kind(&plain), kind(&asking(r#"{"model":"b"}"#)));
        assert_ne!(kind(&plain), kind(&asking(r#"{"model":"a","provider":{"only":["x"]}}"#)));
        let demanding = asking(r#"{"model":"a"}"#);
        demanding.require(["eu"]);
        assert_ne!(kind(&plain), kind(&demanding));
        let tried = asking(r#"{"model":"a"}"#);
        let endpoint = Endpoint::new(ApiKey::new("key").unwrap());
        tried.ledger().start(&endpoint);
        let before = kind(&tried);
        assert_ne!(kind(&plain), before);
        tried.ledger().end(Outcome::Fault(Fault::new(Cause::KeyLimit, Scope::Key)), false);
        assert_ne!(kind(&tried), before);
    }

    #[test]
    fn a_filter_tells_kinds_apart_by_what_it_reads_and_one_that_does_not_say_tells_everybody_apart() {
        let kinds = Kinds::default();
        let credit = |request: &RequestContext| kinds.of(request, [&CreditLimit::new() as &dyn Filter].into_iter());
        let plain = asking(r#"{"model":"a","max_tokens":1}"#);
        assert_eq!(credit(&plain), credit(&asking(r#"{"model":"a","max_tokens":1} "#)));
        assert_ne!(credit(&plain), credit(&asking(r#"{"model":"a","max_tokens":2}"#)));
        assert_ne!(credit(&plain), credit(&asking(r#"{"model":"a","max_tokens":1                            }"#)));
        let unsaid = filter_fn(|_: &Endpoint, _: &RequestContext, _| crate::select::Fit::Yes);
        assert_eq!(kinds.of(&plain, [&unsaid as &dyn Filter].into_iter()), None);
    }
}
