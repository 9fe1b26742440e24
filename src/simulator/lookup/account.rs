//! `/key` and `/credits`: what a key may learn about itself and its account.

use serde_json::{Value, json};

use crate::simulator::Shared;
use crate::simulator::clock::Wall;
use crate::simulator::ids;
use crate::simulator::refusal::{Refusal, of_status};
use crate::simulator::scenario::Reset;
use crate::simulator::world::World;

/// Every member is there, because strict clients refuse the body otherwise.
pub(super) fn key(world: &World, index: usize, now: Wall) -> Value {
    let key = &world.keys[index];
    let account = &world.accounts[key.account];
    let workspace = &world.workspaces[key.workspace];
    let daily = account.free_daily_limit();
    let used = account.free.used_today(now);
    let budgets = budgets(world, index, now);
    // The layer that refuses first; without one, the one with least left.
    let left = |budget: &&Value| budget["remaining_usd"].as_f64().unwrap_or(f64::INFINITY);
    let effective = budgets
        .iter()
        .find(|budget| left(budget) <= 0.0)
        .or_else(|| budgets.iter().min_by(|a, b| left(a).total_cmp(&left(b))))
        .cloned();
    let cap = key.cap.seen(now);
    let shown = |reset| key.spend.shown_since(reset, now);
    let mut data = usage(shown);
    let more = json!({
        "label": ids::masked(&key.secret),
        "limit": cap.limit,
        "limit_remaining": cap.left(shown).map(|left| left.max(0.0)),
        "limit_reset": cap.reset.name(),
        "include_byok_in_limit": key.include_byok,
        "is_free_tier": account.ever_purchased <= 0.0,
        "is_management_key": key.management,
        "is_provisioning_key": key.management,
        "creator_user_id": ids_of_creator(world, index),
        "organization_id": account.organization.then_some(&account.owner),
        "workspace_id": workspace.id,
        "allowed_data_regions": ["global"],
        "free_model_daily_requests": {
            "limit": daily,
            "used": used,
            "remaining": daily.saturating_sub(used)
        },
        "budgets": budgets,
        "effective_budget": effective,
        "rate_limit": {
            "requests": -1,
            "interval": "10s",
            "note": "This field is deprecated and safe to ignore."
        },
        "expires_at": key.expires.map(|end| end.to_string())
    });
    extend(&mut data, more);
    json!({"data": data})
}

/// The member who made the key: the account itself, or somebody of the organisation.
pub(super) fn ids_of_creator(world: &World, index: usize) -> String {
    let account = &world.accounts[world.keys[index].account];
    match account.owner.split_once('_') {
        Some((_, rest)) => format!("user_{rest}"),
        None => account.owner.clone(),
    }
}

/// Spending members, shared by `/key` and `/keys`.
pub(super) fn usage(spent: impl Fn(Reset) -> f64) -> Value {
    json!({
        "usage": spent(Reset::None),
        "usage_daily": spent(Reset::Daily),
        "usage_weekly": spent(Reset::Weekly),
        "usage_monthly": spent(Reset::Monthly),
        "byok_usage": 0,
        "byok_usage_daily": 0,
        "byok_usage_weekly": 0,
        "byok_usage_monthly": 0
    })
}

/// All budget layers, in the order they are enforced.
fn budgets(world: &World, index: usize, now: Wall) -> Vec<Value> {
    let key = &world.keys[index];
    let workspace = &world.workspaces[key.workspace];
    let layer = |scope: &str, limit: f64, spent: f64, reset: Reset| {
        json!({
            "scope": scope,
            "guardrail_id": null,
            "budget_id": null,
            "limit_usd": limit,
            "spend_usd": spent,
            "remaining_usd": limit - spent,
            "reset_interval": reset.name(),
            "resets_at": reset.next(now).map(|at| at.to_string()),
            "include_byok": key.include_byok
        })
    };
    let shared = workspace
        .budgets
        .iter()
        .map(|budget| layer("workspace", budget.limit, workspace.spend.shown_since(budget.reset, now), budget.reset));
    let cap = key.cap.seen(now);
    let own = cap.limit.map(|limit| layer("key_limit", limit, key.spend.shown_since(cap.reset, now), cap.reset));
    shared.chain(own).collect()
}

pub(super) fn credits(shared: &Shared, world: &World, index: usize, now: Wall) -> Result<Value, Refusal> {
    let key = &world.keys[index];
    if shared.scenario.wire.credits_management_only && !key.management {
        let message = "Only management keys can fetch credits for an account".to_owned();
        return Err(Refusal { message, ..of_status(403) });
    }
    let account = &world.accounts[key.account];
    let used = account.spend.shown_since(Reset::None, now);
    Ok(json!({"data": {"total_credits": account.credits.seen(now), "total_usage": used}}))
}

/// Moves the members of one object into another.
pub(super) fn extend(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
