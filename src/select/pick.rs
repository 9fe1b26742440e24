//! Picks: which endpoint first?
//!
//! The trait and its types, documented where users see it, at [`Pick`]; each pick that comes along has a file.

use std::{any::Any, cmp::Ordering, fmt, sync::Arc};

use fastrand::Rng;
use http::HeaderMap;
use tokio::time::Instant;

use crate::{endpoint::Endpoint, explain::name_of, request::RequestContext};

mod closure;
mod least_in_flight;
mod most_credit;
mod peak_ewma;
mod priority_tiers;
mod rendezvous;
mod round_robin;
mod shares;
mod smooth_weighted;
mod sticky;
mod weighted_random;

pub use closure::{PickFn, pick_fn};
pub use least_in_flight::LeastInFlight;
pub use most_credit::MostCredit;
pub use peak_ewma::PeakEwma;
pub use priority_tiers::PriorityTiers;
pub use rendezvous::Rendezvous;
pub use round_robin::RoundRobin;
pub use smooth_weighted::SmoothWeighted;
pub use sticky::Sticky;
pub use weighted_random::WeightedRandom;

/// What a [`Pick`] has worked out for a snapshot, of whatever type it likes.
pub type Prepared = Box<dyn Any + Send + Sync>;

/// What a pick may look at.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Candidates<'a> {
    /// The endpoints that nothing holds back for everybody. Never empty.
    pub endpoints: &'a [Endpoint],
    /// The request, as the stages share it.
    pub request: &'a RequestContext,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The time.
    pub now: Instant,
    prepared: Option<&'a (dyn Any + Send + Sync)>,
}

impl<'a> Candidates<'a> {
    /// Candidates for a request, nothing prepared.
    pub fn new(endpoints: &'a [Endpoint], request: &'a RequestContext, headers: &'a HeaderMap, now: Instant) -> Self {
        Self { endpoints, request, headers, now, prepared: None }
    }

    /// The same with what [`Pick::prepare`] made of these endpoints.
    #[must_use]
    pub fn with(self, prepared: Option<&'a Prepared>) -> Self {
        Self { prepared: prepared.map(|prepared| &**prepared), ..self }
    }

    /// The same request with other endpoints, and what was prepared of them: for a pick that asks another one.
    #[must_use]
    pub fn among(self, endpoints: &'a [Endpoint], prepared: Option<&'a Prepared>) -> Self {
        Self { endpoints, ..self }.with(prepared)
    }

    /// What the pick prepared, if it is a `T`.
    pub fn prepared<T: 'static>(&self) -> Option<&'a T> {
        self.prepared?.downcast_ref()
    }
}

impl fmt::Debug for Candidates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidates")
            .field("endpoints", &self.endpoints)
            .field("request", &self.request)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Candidates<'_> {
    /// Notes a figure by which the pick judges an endpoint, and gives it back. It is kept where the request is
    /// [explained](crate::explain), and costs next to nothing elsewhere.
    pub fn note(&self, figure: &'static str, index: usize, value: f64) -> f64 {
        if let Some(trace) = self.request.trace()
            && let Some(endpoint) = self.endpoints.get(index)
        {
            trace.compare(figure, endpoint.key().name(), value);
        }
        value
    }
}

/// Which endpoint first? A way of one's own to choose is a type of one's own that implements this.
///
/// For each attempt a pick proposes endpoints one at a time from an immutable snapshot, and [filters](super::Filter), rests
/// and the readiness of the endpoint's stack judge them. It need not find the best of all, nor know who is out: a few
/// proposals nearly always hit. So most picks look at one or two endpoints however many there are, and none allocates. After
/// three proposals, and one more for each doubling from sixteen endpoints on, or earlier if the pick has no more, everybody is
/// asked once; in which order, [`rank`](Self::rank) says.
///
/// What is known is at hand, in [`Candidates`]: of an endpoint its [`key`](Endpoint::key) with the label
/// ([`name`](crate::ApiKey::name)), the weight ([`weight_of`](crate::ApiKey::weight_of)), the tier and the tags, its account,
/// and its [`figures`](Endpoint::figures), such as the requests in flight, as far as a
/// [`LoadMonitorLayer`](crate::LoadMonitorLayer) stands in its stack to write them; of the request its headers, and its model
/// and the like ([`asks`](RequestContext::asks)), as far as a [`BufferLayer`](crate::BufferLayer) above has read them.
///
/// One pick serves all requests at once, so what it remembers between them is atomic or behind a lock. It goes to
/// [`KeySelectLayer::pick`](super::KeySelectLayer::pick) or [`BalancerBuilder::pick`](crate::stack::BalancerBuilder::pick);
/// where the choice is made while the program runs, as a `Box<dyn Pick>`. Where a closure will do there is [`pick_fn`].
///
/// One that needs nothing but the candidates:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{Candidates, Pick, Pool, Rng}};
///
/// /// Always starts with the first key.
/// struct FirstHealthy;
///
/// impl Pick for FirstHealthy {
///     fn propose(&self, candidates: &Candidates<'_>, turn: usize, _rng: &mut Rng) -> usize {
///         turn % candidates.endpoints.len()
///     }
/// }
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?, ApiKey::new("sk-or-v1-b")?])?;
/// let builder = Balancer::builder(pool).pick(FirstHealthy);
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// One that reads the request, and has an order for those who come after its proposals. A pick is a pure function, so a test
/// needs neither a stack nor a runtime:
///
/// ```
/// use http::HeaderMap;
/// use tokio::time::Instant;
/// use tower_openrouter::{ApiKey, RequestContext, select::{Candidates, Pick, Pool, Rank, Rng}};
///
/// /// The key that has the tenant's name for its label; where that is out, the least loaded.
/// struct OwnKey;
///
/// impl Pick for OwnKey {
///     fn propose(&self, candidates: &Candidates<'_>, turn: usize, _rng: &mut Rng) -> usize {
///         let tenant = candidates.headers.get("x-tenant").and_then(|tenant| tenant.to_str().ok());
///         let own = candidates.endpoints.iter().position(|endpoint| Some(endpoint.key().name()) == tenant);
///         own.filter(|_| turn == 0).unwrap_or(usize::MAX) // no more proposals
///     }
///
///     fn rank(&self, candidates: &Candidates<'_>, index: usize, _rng: &mut Rng) -> Option<Rank> {
///         Some(Rank::from(candidates.endpoints[index].figures().load(candidates.now)))
///     }
/// }
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.label("acme"), ApiKey::new("sk-or-v1-b")?.label("zeta")])?;
/// let (request, headers) = (RequestContext::new(), HeaderMap::from_iter([("x-tenant".parse()?, "zeta".parse()?)]));
/// let endpoints = pool.endpoints();
/// let candidates = Candidates::new(&endpoints, &request, &headers, Instant::now());
/// assert_eq!(OwnKey.propose(&candidates, 0, &mut Rng::with_seed(1)), 1);
/// # Ok::<(), tower::BoxError>(())
/// ```
///
/// One that looks at everybody once for each snapshot. What a pick works out of all endpoints, such as a table of weights,
/// lies in the snapshot itself, so it can neither be stale nor be fought over by two selectors that share a pick:
///
/// ```
/// use tower_openrouter::{Endpoint, select::{Candidates, Pick, Prepared, Rank, Rng}};
///
/// /// The key whose label comes first in the alphabet, then the others in that order.
/// struct Alphabetical;
///
/// impl Pick for Alphabetical {
///     fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
///         let mut places: Vec<usize> = (0..endpoints.len()).collect();
///         places.sort_by_key(|place| endpoints[*place].key().name());
///         Some(Box::new(places))
///     }
///
///     fn propose(&self, candidates: &Candidates<'_>, turn: usize, _rng: &mut Rng) -> usize {
///         let order = candidates.prepared::<Vec<usize>>();
///         order.and_then(|order| order.get(turn).copied()).unwrap_or(usize::MAX)
///     }
///
///     fn rank(&self, candidates: &Candidates<'_>, index: usize, _rng: &mut Rng) -> Option<Rank> {
///         let order = candidates.prepared::<Vec<usize>>()?;
///         order.iter().position(|place| *place == index).map(|at| Rank::from(at as f64))
///     }
/// }
/// ```
pub trait Pick: Send + Sync + 'static {
    /// The index of the endpoint proposed, among [`Candidates::endpoints`]. `turn` counts the proposals for this attempt, from
    /// 0; an index out of bounds, such as [`usize::MAX`], ends them, and [`rank`](Self::rank) takes over.
    fn propose(&self, candidates: &Candidates<'_>, turn: usize, rng: &mut Rng) -> usize;

    /// Looks at all endpoints of a new snapshot; proposals find what this makes in [`Candidates::prepared`]. It is called
    /// whenever somebody joins, leaves, begins or ends a rest, and those who look for a key wait for it. Default: nothing.
    fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
        let _ = endpoints;
        None
    }

    /// Where an endpoint stands when all proposals were refused and selection looks at everybody, the lowest rank first.
    /// Default: `None`, which is any order, evenly mixed, and costs nothing; it must not depend on `index`.
    fn rank(&self, candidates: &Candidates<'_>, index: usize, rng: &mut Rng) -> Option<Rank> {
        let _ = (candidates, index, rng);
        None
    }

    /// What it is called where a choice is [explained](crate::explain); default the name of its type.
    fn name(&self) -> &str {
        name_of::<Self>()
    }
}

/// A place in the order in which everybody is looked at: the lower tier first, then the lower number.
#[derive(Debug, Clone, Copy)]
pub struct Rank {
    /// The tier; 0 where there are none.
    pub tier: u32,
    /// The place within it.
    pub order: f64,
}

impl From<f64> for Rank {
    fn from(order: f64) -> Self {
        Self { tier: 0, order }
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.tier.cmp(&other.tier).then(self.order.total_cmp(&other.order))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

macro_rules! forward {
    ($($pointer:ident),*) => { $(
        /// So that the pick can be chosen while the program runs.
        impl<P: Pick + ?Sized> Pick for $pointer<P> {
            fn propose(&self, candidates: &Candidates<'_>, turn: usize, rng: &mut Rng) -> usize {
                (**self).propose(candidates, turn, rng)
            }

            fn prepare(&self, endpoints: &[Endpoint]) -> Option<Prepared> {
                (**self).prepare(endpoints)
            }

            fn rank(&self, candidates: &Candidates<'_>, index: usize, rng: &mut Rng) -> Option<Rank> {
                (**self).rank(candidates, index, rng)
            }

            fn name(&self) -> &str {
                (**self).name()
            }
        }
    )* };
}

forward!(Arc, Box);

/// The index of the cheaper of two endpoints chosen at random (the power of two choices, Mitzenmacher 2001).
fn cheaper_of_two(count: usize, rng: &mut Rng, cost: impl Fn(usize) -> f64) -> usize {
    if count < 2 {
        return 0;
    }
    let one = rng.usize(..count);
    // distinct from the first, and uniform among the others
    let other = (one + rng.usize(1..count)) % count;
    if cost(other) < cost(one) { other } else { one }
}

#[cfg(test)]
pub(super) mod support {
    use super::*;
    use crate::{
        ApiKey,
        select::order::{self, Asked},
    };

    /// As many endpoints, with the weights, labels, … that `with` gives each key.
    pub(in crate::select) fn endpoints(count: usize, with: impl Fn(usize, ApiKey) -> ApiKey) -> Vec<Endpoint> {
        let key = |index| ApiKey::new(format!("key-{index}")).unwrap();
        (0..count).map(|index| Endpoint::new(with(index, key(index)))).collect()
    }

    /// What a pick proposes for so many requests in a row, with endpoints that refuse.
    pub(in crate::select) fn picks(
        pick: &impl Pick,
        endpoints: &[Endpoint],
        count: usize,
        refuses: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let (request, headers, rng) = (RequestContext::new(), HeaderMap::new(), &mut Rng::with_seed(7));
        let prepared = pick.prepare(endpoints);
        let candidates = Candidates::new(endpoints, &request, &headers, Instant::now()).with(prepared.as_ref());
        let ask = |index: usize, _| if refuses(index) { Asked::Refused } else { Asked::Found(index) };
        (0..count).map(|_| order::find(pick, &candidates, rng, ask).expect("somebody is left")).collect()
    }

    /// How many picks each endpoint got.
    pub(in crate::select) fn shares(picks: &[usize], endpoints: usize) -> Vec<usize> {
        let mut shares = vec![0; endpoints];
        for pick in picks {
            shares[*pick] += 1;
        }
        shares
    }
}
