//! One run: a stack before a scenario's world, a seed, and everything both sides saw.

use std::{thread, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use memchr::memmem;
use tokio::{
    runtime,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until, timeout_at},
};
use tower::{BoxError, ServiceExt};

use super::{Ask, Built, LabService, Scenario, Sent, Stack, World, upstream::REQUEST};
use crate::{breaker::BreakerState, stack::BalancerHandle};

/// How often a run looks at keys, breakers and those who wait: this many times in its length.
const LOOKS: u32 = 240;

/// What both sides saw of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// The stack's name.
    pub stack: String,
    /// The seed.
    pub seed: u64,
    /// The labels of the keys, in the scenario's order.
    pub keys: Vec<String>,
    /// What became of each client's request, in order of arrival.
    pub samples: Vec<Sample>,
    /// Every attempt, as the upstream saw it, in order of arrival.
    pub sent: Vec<Sent>,
    /// The state of the stack at even intervals; empty for a stack that cannot be watched.
    pub watched: Vec<Watched>,
    /// What all accounts were charged, USD.
    pub spent: f64,
}

/// What became of one client's request. Times are since the start of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When it came.
    pub at: Duration,
    /// When the first output reached the client: the first token of a stream, the first byte of JSON.
    pub first_output: Option<Duration>,
    /// When it was over.
    pub end: Duration,
    /// How.
    pub ending: Ending,
    /// What the answer says it cost, USD; 0 without an answer.
    pub cost: f64,
}

/// How a client's request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A whole answer.
    Served,
    /// An error with this status.
    Failed(u16),
    /// A 200 that then failed: an error in the stream, or a body that broke off.
    Broken,
    /// The client left, since its patience was at an end.
    Left,
    /// No answer at all.
    Error,
}

/// The state of a stack at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Since the start of the run.
    pub at: Duration,
    /// How many requests wait for a key.
    pub waiting: usize,
    /// Each key, in the scenario's order.
    pub keys: Vec<WatchedKey>,
}

/// The state of one key at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchedKey {
    /// How many requests run on it.
    pub in_flight: usize,
    /// Whether it rests, or its account does.
    pub rests: bool,
    /// Whether its breaker is open or half-open.
    pub open: bool,
}

/// Runs `stack` in `scenario` with `seed`. The clock is virtual; an hour takes seconds.
///
/// # Errors
/// When the scenario's world or the stack cannot be built.
pub fn run(scenario: &Scenario, stack: &dyn Stack, seed: u64) -> Result<Run, BoxError> {
    run_asks(scenario, stack, seed, scenario.asks(seed))
}

/// The same with requests of one's own, in order of arrival.
///
/// # Errors
/// When the scenario's world or the stack cannot be built.
pub fn run_asks(scenario: &Scenario, stack: &dyn Stack, seed: u64, asks: Vec<Ask>) -> Result<Run, BoxError> {
    // a thread of its own, so that random numbers, clock and calendar are the run's
    thread::scope(|scope| match scope.spawn(|| here(scenario, stack, seed, asks)).join() {
        Ok(run) => run,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn here(scenario: &Scenario, stack: &dyn Stack, seed: u64, asks: Vec<Ask>) -> Result<Run, BoxError> {
    fastrand::seed(seed);
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let world = World::new(scenario, seed)?;
        let built = stack.build(&world)?;
        let (samples, watched) = drive(scenario, &world, built, asks).await;
        Ok(Run {
            scenario: scenario.name.clone(),
            stack: stack.name().to_owned(),
            seed,
            keys: world.keys().iter().map(|key| key.name().to_owned()).collect(),
            samples,
            sent: world.upstream().take(),
            watched,
            spent: world.simulator().counts().accounts.values().map(|account| account.cost).sum(),
        })
    })
}

async fn drive(scenario: &Scenario, world: &World, built: Built, asks: Vec<Ask>) -> (Vec<Sample>, Vec<Watched>) {
    let start = Instant::now();
    let Built { service, handle } = built;
    let watching = handle.map(|handle| tokio::spawn(watch(scenario.length_s, world.keys().len(), handle, start)));
    let deadline = Duration::from_secs_f64(scenario.patience.deadline_s);
    let mut running = JoinSet::new();
    let mut samples: Vec<Option<Sample>> = vec![None; asks.len()];
    for (number, ask) in asks.into_iter().enumerate() {
        sleep_until(start + ask.at).await;
        while let Some(done) = running.try_join_next() {
            let (number, sample): (usize, Sample) = done.expect("a client does not panic");
            samples[number] = Some(sample);
        }
        let service = service.clone();
        running.spawn(async move {
            let leaves = start + ask.at + ask.deadline.unwrap_or(deadline);
            (number, client(service, number, ask, start, leaves).await)
        });
    }
    while let Some(done) = running.join_next().await {
        let (number, sample) = done.expect("a client does not panic");
        samples[number] = Some(sample);
    }
    let watched = match watching {
        Some(watching) => watching.await.expect("looking does not panic"),
        None => Vec::new(),
    };
    (samples.into_iter().flatten().collect(), watched)
}

/// Asks, reads the answer to its end, and leaves when patience is at an end.
async fn client(service: LabService, number: usize, ask: Ask, start: Instant, leaves: Instant) -> Sample {
    let mut sample = Sample { at: ask.at, first_output: None, end: ask.at, ending: Ending::Left, cost: 0.0 };
    let stream = ask.stream;
    let converse = async {
        let request = request(number, &ask);
        let Ok(response) = service.oneshot(request).await else { return Ending::Error };
        let status = response.status();
        let mut body = response.into_body();
        // a stream says when it is whole; JSON is when it ends well
        let mut whole = !stream;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return if status == StatusCode::OK { Ending::Broken } else { Ending::Failed(status.as_u16()) };
            };
            let Ok(data) = frame.into_data() else { continue };
            if status != StatusCode::OK {
                continue;
            }
            if memmem::find(&data, b"\"error\":{").is_some() {
                return Ending::Broken;
            }
            if sample.first_output.is_none() && is_output(&data, stream) {
                sample.first_output = Some(start.elapsed());
            }
            whole |= memmem::find(&data, b"data: [DONE]").is_some();
            if let Some(cost) = cost(&data) {
                sample.cost = cost;
            }
        }
        match (status, whole) {
            (StatusCode::OK, true) => Ending::Served,
            (StatusCode::OK, false) => Ending::Broken,
            (status, _) => Ending::Failed(status.as_u16()),
        }
    };
    if let Ok(ending) = timeout_at(leaves, converse).await {
        sample.ending = ending;
    }
    sample.end = start.elapsed();
    sample
}

fn request(number: usize, ask: &Ask) -> Request<Full<Bytes>> {
    // the simulator counts four bytes of the body as a token
    let prompt = "word ".repeat((ask.prompt_tokens * 4 / 5) as usize);
    let mut body = serde_json::json!({
        "model": ask.model,
        "max_tokens": ask.reply_tokens.max(1),
        "stream": ask.stream,
        "messages": [{"role": "user", "content": prompt}],
    });
    if let Some(session) = &ask.session {
        body["session_id"] = session.as_str().into();
    }
    let mut request = Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .header(&REQUEST, number)
        .body(Full::from(body.to_string()))
        .expect("its parts are valid");
    request.extensions_mut().insert(ask.priority);
    request
}

fn is_output(data: &[u8], stream: bool) -> bool {
    const CONTENT: &[u8] = b"\"content\":\"";
    if !stream {
        return data.iter().any(|byte| !byte.is_ascii_whitespace());
    }
    memmem::find(data, CONTENT).is_some_and(|at| data.get(at + CONTENT.len()).is_some_and(|byte| *byte != b'"'))
}

/// What the usage in an answer says it cost.
fn cost(data: &[u8]) -> Option<f64> {
    const COST: &[u8] = b"\"cost\":";
    let number = &data[memmem::find(data, COST)? + COST.len()..];
    let end = number.iter().position(|byte| matches!(byte, b',' | b'}'))?;
    str::from_utf8(&number[..end]).ok()?.trim().parse().ok()
}

/// Looks at the stack at even intervals while requests arrive.
async fn watch(length_s: f64, keys: usize, handle: BalancerHandle, start: Instant) -> Vec<Watched> {
    let step = Duration::from_secs_f64(length_s / f64::from(LOOKS));
    let mut interval = tokio::time::interval_at(start + step, step);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut watched = Vec::with_capacity(LOOKS as usize);
    for _ in 0..LOOKS {
        interval.tick().await;
        let pool = handle.pool();
        let mut states = vec![WatchedKey::default(); keys];
        for (endpoint, state) in pool.endpoints().iter().zip(&mut states) {
            *state = WatchedKey {
                in_flight: endpoint.figures().in_flight() as usize,
                rests: pool.resting(endpoint).is_some(),
                open: handle.breaker(endpoint).is_some_and(|breaker| {
                    matches!(breaker.snapshot().state, BreakerState::Open { .. } | BreakerState::HalfOpen { .. })
                }),
            };
        }
        let waiting = pool.waiting().into_iter().map(|(_, count)| count).sum();
        watched.push(Watched { at: start.elapsed(), waiting, keys: states });
    }
    watched
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lab::stacks::DefaultStack, request::Priority};

    const WORLD: &str = r#"
        name = "small"
        length_s = 20.0
        [world]
        accounts = [{ name = "a", credits = 10.0 }, { name = "b", credits = 10.0 }]
        keys = [{ label = "a-1", account = "a" }, { label = "b-1", account = "b" }]
        models = [{ id = "acme/swift-1" }]
        endpoints = [
          { model = "acme/swift-1", provider = "One", completion_price = 1.0, accept_ms = 50, first_token_ms = 200, tokens_per_second = 100 },
        ]
        [world.reply]
        min_tokens = 1000
        max_tokens = 1000
    "#;

    fn ask(number: u64, stream: bool) -> Ask {
        Ask {
            at: Duration::from_millis(100 * number),
            model: "acme/swift-1".into(),
            prompt_tokens: 100,
            reply_tokens: 20,
            stream,
            session: None,
            priority: Priority::Normal,
            deadline: None,
        }
    }

    fn ran(world: &str, asks: impl IntoIterator<Item = Ask>) -> Run {
        let scenario = Scenario::from_toml(world).unwrap();
        run_asks(&scenario, &DefaultStack, 1, asks.into_iter().collect()).unwrap()
    }

    #[test]
    fn both_sides_of_a_run_are_told() {
        let run = ran(WORLD, (0..100).map(|number| ask(number, number % 2 == 0)));
        // beside what the poller asked
        let sent: Vec<_> = run.sent.iter().filter(|sent| sent.request.is_some()).collect();
        assert_eq!((run.samples.len(), sent.len(), run.watched.len()), (100, 100, 240));
        for (number, (sample, sent)) in run.samples.iter().zip(sent).enumerate() {
            assert_eq!((sample.ending, sent.request, sent.status), (Ending::Served, Some(number), Some(200)));
            assert!(sample.first_output.unwrap() >= sample.at + Duration::from_millis(200));
            assert!(sample.cost > 0.0);
        }
        let told: f64 = run.samples.iter().map(|sample| sample.cost).sum();
        assert!((told - run.spent).abs() < 1e-9, "{told} {}", run.spent);
        // the first output of a stream comes before its end, that of JSON with it
        assert!(run.samples[0].end > run.samples[0].first_output.unwrap());
        assert_eq!(run.samples[1].end, run.samples[1].first_output.unwrap());
    }

    #[test]
    fn how_requests_end_is_told_apart() {
        for (what, stream, expected) in [
            (r#"{ kind = "in_band", form = "standard", after_tokens = 2 }"#, true, Ending::Broken),
            (r#"{ kind = "cut", after_tokens = 2 }"#, true, Ending::Broken),
            (r#"{ kind = "eof", after_tokens = 2 }"#, true, Ending::Broken),
            (r#"{ kind = "status", status = 400 }"#, false, Ending::Failed(400)),
            (r#"{ kind = "stall" }"#, false, Ending::Failed(504)),
        ] {
            let world = format!(
                "{WORLD}
[[world.faults]]
what = {what}"
            );
            let run = ran(&world, [ask(0, stream)]);
            assert_eq!(run.samples[0].ending, expected, "{what}");
        }
    }
}
