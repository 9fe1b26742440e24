//! The response cache: who asks for it by a header gets an answer of before again, at once and for nothing.
//!
//! It is one key's: another of the same account misses. Only whole answers are kept, so that two identical requests at once
//! both miss.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::generation::Served;

/// How many answers are kept of all keys together; the oldest go first.
const MOST: usize = 1000;

const STATUS: HeaderName = HeaderName::from_static("x-openrouter-cache-status");
const AGE: HeaderName = HeaderName::from_static("x-openrouter-cache-age");
const TTL: HeaderName = HeaderName::from_static("x-openrouter-cache-ttl");
const SOURCE: HeaderName = HeaderName::from_static("x-openrouter-cache-source-id");

/// What a request's headers say about the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    ttl: u32,
    /// What is kept is not wanted.
    clear: bool,
}

impl Wish {
    /// `None` when the cache is not to be used.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let is_true =
            |name: &str| headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
        if !is_true("x-openrouter-cache") {
            return None;
        }
        let ttl = headers.get(TTL).and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok()).unwrap_or(300);
        Some(Self { ttl: ttl.clamp(1, 86_400), clear: is_true("x-openrouter-cache-clear") })
    }
}

/// Whose answer, and to which request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slot {
    key: usize,
    request: [u8; 32],
}

/// A request that found nothing, and whose answer is to be kept.
#[derive(Debug)]
pub(super) struct Miss {
    slot: Slot,
    ttl: u32,
}

impl Miss {
    /// Says so on the answer.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(STATUS, HeaderValue::from_static("MISS"));
        headers.insert(TTL, self.ttl.into());
    }
}

/// An answer of before.
#[derive(Debug)]
pub(super) struct Hit {
    source: Arc<Served>,
    ttl: u32,
    age: Duration,
}

impl Hit {
    /// The same answer under another id, which costs nothing and has used nothing.
    pub(super) fn served(&self, id: String, created: super::clock::Wall) -> Served {
        Served { id, created, prices: (0.0, 0.0), cached: true, routing: None, ..(*self.source).clone() }
    }

    /// Says so on the answer.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(STATUS, HeaderValue::from_static("HIT"));
        headers.insert(AGE, self.age.as_secs().into());
        headers.insert(TTL, self.ttl.into());
        if let Ok(id) = HeaderValue::try_from(&self.source.id) {
            headers.insert(SOURCE, id);
        }
    }
}

#[derive(Debug)]
struct Kept {
    served: Arc<Served>,
    since: Duration,
    ttl: u32,
}

impl Kept {
    fn is_over(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) >= Duration::from_secs(self.ttl.into())
    }
}

/// What is kept. Times are those since the simulator was made.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<Slot, Kept>);

impl Cache {
    /// Looks for the answer to a request to `path`.
    pub(super) fn find(
        &mut self,
        wish: Wish,
        (key, path, body): (usize, &str, &[u8]),
        now: Duration,
    ) -> Result<Hit, Miss> {
        let request = Sha256::new().chain_update(path).chain_update([0]).chain_update(body).finalize().into();
        let slot = Slot { key, request };
        if wish.clear {
            self.0.remove(&slot);
        }
        match self.0.get(&slot).filter(|kept| !kept.is_over(now)) {
            Some(kept) => Ok(Hit { source: kept.served.clone(), ttl: kept.ttl, age: now.saturating_sub(kept.since) }),
            None => Err(Miss { slot, ttl: wish.ttl }),
        }
    }

    /// Keeps the answer to a request that missed.
    pub(super) fn keep(&mut self, miss: Miss, served: Arc<Served>, now: Duration) {
        if self.0.len() >= MOST {
            self.0.retain(|_, kept| !kept.is_over(now));
        }
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.iter().min_by_key(|(_, kept)| kept.since).map(|(slot, _)| slot.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(miss.slot, Kept { served, since: now, ttl: miss.ttl });
    }
}
