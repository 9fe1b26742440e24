//! Whether a stack that two threads share costs each of them more than one that a thread has for itself.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tokio::{runtime::Builder, task::JoinSet};
use tower::Service;

use crate::exchange::{Asking, ask};

/// Requests of each thread in a round.
const REQUESTS: u32 = 20_000;

/// The time of a request while two threads send through clones of one service, over that of one thread alone: the median of
/// rounds that are taken in turns.
pub(crate) fn of<S, ResB>(make: impl FnOnce() -> S, asking: &Asking, rounds: usize) -> f64
where
    S: Service<Request<Full<Bytes>>, Response = Response<ResB>, Error: fmt::Debug, Future: Send>
        + Clone
        + Send
        + 'static,
    ResB: Body<Data = Bytes, Error: fmt::Debug> + Send,
{
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime starts");
    // on the runtime, since a stack with a task of its own spawns it as it is made
    let service = runtime.block_on(async { make() });
    let round = |threads: usize| {
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..threads {
                let (mut service, asking) = (service.clone(), asking.clone());
                tasks.spawn(async move {
                    let started = Instant::now();
                    for _ in 0..REQUESTS {
                        ask(&mut service, &asking).await;
                    }
                    started.elapsed()
                });
            }
            tasks.join_all().await.into_iter().max().unwrap_or(Duration::ZERO)
        })
    };
    round(2);
    let mut ratios: Vec<_> =
        (0..rounds).map(|_| (round(1), round(2))).map(|(one, two)| two.div_duration_f64(one)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}
