//! One candidate model: its admission, its providers one after the other, and the head of the 200.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use serde_json::json;

use super::admission::Admission;
use super::body::{KeepAlive, Play};
use super::delays::{Delays, millis};
use super::faults::{Stage, Target};
use super::generation::Served;
use super::refusal::{self, Refusal};
use super::request::Asked;
use super::scenario::What;
use super::service::common;
use super::ticket::Ticket;
use super::trace::Trace;
use super::{Shared, SimulatorBody};

/// One candidate model of a request.
pub(super) struct Attempt<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) key: usize,
    pub(super) asked: &'a Asked,
    pub(super) model: &'a String,
    /// The generation's id and random source.
    pub(super) draw: (&'a str, &'a fastrand::Rng),
}

impl Attempt<'_> {
    /// Checks the candidate and asks its providers in turn.
    pub(super) async fn run(&self, ticket: &mut Ticket, trace: &mut Trace) -> Result<Accepted, Refusal> {
        let shared = self.shared;
        let now = shared.clock.now();
        let admitted = shared.lock().admit(&shared.scenario, self.key, self.asked, self.model, now);
        match &admitted {
            Ok(admission) => trace.routed(&shared.scenario, &admission.providers),
            // Only routing answers 404 here.
            Err(refusal) if refusal.status == 404 => trace.routed(&shared.scenario, &[]),
            Err(_) => {}
        }
        let admission = admitted?;
        ticket.hold(admission.hold);
        let mut failures: Vec<(Refusal, Option<f64>, &str)> = Vec::new();
        for index in &admission.providers {
            let endpoint = &shared.scenario.endpoints[*index];
            let mut rng = self.draw.1.clone();
            let slow = self.strike(Stage::Delay, &endpoint.provider);
            let delays = Delays::drawn(endpoint, &mut rng, slow.as_ref());
            let draw = (self.draw.0.to_owned(), rng);
            let of = (admission.model, endpoint);
            ticket.ask(Served::new(draw, shared.clock.now().wall, self.asked, of, &shared.scenario.reply));
            let on_its_way = OnItsWay::to(shared, *index);
            wait(delays.accept).await;
            drop(on_its_way);
            let served = ticket.answer();
            match (self.ask_provider(*index, &admission), served) {
                (None, Some(served)) => {
                    trace.asked(&endpoint.provider, &endpoint.model, 200);
                    return Ok(self.accept(*served, delays));
                }
                (None, None) => unreachable!("it was given in above"),
                (Some((refusal, hint)), _) => {
                    trace.asked(&endpoint.provider, &endpoint.model, refusal.status);
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

    fn strike(&self, stage: Stage, provider: &str) -> Option<What> {
        let target = Target { key: Some(self.key), models: std::slice::from_ref(self.model), provider: Some(provider) };
        let elapsed = self.shared.clock.now().elapsed;
        self.shared.lock().strike(stage, target, elapsed)
    }

    /// Asks one provider; its refusal comes with its hint, seconds.
    fn ask_provider(&self, index: usize, admission: &Admission<'_>) -> Option<(Refusal, Option<f64>)> {
        let name = &self.shared.scenario.endpoints[index].provider;
        let struck = self.strike(Stage::Provider, name);
        let now = self.shared.clock.now();
        let mut world = self.shared.lock();
        let endpoint = &mut world.endpoints[index];
        let full = |hint| (refusal::pool_full(&admission.model.id, name, None), hint);
        let refused = match struck {
            Some(What::PoolFull { retry_after }) => Some(full(retry_after.map(|seconds| seconds as f64))),
            Some(What::ProviderFails { status }) => Some((refusal::provider_failed(name, status), None)),
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

    fn accept(&self, served: Served, delays: Delays) -> Accepted {
        let now = self.shared.clock.now();
        let mut served = Served { created: now.wall, ..served };
        let twist = self.strike(Stage::Body, &served.provider);
        if let Some(What::Huge { bytes }) = twist {
            served.huge = Some(bytes);
            served.completion_tokens = 1;
        }
        Accepted { served, twist: twist.filter(|what| !matches!(what, What::Huge { .. })), at: now.instant, delays }
    }
}

/// Counts a request among those that a provider's pool will see.
struct OnItsWay<'a> {
    shared: &'a Shared,
    endpoint: usize,
}

impl<'a> OnItsWay<'a> {
    fn to(shared: &'a Shared, endpoint: usize) -> Option<Self> {
        shared.scenario.endpoints[endpoint].pool.as_ref()?;
        shared.lock().endpoints[endpoint].asked += 1;
        Some(Self { shared, endpoint })
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.shared.lock().endpoints[self.endpoint].asked -= 1;
    }
}

/// The 200 is decided; nothing of the text is known yet.
pub(super) struct Accepted {
    served: Served,
    twist: Option<What>,
    at: tokio::time::Instant,
    delays: Delays,
}

impl Accepted {
    /// An answer that is there already.
    pub(super) fn ready(served: Served, at: tokio::time::Instant) -> Self {
        Self { served, twist: None, at, delays: Delays::NONE }
    }

    /// Whether nothing goes wrong with the answer.
    pub(super) fn is_sound(&self) -> bool {
        self.twist.is_none()
    }

    /// The head, and a body that tells the rest in its own time.
    pub(super) fn response(self, shared: &Shared, mut ticket: Ticket, trace: &Trace) -> Response<SimulatorBody> {
        let served = Arc::new(Served { routing: trace.member(), ..self.served });
        let tokens = u32::try_from(served.completion_tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        let Delays { first_token, per_token, .. } = self.delays;
        ticket.bill(&served, first_token.saturating_add(per_token.saturating_mul(tokens)));
        ticket.answered(200);
        let wire = &shared.scenario.wire;
        let (content_type, first, every) = if served.streamed {
            ("text/event-stream", wire.comment_first_ms, wire.comment_every_ms)
        } else {
            ("application/json", wire.padding_every_ms, wire.padding_every_ms)
        };
        let keep_alive = KeepAlive { first: millis(first), every: millis(every) };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        common(shared, &mut headers, Some(&served.id));
        let play = Play::new(served, ticket, self.twist, keep_alive, self.at, (first_token, per_token));
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
    if previous.is_empty() || last.status == 500 { last } else { last.with("previous_errors", previous) }
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}
