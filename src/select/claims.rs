//! What filters have set aside for a request: from its selection to the end of its body.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    filter::{Ended, Filter},
    pool::Pool,
};
use crate::{
    endpoint::Endpoint,
    outcome::{Outcome, Usage},
    request::RequestContext,
};

/// What was taken, given back once: by [`settle`](Self::settle), or when dropped. Nothing, for most requests.
#[derive(Default)]
pub(super) struct Claims(Option<Box<Taken>>);

struct Taken {
    pool: Pool,
    endpoint: Endpoint,
    since: Instant,
    sent: bool,
    first_output: Option<Instant>,
    amounts: SmallVec<[(Arc<dyn Filter>, u64); 1]>,
}

impl Claims {
    /// Takes what the filters want for a request on an endpoint that is ready; `None` when one of them has not enough left.
    pub(super) fn take(
        filters: &[Arc<dyn Filter>],
        pool: &Pool,
        endpoint: &Endpoint,
        request: &RequestContext,
        now: Instant,
    ) -> Option<Self> {
        let mut claims = Self::default();
        for filter in filters.iter().filter(|filter| filter.reserves()) {
            match filter.reserve(endpoint, request, now) {
                // what was taken before is given back as it is dropped
                None => return None,
                Some(0) => {}
                Some(amount) => {
                    let taken = claims.0.get_or_insert_with(|| {
                        let (pool, endpoint) = (pool.clone(), endpoint.clone());
                        let amounts = SmallVec::new();
                        Box::new(Taken { pool, endpoint, since: now, sent: false, first_output: None, amounts })
                    });
                    taken.amounts.push((filter.clone(), amount));
                }
            }
        }
        Some(claims)
    }

    /// Notes that the request is on its way.
    pub(super) fn sent(&mut self) {
        if let Some(taken) = &mut self.0 {
            taken.sent = true;
        }
    }

    /// Whether somebody would want to know when the first output comes.
    pub(super) fn awaits_output(&self) -> bool {
        self.0.as_ref().is_some_and(|taken| taken.first_output.is_none())
    }

    /// Notes when the first output came.
    pub(super) fn output(&mut self, at: Instant) {
        if let Some(taken) = &mut self.0 {
            taken.first_output = Some(at);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Gives everything back. Says whether a filter itself sees to it that the fault does not come again, so that nobody
    /// need rest.
    pub(super) fn settle(&mut self, outcome: Option<Outcome>, usage: Option<Usage>, limit: Option<u32>) -> bool {
        let Some(taken) = self.0.take() else { return false };
        let Taken { pool, endpoint, since, sent, first_output, amounts } = *taken;
        let ended = Ended { since, now: Instant::now(), sent, first_output, outcome, usage, limit };
        let mut seen_to = false;
        for (filter, amount) in amounts {
            seen_to |= filter.settle(&endpoint, amount, &ended);
        }
        // a waiter counts itself before it looks, so either it sees what was given back or we see the waiter
        fence(Ordering::SeqCst);
        pool.freed(&endpoint);
        seen_to
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.settle(None, None, None);
    }
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let amounts = self.0.iter().flat_map(|taken| &taken.amounts);
        f.debug_list().entries(amounts.map(|(_, amount)| amount)).finish()
    }
}
