//! `openrouter_metadata`: how a request was routed, for callers that opted in by a header.
//!
//! Absent when routing was not reached, and on 500s, which say nothing about their cause.

use http::HeaderMap;
use serde_json::{Value, json};

use super::scenario::Scenario;

/// What routing did to one request.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    wanted: bool,
    requested: String,
    reached: bool,
    /// Provider and model of each endpoint that could serve.
    available: Vec<(String, String)>,
    /// Provider, model and status of each that was asked.
    attempts: Vec<(String, String, u16)>,
}

impl Trace {
    pub(super) fn new(wanted: bool, requested: &str) -> Self {
        Self { wanted, requested: requested.to_owned(), reached: false, available: Vec::new(), attempts: Vec::new() }
    }

    /// Whether the request's headers ask for it, under the present or the older name.
    pub(super) fn wanted_by(headers: &HeaderMap) -> bool {
        ["x-openrouter-metadata", "x-openrouter-experimental-metadata"]
            .iter()
            .filter_map(|name| headers.get(*name))
            .any(|value| value.as_bytes().eq_ignore_ascii_case(b"enabled"))
    }

    /// Routing was reached, with these endpoints left of a model; none when it failed there.
    pub(super) fn routed(&mut self, scenario: &Scenario, providers: &[usize]) {
        self.reached = true;
        if !self.wanted {
            return;
        }
        let endpoints = providers.iter().map(|index| &scenario.endpoints[*index]);
        let names = endpoints.map(|endpoint| (endpoint.provider.clone(), endpoint.model.clone()));
        self.available.extend(names);
    }

    pub(super) fn asked(&mut self, provider: &str, model: &str, status: u16) {
        if self.wanted {
            self.attempts.push((provider.to_owned(), model.to_owned(), status));
        }
    }

    /// The member, when it was asked for and there is something to tell.
    pub(super) fn member(&self) -> Option<Value> {
        if !self.wanted || !self.reached {
            return None;
        }
        let selected = self.attempts.last().filter(|(_, _, status)| *status == 200);
        let chosen = |provider: &str, model: &str| selected.is_some_and(|(p, m, _)| p == provider && m == model);
        let available: Vec<Value> =
            self.available.iter().map(|(p, m)| json!({"provider": p, "model": m, "selected": chosen(p, m)})).collect();
        let attempts: Vec<Value> =
            self.attempts.iter().map(|(p, m, status)| json!({"provider": p, "model": m, "status": status})).collect();
        let strategy = match self.requested.as_str() {
            "openrouter/free" => "free",
            "openrouter/auto" => "auto",
            model if selected.is_some_and(|(_, served, _)| served != model) => "fallback",
            _ => "direct",
        };
        let by = selected.map_or("none", |(provider, _, _)| provider);
        Some(json!({
            "requested": self.requested,
            "strategy": strategy,
            "region": null,
            "summary": format!("available={}, selected={by}", available.len()),
            "attempt": attempts.len(),
            "is_byok": false,
            "endpoints": {"total": available.len(), "available": available},
            "attempts": attempts
        }))
    }
}
