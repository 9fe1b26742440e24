use std::cmp::Reverse;

use fastrand::Rng;

use super::{Candidates, LeastInFlight, Pick, Prepared, Rank};
use crate::endpoint::Endpoint;

/// Proposals before everybody is asked, in the same order.
const PROPOSALS: usize = 3;

/// Keeps each conversation on one account, and there on one key, as long as that can serve (rendezvous hashing, Thaler and
/// Ravishankar 1998).
///
/// Providers cache prompts, and OpenRouter keeps a conversation on the provider whose cache is warm, for each account by
/// itself: a conversation that hops between accounts pays for its whole prompt at every turn. So the session decides, and
/// not the load. The account whose name and the session hash highest comes first; in it, the key; then the account's other
/// keys, then the next account. When a key leaves, only its own conversations move; when it is back, they come back. No
/// table is kept, and every process that has the same keys chooses alike.
///
/// A session is the body's `session_id`, else the header `x-session-id`, else the body's `user`; the body is known above a
/// [`BufferLayer`](crate::BufferLayer). Requests without one are the inner pick's. Keys whose account nobody has named stand
/// each for an account of its own. Weights are not heeded, since they would move conversations.
///
/// A pick with a session looks at every key's hash, some nanoseconds each; the others cost what the inner pick costs.
///
/// With [`LeastInFlight`] for the rest:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{Pool, Rendezvous}};
///
/// let pool = Pool::new([
///     ApiKey::new("sk-or-v1-a")?.account("north"),
///     ApiKey::new("sk-or-v1-b")?.account("south"),
/// ])?;
/// let builder = Balancer::builder(pool).pick(Rendezvous::default());
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// With another pick for requests of no conversation:
///
/// ```
/// use tower_openrouter::select::{PeakEwma, Rendezvous};
///
/// let pick = Rendezvous::new(PeakEwma::default());
/// # let _ = pick;
/// ```
#[derive(Debug)]
pub struct Rendezvous<P = LeastInFlight> {
    inner: P,
}

impl Default for Rendezvous {
    fn default() -> Self {
        Self::new(LeastInFlight)
    }
}

impl<P> Rendezvous<P> {
    /// Conversations by their session, the rest by `inner`.
    pub fn new(inner: P) -> Self {
        Self { inner }
    }
}

/// The hashes of each endpoint's account and key, and what the inner pick prepared.
struct Names {
    hashes: Box<[(u64, u64)]>,
    inner: Option<Prepared>,
}

impl Names {
    fn score(&self, index: usize, session: u64) -> u64 {
        let (account, key) = self.hashes[index];
        // the account above, so that its keys stand together; 53 bits in all, which a rank holds to the last
        mix(account ^ session) >> 31 << 20 | mix(key ^ session) & KEY_BITS
    }
}

/// What of a score is the key's: enough to tell those of one account apart.
const KEY_BITS: u64 = (1 << 20) - 1;

impl<P: Pick> Pick for Rendezvous<P> {
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, rng: &mut Rng) -> usize {
        let Some(names) = candidates.prepared::<Names>() else { return usize::MAX };
        let Some(session) = session(candidates) else {
            let candidates = candidates.among(candidates.endpoints, names.inner.as_ref());
            return self.inner.propose(&candidates, turn, rng);
        };
        if turn >= PROPOSALS.min(names.hashes.len()) {
            return usize::MAX;
        }
        let all = || (0..names.hashes.len()).map(|index| (names.score(index, session), Reverse(index)));
        // as many as there are turns, since nothing is kept between them
        let found = (0..turn).fold(all().max(), |last, _| all().filter(|each| Some(*each) < last).max());
        found.map_or(usize::MAX, |(_, Reverse(index))| index)
    }

    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        let hashes = endpoints
            .iter()
            .map(|endpoint| {
                let key = hash(endpoint.key().hash().as_bytes());
                (endpoint.account().map_or(key, |account| hash(account.as_bytes())), key)
            })
            .collect();
        Some(Box::new(Names { hashes, inner: self.inner.prepare(endpoints) }))
    }

    fn rank(&self, candidates: &Candidates<'_>, index: usize, rng: &mut Rng) -> Option<Rank> {
        let names = candidates.prepared::<Names>()?;
        match session(candidates) {
            Some(session) => Some(Rank::from(-(names.score(index, session) as f64))),
            None => {
                let candidates = candidates.among(candidates.endpoints, names.inner.as_ref());
                self.inner.rank(&candidates, index, rng)
            }
        }
    }
}

/// The hash of the conversation that a request belongs to.
fn session(candidates: &Candidates<'_>) -> Option<u64> {
    let asks = candidates.request.asks();
    let header = || candidates.headers.get("x-session-id").map(http::HeaderValue::as_bytes);
    let session = asks.session.as_deref().map(str::as_bytes).or_else(header);
    session.or(asks.user.as_deref().map(str::as_bytes)).filter(|name| !name.is_empty()).map(hash)
}

/// FNV-1a, the same in every process and release, which std's hasher does not promise.
fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads every bit over all others (the finaliser of SplitMix64).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        RequestContext,
        select::{
            RoundRobin,
            order::{self, Asked},
            pick::support::endpoints,
        },
    };

    /// As many keys as there are letters, each on the account that its letter names; none for a space.
    fn keys(accounts: &str) -> Vec<Endpoint> {
        let letters: Vec<_> = accounts.chars().map(String::from).collect();
        endpoints(letters.len(), |index, key| match &*letters[index] {
            " " => key,
            letter => key.account(letter),
        })
    }

    /// The endpoints asked for a request, as long as each refuses.
    fn asked(keys: &[Endpoint], body: &str, header: Option<&str>) -> Vec<usize> {
        let (pick, request) = (Rendezvous::new(RoundRobin::default()), RequestContext::new());
        let mut headers = HeaderMap::new();
        request.set_body(body.to_owned().into());
        if let Some(session) = header {
            headers.insert("x-session-id", session.parse().unwrap());
        }
        let prepared = pick.prepare(keys);
        let candidates = Candidates::new(keys, &request, &headers, Instant::now()).with(prepared.as_ref());
        let mut asked = Vec::new();
        order::find::<_, ()>(&pick, &candidates, &mut Rng::new(), |index, _| {
            if !asked.contains(&index) {
                asked.push(index);
            }
            Asked::Refused
        });
        asked
    }

    fn of(keys: &[Endpoint], session: usize) -> Vec<usize> {
        asked(keys, &format!(r#"{{"session_id":"s-{session}"}}"#), None)
    }

    #[test]
    fn body_then_header_then_user_name_the_session() {
        let keys = keys("abcdefghijklmnopqrstuvwxyz");
        let (both, session) = (r#"{"session_id":"one","user":"two"}"#, r#"{"session_id":"one"}"#);
        let (user, one, two) =
            (r#"{"user":"two"}"#, asked(&keys, session, None), asked(&keys, r#"{"user":"two"}"#, None));
        assert_ne!(one, two);
        for (body, header, expected) in [
            (both, None, &one),
            (both, Some("two"), &one),
            (session, Some("two"), &one),
            (user, Some("one"), &one),
            ("{}", Some("two"), &two),
        ] {
            assert_eq!(asked(&keys, body, header), *expected, "{body} {header:?}");
        }
        assert_eq!(asked(&keys, "{}", None)[..2], [0, 1], "the inner pick's");
        assert_eq!(asked(&keys, "{}", Some(""))[..2], [0, 1], "the inner pick's");
    }

    #[test]
    fn sessions_are_spread_evenly_over_accounts_and_their_keys() {
        let keys = keys("aaab ");
        let mut shares = [0; 5];
        for session in 0..30_000 {
            shares[of(&keys, session)[0]] += 1;
        }
        for (share, due) in shares.iter().zip([3333, 3333, 3333, 10_000, 10_000]) {
            assert!((due * 95 / 100..due * 105 / 100).contains(share), "{shares:?}");
        }
    }

    proptest! {
        #[test]
        fn an_account_is_left_only_when_all_its_keys_refuse(session: usize) {
            let keys = keys("abcabcabc");
            let order = of(&keys, session);
            prop_assert_eq!(order.len(), 9);
            for three in order.chunks(3) {
                prop_assert!(three.iter().all(|key| key % 3 == three[0] % 3), "{order:?}");
            }
        }

        #[test]
        fn only_the_conversations_of_a_key_that_leaves_move(session: usize, gone in 0..8_usize) {
            let mut keys = keys("aabb cc ");
            let before = of(&keys, session);
            keys.remove(gone);
            let after: Vec<_> = of(&keys, session).iter().map(|key| key + usize::from(*key >= gone)).collect();
            let rest: Vec<_> = before.into_iter().filter(|key| *key != gone).collect();
            prop_assert_eq!(after, rest);
        }
    }
}
