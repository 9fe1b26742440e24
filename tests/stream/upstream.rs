//! A scripted upstream: what each attempt is answered with, frame by frame, and what of it still runs.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, Request, Response,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Service};

pub const SSE: &str = "text/event-stream";
pub const JSON: &str = "application/json";
pub const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";
pub const HEAD: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
pub const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n";
pub const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
pub const DOWN: &str = "data: {\"error\":{\"code\":502,\"message\":\"Provider disconnected\"},\"choices\":[]}\n\n";

/// A whole, clean stream.
pub fn clean() -> Answer {
    Answer::stream([HEAD, WORD, WORD, STOP])
}

pub fn clean_text() -> String {
    [HEAD, WORD, WORD, STOP].concat()
}

/// What a body does next.
#[derive(Debug, Clone)]
pub enum Step {
    Data(Bytes),
    Pause(Duration),
    Trailers(HeaderMap),
    Fail,
    Hang,
}

/// What one attempt is answered with.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(http::HeaderName, String)>,
    delay: Duration,
    steps: VecDeque<Step>,
}

impl Answer {
    pub fn new(status: u16, kind: &str, steps: impl IntoIterator<Item = Step>) -> Self {
        let headers = if kind.is_empty() { vec![] } else { vec![(CONTENT_TYPE, kind.to_owned())] };
        Self { status, headers, delay: Duration::ZERO, steps: steps.into_iter().collect() }
    }

    pub fn stream<T: Into<Bytes>>(frames: impl IntoIterator<Item = T>) -> Self {
        Self::new(200, SSE, frames.into_iter().map(|frame| Step::Data(frame.into())))
    }

    pub fn json(status: u16, text: impl Into<Bytes>) -> Self {
        Self::new(status, JSON, [Step::Data(text.into())])
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((http::HeaderName::from_static(name), value.to_owned()));
        self
    }

    /// Time until the head.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn then(mut self, step: Step) -> Self {
        self.steps.push_back(step);
        self
    }

    pub fn pause(self, pause: Duration) -> Self {
        self.then(Step::Pause(pause))
    }

    pub fn data(self, text: impl Into<Bytes>) -> Self {
        self.then(Step::Data(text.into()))
    }
}

/// Answers attempts in the order of the script; the last answer for ever.
#[derive(Clone)]
pub struct Upstream(Arc<Shared>);

struct Shared {
    script: Mutex<VecDeque<Answer>>,
    seen: Mutex<Vec<Attempt>>,
    running: AtomicUsize,
}

/// An attempt as the upstream saw it.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub key: String,
    pub at: Instant,
    /// How many others still ran.
    pub beside: usize,
}

impl Upstream {
    pub fn new(script: impl IntoIterator<Item = Answer>) -> Self {
        let script = Mutex::new(script.into_iter().collect());
        Self(Arc::new(Shared { script, seen: Mutex::default(), running: AtomicUsize::new(0) }))
    }

    pub fn seen(&self) -> Vec<Attempt> {
        self.0.seen.lock().unwrap().clone()
    }

    pub fn keys(&self) -> Vec<String> {
        self.seen().into_iter().map(|attempt| attempt.key).collect()
    }

    pub fn running(&self) -> usize {
        self.0.running.load(SeqCst)
    }
}

impl<B> Service<Request<B>> for Upstream {
    type Response = Response<Scripted>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let key = request.headers().get(AUTHORIZATION).map_or("", |value| value.to_str().unwrap());
        let key = key.trim_start_matches("Bearer ").to_owned();
        let beside = self.0.running.fetch_add(1, SeqCst);
        let running = Running(self.0.clone());
        self.0.seen.lock().unwrap().push(Attempt { key, at: Instant::now(), beside });
        let mut script = self.0.script.lock().unwrap();
        let answer = if script.len() > 1 { script.pop_front().unwrap() } else { script[0].clone() };
        Box::pin(async move {
            tokio::time::sleep(answer.delay).await;
            let mut response = Response::new(Scripted { steps: answer.steps, sleep: None, running: Some(running) });
            *response.status_mut() = answer.status.try_into().unwrap();
            for (name, value) in answer.headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(response)
        })
    }
}

struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

/// A body that follows its script, and runs until it is over or dropped.
pub struct Scripted {
    steps: VecDeque<Step>,
    sleep: Option<Pin<Box<Sleep>>>,
    running: Option<Running>,
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let next = match self.steps.front().cloned() {
                None => None,
                Some(Step::Hang) => return Poll::Pending,
                Some(Step::Pause(pause)) => {
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
                    std::task::ready!(sleep.as_mut().poll(cx));
                    self.sleep = None;
                    self.steps.pop_front();
                    continue;
                }
                Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
                Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Some(Step::Fail) => Some(Err("scripted cut".into())),
            };
            self.steps.pop_front();
            if next.is_none() {
                self.running = None;
            }
            return Poll::Ready(next);
        }
    }
}

/// All that comes of a body, and whether it ends cleanly.
pub async fn read<B>(body: B) -> (String, bool)
where
    B: Body<Data = Bytes>,
{
    let mut body = std::pin::pin!(body);
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => return (String::from_utf8(text).unwrap(), false),
        }
    }
    (String::from_utf8(text).unwrap(), true)
}
