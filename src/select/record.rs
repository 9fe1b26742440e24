//! What an attempt writes down when its outcome is known.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, Response};
use tokio::time::Instant;

use super::{choose::Selection, claims::Claims};
use crate::{
    body::{Ending, Guard},
    endpoint::{Endpoint, Route},
    explain::Entry,
    outcome::{Cause, Classify, Fault, Outcome, OutcomeCell, Rest, Retry, Scope, Verdict},
    request::{AttemptId, Attempting},
};

/// First rest of an upstream that fails for most keys; it doubles while that goes on.
const FAILING_POOL: Duration = Duration::from_secs(1);

/// Writes an attempt's outcome into the ledger and the book of rests: at the head, or when the body tells. A failure is
/// written as soon as it is known, so that whoever looks into the body above finds it there.
pub struct Record {
    selection: Arc<dyn Selection>,
    endpoint: Endpoint,
    attempt: Attempting,
    cell: Option<OutcomeCell>,
    /// When it was sent, if something rested then.
    sent: Option<Instant>,
    awaits: Awaits,
    claims: Claims,
    /// The attempt in the request's trace, if it is explained.
    entry: Option<Box<Entry>>,
}

/// What will tell the outcome that is yet to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// It is written.
    Nothing,
    /// The leaf's cell.
    Commit,
    /// The trailers, or the end without any: nobody below judges.
    End,
}

impl Record {
    /// For an attempt that is about to be sent.
    pub(super) fn new(
        selection: Arc<dyn Selection>,
        endpoint: Endpoint,
        attempt: Attempting,
        claims: Claims,
        entry: Option<Box<Entry>>,
    ) -> Self {
        let book = selection.pool().book();
        let sent = (!book.is_blank()).then(Instant::now);
        if let Some(now) = sent {
            book.send(&endpoint, attempt.context(), now);
        }
        Self { selection, endpoint, attempt, cell: None, sent, awaits: Awaits::Nothing, claims, entry }
    }

    /// Which attempt of its request it is.
    pub(super) fn attempt(&self) -> AttemptId {
        self.attempt.id()
    }

    /// Takes in the head; the guard goes on with the body while that may still tell more.
    pub(super) fn answered<B>(mut self, response: &Response<B>, classify: &dyn Classify) -> Option<Self> {
        if let Some(entry) = &self.entry {
            entry.head(response.status().as_u16());
        }
        let verdict = Verdict::of(response, classify);
        self.cell = response.extensions().get().cloned();
        match verdict {
            Verdict::Known(outcome) => self.known(outcome),
            Verdict::AtCommit(_) => self.awaits = Awaits::Commit,
            Verdict::AtEnd => self.awaits = Awaits::End,
        }
        (self.awaits != Awaits::Nothing || !self.claims.is_empty() || self.entry.is_some()).then_some(self)
    }

    fn learn(&self) {
        let Some(cell) = &self.cell else { return };
        if let Some(account) = cell.account() {
            self.endpoint.learn_account(account);
        }
        if let Some(provider) = cell.provider() {
            self.attempt.blame(provider);
        }
    }

    /// The outcome is known. A fault is the end of it; what a success cost is known when its body is over.
    pub(super) fn known(&mut self, outcome: Outcome) {
        if outcome.is_success() {
            return self.book(outcome, false);
        }
        let seen_to = self.settle(Some(outcome));
        self.book(outcome, seen_to);
        if let Some(entry) = self.entry.take() {
            entry.judge(outcome, self.cell.as_ref().and_then(OutcomeCell::provider));
        }
    }

    /// What an end without trailers means.
    fn ended(&self, ending: Ending) -> Option<Outcome> {
        match ending {
            Ending::Complete | Ending::HeadOnly => Some(self.selection.classify().end(None)),
            Ending::Failed => Some(Fault::new(Cause::Truncated, Scope::Pool).retry(Retry::Unclear).into()),
            Ending::Dropped | Ending::FutureDropped | Ending::NoResponse => None,
        }
    }

    fn settle(&mut self, outcome: Option<Outcome>) -> bool {
        let cell = self.cell.as_ref();
        self.claims.settle(outcome, cell.and_then(OutcomeCell::usage), cell.and_then(OutcomeCell::limit))
    }

    /// Writes the outcome down; a fault that a filter has `seen_to` asks for no rest.
    fn book(&mut self, outcome: Outcome, seen_to: bool) {
        self.learn();
        self.attempt.end(outcome, false);
        let context = self.attempt.context();
        let pool = self.selection.pool();
        match outcome {
            Outcome::Success => {
                pool.state().warm_up();
                if !pool.book().is_blank() {
                    pool.succeed(&self.endpoint, context, self.sent, Instant::now());
                }
            }
            Outcome::Fault(mut fault) => {
                let (now, scope) = (Instant::now(), fault.scope);
                fault.rest = fault.rest.filter(|_| !seen_to);
                let suspects = self.endpoint.suspects();
                if fault.is_suspect()
                    && fault.rest.is_none()
                    && suspects.watching()
                    && suspects.pool_failing(Route::of(&self.endpoint, Some(context)), now)
                {
                    (fault.scope, fault.rest) = (Scope::Pool, Some(Rest::guessed(FAILING_POOL)));
                }
                pool.record(&self.endpoint, context, &fault, now);
                if fault.retry == Retry::Elsewhere && self.selection.has_elsewhere(scope, context, now) {
                    self.attempt.end(outcome, true);
                }
            }
        }
    }
}

impl Guard for Record {
    fn data(&mut self, chunk: &[u8]) {
        if let Some(entry) = &self.entry {
            entry.speaks();
        }
        let commit = self.cell.as_ref().map(OutcomeCell::at_commit);
        if self.awaits == Awaits::Commit
            && let Some(Some(outcome @ Outcome::Fault(_))) = commit
        {
            self.awaits = Awaits::Nothing;
            self.known(outcome);
        } else if self.claims.awaits_output() && !chunk.is_empty() && commit != Some(None) {
            self.claims.output(Instant::now());
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.awaits == Awaits::End {
            self.awaits = Awaits::Nothing;
            self.known(self.selection.classify().end(Some(trailers)));
        }
    }

    fn finish(mut self, ending: Ending) {
        let whole = matches!(ending, Ending::Complete | Ending::HeadOnly).then_some(Outcome::Success);
        let (commit, end) = match &self.cell {
            Some(cell) => (cell.at_commit(), cell.at_end()),
            None if self.awaits == Awaits::End => (None, self.ended(ending)),
            None => (None, whole),
        };
        // what a caller that left early will be billed nobody knows, unless the model never ran
        let seen_to = self.settle(end.or(commit.filter(|outcome| !outcome.is_success())));
        if let Some(outcome) = end.or(commit).filter(|_| self.awaits != Awaits::Nothing) {
            self.book(outcome, seen_to);
        }
        if let Some(entry) = self.entry.take() {
            entry.end(ending, end.or(commit), self.cell.as_ref().and_then(OutcomeCell::usage));
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
