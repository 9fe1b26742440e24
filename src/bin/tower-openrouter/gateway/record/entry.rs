//! One request being recorded, from its arrival to the end of its answer.

use http::{Request, Response, header::CONTENT_LENGTH};
use tokio::time::Instant;
use tower_openrouter::{
    Rejected, RequestContext,
    body::{Ending, Guard},
    error::Why,
    outcome::{Cause, OutcomeCell},
    stream::Later,
};

use super::{Recorder, line::Line, millis};
use crate::gateway::drain::Drain;

/// The longest name of a model that is kept: a client may send anything.
const LONGEST_MODEL: usize = 256;
/// The cause where a client left; `/stats` calls it the same.
const CLIENT_GONE: &str = "client_gone";

/// Notes what becomes of a request; its line is written at the end, whichever that is.
pub(in crate::gateway) struct Entry {
    recorder: Recorder,
    drain: Drain,
    arrived: Instant,
    context: RequestContext,
    /// The hash of the session that a header names.
    session: Option<u64>,
    length: Option<u64>,
    status: Option<u16>,
    head: Option<Instant>,
    first_output: Option<Instant>,
    told: Told,
}

/// Where the answer's outcome is to be read.
enum Told {
    Nothing,
    Refused(&'static str),
    Cell(OutcomeCell),
    /// The head came before the answer.
    Later(Later),
}

impl Told {
    fn of(extensions: &http::Extensions) -> Self {
        if let Some(refusal) = extensions.get::<Rejected>() {
            Self::Refused(refusal.why().as_str())
        } else if let Some(cell) = extensions.get::<OutcomeCell>() {
            Self::Cell(cell.clone())
        } else if let Some(later) = extensions.get::<Later>() {
            Self::Later(later.clone())
        } else {
            Self::Nothing
        }
    }

    /// The same once there is an answer.
    fn now(&mut self) -> &Self {
        if let Self::Later(later) = self
            && let Some(extensions) = later.extensions()
        {
            *self = Self::of(extensions);
        }
        self
    }
}

impl Entry {
    pub(in crate::gateway) fn new<B>(
        recorder: &Recorder,
        drain: &Drain,
        request: &Request<B>,
        context: &RequestContext,
    ) -> Box<Self> {
        let headers = request.headers();
        let session = headers.get("x-session-id").map(|id| id.as_bytes()).filter(|id| !id.is_empty());
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Box::new(Self {
            recorder: recorder.clone(),
            drain: drain.clone(),
            arrived: Instant::now(),
            context: context.clone(),
            session: session.map(|id| recorder.session(id)),
            length,
            status: None,
            head: None,
            first_output: None,
            told: Told::Nothing,
        })
    }

    /// The balancer has answered.
    pub(in crate::gateway) fn answered<B>(&mut self, response: &Response<B>) {
        self.told = Told::of(response.extensions());
    }

    /// This goes to the client.
    pub(in crate::gateway) fn head<B>(&mut self, response: &Response<B>) {
        (self.status, self.head) = (Some(response.status().as_u16()), Some(Instant::now()));
    }

    /// The gateway stops, and this request with it.
    pub(in crate::gateway) fn cut(&mut self) {
        self.told = Told::Refused(Why::Draining.as_str());
    }

    /// The cell, whoever filled it.
    fn cell(&mut self) -> Option<&OutcomeCell> {
        match self.told.now() {
            Told::Cell(cell) => Some(cell),
            Told::Nothing | Told::Refused(_) | Told::Later(_) => None,
        }
    }

    /// What went wrong.
    fn cause(&mut self, ending: Ending) -> Option<&'static str> {
        let broken = if self.drain.is_cut() { Why::Draining.as_str() } else { Cause::Truncated.as_str() };
        let (at_commit, at_end) = match self.told.now() {
            Told::Refused(why) => return Some(why),
            Told::Cell(cell) => (cell.at_commit(), cell.at_end()),
            Told::Nothing | Told::Later(_) => (None, None),
        };
        // what the answer says of its own end holds, even if the client did not stay for the last byte
        if let Some(outcome) = at_end {
            return outcome.fault().map(|fault| fault.cause.as_str());
        }
        let fault = at_commit.and_then(|outcome| outcome.fault().map(|fault| fault.cause.as_str()));
        match ending {
            _ if fault.is_some() => fault,
            Ending::Dropped | Ending::FutureDropped => Some(CLIENT_GONE),
            Ending::Failed | Ending::NoResponse => Some(broken),
            Ending::Complete | Ending::HeadOnly => None,
        }
    }

    fn line(mut self, ending: Ending) -> (Recorder, Line) {
        let cause = self.cause(ending);
        let usage = self.cell().and_then(OutcomeCell::usage);
        let asks = self.context.asks();
        let hash = |id: &str| (!id.is_empty()).then(|| self.recorder.session(id.as_bytes()));
        // as picks by session read it
        let session = asks.session.as_deref().and_then(hash).or(self.session).or_else(|| hash(asks.user.as_deref()?));
        let (attempts, key) = {
            let ledger = self.context.ledger();
            (ledger.attempts().len(), ledger.latest().map(|attempt| attempt.endpoint.key().name().to_owned()))
        };
        let since = |instant: Instant| millis(instant.saturating_duration_since(self.arrived));
        let bytes = self.context.body().map(|body| body.len() as u64).or(self.length);
        let line = Line {
            at_ms: self.recorder.at(self.arrived),
            model: asks.model.clone().filter(|model| model.len() <= LONGEST_MODEL),
            request_bytes: bytes,
            prompt_tokens: usage.map_or(bytes.unwrap_or(0) / 4, |usage| usage.prompt_tokens),
            reply_tokens: usage.map(|usage| usage.completion_tokens),
            max_tokens: asks.max_tokens,
            stream: asks.stream,
            session: session.map(|hash| format!("{hash:016x}")),
            priority: self.context.priority().as_str(),
            status: self.status,
            ending: match (cause, self.status) {
                (None, _) => "served",
                (Some(CLIENT_GONE), _) => "left",
                (Some(_), Some(200)) => "broken",
                (Some(_), _) => "failed",
            },
            cause,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            key,
            head_ms: self.head.map(since),
            first_output_ms: self.first_output.map(since),
            end_ms: millis(self.arrived.elapsed()),
            cost: usage.map(|usage| usage.cost),
            lost_before: 0,
        };
        (self.recorder, line)
    }
}

/// In a box, for the sake of requests that are not recorded.
impl Guard for Box<Entry> {
    fn data(&mut self, chunk: &[u8]) {
        if self.first_output.is_some() || chunk.is_empty() {
            return;
        }
        // comments that only keep a stream open are no output
        let says = match self.told.now() {
            Told::Cell(cell) => cell.at_commit().is_some(),
            Told::Later(_) => false,
            Told::Nothing | Told::Refused(_) => true,
        };
        if says {
            self.first_output = Some(Instant::now());
        }
    }

    fn finish(self, ending: Ending) {
        let (recorder, line) = self.line(ending);
        recorder.push(line);
    }
}
