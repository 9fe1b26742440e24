//! What belongs to one request rather than to one attempt: its deadline, what its body asks for, and the ledger of attempts.
//!
//! Several stages add to it and read it, none of them owns it, and a retry sends a clone of the request; so it is one shared
//! value in the request's extensions, made by whichever stage comes first. The body is read for its model and limits only
//! when somebody asks.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{Extensions, Request};
use http_body_util::{Empty, Full};
use tokio::time::Instant;

use crate::{clock, explain::Trace, sync::lock_std};

mod asks;
mod ledger;
mod members;
mod operation;
mod priority;

pub use asks::Asks;
pub(crate) use ledger::Attempting;
pub use ledger::{Attempt, AttemptId, Ledger};
pub(crate) use operation::Operation;
pub use priority::{Priority, PriorityError};

/// The shared context of a request and of its attempts.
#[derive(Clone)]
pub struct RequestContext(Arc<Inner>);

struct Inner {
    /// The context this one differs from by its body only: deadline, demands, ledger and trace are there.
    root: Option<Arc<Inner>>,
    /// When the request came, if the stage that made the context had looked at the clock.
    arrived: Option<Instant>,
    /// A [`Deadline`].
    deadline: AtomicU64,
    kept_alive: AtomicBool,
    body: OnceLock<Bytes>,
    asks: OnceLock<Asks>,
    required: OnceLock<Box<[Box<str>]>>,
    priority: AtomicU8,
    ledger: Mutex<Ledger>,
    /// Set when somebody wants to know.
    trace: OnceLock<Trace>,
}

impl RequestContext {
    /// An empty context.
    pub fn new() -> Self {
        Self::arrived_at(None)
    }

    fn arrived_at(arrived: Option<Instant>) -> Self {
        Self(Arc::new(Inner {
            root: None,
            arrived,
            deadline: AtomicU64::new(Deadline::default().0),
            kept_alive: AtomicBool::new(false),
            body: OnceLock::new(),
            asks: OnceLock::new(),
            required: OnceLock::new(),
            priority: AtomicU8::new(Priority::Normal as u8),
            ledger: Mutex::default(),
            trace: OnceLock::new(),
        }))
    }

    /// The context of the same request with another body: what it asks for is read anew; deadline, ledger and trace are
    /// shared.
    ///
    /// For stages that change the body on its way down; put it into the extensions in place of this one.
    #[must_use]
    pub fn rewritten(&self, body: Bytes) -> Self {
        Self(Arc::new(Inner {
            root: Some(self.0.root.as_ref().unwrap_or(&self.0).clone()),
            arrived: self.0.arrived,
            deadline: AtomicU64::new(u64::MAX),
            kept_alive: AtomicBool::new(false),
            body: body.into(),
            asks: OnceLock::new(),
            required: OnceLock::new(),
            priority: AtomicU8::new(Priority::Normal as u8),
            ledger: Mutex::default(),
            trace: OnceLock::new(),
        }))
    }

    fn root(&self) -> &Inner {
        self.0.root.as_ref().unwrap_or(&self.0)
    }

    /// The context of a request; an empty one is put in if there is none.
    pub fn of<B>(request: &mut Request<B>) -> Self {
        Self::of_arrived(request, None)
    }

    /// The same for a stage that knows the time, so that later ones need not look at the clock again.
    pub(crate) fn of_arrived<B>(request: &mut Request<B>, now: Option<Instant>) -> Self {
        if let Some(context) = Self::get(request.extensions()) {
            return context.clone();
        }
        let context = Self::arrived_at(now);
        request.extensions_mut().insert(context.clone());
        context
    }

    /// When the request came, where that is known.
    pub(crate) fn arrived(&self) -> Option<Instant> {
        self.0.arrived
    }

    /// The context in these extensions.
    pub fn get(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// The instant by which everything must be over; `None` when there is none.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline_of().instant()
    }

    /// The same, as small as it is kept.
    pub(crate) fn deadline_of(&self) -> Deadline {
        Deadline(self.root().deadline.load(Ordering::Relaxed))
    }

    /// Sets the deadline, unless an earlier one stands.
    pub fn limit(&self, deadline: Instant) {
        self.root().deadline.fetch_min(clock::nanos(deadline), Ordering::Relaxed);
    }

    /// Notes that the caller is being told to wait, so that nothing below need hurry for fear that it gives up.
    pub fn keep_alive(&self) {
        self.root().kept_alive.store(true, Ordering::Relaxed);
    }

    /// Whether the caller is being told to wait.
    pub fn is_kept_alive(&self) -> bool {
        self.root().kept_alive.load(Ordering::Relaxed)
    }

    /// Gives the whole body, to be read for what it asks; the first one stays.
    pub fn set_body(&self, body: Bytes) {
        let _ = self.0.body.set(body);
    }

    /// The whole body, where a stage has collected it.
    pub fn body(&self) -> Option<&Bytes> {
        self.0.body.get()
    }

    /// What the body asks for; all empty when it is not known or not JSON. Read once, at the first call.
    pub fn asks(&self) -> &Asks {
        static NOTHING: Asks = Asks::nothing();
        match self.0.body.get() {
            Some(body) => self.0.asks.get_or_init(|| Asks::read(body)),
            None => &NOTHING,
        }
    }

    /// Demands that only keys with all of these [tags](crate::ApiKey::tags) serve the request; the first demand stays.
    ///
    /// ```
    /// use tower_openrouter::RequestContext;
    ///
    /// let mut request = http::Request::new(());
    /// RequestContext::of(&mut request).require(["eu", "team-a"]);
    /// ```
    pub fn require<T: Into<Box<str>>>(&self, tags: impl IntoIterator<Item = T>) {
        let _ = self.root().required.set(tags.into_iter().map(Into::into).collect());
    }

    /// The tags that a key must have to serve the request.
    pub fn required(&self) -> &[Box<str>] {
        self.root().required.get().map_or(&[], |tags| tags)
    }

    /// Sets how urgent the request is, should it have to wait for a key; the latest holds.
    ///
    /// ```
    /// use tower_openrouter::{RequestContext, request::Priority};
    ///
    /// let mut request = http::Request::new(());
    /// RequestContext::of(&mut request).set_priority(Priority::High);
    /// ```
    pub fn set_priority(&self, priority: Priority) {
        self.root().priority.store(priority as u8, Ordering::Relaxed);
    }

    /// How urgent the request is; [`Normal`](Priority::Normal) unless set.
    pub fn priority(&self) -> Priority {
        match self.root().priority.load(Ordering::Relaxed) {
            0 => Priority::High,
            1 => Priority::Normal,
            _ => Priority::Low,
        }
    }

    /// The attempts made so far. Hold it briefly: it is a lock.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock_std(&self.root().ledger)
    }

    /// Has the request [explained](crate::explain): stages write into the trace from now on. Another call finds the same.
    pub fn explain(&self) -> &Trace {
        self.root().trace.get_or_init(|| Trace::starting(self.arrived().unwrap_or_else(Instant::now)))
    }

    /// The trace of a request that is explained.
    pub fn trace(&self) -> Option<&Trace> {
        self.root().trace.get()
    }
}

impl Default for RequestContext {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestContext")
            .field("deadline", &self.deadline())
            .field("ledger", &*self.ledger())
            .finish_non_exhaustive()
    }
}

/// A deadline in nanoseconds; the largest number when there is none. Guards carry it, so it should be small.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(u64);

impl Deadline {
    pub(crate) fn instant(self) -> Option<Instant> {
        (self.0 != u64::MAX).then(|| clock::instant(self.0))
    }

    pub(crate) fn is_over(self, now: Instant) -> bool {
        self.0 <= clock::nanos(now)
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

/// A request body that can be sent again.
pub trait Replay: Sized {
    /// The same body from its beginning; `None` when it cannot be sent a second time.
    fn replay(&self) -> Option<Self>;

    /// Whether all of it is known, so that what [`replay`](Self::replay) gave may be sent now. Default: yes.
    fn is_replayable(&self) -> bool {
        true
    }
}

/// A copy of a request, to be sent again; `None` when its body can be sent only once.
pub(crate) fn copy<B: Replay>(request: &Request<B>) -> Option<Request<B>> {
    let mut copy = Request::new(request.body().replay()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    // the context alone is put into the copy when that is needed, which nearly always is never
    if request.extensions().len() > 1 {
        *copy.extensions_mut() = request.extensions().clone();
    }
    Some(copy)
}

impl Replay for Full<Bytes> {
    fn replay(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl Replay for Empty<Bytes> {
    fn replay(&self) -> Option<Self> {
        Some(Self::new())
    }
}

impl Replay for () {
    fn replay(&self) -> Option<Self> {
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Endpoint;

    #[tokio::test(start_paused = true)]
    async fn a_rewritten_request_asks_anew_and_shares_deadline_and_ledger() {
        let first = RequestContext::new();
        first.set_body(Bytes::from(r#"{"model":"a"}"#));
        let second = first.rewritten(Bytes::from(r#"{"model":"b"}"#)).rewritten(Bytes::from(r#"{"model":"c"}"#));
        assert_eq!((first.asks().model.as_deref(), second.asks().model.as_deref()), (Some("a"), Some("c")));
        let deadline = Instant::now() + Duration::from_secs(1);
        second.limit(deadline);
        assert_eq!(first.deadline(), Some(deadline));
        let endpoint = Endpoint::new(crate::ApiKey::new("sk-or-v1-a").unwrap());
        second.ledger().start(&endpoint);
        second.ledger().turn();
        first.ledger().start(&endpoint);
        assert_eq!(first.ledger().attempts().len(), 2);
        assert_eq!(second.ledger().current().len(), 1);
    }
}
