//! One inference request from the edge to the first byte of a 200.

use std::sync::Arc;

use http::{HeaderMap, Response};

use super::attempt::{Accepted, Attempt};
use super::faults::{Stage, Target};
use super::generation::EndOf;
use super::refusal::{self, Refusal, Struck};
use super::request::{Asked, Dialect};
use super::scenario::What;
use super::service::{Call, Credentials, Reference, refuse};
use super::ticket::Ticket;
use super::trace::Trace;
use super::{Shared, SimulatorBody, SimulatorError, draw, ids};

type Answer = Result<Response<SimulatorBody>, SimulatorError>;

pub(super) async fn answer(shared: &Arc<Shared>, call: Call, dialect: Dialect) -> Answer {
    let asked = match &call.body {
        Some(body) => Asked::read(dialect, body),
        None => Err(refusal::of_status(413)),
    };
    let key = call.credentials.key();
    let first_model = asked.as_ref().ok().and_then(|asked| asked.models.first().cloned());
    let mut ticket = Ticket::open(shared, key, first_model);
    let mut reference = Reference::of(dialect);
    let models = asked.as_ref().map(|asked| asked.models.clone()).unwrap_or_default();
    let target = Target { key, models: &models, provider: None };

    match edge(shared, target) {
        Ok(None) => {}
        Ok(Some(refusal)) => return Ok(refuse(shared, &refusal, &reference, Some(ticket))),
        Err(Edge::Reset) => {
            ticket.close(EndOf::Broken);
            return Err(SimulatorError::Reset);
        }
        Err(Edge::Stall) => std::future::pending().await,
    }
    let key = match authenticate(shared, call.credentials, target) {
        Ok(key) => key,
        Err(refusal) => return Ok(refuse(shared, &refusal, &reference, Some(ticket))),
    };
    let (id, rng) = generation(shared);
    reference.generation = Some(id.clone());
    let struck = {
        let mut world = shared.lock();
        reference.owner = Some(world.accounts[world.keys[key].account].owner.clone());
        world.strike(Stage::Platform, target, shared.clock.now().elapsed)
    };
    let model = models.first().map_or("", String::as_str);
    let refused = match struck {
        Some(What::Refuse { reason }) => {
            let hash = shared.lock().keys[key].hash.clone();
            let struck = Struck { model, hash: &hash, now: shared.clock.now().wall };
            Some(refusal::of_reason(reason, &struck))
        }
        other => other.and_then(|what| what.refusal()),
    };
    if let Some(refusal) = refused {
        return Ok(refuse(shared, &refusal, &reference, Some(ticket)));
    }
    if shared.lock().keys[key].management {
        return Ok(refuse(shared, &refusal::management_key(), &reference, Some(ticket)));
    }
    let asked = match asked {
        Ok(asked) => asked,
        Err(refusal) => return Ok(refuse(shared, &refusal, &reference, Some(ticket))),
    };
    let cached = call
        .cache
        .zip(call.body.as_deref())
        .map(|(wish, body)| shared.lock().cache.find(wish, (key, &call.path, body), shared.clock.now().elapsed));
    let mut miss = match cached {
        None => None,
        Some(Err(miss)) => Some(miss),
        Some(Ok(hit)) => {
            let now = shared.clock.now();
            let accepted = Accepted::ready(hit.served(id, now.wall), now.instant);
            let mut response = accepted.response(shared, ticket, &Trace::new(false, model));
            hit.tell(response.headers_mut());
            return Ok(response);
        }
    };
    let mut last = refusal::bad_request("No models provided");
    let mut trace = Trace::new(call.metadata, model);
    for model in &asked.models {
        let request = Attempt { shared, key, asked: &asked, model, draw: (&id, &rng) };
        match request.run(&mut ticket, &mut trace).await {
            Ok(accepted) => {
                let Some(miss) = miss.take() else { return Ok(accepted.response(shared, ticket, &trace)) };
                let mut told = HeaderMap::new();
                miss.tell(&mut told);
                if accepted.is_sound() {
                    ticket.keep(miss);
                }
                let mut response = accepted.response(shared, ticket, &trace);
                response.headers_mut().extend(told);
                return Ok(response);
            }
            Err(refusal) => last = refusal,
        }
        ticket.release();
    }
    reference.routing = trace.member();
    Ok(refuse(shared, &last, &reference, Some(ticket)))
}

/// Faults in front of the API that have no answer.
pub(super) enum Edge {
    Reset,
    Stall,
}

/// Faults in front of the API.
pub(super) fn edge(shared: &Shared, target: Target<'_>) -> Result<Option<Refusal>, Edge> {
    let mut world = shared.lock();
    let struck = world.strike(Stage::Edge, target, shared.clock.now().elapsed);
    match struck {
        Some(What::Reset) => Err(Edge::Reset),
        Some(What::Stall) => Err(Edge::Stall),
        Some(What::Html { status }) => Ok(Some(refusal::html(status, &ids::ray(world.next_answer + 1)))),
        Some(What::Raw { status, content_type, body }) => {
            let verbatim = Some(Box::new((content_type, body.into())));
            Ok(Some(Refusal { verbatim, ..refusal::of_status(status) }))
        }
        _ => Ok(None),
    }
}

/// The key, or a 401.
pub(super) fn authenticate(shared: &Shared, credentials: Credentials, target: Target<'_>) -> Result<usize, Refusal> {
    let now = shared.clock.now();
    let mut world = shared.lock();
    if world.strike(Stage::Authentication, target, now.elapsed).is_some() {
        return Err(refusal::unknown_key());
    }
    match credentials {
        Credentials::Missing => Err(refusal::missing_credentials()),
        Credentials::Unusable => Err(refusal::unusable_credentials()),
        Credentials::Key(key) if world.keys[key].accepted(now.wall) => Ok(key),
        Credentials::Key(_) | Credentials::Unknown => Err(refusal::unknown_key()),
    }
}

/// A new generation's id, and the random source of its reply.
fn generation(shared: &Shared) -> (String, fastrand::Rng) {
    let number = {
        let mut world = shared.lock();
        world.next_generation += 1;
        world.next_generation
    };
    let mut rng = draw::rng(shared.scenario.seed, "generation", number);
    (ids::generation(&mut rng, shared.clock.now().wall), rng)
}
