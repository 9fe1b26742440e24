//! The mark: what was possible, for one who knows the platform and not who comes next.
//!
//! A table of goodputs says which stack is better, not how much is left to gain. The oracle asks the platform itself what would
//! become of a request, and so sends nothing that would be refused. It keeps the same patience as the others: who would not be
//! served within it is refused at once, the rest stand in one line in order of arrival, where a model that must wait lets the
//! others pass. What chance does to a request it cannot know; such a request has its turn again, on another key if there is one.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::poll_fn;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout_at},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};

use super::rotation::refusal;
use crate::{
    AuthorizeLayer, CommitGateLayer, OpenRouter,
    lab::{Built, LabBody, Stack, Upstream, World},
    openrouter::Authorize,
    outcome::{Outcome, OutcomeCell},
    simulator::{Foresight, Simulator},
    stream::CommitGate,
};

mod line;

use line::{Line, Waiting};

/// How often a request is sent at most.
const ATTEMPTS: usize = 10;
/// Over this much time keys are compared, so that what comes again each minute counts for more than what is for the day.
const HORIZON: Duration = Duration::from_secs(3_600);

/// Knows quotas, budgets and faults, and not who comes next: the mark that the others are measured by.
///
/// Of ours it has the leaf and the commit gate inside, so that it sees as they do whether an answer is one. A reply that is
/// cut after its first output is lost to it as to everybody.
#[derive(Debug, Clone, Copy)]
pub struct OracleStack;

impl Stack for OracleStack {
    fn name(&self) -> &str {
        "oracle"
    }

    fn about(&self) -> &str {
        "knows every quota, budget and fault and not who comes next; nobody can be deployed that does: it is the mark"
    }

    fn build(&self, world: &World) -> Result<Built, BoxError> {
        let oracle = Arc::new(Oracle::new(world));
        tokio::spawn(Arc::clone(&oracle).call_up());
        Ok(Built::new(service_fn(move |request| Arc::clone(&oracle).serve(request))))
    }
}

struct Oracle {
    keys: Box<[Key]>,
    simulator: Simulator,
    line: Mutex<Line>,
    /// Somebody came, was let in by the platform, or was done.
    changed: Notify,
    max_wait: Duration,
    deadline: Duration,
    round_trip: Duration,
}

struct Key {
    label: String,
    service: CommitGate<Authorize<OpenRouter<Upstream>>>,
}

/// What the platform has to be asked about a request.
#[derive(Debug, Deserialize)]
struct Wants {
    model: String,
    max_tokens: Option<u64>,
    #[serde(deserialize_with = "tokens", rename = "messages")]
    prompt_tokens: u64,
}

/// As the simulator counts them.
fn tokens<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let messages = <&RawValue>::deserialize(deserializer)?;
    Ok((messages.get().len() as u64).div_ceil(4))
}

impl Oracle {
    fn new(world: &World) -> Self {
        // it stands at the platform's door, so that what it was told still holds when the request is there
        let (upstream, round_trip) = world.upstream().at_the_door();
        let keys = world.keys().iter().map(|key| {
            let authorized = AuthorizeLayer::new(key).layer(OpenRouter::new(upstream.clone()));
            Key { label: key.name().to_owned(), service: CommitGateLayer::new().layer(authorized) }
        });
        let patience = world.patience();
        Self {
            keys: keys.collect(),
            simulator: world.simulator().clone(),
            line: Mutex::new(Line::new(world.keys().len())),
            changed: Notify::new(),
            max_wait: Duration::from_secs_f64(patience.max_wait_s),
            deadline: Duration::from_secs_f64(patience.deadline_s),
            round_trip,
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, request: Request<Full<Bytes>>) -> Result<Response<LabBody>, BoxError> {
        let came = Instant::now();
        let body = request.body().clone().collect().await?.to_bytes();
        let wants: Arc<Wants> = Arc::new(serde_json::from_slice(&body)?);
        // timers ring on the millisecond, so what opens on the last one may be too late
        if !self.will_serve(&wants, came + self.max_wait.saturating_sub(Duration::from_millis(1))) {
            return Ok(refusal());
        }
        let number = self.line().number();
        let (mut until, mut failed) = (came + self.max_wait, Vec::new());
        while failed.len() < ATTEMPTS {
            let Some((turn, running)) = self.turn(number, &wants, &failed, until).await else { break };
            let mut answer = pin!(self.keys[running.key].service.clone().oneshot(request.clone()));
            let at_once = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
            // the platform has counted it, so the next can be asked about
            drop(turn);
            let answer = match at_once {
                Poll::Ready(answer) => answer,
                Poll::Pending => answer.await,
            };
            sleep(self.round_trip).await;
            if let Ok(answer) = answer
                && answer.extensions().get::<OutcomeCell>().and_then(OutcomeCell::at_commit) == Some(Outcome::Success)
            {
                return Ok(answer.map(|body| {
                    let until_its_end = body.map_frame(move |frame| {
                        let _in_flight = &running;
                        frame
                    });
                    until_its_end.map_err(Into::into).boxed_unsync()
                }));
            }
            failed.push(running.key);
            until = came + self.deadline;
        }
        Ok(refusal())
    }

    /// Waits in line.
    async fn turn(
        self: &Arc<Self>,
        number: u64,
        wants: &Arc<Wants>,
        failed: &[usize],
        until: Instant,
    ) -> Option<(Turn, Running)> {
        let (call, called) = oneshot::channel();
        self.line().join(number, Waiting { wants: Arc::clone(wants), failed: failed.to_owned(), call });
        let _place = Place { oracle: self, number };
        self.changed.notify_one();
        timeout_at(until, called).await.ok()?.ok()
    }

    /// Calls up one after the other, as the platform has room.
    async fn call_up(self: Arc<Self>) {
        loop {
            let found = self.line().next(|wants, key| self.foresee(wants, key), |wants, key| self.room(wants, key));
            if let Some((key, call)) = found.call {
                // to nobody if its client has just left
                let (turn, running) = (Turn(Arc::clone(&self)), Running { oracle: Arc::clone(&self), key });
                let _ = call.send((turn, running));
            }
            let wake = found.again.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            let _ = timeout_at(wake, self.changed.notified()).await;
        }
    }

    fn foresee(&self, wants: &Wants, key: usize) -> Foresight {
        self.simulator.foresee(&self.keys[key].label, &wants.model, wants.prompt_tokens, wants.max_tokens)
    }

    /// How many more requests like this one the key's free quota lets in within the hour.
    fn room(&self, wants: &Wants, key: usize) -> u64 {
        let until = Instant::now() + HORIZON;
        self.simulator.room_for(&[&*self.keys[key].label], &wants.model, until).unwrap_or(u64::MAX)
    }

    /// Whether there will be room for one that comes now, behind those who are there.
    fn will_serve(&self, wants: &Wants, until: Instant) -> bool {
        let opens = |key: &usize| match self.foresee(wants, *key) {
            Foresight::Now => true,
            Foresight::At(at) => at <= until,
            Foresight::Never => false,
        };
        let labels: Vec<_> = (0..self.keys.len()).filter(opens).map(|key| &*self.keys[key].label).collect();
        let room = |model: &str| self.simulator.room_for(&labels, model, until).unwrap_or(u64::MAX);
        let (mut before, waiting) = {
            let line = self.line();
            (u64::from(line.has_called()), line.by_model())
        };
        for (model, count) in waiting {
            let room = room(&model);
            if model == wants.model && room <= count {
                return false;
            }
            before += room.min(count);
        }
        !labels.is_empty() && self.simulator.room_in_quotas(&labels, until).is_none_or(|room| before < room)
    }
}

/// A place in the line, given up when its client leaves.
struct Place<'a> {
    oracle: &'a Oracle,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.oracle.line().leave(self.number);
    }
}

/// Leave to send. The next has it when the platform has counted this one in.
struct Turn(Arc<Oracle>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.line().turn_is_over();
        self.0.changed.notify_one();
    }
}

/// A request that runs on a key, until its body ends.
struct Running {
    oracle: Arc<Oracle>,
    key: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.oracle.line().ended(self.key);
        self.oracle.changed.notify_one();
    }
}
