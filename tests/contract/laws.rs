//! tower's laws, for every layer alone, every pair, and the default stack.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use http_body_util::BodyExt;
use tokio::time::{self, Instant};
use tower::{Layer, Service, ServiceExt};
use tower_openrouter::{Endpoint, KeySelectLayer, LoadMonitorLayer, RetryLayer, select::EndpointLayer};

use crate::{
    stages::{CAP, Payload, Stack, Stage, Watch, erase, innermost, pool, post, stack, whole},
    storm::is_ready,
    support::{Act, BodyAct, Probe},
};

/// Each layer alone, each ordered pair, and the default stack.
fn each(mut check: impl FnMut(&str, &Probe, Stack, Watch)) {
    let mut run = |name: &str, make: &dyn Fn(&Probe) -> (Stack, Watch)| {
        let probe = Probe::ok();
        let (service, watch) = make(&probe);
        check(name, &probe, service, watch);
    };
    for outer in Stage::ALL {
        run(&format!("{outer:?}"), &|probe| stack(&[outer], probe));
        for inner in Stage::ALL {
            run(&format!("{:?}", [outer, inner]), &|probe| stack(&[outer, inner], probe));
        }
    }
    run("the default stack", &whole);
}

/// Runs something on a runtime of its own with the clock paused.
fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
}

async fn call(service: &Stack) -> u16 {
    let answer = service.clone().oneshot(post(Payload::whole())).await.unwrap();
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    status
}

#[test]
fn r001_r002_ready_asked_ten_times_reserves_once_and_one_call_runs_on_the_ready_instance() {
    each(|name, probe, mut service, watch| {
        run(async {
            for _ in 0..10 {
                assert!(is_ready(&mut service).await, "{name}");
            }
            for limit in &*watch.limits.lock().unwrap() {
                assert!(limit.in_flight() <= 1, "{name}");
            }
            assert!(probe.reserved() <= 1, "{name}");
            let answer = service.call(post(Payload::whole()));
            answer.await.unwrap().into_body().collect().await.unwrap();
            assert_eq!((probe.calls(), probe.unready_calls()), (1, 0), "{name}");
        });
        drop(service);
        watch.assert_idle(probe, name);
    });
}

#[test]
fn r003_an_idle_clone_holds_nothing() {
    each(|name, probe, mut service, watch| {
        run(async {
            assert!(is_ready(&mut service).await, "{name}");
            let clone = service.clone();
            drop(service);
            watch.assert_idle(probe, name);
            assert_eq!(call(&clone).await, 200, "{name}");
            watch.assert_idle(probe, name);
        });
    });
}

#[test]
fn r003_whoever_is_not_ready_or_refused_holds_nothing() {
    each(|name, probe, mut service, watch| {
        run(async {
            // the inner service is ready all the time, so what is pending is a layer of ours
            probe.set(Act::ok().body(BodyAct::Hang));
            watch.breakers.lock().unwrap().iter().for_each(|breaker| breaker.isolate());
            let mut held = Vec::new();
            for _ in 0..CAP {
                if is_ready(&mut service).await {
                    let answer = service.call(post(Payload::whole()));
                    held.push(time::timeout(Duration::from_millis(1), answer).await);
                }
            }
            let mut late = service.clone();
            if is_ready(&mut late).await {
                let calls = probe.calls();
                let _ = time::timeout(Duration::from_secs(1), late.call(post(Payload::whole()))).await;
                assert!(probe.calls() > calls || probe.reserved() == 0, "{name}: refused, and holds");
            } else {
                assert_eq!(probe.reserved(), 0, "{name}: pending, and holds");
            }
            drop(late);
        });
    });
}

#[test]
fn r004_who_waits_is_woken_so_that_every_call_ends() {
    each(|name, probe, service, watch| {
        run(async {
            probe.set(
                Act::ok()
                    .delay(Duration::from_millis(10))
                    .body(BodyAct::Frames { pause: Duration::from_millis(1), frames: 3 }),
            );
            let started = Instant::now();
            let calls = join_all((0..4 * CAP).map(|_| async {
                let answer = service.clone().oneshot(post(Payload::whole())).await;
                if let Ok(answer) = answer {
                    answer.into_body().collect().await.unwrap();
                }
            }));
            time::timeout(Duration::from_secs(3600), calls).await.unwrap_or_else(|_| panic!("{name}: nobody woke"));
            // four turns of 13 ms where one limit holds all, and no timer that saved a waiter forgotten
            assert!(started.elapsed() < Duration::from_millis(100), "{name}: {:?}", started.elapsed());
        });
        drop(service);
        watch.assert_idle(probe, name);
    });
}

#[test]
fn r004_a_waiter_is_not_polled_in_a_loop() {
    each(|name, probe, service, _watch| {
        run(async {
            probe.set(Act::ok().delay(Duration::from_secs(1)));
            let all = (0..4 * CAP).map(|_| tokio_test::task::spawn(service.clone().oneshot(post(Payload::whole()))));
            let mut all: Vec<_> = all.collect();
            for call in &mut all {
                let _ = call.poll();
            }
            for _ in 0..100 {
                for call in all.iter_mut().filter(|call| call.is_woken()) {
                    let _ = call.poll();
                }
            }
            assert!(all.iter().all(|call| !call.is_woken()), "{name}: woken again and again with nothing to do");
        });
    });
}

#[test]
fn r006_the_default_stack_is_usable_after_ten_thousand_refusals() {
    let probe = Probe::ok();
    let (mut service, watch) = whole(&probe);
    run(async {
        // refused by the limits, then by the keys' rests, then by the breakers
        probe.set(Act::ok().body(BodyAct::Hang));
        let mut held = Vec::new();
        for _ in 0..3 * CAP {
            held.push(service.ready().await.unwrap().call(post(Payload::whole())).await.unwrap());
        }
        let mut refused = 0;
        let mut refuse = async |times: usize| {
            for _ in 0..times {
                let ready = service.ready().await.expect("a refusal is no error of readiness");
                refused += usize::from(ready.call(post(Payload::whole())).await.unwrap().status() != 200);
            }
        };
        refuse(3_000).await;
        drop(held);
        probe.set(Act::status(401).header("retry-after", 60 * 60 * 23));
        refuse(4_000).await;
        probe.set(Act::ok());
        for pool in &watch.pools {
            pool.endpoints().iter().for_each(|endpoint| assert!(pool.reset(endpoint.key().name())));
        }
        watch.breakers.lock().unwrap().iter().for_each(|breaker| breaker.isolate());
        refuse(3_001).await;
        watch.breakers.lock().unwrap().iter().for_each(|breaker| breaker.reset());
        assert_eq!(refused, 10_001);
        time::sleep(Duration::from_secs(100)).await;
        assert_eq!(call(&service).await, 200);
    });
    watch.assert_idle(&probe, "the default stack");
}

/// Gives each endpoint a probe of its own below a monitor.
#[derive(Clone)]
struct Own(Arc<Vec<Probe>>, tower_openrouter::select::Pool);

impl<S> EndpointLayer<S> for Own {
    type Service = Stack;

    fn layer(&self, endpoint: &Endpoint, _inner: S) -> Stack {
        let at = self.1.endpoints().iter().position(|other| other == endpoint).unwrap();
        erase(LoadMonitorLayer::endpoint(endpoint).layer(innermost(&self.0[at])))
    }
}

#[tokio::test(start_paused = true)]
async fn r007_a_key_that_is_never_ready_or_hangs_delays_nobody_else() {
    let pool = pool();
    let probes = Arc::new(vec![Probe::ok(), Probe::ok(), Probe::new(Act::Hang)]);
    probes[1].block(true);
    let select = KeySelectLayer::new(pool.clone(), Own(probes.clone(), pool))
        .pick(tower_openrouter::select::LeastInFlight::default());
    let service = erase(RetryLayer::new().layer(select.layer(())));
    // whoever comes to the key that hangs stays with it, the others must not notice
    let crowd = service.clone();
    let stuck = tokio::spawn(async move { join_all((0..100).map(|_| call(&crowd))).await });
    time::sleep(Duration::from_millis(1)).await;
    let started = Instant::now();
    let mut served = 0;
    for _ in 0..100 {
        served += usize::from(time::timeout(Duration::ZERO, call(&service)).await == Ok(200));
    }
    assert_eq!((served, probes[1].calls()), (100, 0));
    assert_eq!(started.elapsed(), Duration::ZERO);
    stuck.abort();
}

/// A waiter has one offer at a time, so what comes free while its offer turns out void must be looked for.
#[tokio::test(start_paused = true)]
async fn r004_a_waiter_whose_offer_was_void_takes_what_came_free_meanwhile() {
    let pool = pool();
    let probes = Arc::new(vec![Probe::ok(), Probe::ok(), Probe::ok()]);
    probes.iter().for_each(|probe| probe.block(true));
    let service = erase(KeySelectLayer::new(pool.clone(), Own(probes.clone(), pool)).layer(()));
    let waiter = tokio::spawn(async move { call(&service).await });
    time::sleep(Duration::from_millis(1)).await;
    let started = Instant::now();
    probes[0].block(false);
    probes[0].block(true);
    probes[1].block(false);
    assert_eq!(waiter.await.unwrap(), 200);
    assert_eq!((started.elapsed(), probes[1].calls()), (Duration::ZERO, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn r004_r044_under_threads_nobody_who_waits_is_forgotten() {
    let per_key =
        tower_openrouter::endpoint_fn(|_: &Endpoint| tower_openrouter::ConcurrencyLimitLayer::new(2).unwrap());
    let busy = tower::service_fn(|_: http::Request<Payload>| async {
        tokio::task::yield_now().await;
        Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from("ok"))))
    });
    let select = KeySelectLayer::new(pool(), per_key).max_wait(Duration::from_secs(3600)).layer(busy);
    let service = erase(select.clone());
    let callers = (0..64).map(|_| {
        let service = service.clone();
        tokio::spawn(async move {
            for turn in 0..200 {
                match turn % 8 {
                    // some leave the line
                    0 => drop(time::timeout(Duration::ZERO, call(&service)).await),
                    _ => assert_eq!(call(&service).await, 200),
                }
            }
        })
    });
    let all = time::timeout(Duration::from_secs(60), join_all(callers)).await.expect("somebody was forgotten");
    all.into_iter().for_each(|caller| caller.unwrap());
    assert_eq!(select.waiting(), 0);
}
