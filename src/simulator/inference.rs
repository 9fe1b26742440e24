//! One inference request from the edge to the first byte of a 200.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use serde_json::json;

use super::admission::Admission;
use super::body::{KeepAlive, Play};
use super::faults::{Stage, Target};
use super::generation::{EndOf, Served};
use super::refusal::{self, Refusal, Struck};
use super::request::{Asked, Dialect};
use super::scenario::What;
use super::service::{Call, Credentials, Reference, common, refuse};
use super::ticket::Ticket;
use super::{Shared, SimulatorBody, SimulatorError, ids};

type Answer = Result<Response<SimulatorBody>, SimulatorError>;

pub(super) async fn answer(shared: &Arc<Shared>, call: Call, dialect: Dialect) -> Answer {
    let asked = match &call.body {
        Some(body) => Asked::read(dialect, body),
        None => Err(refusal::of_status(413)),
    };
    let key = call.credentials.key();
    let first_model = asked
        .as_ref()
        .ok()
        .and_then(|asked| asked.models.first().cloned());
    let mut ticket = Ticket::open(shared, key, first_model);
    let mut reference = Reference::of(dialect);
    let models = asked
        .as_ref()
        .map(|asked| asked.models.clone())
        .unwrap_or_default();
    let target = Target {
        key,
        models: &models,
        provider: None,
    };

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
            let struck = Struck {
                model,
                hash: &hash,
                now: shared.clock.now().wall,
            };
            Some(refusal::of_reason(reason, &struck))
        }
        other => other.and_then(|what| what.refusal()),
    };
    if let Some(refusal) = refused {
        return Ok(refuse(shared, &refusal, &reference, Some(ticket)));
    }
    if shared.lock().keys[key].management {
        return Ok(refuse(
            shared,
            &refusal::management_key(),
            &reference,
            Some(ticket),
        ));
    }
    let asked = match asked {
        Ok(asked) => asked,
        Err(refusal) => return Ok(refuse(shared, &refusal, &reference, Some(ticket))),
    };
    let mut last = refusal::bad_request("No models provided");
    for model in &asked.models {
        let request = Attempt {
            shared,
            key,
            asked: &asked,
            model,
            draw: (&id, &rng),
        };
        match request.run(&mut ticket).await {
            Ok(accepted) => return Ok(accepted.response(shared, ticket)),
            Err(refusal) => last = refusal,
        }
        ticket.release();
    }
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
        Some(What::Html { status }) => Ok(Some(refusal::html(
            status,
            &ids::ray(world.next_answer + 1),
        ))),
        Some(What::Raw {
            status,
            content_type,
            body,
        }) => {
            let verbatim = Some(Box::new((content_type, body.into())));
            Ok(Some(Refusal {
                verbatim,
                ..refusal::of_status(status)
            }))
        }
        _ => Ok(None),
    }
}

/// The key, or a 401.
pub(super) fn authenticate(
    shared: &Shared,
    credentials: Credentials,
    target: Target<'_>,
) -> Result<usize, Refusal> {
    let now = shared.clock.now();
    let mut world = shared.lock();
    if world
        .strike(Stage::Authentication, target, now.elapsed)
        .is_some()
    {
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
    let mut rng = ids::rng(shared.scenario.seed, "generation", number);
    (ids::generation(&mut rng, shared.clock.now().wall), rng)
}

/// One candidate model of a request.
struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    key: usize,
    asked: &'a Asked,
    model: &'a String,
    draw: (&'a str, &'a fastrand::Rng),
}

impl Attempt<'_> {
    async fn run(&self, ticket: &mut Ticket) -> Result<Accepted, Refusal> {
        let shared = self.shared;
        let now = shared.clock.now();
        let admission =
            shared
                .lock()
                .admit(&shared.scenario, self.key, self.asked, self.model, now)?;
        ticket.hold(admission.hold);
        let mut failures: Vec<(Refusal, Option<f64>, &str)> = Vec::new();
        for index in &admission.providers {
            let endpoint = &shared.scenario.endpoints[*index];
            let mut rng = self.draw.1.clone();
            let factor = 1.0 + endpoint.jitter * (rng.f64() * 2.0 - 1.0);
            let slow = self.slow(&endpoint.provider);
            wait(millis(endpoint.accept_ms * factor + slow.0)).await;
            match self.ask_provider(*index, &admission) {
                None => {
                    let times = (
                        endpoint.first_token_ms * factor + slow.1,
                        endpoint.tokens_per_second,
                    );
                    return Ok(self.accept(rng, &admission, *index, times, factor));
                }
                Some((refusal, hint)) => {
                    let judged = refusal.status < 408;
                    failures.push((refusal, hint, &endpoint.provider));
                    if judged || self.asked.provider.allow_fallbacks == Some(false) {
                        break;
                    }
                }
            }
        }
        Err(all_failed(failures))
    }

    fn slow(&self, provider: &str) -> (f64, f64) {
        match self.strike(Stage::Delay, provider) {
            Some(What::Slow {
                accept_ms,
                first_token_ms,
            }) => (accept_ms, first_token_ms),
            _ => (0.0, 0.0),
        }
    }

    fn strike(&self, stage: Stage, provider: &str) -> Option<What> {
        let target = Target {
            key: Some(self.key),
            models: std::slice::from_ref(self.model),
            provider: Some(provider),
        };
        let elapsed = self.shared.clock.now().elapsed;
        self.shared.lock().strike(stage, target, elapsed)
    }

    /// Asks one provider; its refusal comes with its hint, seconds.
    fn ask_provider(
        &self,
        index: usize,
        admission: &Admission<'_>,
    ) -> Option<(Refusal, Option<f64>)> {
        let name = &self.shared.scenario.endpoints[index].provider;
        let struck = self.strike(Stage::Provider, name);
        let now = self.shared.clock.now();
        let mut world = self.shared.lock();
        let endpoint = &mut world.endpoints[index];
        let full = |hint| (refusal::pool_full(&admission.model.id, name, None), hint);
        let refused = match struck {
            Some(What::PoolFull { retry_after }) => {
                Some(full(retry_after.map(|seconds| seconds as f64)))
            }
            Some(What::ProviderFails { status }) => {
                Some((refusal::provider_failed(name, status), None))
            }
            _ => endpoint.pool.as_mut().and_then(|pool| {
                let wait = pool.take(now.elapsed).err()?;
                Some(full(pool.hint(wait)))
            }),
        };
        if refused.is_some() {
            endpoint.failed = Some(now.elapsed);
        }
        refused
    }

    fn accept(
        &self,
        rng: fastrand::Rng,
        admission: &Admission<'_>,
        index: usize,
        (first_token_ms, tokens_per_second): (f64, f64),
        factor: f64,
    ) -> Accepted {
        let shared = self.shared;
        let endpoint = &shared.scenario.endpoints[index];
        let now = shared.clock.now();
        let draw = (self.draw.0.to_owned(), rng);
        let of = (admission.model, endpoint);
        let mut served = Served::new(draw, now.wall, self.asked, of, &shared.scenario.reply);
        let twist = self.strike(Stage::Body, &endpoint.provider);
        if let Some(What::Huge { bytes }) = twist {
            served.huge = Some(bytes);
            served.completion_tokens = 1;
        }
        let each = if tokens_per_second > 0.0 {
            factor * 1e3 / tokens_per_second
        } else {
            0.0
        };
        Accepted {
            served: Arc::new(served),
            twist: twist.filter(|what| !matches!(what, What::Huge { .. })),
            at: now.instant,
            first_token: millis(first_token_ms),
            per_token: millis(each),
        }
    }
}

/// The 200 is decided; nothing of the text is known yet.
struct Accepted {
    served: Arc<Served>,
    twist: Option<What>,
    at: tokio::time::Instant,
    first_token: Duration,
    per_token: Duration,
}

impl Accepted {
    fn response(self, shared: &Shared, mut ticket: Ticket) -> Response<SimulatorBody> {
        let served = self.served;
        ticket.bill(&served);
        ticket.answered(200);
        let wire = &shared.scenario.wire;
        let (content_type, first, every) = if served.streamed {
            (
                "text/event-stream",
                wire.comment_first_ms,
                wire.comment_every_ms,
            )
        } else {
            (
                "application/json",
                wire.padding_every_ms,
                wire.padding_every_ms,
            )
        };
        let keep_alive = KeepAlive {
            first: millis(first),
            every: millis(every),
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        common(shared, &mut headers, Some(&served.id));
        let times = (self.first_token, self.per_token);
        let play = Play::new(served, ticket, self.twist, keep_alive, self.at, times);
        let mut response = Response::new(SimulatorBody::play(play));
        *response.headers_mut() = headers;
        response
    }
}

/// The last provider's refusal, with what the others said. A hint only when every one gave one.
fn all_failed(failures: Vec<(Refusal, Option<f64>, &str)>) -> Refusal {
    let hint = failures
        .iter()
        .map(|(_, hint, _)| *hint)
        .reduce(|least, hint| least.zip(hint).map(|(a, b)| a.min(b)))
        .flatten();
    let previous: Vec<_> = failures
        .iter()
        .take(failures.len().saturating_sub(1))
        .map(|(refusal, _, provider)| json!({"provider": provider, "code": refusal.status, "status": refusal.status}))
        .collect();
    let Some((last, _, _)) = failures.into_iter().next_back() else {
        return refusal::of_status(503);
    };
    let last = refusal::hinted(last, hint);
    if previous.is_empty() || last.status == 500 {
        last
    } else {
        last.with("previous_errors", previous)
    }
}

fn millis(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0) / 1e3).unwrap_or(Duration::MAX / 8)
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}
