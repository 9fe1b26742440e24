//! What the hand-written rotations over a list of keys have in common: send, look at the status, take another key.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep_until};
use tower::{BoxError, Layer, ServiceExt, service_fn};

use crate::{
    AuthorizeLayer,
    lab::{Built, LabBody, Upstream, World},
    openrouter::Authorize,
    simulator::SimulatorBody,
};

/// Which key comes next. One of it serves a whole run.
pub(super) trait Rotation: Send + 'static {
    /// What to do for a request.
    fn next(&mut self, so_far: &SoFar) -> Next;

    /// An attempt with this key failed, with an answer that has these headers or with none.
    fn failed(&mut self, key: usize, headers: &HeaderMap);
}

/// What a request has behind it.
pub(super) struct SoFar {
    /// When it came.
    pub(super) came: Instant,
    /// How often it was sent.
    pub(super) attempts: usize,
}

/// What to do for a request.
pub(super) enum Next {
    /// Send it with the key of this index.
    Send(usize),
    /// Ask again at this instant.
    Sleep(Instant),
    /// Pass on the last failure, or a 429 if it was never sent.
    GiveUp,
}

/// A rotation over the keys in front of the bare upstream.
///
/// # Errors
/// When there is no key.
pub(super) fn rotate(world: &World, rotation: impl Rotation) -> Result<Built, BoxError> {
    if world.keys().is_empty() {
        return Err("the scenario has no key".into());
    }
    let with_key = |key| AuthorizeLayer::new(key).layer(world.upstream());
    let keys: Arc<[_]> = world.keys().iter().map(with_key).collect();
    let rotation = Arc::new(Mutex::new(rotation));
    Ok(Built::new(service_fn(move |request| ask(Arc::clone(&keys), Arc::clone(&rotation), request))))
}

async fn ask(
    keys: Arc<[Authorize<Upstream>]>,
    rotation: Arc<Mutex<impl Rotation>>,
    request: Request<Full<Bytes>>,
) -> Result<Response<LabBody>, BoxError> {
    let mut so_far = SoFar { came: Instant::now(), attempts: 0 };
    let mut last = Ok(refusal());
    loop {
        let next = lock(&rotation).next(&so_far);
        let key = match next {
            Next::Send(key) => key,
            Next::Sleep(until) => {
                sleep_until(until).await;
                continue;
            }
            Next::GiveUp => return last,
        };
        so_far.attempts += 1;
        last = match keys[key].clone().oneshot(request.clone()).await {
            Ok(answer) if !is_failure(answer.status()) => return Ok(boxed(answer)),
            Ok(answer) => {
                lock(&rotation).failed(key, answer.headers());
                Ok(boxed(answer))
            }
            Err(error) => {
                lock(&rotation).failed(key, &HeaderMap::new());
                Err(error.into())
            }
        };
    }
}

/// Whether another key might do better; what is wrong with the request itself is passed on.
pub(super) fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401..=403 | 408 | 429 | 500..)
}

fn boxed(answer: Response<SimulatorBody>) -> Response<LabBody> {
    answer.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// Every key rests.
pub(super) fn refusal() -> Response<LabBody> {
    let body = Full::from(r#"{"error":{"code":429,"message":"all keys are cooling down"}}"#);
    let mut refusal = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *refusal.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    refusal
}

fn lock<R>(rotation: &Mutex<R>) -> MutexGuard<'_, R> {
    rotation.lock().unwrap_or_else(PoisonError::into_inner)
}
