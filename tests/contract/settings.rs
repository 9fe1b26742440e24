//! R117: settings that make no sense are refused when they are given, by name. R118: no time is too long or too short.

use std::{error::Error, time::Duration};

use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::time;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, CircuitBreakerLayer, CommitGateLayer, ConcurrencyLimitLayer, DeadlineLayer, Endpoint,
    KeepAliveLayer, KeySelectLayer, ModelRouter, OpenRouter, Rejected, RespondLayer, RetryLayer, TimeoutsLayer,
    breaker::{BreakerPolicy, TripPolicy},
    deadline::Deadline,
    endpoint_fn,
    error::Why,
    limit::AdaptivePolicy,
    openrouter::{MaxPrice, OnFullPool, ProviderLayer, ProviderPreferences, SortBy, Variant},
    retry::{Backoff, RetryBudget},
    select::Pool,
};

use crate::{
    stages::{Payload, innermost, pool, post},
    support::{Act, BodyAct, Probe},
};

type Refusal = Box<dyn Error + Send + Sync>;

fn refusal<T, E: Into<Refusal>>(result: Result<T, E>) -> Option<Refusal> {
    result.err().map(Into::into)
}

#[test]
fn r117_every_number_out_of_range_is_refused_by_name() {
    const ZERO: Duration = Duration::ZERO;
    const SECOND: Duration = Duration::from_secs(1);
    let key = || ApiKey::new("sk-or-v1-key").unwrap();
    let leaf = OpenRouter::builder;
    let policy = BreakerPolicy::default;
    let slow = |after, share, within, least| refusal(policy().slow_calls(after, share, within, least));
    let mut table = vec![
        ("limit", refusal(ConcurrencyLimitLayer::new(0))),
        ("limit", refusal(ConcurrencyLimitLayer::new(1).unwrap().handle().set_cap(0))),
        ("total", refusal(DeadlineLayer::new(ZERO))),
        ("interval", refusal(KeepAliveLayer::new().interval(ZERO))),
        ("attempts", refusal(RetryLayer::new().attempts(0))),
        ("attempts", refusal(RetryLayer::new().attempts(RetryLayer::MOST_ATTEMPTS + 1))),
        ("attempts", refusal(RetryLayer::new().attempts(u32::MAX))),
        ("back-off", refusal(Backoff::new(ZERO, SECOND))),
        ("back-off", refusal(Backoff::new(ZERO, ZERO))),
        ("back-off", refusal(Backoff::new(2 * SECOND, SECOND))),
        ("back-off", refusal(Backoff::new(Duration::MAX, SECOND))),
        ("count", refusal(TripPolicy::consecutive(0))),
        ("count", refusal(TripPolicy::failures(0, SECOND))),
        ("within", refusal(TripPolicy::failures(1, ZERO))),
        ("within", refusal(TripPolicy::share(0.5, ZERO, 1))),
        ("least", refusal(TripPolicy::share(0.5, SECOND, 0))),
        ("cooldown", refusal(policy().cooldown(ZERO, SECOND))),
        ("cooldown", refusal(policy().cooldown(2 * SECOND, SECOND))),
        ("probes", refusal(policy().probes(0))),
        ("lease", refusal(policy().lease(ZERO))),
        ("after", slow(ZERO, 0.5, SECOND, 1)),
        ("within", slow(SECOND, 0.5, ZERO, 1)),
        ("least", slow(SECOND, 0.5, SECOND, 0)),
        ("max_in_flight", refusal(key().max_in_flight(0))),
        ("max_in_flight", refusal(Balancer::builder(pool()).max_in_flight(0))),
        ("base URL", refusal(key().base_url("ftp://example.com"))),
        ("base URL", refusal(key().base_url("https://user@example.com"))),
        ("pattern", refusal(key().models([""]))),
        ("key", refusal(Pool::new([]))),
        ("key", refusal(ApiKey::new(""))),
        ("headers", refusal(TimeoutsLayer::default().headers(ZERO))),
        ("first_output", refusal(TimeoutsLayer::default().first_output(ZERO))),
        ("gap", refusal(TimeoutsLayer::default().gap(ZERO))),
        ("total", refusal(TimeoutsLayer::default().total(ZERO))),
        ("error_body_limit", refusal(leaf().error_body_limit(0).build(()))),
        ("categories", refusal(leaf().categories(["a", "b", "c"]).build(()))),
        ("Title", refusal(leaf().title("a\nb").build(()))),
        ("Referer", refusal(leaf().referer("a\nb").build(()))),
        ("base URL", refusal(leaf().base_url("example.com").build(()))),
    ];
    let learned = AdaptivePolicy::aimd;
    table.extend([
        ("range is 0", refusal(learned().range(0..=5))),
        ("range is 6 to 5", refusal(learned().range(std::ops::RangeInclusive::new(6, 5)))),
        ("range", refusal(learned().range(1..=usize::MAX))),
        ("starts at 0", refusal(learned().start(0))),
        ("starts at 9", refusal(learned().range(1..=8).unwrap().start(9))),
        ("starts at 9", refusal(learned().start(9).unwrap().range(1..=8))),
    ]);
    for factor in [0.0, -0.5, 1.0, 1.5, f64::NAN, f64::INFINITY] {
        table.push(("factor", refusal(learned().shrink(factor))));
    }
    let routes = || ModelRouter::new().route("a/*", ());
    let prefer = ProviderPreferences::new;
    let provider = ProviderLayer::default;
    let cap = |price| prefer().max_price(MaxPrice { request: Some(price), ..MaxPrice::default() });
    table.extend([
        ("pattern", refusal(routes().route("a b", ()).build())),
        ("twice", refusal(routes().route("a/**", ()).build())),
        ("twice", refusal(routes().fallback_models(["a/1", "a/1"]).build())),
        ("fallback model", refusal(routes().fallback_models(["b/1"]).build())),
        ("no pattern", refusal(routes().routes(Vec::<String>::new(), ()).build())),
        ("neither", refusal(ModelRouter::<()>::new().build())),
        ("only", refusal(ProviderLayer::new(prefer().only(Vec::<String>::new())))),
        ("max_price", refusal(ProviderLayer::new(cap(-1.0)))),
        ("max_price", refusal(ProviderLayer::new(cap(f64::NAN)))),
        ("preferred_max_latency", refusal(ProviderLayer::new(prefer().preferred_max_latency(0.0)))),
        ("models", refusal(provider().models(["a", "a"]))),
        ("nitro", refusal(provider().variant(Variant::Nitro).unwrap().variant(Variant::Nitro))),
        ("sort", refusal(ProviderLayer::new(prefer().sort(SortBy::Price)).unwrap().variant(Variant::Floor))),
        ("on_full_pool", refusal(provider().on_full_pool(OnFullPool::NextModel(vec![])))),
    ]);
    for share in [-1.0, -f64::MIN_POSITIVE, 1.0 + f64::EPSILON, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        table.push(("ratio", refusal(RetryBudget::new(share, 0))));
        table.push(("share", refusal(TripPolicy::share(share, SECOND, 1))));
        table.push(("share", slow(SECOND, share, SECOND, 1)));
    }
    table.push(("share", refusal(TripPolicy::share(0.0, SECOND, 1))));
    for weight in [-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        table.push(("weight", refusal(key().weight(weight))));
    }
    for (row, (field, refusal)) in table.into_iter().enumerate() {
        let refusal = refusal.unwrap_or_else(|| panic!("row {row}: {field} was taken")).to_string();
        assert!(refusal.contains(field), "row {row}: {refusal:?} does not name {field}");
    }
}

/// Seconds as anybody might give them: none, nearly none, ordinary, and beyond every clock.
fn any_span() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_nanos(1)),
        Just(Duration::MAX),
        Just(Duration::from_secs(u64::MAX)),
        (0u64..10_000).prop_map(Duration::from_millis),
        any::<Duration>(),
    ]
}

/// Takes the setting, or nothing where it is refused.
fn or_default<T: Default, E>(setting: Result<T, E>) -> T {
    setting.unwrap_or_default()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn r118_no_time_given_to_any_layer_overflows(
        spans in prop::collection::vec(any_span(), 19), status in prop::sample::select(vec![200u16, 401, 402, 429, 500, 503]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let hint = spans[0].as_secs();
            let probe = Probe::new(Act::ok().body(BodyAct::Whole("{}")));
            probe.script((0..6).map(|_| {
                Act::status(status).header("retry-after", hint).header("retry-after-ms", spans[0].as_millis())
            }));
            let backoff = or_default(Backoff::new(spans[1], spans[2]));
            let retry = RetryLayer::new().wait_cap(spans[3]).backoff(backoff).retry_unclear(true);
            let trip = or_default(TripPolicy::share(0.5, spans[4], 1));
            let policy = BreakerPolicy::new(trip);
            let policy = policy.clone().cooldown(spans[5], spans[6]).unwrap_or(policy);
            let policy = policy.clone().lease(spans[7]).unwrap_or(policy);
            let policy = policy.clone().slow_calls(spans[8], 0.5, spans[9], 1).unwrap_or(policy);
            let limit = ConcurrencyLimitLayer::new(1).unwrap().wait(1, spans[10]);
            let per_key = endpoint_fn(move |endpoint: &Endpoint| {
                ServiceBuilder::new()
                    .layer(CircuitBreakerLayer::new(policy.clone()).endpoint(endpoint))
                    .layer(limit.clone())
                    .into_inner()
            });
            let timeouts = TimeoutsLayer::default();
            let timeouts = timeouts.clone().headers(spans[11]).unwrap_or(timeouts);
            let timeouts = timeouts.clone().first_output(spans[10]).unwrap_or(timeouts);
            let timeouts = timeouts.clone().gap(spans[9]).unwrap_or(timeouts);
            let timeouts = timeouts.clone().total(spans[8]).unwrap_or(timeouts);
            let leaf = timeouts.layer(OpenRouter::new(innermost(&probe)));
            let select = KeySelectLayer::new(pool(), per_key).max_wait(spans[12]).layer(leaf);
            let service = ServiceBuilder::new()
                .layer(or_default(KeepAliveLayer::new().after(spans[16]).interval(spans[17])))
                .layer(RespondLayer::new())
                .layer(or_default(DeadlineLayer::new(spans[13])))
                .layer(retry)
                .layer(CommitGateLayer::new().hold(spans[18]))
                .service(select);
            for turn in 0..8 {
                let mut request = post(Payload::whole());
                if turn % 2 == 0 {
                    request.extensions_mut().insert(Deadline::within(spans[14]));
                }
                let Ok(answer) = service.clone().oneshot(request).await;
                let _ = answer.into_body().collect().await;
                time::advance(spans[15].min(Duration::from_secs(600))).await;
            }
        });
    }

    #[test]
    fn r118_a_refusal_may_name_any_time(span in any_span()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refusing = tower::service_fn(move |_: http::Request<Payload>| async move {
            Err::<http::Response<String>, _>(Rejected::new(Why::NoKey, "none").retry_after(span))
        });
        let Ok(answer) = runtime.block_on(RespondLayer::new().layer(refusing).oneshot(post(Payload::whole())));
        prop_assert!(answer.headers().contains_key("retry-after"));
    }
}
