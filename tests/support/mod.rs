//! One inner service that probes the tower contract, shared by the tests of every stage.
//!
//! A clone forgets its readiness, calls without readiness are counted, and what a call does is scripted: answer, fail,
//! hang, take time, panic. The body of an answer can be held open, cut or made to panic in the same way.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{BoxError, Service};

/// What the next call does.
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers with this status after a delay, and with a body.
    Answer { status: u16, headers: Vec<(&'static str, String)>, delay: Duration, body: BodyAct },
    /// Fails with an error after a delay.
    Fail { delay: Duration },
    /// Never resolves.
    Hang,
    /// Panics in `call`.
    PanicInCall,
    /// Panics when the future is polled.
    PanicInFuture,
}

/// What the body of an answer does.
#[derive(Debug, Clone)]
pub enum BodyAct {
    /// One frame, then the end, its length known.
    Whole(&'static str),
    /// Frames with a pause before each, then the end.
    Frames { pause: Duration, frames: usize },
    /// One frame, then nothing for ever.
    Hang,
    /// One frame, then an error.
    Cut,
    /// Panics when polled.
    Panic,
}

impl Act {
    pub fn ok() -> Self {
        Self::status(200)
    }

    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: vec![], delay: Duration::ZERO, body: BodyAct::Whole("ok") }
    }

    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.to_string()));
        }
        self
    }

    pub fn delay(mut self, by: Duration) -> Self {
        if let Self::Answer { delay, .. } | Self::Fail { delay } = &mut self {
            *delay = by;
        }
        self
    }

    pub fn body(mut self, act: BodyAct) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            *body = act;
        }
        self
    }
}

/// The probing service. Clones share everything but readiness.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    ready: Option<Reserved>,
}

#[derive(Debug)]
pub struct Shared {
    script: Mutex<VecDeque<Act>>,
    default: Mutex<Act>,
    blocked: Mutex<(bool, Vec<Waker>)>,
    pub polls: AtomicUsize,
    pub clones: AtomicUsize,
    pub calls: AtomicUsize,
    /// Calls on an instance that had not itself said Ready: must stay 0.
    pub unready_calls: AtomicUsize,
    /// Futures dropped before they resolved.
    pub cancelled: AtomicUsize,
    /// Exchanges running now: from call to the end of the body, or its drop.
    pub in_flight: AtomicUsize,
    pub peak: AtomicUsize,
    /// Instances that said Ready and were neither called nor dropped since.
    pub reserved: AtomicUsize,
    pub panic_in_poll_ready: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Probe {
    /// A probe whose every call does `act` unless scripted otherwise.
    pub fn new(act: Act) -> Self {
        Self {
            shared: Arc::new(Shared {
                script: Mutex::default(),
                default: Mutex::new(act),
                blocked: Mutex::default(),
                polls: AtomicUsize::new(0),
                clones: AtomicUsize::new(0),
                calls: AtomicUsize::new(0),
                unready_calls: AtomicUsize::new(0),
                cancelled: AtomicUsize::new(0),
                in_flight: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
                reserved: AtomicUsize::new(0),
                panic_in_poll_ready: AtomicUsize::new(0),
            }),
            ready: None,
        }
    }

    pub fn ok() -> Self {
        Self::new(Act::ok())
    }

    /// What calls do from now on.
    pub fn set(&self, act: Act) {
        *lock(&self.shared.default) = act;
    }

    /// What the next calls do, in order, before the default applies again.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        lock(&self.shared.script).extend(acts);
    }

    /// Forgets what is scripted and not done yet.
    pub fn unscript(&self) {
        lock(&self.shared.script).clear();
    }

    /// Makes every instance pending, or ready again.
    pub fn block(&self, blocked: bool) {
        let mut state = lock(&self.shared.blocked);
        state.0 = blocked;
        if !blocked {
            state.1.drain(..).for_each(Waker::wake);
        }
    }

    /// The counts.
    pub fn seen(&self) -> &Shared {
        &self.shared
    }

    pub fn calls(&self) -> usize {
        self.shared.calls.load(SeqCst)
    }

    pub fn reserved(&self) -> usize {
        self.shared.reserved.load(SeqCst)
    }

    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(SeqCst)
    }

    pub fn unready_calls(&self) -> usize {
        self.shared.unready_calls.load(SeqCst)
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        self.shared.clones.fetch_add(1, SeqCst);
        Self { shared: self.shared.clone(), ready: None }
    }
}

impl<B> Service<Request<B>> for Probe {
    type Response = Response<ProbeBody>;
    type Error = BoxError;
    type Future = ProbeFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.polls.fetch_add(1, SeqCst);
        if self.shared.panic_in_poll_ready.load(SeqCst) > 0 {
            self.shared.panic_in_poll_ready.fetch_sub(1, SeqCst);
            panic!("scripted panic in poll_ready");
        }
        let mut blocked = lock(&self.shared.blocked);
        if blocked.0 {
            blocked.1.push(cx.waker().clone());
            return Poll::Pending;
        }
        self.ready.get_or_insert_with(|| Reserved::new(&self.shared));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ProbeFuture {
        drop(request);
        self.shared.calls.fetch_add(1, SeqCst);
        if self.ready.take().is_none() {
            self.shared.unready_calls.fetch_add(1, SeqCst);
        }
        let act = lock(&self.shared.script).pop_front().unwrap_or_else(|| lock(&self.shared.default).clone());
        if matches!(act, Act::PanicInCall) {
            panic!("scripted panic in call");
        }
        let running = Running::start(&self.shared);
        let shared = self.shared.clone();
        let future = async move {
            match act {
                Act::Answer { status, headers, delay, body } => {
                    pause(delay).await;
                    let mut response =
                        Response::new(ProbeBody { act: body, sent: 0, sleep: None, running: Some(running) });
                    *response.status_mut() = status.try_into().unwrap();
                    for (name, value) in headers {
                        response.headers_mut().append(name, value.parse().unwrap());
                    }
                    Ok(response)
                }
                Act::Fail { delay } => {
                    pause(delay).await;
                    Err("scripted failure".into())
                }
                Act::PanicInFuture => panic!("scripted panic in the future"),
                Act::Hang | Act::PanicInCall => std::future::pending().await,
            }
        };
        ProbeFuture { future: Box::pin(future), shared, done: false }
    }
}

async fn pause(span: Duration) {
    if !span.is_zero() {
        tokio::time::sleep(span).await;
    }
}

/// Counts itself cancelled when dropped early.
pub struct ProbeFuture {
    future: Pin<Box<dyn Future<Output = Result<Response<ProbeBody>, BoxError>> + Send + Sync>>,
    shared: Arc<Shared>,
    done: bool,
}

impl Future for ProbeFuture {
    type Output = Result<Response<ProbeBody>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = self.future.as_mut().poll(cx);
        self.done = result.is_ready();
        result
    }
}

impl Drop for ProbeFuture {
    fn drop(&mut self) {
        if !self.done {
            self.shared.cancelled.fetch_add(1, SeqCst);
        }
    }
}

/// What an instance reserves by saying Ready.
#[derive(Debug)]
struct Reserved(Arc<Shared>);

impl Reserved {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.reserved.fetch_add(1, SeqCst);
        Self(shared.clone())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.reserved.fetch_sub(1, SeqCst);
    }
}

#[derive(Debug)]
struct Running(Arc<Shared>);

impl Running {
    fn start(shared: &Arc<Shared>) -> Self {
        let now = shared.in_flight.fetch_add(1, SeqCst) + 1;
        shared.peak.fetch_max(now, SeqCst);
        Self(shared.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

/// The body of a probe's answer.
#[derive(Debug)]
pub struct ProbeBody {
    act: BodyAct,
    sent: usize,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Gone when the body is over.
    running: Option<Running>,
}

impl Body for ProbeBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let first = self.sent == 0;
        let act = self.act.clone();
        let frame = |data: &'static str| Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(data.as_bytes())))));
        match act {
            BodyAct::Panic => panic!("scripted panic in the body"),
            BodyAct::Whole(data) if first => {
                self.sent = 1;
                self.running = None;
                frame(data)
            }
            BodyAct::Hang | BodyAct::Cut if first => {
                self.sent = 1;
                frame("first")
            }
            BodyAct::Frames { pause, frames } if self.sent < frames => {
                if !pause.is_zero() {
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
                    std::task::ready!(sleep.as_mut().poll(cx));
                    self.sleep = None;
                }
                self.sent += 1;
                frame("frame")
            }
            BodyAct::Whole(_) | BodyAct::Frames { .. } => {
                self.running = None;
                Poll::Ready(None)
            }
            BodyAct::Cut => {
                self.running = None;
                Poll::Ready(Some(Err("scripted cut".into())))
            }
            BodyAct::Hang => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.act, BodyAct::Whole(_)) && self.sent > 0
    }
}
