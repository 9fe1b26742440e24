//! Mistakes in a scenario are named when it is read, with the field they are in.

use std::collections::BTreeSet;
use std::fmt;

use super::{Fault, Scenario, What};
use crate::simulator::clock::Wall;

/// Why a [`Scenario`] cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    field: String,
    problem: String,
}

impl ScenarioError {
    pub(super) fn parse(error: toml::de::Error) -> Self {
        Self { field: "the TOML text".to_owned(), problem: error.to_string().trim_end().to_owned() }
    }

    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The field at fault, such as `keys[2].account`.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scenario: {}: {}", self.field, self.problem)
    }
}

impl std::error::Error for ScenarioError {}

type Checked = Result<(), ScenarioError>;

impl Scenario {
    /// Checks names, references and ranges.
    ///
    /// # Errors
    ///
    /// For the first value that cannot be simulated.
    pub fn validate(&self) -> Checked {
        if let Some(start) = &self.start {
            date("start", start)?;
        }
        self.validate_owners()?;
        self.validate_keys()?;
        self.validate_catalogue()?;
        if self.reply.min_tokens == 0 || self.reply.min_tokens > self.reply.max_tokens {
            return fail("reply.min_tokens", "must be from 1 to reply.max_tokens");
        }
        if self.reply.tokens_per_event == 0 {
            return fail("reply.tokens_per_event", "must be at least 1");
        }
        not_negative("wire.comment_first_ms", self.wire.comment_first_ms)?;
        not_negative("wire.comment_every_ms", self.wire.comment_every_ms)?;
        not_negative("wire.padding_every_ms", self.wire.padding_every_ms)?;
        not_negative("wire.generation_delay_ms", self.wire.generation_delay_ms)?;
        not_negative("stale.key_ms", self.stale.key_ms)?;
        not_negative("stale.cap_ms", self.stale.cap_ms)?;
        not_negative("stale.credits_ms", self.stale.credits_ms)?;
        not_negative("stale.counters_ms", self.stale.counters_ms)?;
        for (index, fault) in self.faults.iter().enumerate() {
            self.validate_fault(&format!("faults[{index}]"), fault)?;
        }
        Ok(())
    }

    fn validate_owners(&self) -> Checked {
        let mut seen = BTreeSet::new();
        for (index, account) in self.accounts.iter().enumerate() {
            let at = |field: &str| format!("accounts[{index}].{field}");
            if account.name.is_empty() || !seen.insert(&account.name) {
                return fail(at("name"), "must be given and unique");
            }
            not_negative(at("credits"), account.credits)?;
            not_negative(at("used"), account.used)?;
            not_negative(at("ever_purchased"), account.ever_purchased.unwrap_or(0.0))?;
            if let Some(quota) = &account.quota {
                if !(quota.window_s.is_finite() && quota.window_s > 0.0) {
                    return fail(at("quota.window_s"), "must be above 0 seconds");
                }
                not_negative(at("quota.phase_s"), quota.phase_s)?;
            }
            if let Some(hold) = &account.in_flight {
                not_negative(at("in_flight.ceiling"), hold.ceiling)?;
                not_negative(at("in_flight.settle_s"), hold.settle_s)?;
                not_negative(at("in_flight.below_balance"), hold.below_balance)?;
                part(at("in_flight.fraction"), hold.fraction)?;
            }
        }
        let mut seen = BTreeSet::new();
        for (index, workspace) in self.workspaces.iter().enumerate() {
            let at = |field: &str| format!("workspaces[{index}].{field}");
            if workspace.name.is_empty() || !seen.insert((&workspace.account, &workspace.name)) {
                return fail(at("name"), "must be given and unique in its account");
            }
            self.known_account(at("account"), &workspace.account)?;
            for (number, budget) in workspace.budgets.iter().enumerate() {
                not_negative(at(&format!("budgets[{number}].limit")), budget.limit)?;
            }
        }
        Ok(())
    }

    fn validate_keys(&self) -> Checked {
        let mut labels = BTreeSet::new();
        let mut secrets = BTreeSet::new();
        for (index, key) in self.keys.iter().enumerate() {
            let at = |field: &str| format!("keys[{index}].{field}");
            if key.label.is_empty() || !labels.insert(&key.label) {
                return fail(at("label"), "must be given and unique");
            }
            self.known_account(at("account"), &key.account)?;
            if let Some(secret) = &key.secret {
                let visible = !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic());
                if !visible || !secrets.insert(secret) {
                    return fail(at("secret"), "must be visible ASCII without spaces, and unique");
                }
            }
            if let Some(name) = &key.workspace {
                let known = |w: &super::Workspace| w.name == *name && w.account == key.account;
                if name != "default" && !self.workspaces.iter().any(known) {
                    return fail(at("workspace"), format!("{name:?} is no workspace of {:?}", key.account));
                }
            }
            not_negative(at("cap"), key.cap.unwrap_or(0.0))?;
            not_negative(at("used"), key.used)?;
            if let Some(expires) = &key.expires {
                date(at("expires"), expires)?;
            }
        }
        Ok(())
    }

    fn validate_catalogue(&self) -> Checked {
        let mut seen = BTreeSet::new();
        for (index, model) in self.models.iter().enumerate() {
            let at = |field: &str| format!("models[{index}].{field}");
            let parts = model.id.split('/').filter(|part| !part.is_empty()).count();
            if parts != 2 || model.id.matches('/').count() != 1 || !seen.insert(&model.id) {
                return fail(at("id"), "must have the form author/slug and be unique");
            }
            if model.max_output == 0 || model.max_output > model.context_length {
                return fail(at("max_output"), "must be from 1 to context_length");
            }
        }
        let mut seen = BTreeSet::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let at = |field: &str| format!("endpoints[{index}].{field}");
            if !self.models.iter().any(|model| model.id == endpoint.model) {
                return fail(at("model"), format!("{:?} is not in models", endpoint.model));
            }
            if endpoint.provider.is_empty() || !seen.insert((&endpoint.model, &endpoint.provider)) {
                return fail(at("provider"), "must be given and unique for its model");
            }
            let timings = [
                ("prompt_price", endpoint.prompt_price),
                ("completion_price", endpoint.completion_price),
                ("accept_ms", endpoint.accept_ms),
                ("first_token_ms", endpoint.first_token_ms),
                ("tokens_per_second", endpoint.tokens_per_second),
            ];
            for (field, value) in timings {
                not_negative(at(field), value)?;
            }
            let free = super::Model::is_free(&endpoint.model);
            if free && (endpoint.prompt_price > 0.0 || endpoint.completion_price > 0.0) {
                return fail(at("prompt_price"), "a free model costs nothing, so both prices must be 0");
            }
            part(at("jitter"), endpoint.jitter)?;
            if !(0.0..=3.0).contains(&endpoint.first_token_sigma) {
                return fail(at("first_token_sigma"), "must be between 0 and 3");
            }
            let window = endpoint.pool.as_ref().map_or(1.0, |pool| pool.window_s);
            if !(window.is_finite() && window > 0.0) {
                return fail(at("pool.window_s"), "must be above 0 seconds");
            }
        }
        Ok(())
    }

    pub(crate) fn validate_fault(&self, at: &str, fault: &Fault) -> Checked {
        not_negative(format!("{at}.at_s"), fault.at_s)?;
        not_negative(format!("{at}.for_s"), fault.for_s.unwrap_or(0.0))?;
        part(format!("{at}.probability"), fault.probability)?;
        if let Some(account) = &fault.account {
            self.known_account(format!("{at}.account"), account)?;
        }
        let (status, allowed) = match &fault.what {
            What::Html { status } | What::Status { status, .. } => (*status, 400..600),
            What::ProviderFails { status } => (*status, 400..600),
            What::InBand { code, .. } => (*code, 400..600),
            What::Raw { status, .. } => (*status, 200..600),
            What::Slow { factor, accept_ms, first_token_ms } => {
                not_negative(format!("{at}.what.factor"), *factor)?;
                not_negative(format!("{at}.what.accept_ms"), *accept_ms)?;
                return not_negative(format!("{at}.what.first_token_ms"), *first_token_ms);
            }
            _ => return Ok(()),
        };
        if allowed.contains(&status) {
            return Ok(());
        }
        let (first, last) = (allowed.start, allowed.end - 1);
        fail(format!("{at}.what"), format!("status {status} is outside {first} to {last}"))
    }

    fn known_account(&self, field: impl Into<String>, name: &str) -> Checked {
        if self.accounts.iter().any(|account| account.name == name) {
            return Ok(());
        }
        fail(field, format!("{name:?} is not in accounts"))
    }
}

fn fail<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, ScenarioError> {
    Err(ScenarioError::new(field, problem))
}

fn not_negative(field: impl Into<String>, value: f64) -> Checked {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    fail(field, format!("{value} is not a finite number from 0 up"))
}

fn part(field: impl Into<String>, value: f64) -> Checked {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    fail(field, format!("{value} is not between 0 and 1"))
}

fn date(field: impl Into<String>, text: &str) -> Checked {
    if Wall::parse(text).is_some() {
        return Ok(());
    }
    fail(field, format!("{text:?} is not a UTC date such as 2026-01-15T12:00:00Z"))
}
