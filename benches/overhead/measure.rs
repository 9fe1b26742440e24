//! Measures services in turns, so that whatever else the machine does falls on all of them alike.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkGroup, measurement::WallTime};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tokio::runtime::{Builder, Runtime};
use tower::Service;

use crate::exchange::{Asking, Leaf, ask};

/// Requests of one turn: few enough that most turns end before the scheduler interrupts them.
const TURN: u32 = 200;
/// Requests before the first turn: enough for each of 10,000 keys to have served.
const WARM_UP: u32 = 200_000;

/// Something that is measured.
pub(crate) trait Subject {
    fn name(&self) -> &'static str;
    /// How long so many requests take, one after the other.
    fn run(&mut self, asking: &Asking, requests: u32) -> Duration;
    fn bench(&mut self, group: &mut BenchmarkGroup<'_, WallTime>, asking: &Asking);
}

struct OnRuntime<S, F> {
    name: &'static str,
    runtime: Runtime,
    make: Option<F>,
    service: Option<S>,
}

/// The service that `make` puts around a leaf when it first runs, on a current-thread runtime of its own.
pub(crate) fn subject<S, ResB>(name: &'static str, make: impl FnOnce(Leaf) -> S + 'static) -> Box<dyn Subject>
where
    S: Service<Request<Full<Bytes>>, Response = Response<ResB>, Error: fmt::Debug> + 'static,
    ResB: Body<Data = Bytes, Error: fmt::Debug>,
{
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    Box::new(OnRuntime { name, runtime, make: Some(make), service: None })
}

impl<S, F, ResB> Subject for OnRuntime<S, F>
where
    S: Service<Request<Full<Bytes>>, Response = Response<ResB>, Error: fmt::Debug>,
    F: FnOnce(Leaf) -> S,
    ResB: Body<Data = Bytes, Error: fmt::Debug>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, asking: &Asking, requests: u32) -> Duration {
        let Self { runtime, make, service, .. } = self;
        runtime.block_on(async {
            // on the runtime, since a stack with a task of its own spawns it as it is made
            let service = service.get_or_insert_with(|| make.take().expect("it is made once")(Leaf::new()));
            let started = Instant::now();
            for _ in 0..requests {
                ask(service, asking).await;
            }
            started.elapsed()
        })
    }

    fn bench(&mut self, group: &mut BenchmarkGroup<'_, WallTime>, asking: &Asking) {
        let name = self.name;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| self.run(asking, iterations.try_into().unwrap_or(u32::MAX)));
        });
    }
}

/// Median nanoseconds for a request, and what of them is above the bare call in the same round.
pub(crate) struct Measured(Vec<(&'static str, f64, f64)>);

impl Measured {
    /// Measures all `subjects` in turns, the first of which is the bare call.
    pub(crate) fn of(subjects: &mut [Box<dyn Subject>], asking: &Asking, rounds: usize) -> Self {
        for subject in &mut *subjects {
            subject.run(asking, WARM_UP);
        }
        let mut times = vec![Vec::with_capacity(rounds); subjects.len()];
        for _ in 0..rounds {
            for (subject, times) in subjects.iter_mut().zip(&mut times) {
                // a turn begins with the caches as the subject leaves them, not as the one before did
                subject.run(asking, TURN / 4);
                times.push(subject.run(asking, TURN).as_nanos() as f64 / f64::from(TURN));
            }
        }
        let bare = times[0].clone();
        let row = |(name, times): (&'static str, Vec<f64>)| {
            let above = times.iter().zip(&bare).map(|(time, bare)| time - bare).collect();
            (name, median(times), median(above))
        };
        Self(subjects.iter().map(|subject| subject.name()).zip(times).map(row).collect())
    }

    /// Nanoseconds above the bare call.
    pub(crate) fn above(&self, name: &str) -> f64 {
        self.0.iter().find(|(other, ..)| *other == name).map_or(f64::NAN, |(.., above)| *above)
    }

    pub(crate) fn print(&self, bare: &str) {
        println!("\n| ns for a request, median | in all | above the {bare} |\n| --- | ---: | ---: |");
        for (name, time, above) in &self.0 {
            println!("| {name} | {time:.0} | {above:.0} |");
        }
        println!();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
