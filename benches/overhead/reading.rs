//! What requests pay for those who look on: a second thread that reads snapshots, or that has changes told to an observer who
//! never reads, a thousand times a second.

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Builder;
use tower_openrouter::{Balancer, OpenRouter, stack::BalancerHandle};

use crate::{
    exchange::{Asking, Leaf, ask},
    stacks::pool,
};

/// Requests of a round.
const REQUESTS: usize = 20_000;
const EVERY: Duration = Duration::from_millis(1);

/// Of a request while somebody looks on, over the same while nobody does; medians of rounds that are taken in turns.
pub(crate) struct Paid {
    mean: f64,
    p99: f64,
    /// What the onlooker does so often a second, and how long it takes.
    rate: f64,
    each: Duration,
}

/// Reads a snapshot of so many keys.
pub(crate) fn snapshots(keys: usize, asking: &Asking, rounds: usize) -> Paid {
    reads(keys, asking, rounds, |handle| drop(black_box(handle.snapshot())))
}

/// Reads one counter of each of so many keys: what a request has to fetch back from whoever looks at all.
pub(crate) fn counters(keys: usize, asking: &Asking, rounds: usize) -> Paid {
    reads(keys, asking, rounds, |handle| {
        for endpoint in handle.pool().endpoints().iter() {
            black_box(endpoint.figures().started());
        }
    })
}

/// Reads them, or those of as many keys that serve nobody: a core at work slows the other one whatever it does.
fn reads(keys: usize, asking: &Asking, rounds: usize, read: impl Fn(&BalancerHandle) + Send + Copy) -> Paid {
    let others = served(keys, asking);
    beside(keys, asking, rounds, move |_| read(&others), read)
}

/// Has a key drained and put back with an observer that never reads, or with none.
pub(crate) fn changes(asking: &Asking, rounds: usize) -> Paid {
    let change = |handle: &BalancerHandle| {
        let pool = handle.pool();
        let label = pool.endpoints()[0].key().name().to_owned();
        pool.drain(&label);
        pool.reset(&label);
    };
    let mut stuck = None;
    beside(20, asking, rounds, change, move |handle| {
        stuck.get_or_insert_with(|| handle.pool().events());
        change(handle);
    })
}

/// Reads so many snapshots of keys that have served.
pub(crate) fn only(keys: usize, asking: &Asking, times: u32) {
    let handle = served(keys, asking);
    for _ in 0..times {
        drop(black_box(handle.snapshot()));
    }
}

/// Keys with a history.
fn served(keys: usize, asking: &Asking) -> BalancerHandle {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    let builder = Balancer::builder(pool(keys));
    let handle = builder.handle();
    let mut service = builder.service(OpenRouter::new(Leaf::new()));
    runtime.block_on(async {
        // histograms begin with a key's fourth success
        for _ in 0..20 * keys {
            ask(&mut service, asking).await;
        }
    });
    handle
}

fn beside(
    keys: usize,
    asking: &Asking,
    rounds: usize,
    mut quiet: impl FnMut(&BalancerHandle) + Send,
    mut busy: impl FnMut(&BalancerHandle) + Send,
) -> Paid {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    let builder = Balancer::builder(pool(keys));
    let handle = builder.handle();
    let mut service = builder.service(OpenRouter::new(Leaf::new()));
    let mut round = |onlooker: &mut (dyn FnMut(&BalancerHandle) + Send)| {
        let (over, handle) = (AtomicBool::new(false), &handle);
        thread::scope(|scope| {
            let (over, onlooker) = (&over, onlooker);
            let onlooker = scope.spawn(move || {
                let (start, mut spent, mut times) = (Instant::now(), Duration::ZERO, 0);
                while !over.load(Relaxed) {
                    let begun = Instant::now();
                    onlooker(handle);
                    (spent, times) = (spent + begun.elapsed(), times + 1);
                    thread::sleep((EVERY * times).saturating_sub(start.elapsed()));
                }
                (f64::from(times) / start.elapsed().as_secs_f64(), spent / times.max(1))
            });
            let mut spans: Vec<_> = runtime.block_on(async {
                let mut spans = Vec::with_capacity(REQUESTS);
                for _ in 0..REQUESTS {
                    let begun = Instant::now();
                    ask(&mut service, asking).await;
                    spans.push(begun.elapsed());
                }
                spans
            });
            over.store(true, Relaxed);
            spans.sort_unstable();
            let mean = spans.iter().sum::<Duration>() / REQUESTS as u32;
            (mean, spans[REQUESTS * 99 / 100], onlooker.join().expect("it does not panic"))
        })
    };
    // histograms begin with a key's fourth success
    for _ in 0..8 * keys.div_ceil(REQUESTS) + 2 {
        round(&mut quiet);
    }
    let (mut means, mut p99s, mut rates, mut spent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (quiet, busy) = (round(&mut quiet), round(&mut busy));
        means.push(busy.0.div_duration_f64(quiet.0));
        p99s.push(busy.1.div_duration_f64(quiet.1));
        rates.push(busy.2.0);
        spent.push(busy.2.1.as_secs_f64());
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Paid { mean: median(means), p99: median(p99s), rate: median(rates), each: Duration::from_secs_f64(median(spent)) }
}

impl std::fmt::Display for Paid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mean, p99, rate, each } = self;
        write!(f, "mean {mean:.3}, p99 {p99:.3} ({rate:.0} a second, {each:.1?} each)")
    }
}
