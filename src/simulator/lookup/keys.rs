//! `/keys`: what a management key does with the account's keys.

use serde::Deserialize;
use serde_json::{Value, json};

use super::account::{extend, ids_of_creator, usage};
use super::{Found, parameter, private};
use crate::simulator::Shared;
use crate::simulator::clock::Wall;
use crate::simulator::ids;
use crate::simulator::refusal::{Refusal, bad_request, not_found, of_status};
use crate::simulator::scenario::{Reset, SimKey};
use crate::simulator::world::{Cap, World};

/// Keys per page.
const PAGE: usize = 100;

/// A management request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) hash: Option<&'a str>,
    pub(super) query: &'a str,
}

#[derive(Deserialize)]
struct Fields {
    name: Option<String>,
    disabled: Option<bool>,
    // Twice optional: a null removes the cap, an absent member leaves it.
    #[serde(default, deserialize_with = "present")]
    limit: Option<Option<f64>>,
    #[serde(default, deserialize_with = "present")]
    limit_reset: Option<Option<Reset>>,
    include_byok_in_limit: Option<bool>,
    expires_at: Option<String>,
    workspace_id: Option<String>,
}

fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

pub(super) fn answer(
    shared: &Shared,
    world: &mut World,
    manager: usize,
    request: &Request<'_>,
    body: &[u8],
) -> Result<Found, Refusal> {
    if !world.keys[manager].management {
        return Err(Refusal { message: "Invalid management key".to_owned(), ..of_status(401) });
    }
    let now = shared.clock.now().wall;
    let account = world.keys[manager].account;
    let Some(hash) = request.hash else {
        return match request.method {
            "GET" => Ok(private(list(world, account, request.query, now))),
            "POST" => create(shared, world, account, &fields(body)?, now),
            _ => Err(not_found("Not Found")),
        };
    };
    let here = |key: &crate::simulator::world::KeyState| key.hash == hash && key.account == account && !key.deleted;
    let Some(index) = world.keys.iter().position(here) else {
        return Err(not_found("API key not found"));
    };
    match request.method {
        "GET" => Ok(private(json!({"data": item(world, index, now)}))),
        "PATCH" => {
            change(world, index, fields(body)?, now)?;
            Ok(private(json!({"data": item(world, index, now)})))
        }
        "DELETE" => {
            let disabled = world.keys[index].disabled;
            world.set_key(index, disabled, true, now);
            Ok(private(json!({"deleted": true})))
        }
        _ => Err(not_found("Not Found")),
    }
}

fn fields(body: &[u8]) -> Result<Fields, Refusal> {
    let fields: Fields =
        serde_json::from_slice(body).map_err(|error| bad_request(format!("Invalid JSON body: {error}")))?;
    if fields.limit.flatten().is_some_and(|limit| limit < 0.0) {
        return Err(bad_request("limit: Number must be greater than or equal to 0"));
    }
    Ok(fields)
}

fn list(world: &World, account: usize, query: &str, now: Wall) -> Value {
    let offset = parameter(query, "offset").and_then(|text| text.parse().ok()).unwrap_or(0_usize);
    let disabled = parameter(query, "include_disabled") == Some("true");
    let workspace = parameter(query, "workspace_id");
    let wanted = |index: &usize| {
        let key = &world.keys[*index];
        key.account == account
            && !key.deleted
            && (disabled || !key.disabled)
            && workspace.is_none_or(|id| world.workspaces[key.workspace].id == id)
    };
    let page = (0..world.keys.len()).filter(wanted).skip(offset).take(PAGE);
    json!({"data": page.map(|index| item(world, index, now)).collect::<Vec<_>>()})
}

fn create(shared: &Shared, world: &mut World, account: usize, fields: &Fields, now: Wall) -> Result<Found, Refusal> {
    let Some(name) = fields.name.as_deref().filter(|name| !name.is_empty()) else {
        return Err(bad_request("name: Required"));
    };
    let workspace = match &fields.workspace_id {
        Some(id) => Some(workspace_named(world, account, id)?),
        None => None,
    };
    if let Some(text) = fields.expires_at.as_deref().filter(|text| Wall::parse(text).is_none()) {
        return Err(bad_request(format!("expires_at: Invalid datetime {text:?}")));
    }
    // Labels are the simulator's own and unique, names are the caller's and need not be.
    let taken = |label: &str| world.keys.iter().any(|key| *key.label == *label);
    let label = (1_u32..)
        .map(|number| if number == 1 { name.to_owned() } else { format!("{name}-{number}") })
        .find(|label| !taken(label))
        .unwrap_or_default();
    let mut key = SimKey::new(label, &*world.accounts[account].name);
    key.workspace = workspace.map(|index| world.workspaces[index].name.clone());
    key.cap = fields.limit.flatten();
    key.reset = fields.limit_reset.flatten().unwrap_or_default();
    key.expires = fields.expires_at.clone();
    let added = world.add_key(shared.scenario.seed, &key, now);
    let index = added.map_err(|error| bad_request(error.to_string()))?;
    world.keys[index].name = name.to_owned();
    world.keys[index].include_byok = fields.include_byok_in_limit.unwrap_or(false);
    let body = json!({"data": item(world, index, now), "key": world.keys[index].secret});
    Ok(Found { status: 201, ..private(body) })
}

fn change(world: &mut World, index: usize, fields: Fields, now: Wall) -> Result<(), Refusal> {
    let workspace = match &fields.workspace_id {
        Some(id) => workspace_named(world, world.keys[index].account, id)?,
        None => world.keys[index].workspace,
    };
    let key = &mut world.keys[index];
    key.workspace = workspace;
    key.name = fields.name.unwrap_or_else(|| key.name.clone());
    key.include_byok = fields.include_byok_in_limit.unwrap_or(key.include_byok);
    key.updated = Some(now);
    let (before, disabled) = (key.cap.latest(), key.disabled);
    let cap = Cap {
        limit: fields.limit.unwrap_or(before.limit),
        reset: fields.limit_reset.map_or(before.reset, Option::unwrap_or_default),
    };
    if cap != before {
        world.set_cap(index, cap, now);
    }
    if let Some(disabled) = fields.disabled.filter(|wanted| *wanted != disabled) {
        world.set_key(index, disabled, false, now);
    }
    Ok(())
}

fn workspace_named(world: &World, account: usize, id: &str) -> Result<usize, Refusal> {
    let found = world.workspaces.iter().position(|w| w.account == account && w.id == id);
    found.ok_or_else(|| bad_request(format!("workspace_id: no workspace {id}")))
}

fn item(world: &World, index: usize, now: Wall) -> Value {
    let key = &world.keys[index];
    // the database itself, not the edge's copy of it
    let cap = key.cap.latest();
    let spent = |reset| key.spend.since(reset, now);
    let mut item = usage(spent);
    let more = json!({
        "hash": key.hash,
        "name": key.name,
        "label": ids::masked(&key.secret),
        "disabled": key.disabled,
        "limit": cap.limit,
        "limit_remaining": cap.left(spent).map(|left| left.max(0.0)),
        "limit_reset": cap.reset.name(),
        "include_byok_in_limit": key.include_byok,
        "created_at": key.created.to_string(),
        "updated_at": key.updated.map(|at| at.to_string()),
        "expires_at": key.expires.map(|at| at.to_string()),
        "last_used_at": key.last_used.map(|at| at.to_string()),
        "workspace_id": world.workspaces[key.workspace].id,
        "creator_user_id": ids_of_creator(world, index),
        "external_user": null
    });
    extend(&mut item, more);
    item
}
