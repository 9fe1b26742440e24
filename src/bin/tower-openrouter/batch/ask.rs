//! One row on its way: sent through the balancer, again while only keys or providers are in the way, until there is an answer
//! or it makes no sense to wait.
//!
//! The balancer's own retries are for callers who wait: few, and soon over. A batch has time. A row that found no key, or a
//! full provider, is held back for as long as it was told, and sent again, for as long as the batch is patient. A row that
//! may have run upstream is never repeated: that is the caller's decision (`--retry-failed`).

use std::{
    pin::pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, header::CONTENT_TYPE, header::RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tower::ServiceExt;
use tower_openrouter::{
    Outcome, RequestContext,
    monitor::Measures,
    outcome::{Cause, Fault, OutcomeCell, Retry, Scope},
    select::Resting,
    stack::BalancerHandle,
};

use super::{
    journal::Journal,
    output::{BAD_ROW, Failure, Response},
    progress::span,
    row::{Ask, Row},
    stack::Balancer,
};

/// The shortest and the longest pause before a row is sent again when nobody says how long.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long to wait for a refusal before the next of the rows held back is sent.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// How often a request is looked at that runs while the batch ends.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where rows are sent from.
pub(super) struct Desk {
    pub(super) balancer: Balancer,
    pub(super) handle: BalancerHandle,
    pub(super) journal: Journal,
    /// How long a row is held back at most.
    pub(super) patience: Duration,
    /// Why the batch ends early, once it does.
    pub(super) stop: watch::Sender<Option<Stop>>,
    pub(super) held: Held,
    /// Rows that were refused are sent again one after the other: each waits until the one before it was answered, and if that
    /// was refused too, until this instant. All at once they would be refused at once.
    pub(super) turns: tokio::sync::Mutex<Instant>,
    pub(super) start: Instant,
    /// When the latest good answer came.
    pub(super) answered: Mutex<Option<Instant>>,
}

/// The right to send a row again.
type Turn<'a> = tokio::sync::MutexGuard<'a, Instant>;

/// Why a batch ends before its last row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody asked for it.
    Asked,
    /// No key can serve, and this is what is known of them.
    NoKey(String),
    /// The journal cannot be written.
    Journal(String),
}

/// The rows held back now, and what the latest of them was told.
#[derive(Debug, Default)]
pub(super) struct Held {
    count: AtomicUsize,
    why: Mutex<String>,
}

impl Held {
    /// How many rows are held back, and why.
    pub(super) fn now(&self) -> Option<(usize, String)> {
        let count = self.count.load(Ordering::Relaxed);
        (count > 0).then(|| (count, lock(&self.why).clone()))
    }
}

/// What became of a row.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) row: Row,
    /// Nothing ran for it, and it is not finished.
    pub(super) is_unsent: bool,
    pub(super) response: Option<Response>,
    pub(super) error: Option<Failure>,
    pub(super) key: Option<Box<str>>,
    pub(super) attempts: usize,
    pub(super) took: Duration,
    pub(super) cost: Option<f64>,
}

/// What came of sending a row once.
struct Sent {
    response: Option<Response>,
    error: Option<Failure>,
    /// What the last attempt says about whom; none if there was no attempt, or it has no outcome.
    fault: Option<Fault>,
    retry_after: Option<Duration>,
    key: Option<Box<str>>,
    attempts: usize,
    cost: Option<f64>,
}

impl Desk {
    /// Asks for a row until it is finished, or the batch ends.
    pub(super) async fn ask(&self, row: Row) -> Answer {
        let start = Instant::now();
        let mut answer = Answer {
            row,
            is_unsent: false,
            response: None,
            error: None,
            key: None,
            attempts: 0,
            took: Duration::ZERO,
            cost: None,
        };
        let number = answer.row.number;
        let ask = match &answer.row.ask {
            Ok(ask) => ask,
            Err(what) => {
                answer.error =
                    Some(Failure { code: BAD_ROW.into(), message: format!("line {}: {what}", answer.row.line) });
                return answer;
            }
        };
        if let Err(what) = self.journal.sending(number) {
            self.end(Stop::Journal(what));
            answer.is_unsent = true;
            return answer;
        }
        let (mut turn, mut held) = (None, Duration::ZERO);
        for time in 0.. {
            let Some(sent) = self.send_in_turn(ask, &mut turn).await else { break };
            answer.attempts += sent.attempts;
            answer.took = start.elapsed();
            if sent.error.is_none() {
                *lock(&self.answered) = Some(Instant::now());
            }
            let pause = sent.pause(time);
            let told = sent.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
            (answer.response, answer.error) = (sent.response, sent.error);
            (answer.key, answer.cost) = (sent.key.or(answer.key), sent.cost.or(answer.cost));
            let Some(pause) = pause else { return answer };
            if let Some(mut turn) = turn.take() {
                *turn = Instant::now() + pause.min(PAUSE.1);
            }
            let served_at = lock(&self.answered).unwrap_or(self.start).max(start);
            if served_at.elapsed() >= self.patience {
                self.end(Stop::NoKey(format!("for {} no row was answered: {told}", span(self.patience))));
            } else if held >= self.patience {
                // others are served, so this is the row's own trouble
                return answer;
            }
            let pause = pause.min(self.patience - served_at.elapsed().min(self.patience));
            held += pause;
            turn = self.hold(pause, told).await;
            if turn.is_none() {
                break;
            }
        }
        answer.is_unsent = true;
        if let Err(what) = self.journal.take_back(number) {
            self.end(Stop::Journal(what));
        }
        answer
    }

    /// Waits for so long, and then for a turn; none when the batch ends meanwhile.
    async fn hold(&self, pause: Duration, why: String) -> Option<Turn<'_>> {
        struct Counted<'a>(&'a AtomicUsize);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut stop = self.stop.subscribe();
        self.held.count.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.held.count);
        *lock(&self.held.why) = why;
        let wait = async {
            sleep(pause).await;
            let turn = self.turns.lock().await;
            sleep_until(*turn).await;
            turn
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(Option::is_some) => None,
            turn = wait => Some(turn),
        }
    }

    /// Sends once; none when the batch ends before anything runs. Who has a turn keeps it as long as a refusal may take.
    async fn send_in_turn(&self, ask: &Ask, turn: &mut Option<Turn<'_>>) -> Option<Sent> {
        let context = RequestContext::new();
        let (mut sending, mut ended) = (pin!(self.send(ask, &context)), pin!(self.ended_without(&context)));
        let mut refused = pin!(sleep(REFUSED_WITHIN));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return Some(sent),
                () = &mut ended => return None,
                () = &mut refused, if turn.is_some() => *turn = None,
            }
        }
    }

    /// Ends the batch; the first reason stays.
    pub(super) fn end(&self, why: Stop) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(why);
            first
        });
    }

    /// What all attempts so far have cost.
    pub(super) fn cost(&self) -> f64 {
        self.handle.pool().endpoints().iter().map(|endpoint| endpoint.figures().usage().cost).sum()
    }

    pub(super) fn is_over(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Ends the batch if something keeps every key out for longer than it waits.
    pub(super) fn look_at_keys(&self) {
        let patience_ends = Instant::now() + self.patience;
        // when all are refused at once that looks like the platform's trouble, but not if none has ever been good
        let none_was_good = lock(&self.answered).is_none();
        let pool = self.handle.pool();
        let endpoints = pool.endpoints();
        let each = endpoints.iter().map(|endpoint| {
            let cause = match pool.resting(endpoint) {
                // nobody says of a bad key when it will be good
                Some(Resting { cause: cause @ (Cause::InvalidKey | Cause::ManagementKey), .. }) => cause,
                Some(Resting { cause, until, .. }) if until > patience_ends => cause,
                _ if none_was_good => {
                    let outcomes = Measures::of(endpoint.figures()).outcomes;
                    outcomes.contains_key(Cause::InvalidKey.as_str()).then_some(Cause::InvalidKey)?
                }
                _ => return None,
            };
            Some(format!("{} {cause}", endpoint.key().name()))
        });
        if let Some(each) = each.collect::<Option<Vec<_>>>() {
            self.end(Stop::NoKey(each.join(", ")));
        }
    }

    /// Resolves when the batch has ended and the request runs nowhere: it waits for a key, or to be tried again.
    async fn ended_without(&self, context: &RequestContext) {
        let ran_nowhere = |outcome: Outcome| {
            outcome.fault().is_some_and(|fault| matches!(fault.retry, Retry::Elsewhere | Retry::Backoff))
        };
        let runs = || !context.ledger().attempts().iter().all(|attempt| attempt.outcome.is_some_and(ran_nowhere));
        // fails only when nobody is left to end it
        let _ = self.stop.subscribe().wait_for(Option::is_some).await;
        while runs() {
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn send(&self, ask: &Ask, context: &RequestContext) -> Sent {
        let mut request = Request::new(Full::from(ask.body.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(ask.path);
        request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        request.extensions_mut().insert(context.clone());
        let Ok(response) = self.balancer.clone().oneshot(request).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);

        let cell = head.extensions.get::<OutcomeCell>();
        let ledger = context.ledger();
        let last = ledger.latest();
        let outcome = cell.and_then(OutcomeCell::at_end).or_else(|| last.and_then(|attempt| attempt.outcome));
        let fault = outcome.and_then(|outcome| outcome.fault().copied());
        let status = head.status.as_u16();
        let is_good = head.status.is_success() && outcome == Some(Outcome::Success);
        let (response, error) = match body {
            Err(error) => {
                let message = format!("the answer broke off: {error}");
                (None, Some(Failure { code: "broken_answer".into(), message }))
            }
            Ok(body) => {
                let error = (!is_good).then(|| failure(status, &body, fault));
                (Some(Response { status_code: status, body: json(&body) }), error)
            }
        };
        Sent {
            response,
            error,
            fault,
            retry_after: head.headers.get(RETRY_AFTER).and_then(seconds),
            key: last.map(|attempt| attempt.endpoint.key().name().into()),
            attempts: ledger.attempts().len(),
            cost: cell.and_then(OutcomeCell::usage).map(|usage| usage.cost),
        }
    }
}

impl Sent {
    /// How long to wait before sending it again; none when this is how it ends.
    fn pause(&self, time: u32) -> Option<Duration> {
        self.error.as_ref()?;
        let status = self.response.as_ref().map(|response| response.status_code);
        match self.fault {
            // refused before it was sent anywhere
            None if self.attempts == 0 => {
                matches!(status, Some(429 | 503 | 504)).then_some(())?;
            }
            Some(fault) => {
                let has_not_run = matches!(fault.retry, Retry::Elsewhere | Retry::Backoff);
                let is_of_the_row = matches!(
                    fault.cause,
                    Cause::TooDearForAccount | Cause::TooDearForKey | Cause::Unroutable | Cause::ServerError
                );
                (has_not_run && !is_of_the_row && fault.scope != Scope::Request).then_some(())?;
            }
            None => return None,
        }
        let grown = PAUSE.0.saturating_mul(1 << time.min(10)).min(PAUSE.1);
        let told = self.retry_after.or(self.fault.and_then(|fault| fault.rest).map(|rest| rest.duration));
        // never early, and not all at once
        Some(told.unwrap_or(grown).max(PAUSE.0).mul_f64(1.0 + 0.25 * fastrand::f64()))
    }
}

fn seconds(value: &http::HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// The answer as JSON on one line: as it came, or as a string if it was none.
fn json(body: &[u8]) -> Box<RawValue> {
    // outside strings a line break is white space, and inside there is none
    let spaced = body.trim_ascii().iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte });
    let as_it_came = String::from_utf8(spaced.collect()).ok().and_then(|text| RawValue::from_string(text).ok());
    as_it_came.unwrap_or_else(|| {
        // a string always serialises
        serde_json::value::to_raw_value(&String::from_utf8_lossy(body)).unwrap_or_default()
    })
}

/// What went wrong, by the classification and in the answer's own words.
fn failure(status: u16, body: &[u8], fault: Option<Fault>) -> Failure {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Body {
        error: Error,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Error {
        message: Option<String>,
        metadata: Metadata,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Metadata {
        reason: Option<String>,
    }
    let Body { error } = serde_json::from_slice(body).unwrap_or_default();
    let code = match fault {
        Some(fault) => fault.cause.as_str().into(),
        None => error.metadata.reason.map_or_else(|| format!("http_{status}").into(), String::into_boxed_str),
    };
    Failure { code, message: error.message.unwrap_or_else(|| format!("status {status} without a message")) }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
