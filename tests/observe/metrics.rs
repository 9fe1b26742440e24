//! The figures, as a real exporter shows them, against the simulator's own count.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tokio::time::timeout;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_openrouter::{ObserveLayer, RequestContext, observe, stack::BalancerHandle};

use crate::{
    prometheus::Page,
    world::{MODEL, World, chat},
};

fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().set_buckets(&observe::BUCKETS).unwrap().build_recorder()
}

/// The figures of requests, from `recorder`, and those of keys as of now.
fn pages(recorder: &PrometheusRecorder, balancer: &BalancerHandle) -> (Page, Page) {
    let own = recorder_of_keys(balancer);
    (Page::parse(&recorder.handle().render()), own)
}

fn recorder_of_keys(balancer: &BalancerHandle) -> Page {
    let own = recorder();
    metrics::with_local_recorder(&own, || {
        observe::describe();
        balancer.record_metrics();
    });
    Page::parse(&own.handle().render())
}

fn name(short: &str) -> String {
    format!("tower_openrouter_{short}")
}

#[tokio::test(start_paused = true)]
async fn r080_r083_sums_equal_the_upstreams_own_count_and_only_successes_are_timed() {
    let recorder = recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    observe::describe();
    let world = World::new(&ObserveLayer::new());
    world.strike(0.15);
    let of = |page: &Page, short: &str, labels: &[(&str, &str)]| page.sum(&name(short), labels) as u64;
    // nobody leaves, so that what was charged is known to both sides
    for number in 0..200 {
        match number % 10 {
            9 => world.whole(chat("acme/none", false)).await,
            kind => world.whole(chat(if kind < 3 { "acme/other" } else { MODEL }, kind % 2 == 0)).await,
        };
    }
    let keys = recorder_of_keys(&world.handle);
    for (label, tally) in world.simulator.counts().keys {
        let cost = keys.sum(&name("key_cost_nano_usd_total"), &[("key", &label)]) / 1e9;
        assert!((cost - tally.cost).abs() < 1e-6, "{label}: {cost} {}", tally.cost);
    }
    let (mut left, mut left_in_body) = (0, 0);
    for number in 0..200 {
        match number % 5 {
            // a caller that does not wait for the head, and one that does not for the end
            0 => left += u64::from(timeout(Duration::from_millis(20), world.ask(chat(MODEL, false))).await.is_err()),
            1 => left_in_body += u64::from(world.ask(chat(MODEL, true)).await.status() == 200),
            kind => drop(world.whole(chat(MODEL, kind % 2 == 0)).await),
        }
    }
    let (requests, keys) = pages(&recorder, &world.handle);
    let counts = world.simulator.counts();

    // attempts: the upstream's own count, in sum and for each key
    assert!(counts.attempts > 400, "nothing was tried again: {counts:?}");
    assert_eq!(of(&keys, "attempts_total", &[]), counts.attempts);
    assert_eq!(of(&keys, "attempts_ended_total", &[]), counts.attempts, "r079: what started has ended");
    assert_eq!(of(&keys, "attempts_in_flight", &[]), 0);
    for (label, tally) in counts.keys.iter().filter(|(_, tally)| tally.attempts > 0) {
        assert_eq!(of(&keys, "attempts_total", &[("key", label)]), tally.attempts, "{label}");
    }
    let unavailable = [("outcome", "failed"), ("error_type", "provider_unavailable")];
    assert_eq!(of(&keys, "attempts_ended_total", &unavailable), counts.by_status[&503]);
    assert_eq!(
        of(&keys, "attempts_ended_total", &[("key", "dead"), ("error_type", "invalid_key")]),
        counts.by_status[&401]
    );

    // requests: each once, and told apart from attempts, retries and rotations
    assert_eq!(of(&requests, "requests_total", &[]), 400);
    let again = of(&keys, "key_rotations_total", &[]) + of(&keys, "retries_total", &[]);
    let refused = of(&requests, "requests_total", &[("outcome", "refused")]);
    assert_eq!(counts.attempts + refused, 400 + again);
    assert!(of(&keys, "key_rotations_total", &[("error_type", "invalid_key")]) >= 1);
    assert!(of(&keys, "key_rotations_total", &[("error_type", "no_credit")]) >= 1);
    assert!(of(&keys, "retries_total", &[("error_type", "provider_unavailable")]) >= 1);
    let gone = of(&requests, "requests_total", &[("outcome", "left"), ("error_type", "client_gone")]);
    assert_eq!((gone, left > 30, left_in_body > 20), (left + left_in_body, true, true));
    let unknown = [("model", "acme/none"), ("outcome", "failed"), ("error_type", "bad_request")];
    assert_eq!(of(&requests, "requests_total", &unknown), 20);

    // times: of successes alone, and all others apart
    let successes = of(&requests, "requests_total", &[("outcome", "success")]);
    assert_eq!(of(&requests, "time_to_first_output_seconds_count", &[]), successes);
    assert_eq!(of(&requests, "request_duration_seconds_count", &[]), successes);
    assert_eq!(of(&requests, "request_failed_duration_seconds_count", &[]), 400 - successes);
    assert_eq!(of(&requests, "request_failed_duration_seconds_count", &[("outcome", "left")]), gone);
    let first = requests.sum(&name("time_to_first_output_seconds_sum"), &[]) / successes as f64;
    let whole = requests.sum(&name("request_duration_seconds_sum"), &[]) / successes as f64;
    assert!(0.1 < first && first < whole, "{first} {whole}");
    assert_eq!(of(&requests, "requests_in_flight", &[]), 0);

    // what it cost, by model, is what it cost by key, but for answers nobody stayed for
    for short in ["tokens_total", "cost_nano_usd_total"] {
        assert_eq!(of(&requests, short, &[]), of(&keys, &format!("key_{short}"), &[]), "{short}");
    }
}

#[tokio::test(start_paused = true)]
async fn rests_and_breakers_show_as_gauges_and_a_removed_key_is_gone() {
    let world = World::new(&ObserveLayer::new());
    for _ in 0..10 {
        world.whole(chat(MODEL, false)).await;
    }
    let page = recorder_of_keys(&world.handle);
    let of = |page: &Page, short: &str, labels: &[(&str, &str)]| page.sum(&name(short), labels);
    for (key, up, cause) in
        [("a-1", 1.0, None), ("broke-1", 0.0, Some("no_credit")), ("dead", 0.0, Some("invalid_key"))]
    {
        assert_eq!(of(&page, "key_up", &[("key", key)]), up, "{key}");
        assert_eq!(of(&page, "key_rest_seconds", &[("key", key)]) > 0.0, cause.is_some(), "{key}");
        if let Some(cause) = cause {
            assert_eq!(of(&page, "keys_resting", &[("error_type", cause)]), 1.0, "{cause}");
        }
    }
    let states = ["up", "resting", "shut"].map(|state| of(&page, "keys", &[("state", state)]));
    assert_eq!(states, [3.0, 2.0, 0.0]);

    let endpoints = world.handle.pool().endpoints();
    let breaker = |label: &str| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.key().name() == label).unwrap();
        world.handle.breaker(endpoint).unwrap()
    };
    breaker("a-1").isolate();
    breaker("a-2").disable();
    world.handle.pool().remove("dead");
    let page = recorder_of_keys(&world.handle);
    assert_eq!(of(&page, "key_breaker_state", &[("key", "a-1")]), 3.0);
    assert_eq!(of(&page, "key_breaker_state", &[("key", "a-2")]), -1.0);
    assert_eq!(of(&page, "key_up", &[("key", "a-1")]), 0.0);
    assert_eq!(of(&page, "keys", &[("state", "shut")]), 1.0);
    assert_eq!(page.values("key"), ["a-1", "a-2", "b-1", "broke-1"], "r082: a key that is gone has no series");
}

#[tokio::test(start_paused = true)]
async fn who_waits_shows_as_long_as_it_waits() {
    let world = World::new(&ObserveLayer::new());
    for endpoint in world.handle.pool().endpoints().iter() {
        endpoint.set_shut_until(Some(tokio::time::Instant::now() + Duration::from_secs(5)));
    }
    let waiting = |page: &Page| page.sum(&name("requests_waiting"), &[("priority", "normal")]);
    let ask = async { world.whole(chat(MODEL, false)).await };
    let look = async {
        tokio::task::yield_now().await;
        waiting(&recorder_of_keys(&world.handle))
    };
    assert_eq!(tokio::join!(ask, look), (200, 1.0));
    assert_eq!(waiting(&recorder_of_keys(&world.handle)), 0.0);
}

#[tokio::test]
async fn r082_100_000_model_names_and_paths_from_clients_make_a_bounded_number_of_series() {
    let recorder = recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    observe::describe();
    let leaf = service_fn(async |request: Request<()>| {
        let status = if request.uri().path().ends_with('7') { 200 } else { 400 };
        Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::from("{}")).unwrap())
    });
    let mut service = ObserveLayer::new().layer(leaf);
    for number in 0..100_000_u32 {
        let path = format!("/{}/{number}", ["chat/completions", "embeddings", "models", "else"][number as usize % 4]);
        let mut request = Request::post(path).body(()).unwrap();
        // as a stage that collects bodies does
        let body = format!(r#"{{"model":"any/{}"}}"#, number.wrapping_mul(0x9E37_79B9));
        RequestContext::of(&mut request).set_body(body.into());
        service.call(request).await.unwrap().into_body().collect().await.unwrap();
    }
    let page = Page::parse(&recorder.handle().render());
    assert_eq!(page.sum(&name("requests_total"), &[]), 100_000.0);
    assert_eq!(page.values("model").len(), 1001, "a thousand, and other");
    assert!(page.sum(&name("requests_total"), &[("model", "other")]) > 98_000.0);
    println!("{} series of {} models", page.series(), page.values("model").len());
    assert!(page.series() < 10_000, "{}", page.series());
}

#[tokio::test(start_paused = true)]
async fn without_a_recorder_nothing_is_counted_and_nothing_fails() {
    let world = World::new(&ObserveLayer::new().models(1));
    assert_eq!(world.whole(chat(MODEL, false)).await, 200);
    world.handle.record_metrics();
    let fails = service_fn(async |_: Request<()>| Err::<Response<Full<Bytes>>, _>(BoxError::from("no")));
    let error = ObserveLayer::default().layer(fails).oneshot(Request::new(())).await.unwrap_err();
    assert_eq!(error.to_string(), "no");
}
