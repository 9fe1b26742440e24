//! Picks and filters at work in a selector: sessions, tiers, tags, panic mode and the cap on ejection.

mod support;

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use support::{Act, Probe};
use tower::{BoxError, Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_openrouter::{
    ApiKey, Balancer, CircuitBreakerLayer, Endpoint, KeySelectLayer, OpenRouter, Rejected, RequestContext,
    breaker::{BreakerHandle, BreakerPolicy, TripPolicy},
    endpoint_fn,
    outcome::{Cause, Classify, Fault, Outcome, Rest, Scope},
    select::{Pick, Pool, PriorityTiers, Rendezvous, RequireTags, RoundRobin, SmoothWeighted},
    simulator::{Scenario, Simulator},
};

type Asked = Request<Full<Bytes>>;

fn key(label: &str) -> ApiKey {
    ApiKey::new(format!("secret-of-{label}")).unwrap().label(label)
}

fn request() -> Asked {
    Request::new(Full::from("{}"))
}

/// The label of the key that a request went to.
async fn taken<S: Service<Asked, Error = BoxError>>(service: S, mut request: Asked) -> Result<String, BoxError> {
    let context = RequestContext::of(&mut request);
    service.oneshot(request).await?;
    let label = context.ledger().attempts().last().expect("it was sent").endpoint.key().name().to_owned();
    Ok(label)
}

/// How many of `count` requests went to each key.
async fn shares<S: Service<Asked, Error = BoxError> + Clone>(service: &S, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(taken(service.clone(), request()).await.unwrap()).or_default() += 1;
    }
    shares
}

fn of<const N: usize>(shares: [(&str, usize); N]) -> BTreeMap<String, usize> {
    shares.map(|(label, share)| (label.to_owned(), share)).into()
}

/// What a status means for the key that met it, for want of a leaf that knows.
#[derive(Clone)]
struct ByStatus;

impl Classify for ByStatus {
    fn head(&self, status: http::StatusCode, _: &http::HeaderMap) -> Option<Outcome> {
        Some(match status.as_u16() {
            402 => {
                Outcome::Fault(Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(3600))))
            }
            500 => Outcome::Fault(Fault::new(Cause::Refused, Scope::Key)),
            _ => Outcome::Success,
        })
    }
}

/// A pool of keys behind breakers that open at the first failure, for 60 s.
fn breakers() -> impl Fn(&Endpoint) -> CircuitBreakerLayer + Clone {
    |endpoint: &Endpoint| {
        CircuitBreakerLayer::new(BreakerPolicy::new(TripPolicy::consecutive(1).unwrap()))
            .classify(ByStatus)
            .endpoint(endpoint)
    }
}

/// Sends requests until `count` of them have met `status`, and then lets the rest go well.
async fn meet<S: Service<Asked, Error = BoxError> + Clone>(service: &S, probe: &Probe, status: u16, count: usize) {
    probe.set(Act::status(status));
    for _ in 0..count {
        taken(service.clone(), request()).await.unwrap();
    }
    probe.set(Act::ok());
}

#[tokio::test(start_paused = true)]
async fn r016_without_panic_mode_nobody_is_let_through_an_open_breaker() {
    let probe = Probe::ok();
    let pool = Pool::new(["a", "b", "c"].map(key)).unwrap();
    let layer = KeySelectLayer::new(pool.clone(), endpoint_fn(breakers())).classify(ByStatus).max_wait(Duration::ZERO);
    let service = layer.layer(probe.clone());
    meet(&service, &probe, 500, 3).await;
    let refusal = taken(service, request()).await.unwrap_err();
    assert!(Rejected::find(&*refusal).unwrap().to_string().contains("3 breaker_open"), "{refusal}");
    assert_eq!(pool.panic_picks(), 0);
}

#[tokio::test(start_paused = true)]
async fn r017_below_the_least_share_keys_that_only_fail_are_used_again_and_counted() {
    let probe = Probe::ok();
    let pool = Pool::new(["a", "b", "c", "d"].map(key)).unwrap();
    let layer = KeySelectLayer::new(pool.clone(), endpoint_fn(breakers())).classify(ByStatus);
    let service = layer.panic_below(0.5).unwrap().layer(probe.clone());
    meet(&service, &probe, 402, 1).await;
    meet(&service, &probe, 500, 1).await;
    let left = shares(&service, 20).await;
    assert_eq!((left.len(), left.get("a")), (2, None), "half are left: {left:?}");
    assert_eq!(pool.panic_picks(), 0);

    meet(&service, &probe, 500, 1).await;
    let taken = shares(&service, 30).await;
    assert_eq!(taken.len(), 3, "{taken:?}");
    assert!(!taken.contains_key("a"), "who was refused for credit stays out: {taken:?}");
    assert_eq!(pool.panic_picks(), 20, "of three keys, two are out by right");

    tokio::time::advance(Duration::from_secs(400)).await;
    assert_eq!(shares(&service, 30).await.len(), 3);
    assert_eq!(pool.panic_picks(), 20, "their breakers have closed");
}

#[tokio::test(start_paused = true)]
async fn r017_what_was_isolated_by_hand_stays_so() {
    let (probe, handles) = (Probe::ok(), std::sync::Arc::new(std::sync::Mutex::new(Vec::<BreakerHandle>::new())));
    let pool = Pool::new(["a", "b"].map(key)).unwrap();
    let per_key = endpoint_fn({
        let handles = handles.clone();
        move |endpoint: &Endpoint| {
            let layer = breakers()(endpoint);
            handles.lock().unwrap().push(layer.handle());
            layer
        }
    });
    let service =
        KeySelectLayer::new(pool.clone(), per_key).classify(ByStatus).panic_below(1.0).unwrap().layer(probe.clone());
    shares(&service, 2).await;
    handles.lock().unwrap()[0].isolate();
    assert_eq!(shares(&service, 10).await, of([("b", 10)]));
    meet(&service, &probe, 500, 1).await;
    assert_eq!(shares(&service, 10).await, of([("b", 10)]));
    assert_eq!(pool.panic_picks(), 10);
}

#[tokio::test(start_paused = true)]
async fn r018_no_more_than_the_cap_are_out_because_they_fail() {
    for (cap, usable) in [(0.5, 5), (0.25, 8), (0.0, 9), (1.0, 0)] {
        let probe = Probe::ok();
        let pool = Pool::new(('a'..='j').map(|letter| key(&letter.to_string()))).unwrap();
        let layer = KeySelectLayer::new(pool, endpoint_fn(breakers())).classify(ByStatus).max_wait(Duration::ZERO);
        let service = layer.max_ejected(cap).unwrap().layer(probe.clone());
        probe.set(Act::status(500));
        for _ in 0..200 {
            // with no cap there is nobody left after ten
            let _ = taken(service.clone(), request()).await;
        }
        probe.set(Act::ok());
        if usable > 0 {
            assert_eq!(shares(&service, 200).await.len(), usable, "cap {cap}");
        } else {
            taken(service, request()).await.unwrap_err();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r018_rests_do_not_count_towards_the_cap() {
    let probe = Probe::ok();
    let pool = Pool::new(["a", "b", "c", "d"].map(key)).unwrap();
    let layer = KeySelectLayer::new(pool, endpoint_fn(breakers())).classify(ByStatus).max_ejected(0.25).unwrap();
    let service = layer.layer(probe.clone());
    meet(&service, &probe, 402, 2).await;
    meet(&service, &probe, 500, 1).await;
    assert_eq!(shares(&service, 10).await.len(), 1);
}

#[tokio::test]
async fn what_request_and_stack_demand_by_tag_only_fitting_keys_serve() {
    let pool = Pool::new([
        key("eu-a").tags(["eu", "team-a"]),
        key("eu-b").tags(["eu", "team-b"]),
        key("us-a").tags(["us", "team-a"]),
    ])
    .unwrap();
    let everywhere = KeySelectLayer::new(pool.clone(), endpoint_fn(|_: &Endpoint| tower::layer::util::Identity::new()));
    let in_eu = everywhere.clone().filter(RequireTags::new(["eu"])).layer(Probe::ok());
    let everywhere = everywhere.layer(Probe::ok());
    let demanding = |tags: &[&str]| {
        let mut request = request();
        RequestContext::of(&mut request).require(tags.to_vec());
        request
    };
    for _ in 0..10 {
        assert_eq!(taken(in_eu.clone(), demanding(&["team-a"])).await.unwrap(), "eu-a");
        assert_ne!(taken(everywhere.clone(), demanding(&["team-a"])).await.unwrap(), "eu-b");
        assert_ne!(taken(in_eu.clone(), request()).await.unwrap(), "us-a");
        let refusal = taken(in_eu.clone(), demanding(&["us"])).await.unwrap_err();
        assert!(Rejected::find(&*refusal).is_some());
    }
}

#[tokio::test]
async fn a_tier_that_is_full_or_rests_gives_way_and_is_used_again_at_once() {
    let pool = Pool::new([key("own-1"), key("own-2"), key("spare").tier(2)]).unwrap();
    let one_each = endpoint_fn(|_: &Endpoint| ConcurrencyLimitLayer::new(1));
    let probe = Probe::ok();
    let layer = KeySelectLayer::new(pool.clone(), one_each).classify(ByStatus);
    let service = layer.pick(PriorityTiers::new(RoundRobin::default())).layer(probe.clone());
    assert_eq!(shares(&service, 20).await, of([("own-1", 10), ("own-2", 10)]));

    probe.set(Act::Hang);
    let held: Vec<_> = (0..2).map(|_| tokio::spawn(service.clone().oneshot(request()))).collect();
    tokio::task::yield_now().await;
    probe.set(Act::ok());
    assert_eq!(shares(&service, 10).await, of([("spare", 10)]), "both are full");
    held.iter().for_each(tokio::task::JoinHandle::abort);
    for held in held {
        assert!(held.await.is_err());
    }
    assert_eq!(shares(&service, 10).await.get("spare"), None);

    meet(&service, &probe, 402, 2).await;
    assert_eq!(shares(&service, 10).await, of([("spare", 10)]), "both rest");
    pool.reset("own-1");
    assert_eq!(shares(&service, 10).await, of([("own-1", 10)]));
}

#[tokio::test]
async fn a_conversation_keeps_its_account_and_key_and_comes_back_to_them() {
    let account = |index: usize| ["north", "south", "east"][index % 3];
    let pool = Pool::new((0..9).map(|index| key(&format!("k{index}")).account(account(index)))).unwrap();
    let probe = Probe::ok();
    let per_key = endpoint_fn(|_: &Endpoint| tower::layer::util::Identity::new());
    let layer = KeySelectLayer::new(pool.clone(), per_key).classify(ByStatus);
    let service = layer.pick(Rendezvous::new(RoundRobin::default())).layer(probe.clone());
    let talking = |session: &str| {
        let mut request = request();
        request.headers_mut().insert("x-session-id", session.parse().unwrap());
        request
    };
    let account_of = |label: &str| {
        let endpoints = pool.endpoints();
        let endpoint = endpoints.iter().find(|endpoint| endpoint.key().name() == label).unwrap();
        endpoint.account().unwrap().to_owned()
    };
    let mut met = std::collections::BTreeSet::new();
    for session in 0..20 {
        let session = format!("s-{session}");
        let home = taken(service.clone(), talking(&session)).await.unwrap();
        for _ in 0..5 {
            assert_eq!(taken(service.clone(), talking(&session)).await.unwrap(), home);
        }
        probe.set(Act::status(402));
        taken(service.clone(), talking(&session)).await.unwrap();
        probe.set(Act::ok());
        let elsewhere = taken(service.clone(), talking(&session)).await.unwrap();
        assert_ne!(elsewhere, home);
        assert_eq!(account_of(&elsewhere), account_of(&home), "another key of the same account");
        pool.reset(&home);
        assert_eq!(taken(service.clone(), talking(&session)).await.unwrap(), home);
        met.insert(home);
    }
    assert!(met.len() >= 6, "conversations are spread: {met:?}");
}

#[tokio::test(start_paused = true)]
async fn picks_chosen_while_the_program_runs_do_as_those_the_compiler_knows() {
    let picks: [Box<dyn Pick>; 2] =
        [Box::new(SmoothWeighted::default()), Box::new(PriorityTiers::new(SmoothWeighted::default()))];
    for pick in picks {
        let simulator = Simulator::new(Scenario::from_toml(
            r#"
            accounts = [{ name = "alpha", credits = 100.0 }]
            keys = [{ label = "a", account = "alpha" }, { label = "b", account = "alpha" }, { label = "c", account = "alpha" }]
            models = [{ id = "acme/swift" }]
            endpoints = [{ model = "acme/swift", provider = "DeepInfra" }]
            "#,
        ).unwrap())
        .unwrap();
        let weighted = simulator.keys().into_iter().zip([3.0, 2.0, 1.0]);
        let pool = Pool::new(
            weighted.map(|(key, weight)| ApiKey::new(key.secret).unwrap().label(key.label).weight(weight).unwrap()),
        )
        .unwrap();
        let balancer = Balancer::builder(pool).pick(pick).build(OpenRouter::new(simulator.service()));
        for _ in 0..60 {
            let body = r#"{"model":"acme/swift","messages":[{"role":"user","content":"Hi"}]}"#;
            let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from(body)).unwrap();
            let Ok::<_, Infallible>(response) = balancer.clone().oneshot(request).await;
            assert_eq!(response.status(), 200);
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        }
        let counts = simulator.counts();
        assert_eq!(["a", "b", "c"].map(|key| counts.keys[key].attempts), [30, 20, 10]);
    }
}
