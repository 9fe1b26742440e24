//! Everything that is not inference: the catalogue, the caller's key and credits, key management, past
//! generations.

mod account;
mod catalogue;
mod keys;
mod past;

use std::sync::Arc;

use http::header::{CACHE_CONTROL, HeaderValue};
use http::{HeaderMap, Method, Response};
use serde_json::Value;

use super::faults::{Stage, Target};
use super::inference::{Edge, authenticate, edge};
use super::refusal::{Refusal, not_found};
use super::request::Dialect;
use super::service::{Call, Reference, refuse, respond};
use super::{Shared, SimulatorBody, SimulatorError};

/// A body with its status and cache rule.
struct Found {
    status: u16,
    cache: &'static str,
    body: Value,
}

/// Answers that concern a key are not for caches.
fn private(body: Value) -> Found {
    Found { status: 200, cache: "private, no-store", body }
}

fn public(body: Value) -> Found {
    Found { status: 200, cache: "public, max-age=120, stale-while-revalidate=3600", body }
}

pub(super) async fn answer(shared: &Arc<Shared>, call: &Call) -> Result<Response<SimulatorBody>, SimulatorError> {
    shared.lock().ledger.lookup();
    let target = Target { key: call.credentials.key(), models: &[], provider: None };
    let mut reference = Reference::of(Dialect::Chat);
    let found = match edge(shared, target) {
        Ok(None) => find(shared, call, target, &mut reference),
        Ok(Some(refusal)) => Err(refusal),
        Err(Edge::Reset) => return Err(SimulatorError::Reset),
        Err(Edge::Stall) => std::future::pending().await,
    };
    Ok(match found {
        Ok(found) => {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(found.cache));
            let bytes = found.body.to_string().into();
            respond(shared, (found.status, "application/json", headers), None, bytes, None)
        }
        Err(refusal) => refuse(shared, &refusal, &reference, None),
    })
}

fn find(shared: &Shared, call: &Call, target: Target<'_>, reference: &mut Reference) -> Result<Found, Refusal> {
    let segments: Vec<&str> = call.path.split('/').collect();
    let get = call.method == Method::GET;
    // The catalogue is public: a bad key is ignored, so it cannot validate one.
    match segments.as_slice() {
        ["models"] if get => return Ok(public(catalogue::models(shared))),
        ["models", "count"] if get => return Ok(public(catalogue::count(shared))),
        ["model", author, slug] if get => {
            return catalogue::model(shared, author, slug).map(public);
        }
        ["models", author, slug, "endpoints"] if get => {
            return catalogue::endpoints(shared, author, slug).map(public);
        }
        ["providers"] if get => return Ok(public(catalogue::providers(shared))),
        _ => {}
    }
    let known = matches!(
        segments.as_slice(),
        ["key" | "credits" | "generation" | "keys"] | ["auth", "key"] | ["models", "user"] | ["keys", _]
    );
    if !known {
        return Err(not_found("Not Found"));
    }
    let key = authenticate(shared, call.credentials, target)?;
    let now = shared.clock.now();
    let mut world = shared.lock();
    reference.owner = Some(world.accounts[world.keys[key].account].owner.clone());
    if let Some(refusal) = world.strike(Stage::Platform, target, now.elapsed).and_then(|what| what.refusal()) {
        return Err(refusal);
    }
    match (call.method.as_str(), segments.as_slice()) {
        ("GET", ["key"] | ["auth", "key"]) => Ok(private(account::key(&world, key, now.wall))),
        ("GET", ["credits"]) => account::credits(shared, &world, key, now.wall).map(private),
        ("GET", ["generation"]) => past::generation(shared, &world, key, &call.query, now).map(private),
        ("GET", ["models", "user"]) => {
            drop(world);
            Ok(private(catalogue::models(shared)))
        }
        (method, ["keys", rest @ ..]) => {
            let request = keys::Request { method, hash: rest.first().copied(), query: &call.query };
            let body = call.body.as_deref().unwrap_or_default();
            keys::answer(shared, &mut world, key, &request, body)
        }
        _ => Err(not_found("Not Found")),
    }
}

/// A query parameter's value; the few values in use need no decoding.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name).map(|(_, v)| v)
}
