//! Which providers may serve a request, and in which order they are asked.
//!
//! OpenRouter spreads load by price with some randomness. Here the order is strict (own order, no failure
//! in the last 30 s, price), because a test that knows the order can say what must happen.

use std::time::Duration;

use super::clock::Now;
use super::refusal::{Refusal, not_found, unroutable};
use super::request::{Asked, ProviderChoice};
use super::scenario::{Model, ProviderEndpoint, Scenario};
use super::world::World;

/// How long a failure lowers a provider.
pub(super) const OUTAGE: Duration = Duration::from_secs(30);

/// Resolves a requested id: the entry itself, or its base under a variant suffix, with the implied sort.
pub(super) fn resolve<'a>(scenario: &'a Scenario, id: &'a str) -> Option<(&'a Model, Option<&'static str>)> {
    let find = |id: &str| scenario.models.iter().find(|model| model.id == id);
    if let Some(model) = find(id) {
        return Some((model, None));
    }
    match id {
        "openrouter/free" => {
            return scenario.models.iter().find(|m| Model::is_free(&m.id)).map(|m| (m, None));
        }
        "openrouter/auto" => {
            return scenario.models.iter().find(|m| !Model::is_free(&m.id)).map(|m| (m, None));
        }
        _ => {}
    }
    let (base, variant) = id.rsplit_once(':')?;
    let sort = match variant {
        "nitro" => "throughput",
        "floor" => "price",
        "exacto" | "online" => return find(base).map(|model| (model, None)),
        _ => return None,
    };
    find(base).map(|model| (model, Some(sort)))
}

/// The endpoints that may serve, best first.
pub(super) fn route(
    world: &World,
    scenario: &Scenario,
    key: usize,
    asked: &Asked,
    (model, implied_sort): (&Model, Option<&str>),
    now: Now,
) -> Result<Vec<usize>, Refusal> {
    let endpoints = &scenario.endpoints;
    let all = |index: &usize| endpoints[*index].model == model.id;
    let mut left: Vec<usize> = (0..endpoints.len()).filter(all).collect();
    if left.is_empty() {
        return Err(not_found(format!("No endpoints found for {}.", model.id)));
    }
    let key = &world.keys[key];
    let account = &world.accounts[key.account];
    let choice = &asked.provider;
    let denies = choice.data_collection.as_deref() == Some("deny") && Model::is_free(&model.id);
    let barred = !key.allowed_models.is_empty() && !key.allowed_models.contains(&model.id);
    let name = |index: usize| endpoints[index].provider.as_str();
    let fixed_order = choice.order.as_ref().filter(|_| choice.allow_fallbacks == Some(false));
    let mut funnel = vec![("Initial Endpoints", left.len())];
    let mut step = |title: &'static str, keep: &dyn Fn(usize) -> bool| {
        left.retain(|index| keep(*index));
        funnel.push((title, left.len()));
        if left.is_empty() { Err(unroutable(&model.id, title, &funnel)) } else { Ok(()) }
    };
    step("Filter by Data Policy", &|i| !denies && !names(&account.denied_providers, name(i)))?;
    step("Filter by Guardrails", &|_| !barred)?;
    step("Filter by Allowed Providers", &|i| {
        (account.allowed_providers.is_empty() || names(&account.allowed_providers, name(i)))
            && choice.only.as_ref().is_none_or(|list| names(list, name(i)))
            && !choice.ignore.as_ref().is_some_and(|list| names(list, name(i)))
    })?;
    step("Filter by Max Price", &|i| {
        let endpoint = &endpoints[i];
        choice.max_price.as_ref().is_none_or(|max| max.allows(endpoint.prompt_price, endpoint.completion_price))
    })?;
    step("Filter by Fallback", &|i| fixed_order.is_none_or(|list| names(list, name(i))))?;

    let sort = choice.sort.as_ref().and_then(sort_name).or(implied_sort);
    left.sort_by(|a, b| {
        let rank = |index: usize| rank(choice, name(index));
        let failed =
            |index: usize| world.endpoints[index].failed.is_some_and(|at| now.elapsed.saturating_sub(at) < OUTAGE);
        let weight = |index: usize| weight(&endpoints[index], sort);
        rank(*a).cmp(&rank(*b)).then(failed(*a).cmp(&failed(*b))).then(weight(*a).total_cmp(&weight(*b)))
    });
    Ok(left)
}

fn rank(choice: &ProviderChoice, name: &str) -> usize {
    let order = choice.order.as_deref().unwrap_or_default();
    order.iter().position(|wanted| same(wanted, name)).unwrap_or(order.len())
}

fn weight(endpoint: &ProviderEndpoint, sort: Option<&str>) -> f64 {
    match sort {
        // Zero means all at once, the fastest.
        Some("throughput") if endpoint.tokens_per_second == 0.0 => f64::NEG_INFINITY,
        Some("throughput") => -endpoint.tokens_per_second,
        Some("latency") => endpoint.accept_ms + endpoint.first_token_ms,
        _ => endpoint.prompt_price + endpoint.completion_price,
    }
}

fn sort_name(sort: &serde_json::Value) -> Option<&str> {
    sort.as_str().or_else(|| sort.get("by")?.as_str())
}

fn names(list: &[String], provider: &str) -> bool {
    list.iter().any(|wanted| same(wanted, provider))
}

/// Providers are named by name or slug, an endpoint tag such as `deepinfra/fp8` names its provider.
fn same(wanted: &str, provider: &str) -> bool {
    let wanted = wanted.split('/').next().unwrap_or(wanted);
    wanted.eq_ignore_ascii_case(provider) || wanted.eq_ignore_ascii_case(&slug(provider))
}

/// `Amazon Bedrock` is `amazon-bedrock` in slugs and tags.
pub(super) fn slug(provider: &str) -> String {
    provider.to_ascii_lowercase().replace(' ', "-")
}
