use http::{HeaderMap, Response};

use super::{Cause, Classify, Fault, Outcome, OutcomeCell, Scope};
use crate::body::Ending;

/// What an exchange has said of its outcome so far. Faults are boxed, since few fail and every attempt carries this.
#[derive(Debug)]
pub(crate) enum Said {
    /// No answer yet.
    Nothing,
    /// The leaf judges, in here.
    Cell(OutcomeCell),
    /// Nobody judged it, and its head is not final.
    Open,
    /// What its head meant.
    Head(Option<Box<Fault>>),
    /// What its trailers meant.
    Trailers(Option<Box<Fault>>),
}

/// An outcome, small.
fn small(outcome: Outcome) -> Option<Box<Fault>> {
    outcome.fault().copied().map(Box::new)
}

fn large(fault: &Option<Box<Fault>>) -> Outcome {
    fault.as_deref().copied().map_or(Outcome::Success, Outcome::Fault)
}

impl Said {
    /// What a head says: its cell if the leaf put one in, else what `classify` makes of it.
    pub(crate) fn of<B>(response: &Response<B>, classify: &dyn Classify) -> Self {
        match response.extensions().get::<OutcomeCell>() {
            Some(cell) => Self::Cell(cell.clone()),
            None => {
                let head = classify.head(response.status(), response.headers());
                head.map_or(Self::Open, |outcome| Self::Head(small(outcome)))
            }
        }
    }

    /// Takes in the trailers.
    pub(crate) fn trailers(&mut self, found: &HeaderMap, classify: &dyn Classify) {
        if let Self::Open = self {
            *self = Self::Trailers(small(classify.end(Some(found))));
        }
    }

    /// Whether what flows is output: until something is committed it only keeps the stream open.
    pub(crate) fn is_output(&self) -> bool {
        self.cell().is_none_or(|cell| cell.at_commit().is_some())
    }

    /// Where the leaf judges, if it does.
    pub(crate) fn cell(&self) -> Option<&OutcomeCell> {
        match self {
            Self::Cell(cell) => Some(cell),
            Self::Nothing | Self::Open | Self::Head(_) | Self::Trailers(_) => None,
        }
    }

    /// What it came to; `None` when it was dropped before that could be known.
    pub(crate) fn outcome(&self, ending: Ending, classify: &dyn Classify) -> Option<Outcome> {
        let (head, end) = match self {
            Self::Nothing | Self::Open => (None, None),
            Self::Cell(cell) => (cell.at_commit(), cell.at_end()),
            Self::Head(fault) => (Some(large(fault)), None),
            Self::Trailers(fault) => (None, Some(large(fault))),
        };
        let fault = head.filter(|outcome| !outcome.is_success());
        let cut = Outcome::Fault(Fault::new(Cause::Truncated, Scope::Pool));
        match (ending, self) {
            (Ending::FutureDropped | Ending::NoResponse, _) => None,
            _ if end.is_some() => end,
            (Ending::Complete | Ending::HeadOnly, Self::Open) => Some(classify.end(None)),
            (Ending::Complete | Ending::HeadOnly, _) => Some(head.unwrap_or(cut)),
            (Ending::Failed, _) => Some(fault.unwrap_or(cut)),
            (Ending::Dropped, _) => fault,
        }
    }
}
