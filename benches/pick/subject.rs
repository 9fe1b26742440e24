//! A pick that is measured, by itself and in a selector.

use std::{
    alloc::System,
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Empty;
use stats_alloc::{Region, StatsAlloc};
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};
use tower::{Layer, Service, layer::util::Identity};
use tower_openrouter::{
    ApiKey, Endpoint, KeySelect, KeySelectLayer, RequestContext,
    endpoint::{KeyReport, Money, Spendable},
    endpoint_fn,
    select::{Candidates, Pick, Pool, Prepared, Rng},
};

/// Proposals or requests of one turn: few enough that most turns end before the scheduler interrupts them.
const TURN: u32 = 500;

/// Makes a pick's subject when it is its turn, so that only what is measured is in memory.
pub(crate) type Make = Box<dyn FnOnce() -> Box<dyn Subject>>;

pub(crate) trait Subject {
    /// How many times so many proposals ask for memory.
    fn allocations(&mut self, heap: &'static StatsAlloc<System>) -> usize;
    /// Nanoseconds for a proposal.
    fn propose(&mut self) -> f64;
    /// Nanoseconds for a request through the selector.
    fn select(&mut self) -> f64;
}

struct Measured<P: Pick + Clone> {
    pick: P,
    pool: Pool,
    prepared: Option<Prepared>,
    rng: Rng,
    contexts: Vec<RequestContext>,
    service: KeySelect<Leaf, P>,
    runtime: Runtime,
}

/// A pick over keys of these weights, for requests of these sessions.
pub(crate) fn subject<P: Pick>(
    name: &'static str,
    keys: usize,
    weight: fn(usize) -> f64,
    session: fn(u64) -> Option<String>,
    pick: P,
) -> (&'static str, Make) {
    (name, Box::new(move || Box::new(Measured::new(keys, weight, session, pick))))
}

impl<P: Pick> Measured<std::sync::Arc<P>> {
    fn new(keys: usize, weight: fn(usize) -> f64, session: fn(u64) -> Option<String>, pick: P) -> Self {
        let key = |index| {
            let key = ApiKey::new(format!("sk-or-v1-{index:064}")).expect("the secret is visible ASCII");
            key.weight(weight(index)).expect("weights are positive")
        };
        let pool = Pool::new((0..keys).map(key)).expect("there are keys");
        let now = Instant::now();
        for endpoint in pool.endpoints().iter() {
            let (figures, span) = (endpoint.figures(), Duration::from_millis(300));
            figures.start();
            figures.first_byte(span, now);
            figures.leave();
            figures.succeed(span, span);
            let left = Spendable::Money(Money::from_usd(10.0));
            endpoint.credit().report_key(KeyReport { left, ..KeyReport::default() }, now);
        }
        let contexts = (0..64).map(|number| {
            let context = RequestContext::new();
            if let Some(session) = session(number) {
                context.set_body(format!(r#"{{"session_id":"{session}"}}"#).into());
            }
            context.asks();
            context
        });
        let pick = std::sync::Arc::new(pick);
        let service = KeySelectLayer::new(pool.clone(), endpoint_fn(|_: &Endpoint| Identity::new()))
            .pick(pick.clone())
            .layer(Leaf);
        Self {
            prepared: pick.prepare(&pool.endpoints()),
            pick,
            pool,
            rng: Rng::with_seed(7),
            contexts: contexts.collect(),
            service,
            runtime: Builder::new_current_thread().enable_time().build().expect("a runtime starts"),
        }
    }
}

impl<P: Pick + Clone> Measured<P> {
    fn proposals(&mut self, count: u32) {
        let (endpoints, headers, now) = (self.pool.endpoints(), HeaderMap::new(), Instant::now());
        for number in 0..count as usize {
            let context = &self.contexts[number % self.contexts.len()];
            let candidates = Candidates::new(&endpoints, context, &headers, now).with(self.prepared.as_ref());
            black_box(self.pick.propose(&candidates, 0, &mut self.rng));
        }
    }

    fn requests(&mut self, count: u32) {
        let Self { runtime, service, contexts, .. } = self;
        runtime.block_on(async {
            for number in 0..count as usize {
                let mut request = Request::new(());
                request.extensions_mut().insert(contexts[number % contexts.len()].clone());
                black_box(service.call(request).await.expect("the leaf answers"));
            }
        });
    }

    fn fresh_contexts(&mut self) {
        // the ledger of a context remembers its attempts, and an attempt after others is another matter
        for context in &mut self.contexts {
            let body = context.body().cloned().unwrap_or_default();
            *context = RequestContext::new();
            context.set_body(body);
            context.asks();
        }
    }
}

impl<P: Pick + Clone> Subject for Measured<P> {
    fn allocations(&mut self, heap: &'static StatsAlloc<System>) -> usize {
        self.proposals(1);
        let region = Region::new(heap);
        self.proposals(100);
        region.change().allocations
    }

    fn propose(&mut self) -> f64 {
        self.proposals(TURN / 4);
        let started = std::time::Instant::now();
        self.proposals(TURN);
        started.elapsed().as_nanos() as f64 / f64::from(TURN)
    }

    fn select(&mut self) -> f64 {
        let turns = TURN / self.contexts.len() as u32;
        let mut spent = Duration::ZERO;
        for _ in 0..turns {
            self.fresh_contexts();
            let started = std::time::Instant::now();
            self.requests(self.contexts.len() as u32);
            spent += started.elapsed();
        }
        spent.as_nanos() as f64 / f64::from(turns * self.contexts.len() as u32)
    }
}

/// Medians of proposal and selection at each size, measured in turns, so that a busy machine falls on all alike.
pub(crate) fn medians(sizes: &mut [Box<dyn Subject>; 3], rounds: usize) -> ([f64; 3], [f64; 3]) {
    let mut times: [[Vec<f64>; 3]; 2] = Default::default();
    // enough for each of 10,000 keys to have served
    for _ in 0..60 {
        for subject in sizes.iter_mut() {
            subject.propose();
            subject.select();
        }
    }
    for _ in 0..rounds {
        for (at, subject) in sizes.iter_mut().enumerate() {
            times[0][at].push(subject.propose());
            times[1][at].push(subject.select());
        }
    }
    let [proposals, selections] = times.map(|times| times.map(median));
    (proposals, selections)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Answers at once.
#[derive(Clone, Copy)]
pub(crate) struct Leaf;

impl Service<Request<()>> for Leaf {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}
