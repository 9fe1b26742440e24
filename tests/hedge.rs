//! What hedging promises, against the simulator, which does the counting.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use support::{Act, Probe};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt};
use tower_openrouter::{
    ApiKey, Balancer, HedgeLayer, OpenRouter, RequestContext, RetryLayer,
    breaker::BreakerState,
    endpoint::Price,
    retry::RetryBudget,
    select::{CreditLimit, Pool, RoundRobin},
    simulator::{Fault, Scenario, Simulator, What},
    stack::{BalancerBody, BalancerBuilder},
};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const MODEL: &str = "acme/swift-1";

/// Two accounts with two keys each, and a provider whose first token takes 300 ms or so.
fn upstream(cancel: bool) -> (Simulator, Pool) {
    let scenario = format!(
        r#"
accounts = [{{ name = "a", credits = 100.0 }}, {{ name = "b", credits = 100.0 }}]
keys = [
  {{ label = "a-1", account = "a" }}, {{ label = "a-2", account = "a" }},
  {{ label = "b-1", account = "b" }}, {{ label = "b-2", account = "b" }},
]
models = [{{ id = "acme/swift-1" }}]
[[endpoints]]
model = "acme/swift-1"
provider = "One"
prompt_price = 0.2
completion_price = 0.6
accept_ms = 100
first_token_ms = 200
tokens_per_second = 100
jitter = 0.3
cancel = {cancel}
[keep]
log = 50000
requests = 100
"#
    );
    let simulator = Simulator::new(Scenario::from_toml(&scenario).unwrap()).unwrap();
    (simulator.clone(), pool(&simulator, |_| true))
}

fn pool(simulator: &Simulator, which: impl Fn(&str) -> bool) -> Pool {
    let keys = simulator.keys().into_iter().filter(|key| which(&key.label));
    Pool::new(keys.map(|key| ApiKey::new(&key.secret).unwrap().label(key.label.clone()).account(key.account.clone())))
        .unwrap()
}

/// From now on this part of the requests has its first token late.
fn slow(simulator: &Simulator, part: f64, late: Duration) {
    let what = What::Slow { factor: 1.0, accept_ms: 0.0, first_token_ms: late.as_secs_f64() * 1e3 };
    simulator.inject(Fault::new(what).probability(part)).unwrap();
}

/// The next so many requests have their first token late.
fn slow_next(simulator: &Simulator, times: u64, late: Duration) {
    let what = What::Slow { factor: 1.0, accept_ms: 0.0, first_token_ms: late.as_secs_f64() * 1e3 };
    simulator.inject(Fault::new(what).times(times)).unwrap();
}

type Stack = Balancer<Full<Bytes>>;

fn stack(simulator: &Simulator, pool: &Pool, hedge: Option<HedgeLayer>) -> Stack {
    stack_of(simulator, Balancer::builder(pool.clone()).pick(RoundRobin::default()), hedge)
}

fn stack_of<P: tower_openrouter::select::Pick>(
    simulator: &Simulator,
    builder: BalancerBuilder<P>,
    hedge: Option<HedgeLayer>,
) -> Stack {
    let builder = match hedge {
        Some(hedge) => builder.hedge(hedge),
        None => builder,
    };
    builder.build(OpenRouter::new(simulator.service()))
}

/// A hedge without a bound by share, so that a test sees the one it is about.
fn eager() -> HedgeLayer {
    HedgeLayer::new().share(1.0).unwrap()
}

fn chat() -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":16,"messages":[{{"role":"user","content":"hello"}}],"stream":true}}"#
    );
    Request::post("/v1/chat/completions").header("content-type", "application/json").body(Full::from(body)).unwrap()
}

/// The same, and what is known of it.
fn watched() -> (Request<Full<Bytes>>, RequestContext) {
    let mut request = chat();
    let context = RequestContext::of(&mut request);
    (request, context)
}

async fn read(response: Response<BalancerBody>) {
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
}

/// Sends so many, one every 50 ms, and tells how long each took to its first output, the shortest first.
async fn first_outputs(stack: &Stack, count: usize) -> Vec<Duration> {
    let mut calls = JoinSet::new();
    for number in 0..count {
        let stack = stack.clone();
        calls.spawn(async move {
            time::sleep(50 * MILLI * number as u32).await;
            let started = Instant::now();
            let response = stack.oneshot(chat()).await.unwrap();
            let first = started.elapsed();
            read(response).await;
            first
        });
    }
    let mut firsts = calls.join_all().await;
    firsts.sort_unstable();
    firsts
}

/// Lets the layer learn what is usual.
async fn warm_up(stack: &Stack) {
    first_outputs(stack, 40).await;
}

fn stats(stack: &Stack) -> Value {
    serde_json::to_value(stack.handle().snapshot()).unwrap()["hedge"].clone()
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[(sorted.len() as f64 * share) as usize]
}

#[tokio::test(start_paused = true)]
async fn with_a_slow_tail_the_slowest_percent_comes_much_sooner_for_few_more_attempts() {
    const COUNT: usize = 1_500;
    let mut seen = Vec::new();
    for hedge in [None, Some(HedgeLayer::new())] {
        let (simulator, pool) = upstream(true);
        let stack = stack(&simulator, &pool, hedge);
        slow(&simulator, 0.03, 20 * SECOND);
        let firsts = first_outputs(&stack, COUNT).await;
        let counts = simulator.counts();
        seen.push((percentile(&firsts, 0.5), percentile(&firsts, 0.99), counts.attempts as usize));
    }
    let [(_, plain, sent), (_, hedged, more)] = seen[..] else { unreachable!() };
    assert_eq!(sent, COUNT);
    assert!(plain > 20 * SECOND && hedged < SECOND, "{plain:?} {hedged:?}");
    assert!(more > COUNT && more <= COUNT + COUNT / 20 + 1, "{more}");
}

#[tokio::test(start_paused = true)]
async fn off_by_default_and_where_nothing_is_known_yet() {
    let (simulator, pool) = upstream(true);
    let plain = stack(&simulator, &pool, None);
    warm_up(&plain).await;
    slow(&simulator, 1.0, 5 * SECOND);
    let hedged = stack(&simulator, &pool, Some(eager()));
    for stack in [&plain, &hedged] {
        let before = simulator.counts().attempts;
        read(stack.clone().oneshot(chat()).await.unwrap()).await;
        assert_eq!(simulator.counts().attempts, before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_attempt_goes_to_another_account_and_both_are_in_the_books() {
    let (simulator, pool) = upstream(true);
    let stack = stack(&simulator, &pool, Some(eager()));
    warm_up(&stack).await;
    let before = stats(&stack);
    for _ in 0..8 {
        slow_next(&simulator, 1, 20 * SECOND);
        let (request, context) = watched();
        context.explain();
        let started = Instant::now();
        let response = stack.clone().oneshot(request).await.unwrap();
        assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
        let (first, second) = {
            let ledger = context.ledger();
            let of = |at: usize| ledger.attempts()[at].endpoint.clone();
            assert_eq!(ledger.attempts().len(), 2);
            assert_eq!(ledger.latest().unwrap().endpoint, of(1), "the answer is the second's");
            (of(0), of(1))
        };
        assert_ne!(first.account(), second.account());
        assert_eq!(first.figures().in_flight(), 0, "the loser is gone with the head");
        read(response).await;
        let told = context.trace().unwrap().explanation();
        let [one, two] = &told.attempts[..] else { panic!("{told:?}") };
        assert!(!one.hedge && two.hedge);
        assert_eq!(two.key.as_deref(), Some(second.key().name()));
        assert!(two.outcome.unwrap().is_success() && one.outcome.is_none());
        let header = context.trace().unwrap().header();
        assert!(header.to_str().unwrap().contains(" hedge"), "{header:?}");
    }
    let since = |what| stats(&stack)[what].as_u64().unwrap() - before[what].as_u64().unwrap();
    assert_eq!((since("hedges"), since("won")), (8, 8));
}

#[tokio::test(start_paused = true)]
async fn the_loser_is_neutral_for_health_and_not_billed_where_the_provider_can_cancel() {
    for cancel in [true, false] {
        let (simulator, pool) = upstream(cancel);
        let stack = stack(&simulator, &pool, Some(eager()));
        warm_up(&stack).await;
        let cost = |simulator: &Simulator| simulator.counts().accounts.values().map(|tally| tally.cost).sum::<f64>();
        let one = cost(&simulator) / 40.0;
        for _ in 0..10 {
            slow_next(&simulator, 1, 20 * SECOND);
            read(stack.clone().oneshot(chat()).await.unwrap()).await;
        }
        time::sleep(60 * SECOND).await;
        let (mut cancelled, mut failed) = (0, 0);
        for endpoint in pool.endpoints().iter() {
            cancelled += endpoint.figures().cancelled();
            failed += endpoint.figures().failed();
            let state = stack.handle().breaker(endpoint).unwrap().snapshot().state;
            assert!(matches!(state, BreakerState::Closed), "{state:?}");
        }
        let hedges = stats(&stack)["hedges"].as_u64().unwrap();
        assert_eq!((cancelled, failed), (hedges, 0));
        let billed = cost(&simulator) / one;
        let rounds = if cancel { 50.0 } else { 50.0 + hedges as f64 };
        assert!((billed - rounds).abs() < 3.0, "cancel {cancel}: {billed} requests billed, {hedges} hedges");
    }
}

#[tokio::test(start_paused = true)]
async fn the_loser_is_charged_to_its_account_until_the_bill_is_known() {
    let (simulator, pool) = upstream(true);
    pool.prices().set([(MODEL.into(), Price::per_million(0.2, 0.6))]);
    let builder = Balancer::builder(pool.clone()).filter(CreditLimit::new()).pick(RoundRobin::default());
    let stack = stack_of(&simulator, builder, Some(eager()));
    warm_up(&stack).await;
    for endpoint in pool.endpoints().iter() {
        let left = tower_openrouter::endpoint::Spendable::Money(tower_openrouter::endpoint::Money::from_usd(1.0));
        let report = tower_openrouter::endpoint::KeyReport { left, ..Default::default() };
        endpoint.credit().report_key(report, Instant::now());
    }
    time::sleep(SECOND).await;
    slow_next(&simulator, 1, 20 * SECOND);
    let (request, context) = watched();
    read(stack.clone().oneshot(request).await.unwrap()).await;
    let ledger = context.ledger();
    let spent: Vec<_> = ledger
        .attempts()
        .iter()
        .map(|attempt| match attempt.endpoint.credit().spendable(Instant::now()) {
            tower_openrouter::endpoint::Spendable::Money(left) => 1.0 - left.usd(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(spent.len(), 2);
    assert!(spent.iter().all(|spent| *spent > 0.0), "both are charged: {spent:?}");
}

#[tokio::test(start_paused = true)]
async fn without_budget_share_or_price_nothing_is_sent_twice() {
    let none = RetryBudget::new(0.0, 0).unwrap();
    let dear = |hedge: HedgeLayer| hedge.max_cost(0.000_001).unwrap();
    for (why, hedge, retry, price) in [
        ("budget", eager(), RetryLayer::new().budget(none), None),
        ("share", HedgeLayer::new().share(0.000_1).unwrap(), RetryLayer::new(), None),
        ("cost", dear(eager()), RetryLayer::new(), Some(0.6)),
        ("cost", eager().max_cost(1.0).unwrap(), RetryLayer::new(), None),
    ] {
        let (simulator, pool) = upstream(true);
        if let Some(price) = price {
            pool.prices().set([(MODEL.into(), Price::per_million(0.2, price))]);
        }
        let builder = Balancer::builder(pool.clone()).pick(RoundRobin::default()).retry(retry);
        let stack = stack_of(&simulator, builder, Some(hedge));
        warm_up(&stack).await;
        let before = simulator.counts().attempts;
        slow(&simulator, 1.0, 3 * SECOND);
        for _ in 0..5 {
            read(stack.clone().oneshot(chat()).await.unwrap()).await;
        }
        let told = stats(&stack);
        let extra = simulator.counts().attempts - before - 5;
        // the share has one at the start
        assert!(extra <= u64::from(why == "share"), "{why}: {told}");
        assert!(told["skipped"][why].as_u64() >= Some(4), "{why}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cheap_request_of_known_price_is_hedged() {
    let (simulator, pool) = upstream(true);
    pool.prices().set([(MODEL.into(), Price::per_million(0.2, 0.6))]);
    let stack = stack(&simulator, &pool, Some(eager().max_cost(0.01).unwrap()));
    warm_up(&stack).await;
    slow_next(&simulator, 1, 20 * SECOND);
    read(stack.clone().oneshot(chat()).await.unwrap()).await;
    assert!(stats(&stack)["won"].as_u64() >= Some(1), "{}", stats(&stack));
}

#[tokio::test(start_paused = true)]
async fn with_one_account_there_is_nobody_to_hedge_with() {
    let (simulator, _) = upstream(true);
    let pool = pool(&simulator, |label| label.starts_with('a'));
    let stack = stack(&simulator, &pool, Some(eager()));
    warm_up(&stack).await;
    let (before, told) = (simulator.counts().attempts, stats(&stack));
    slow_next(&simulator, 1, 5 * SECOND);
    let (request, context) = watched();
    let started = Instant::now();
    read(stack.clone().oneshot(request).await.unwrap()).await;
    assert!(started.elapsed() > 5 * SECOND);
    assert_eq!((simulator.counts().attempts, context.ledger().attempts().len()), (before + 1, 1));
    let nobody = |told: &Value| told["skipped"]["nobody"].as_u64().unwrap_or_default();
    assert_eq!(nobody(&stats(&stack)), nobody(&told) + 1);
    assert_eq!(stats(&stack)["hedges"].as_u64(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn when_the_first_fails_the_second_is_the_attempt_and_nothing_is_tried_beside_it() {
    let (simulator, pool) = upstream(true);
    let stack = stack(&simulator, &pool, Some(eager()));
    warm_up(&stack).await;
    // the first fails after 2 s, when the second has long begun, and that one takes 4 s
    let before = simulator.counts().attempts;
    simulator.inject(Fault::new(What::Slow { factor: 1.0, accept_ms: 2_000.0, first_token_ms: 0.0 }).times(1)).unwrap();
    simulator.inject(Fault::new(What::ProviderFails { status: 503 }).times(1)).unwrap();
    slow_next(&simulator, 2, 4 * SECOND);
    let (request, context) = watched();
    read(stack.clone().oneshot(request).await.unwrap()).await;
    assert_eq!(simulator.counts().attempts, before + 2, "{:?}", context.ledger());
    assert_eq!(stack.handle().snapshot().total.outcomes.get("provider_unavailable"), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn r051_all_attempts_of_a_request_together_stay_within_the_cap() {
    for attempts in 1..=5 {
        let (simulator, pool) = upstream(true);
        let retry = RetryLayer::new().attempts(attempts).unwrap();
        let builder = Balancer::builder(pool.clone()).pick(RoundRobin::default()).retry(retry);
        let stack = stack_of(&simulator, builder, Some(eager()));
        warm_up(&stack).await;
        let before = simulator.counts().attempts;
        simulator.inject(Fault::new(What::Slow { factor: 1.0, accept_ms: 3_000.0, first_token_ms: 0.0 })).unwrap();
        simulator.inject(Fault::new(What::ProviderFails { status: 503 })).unwrap();
        let (request, context) = watched();
        let response = stack.clone().oneshot(request).await.unwrap();
        assert!(!response.status().is_success());
        let sent = simulator.counts().attempts - before;
        assert_eq!(sent, u64::from(attempts), "{:?}", context.ledger());
        assert_eq!(context.ledger().attempts().len(), attempts as usize);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_call_drops_both_and_a_deadline_ends_both() {
    let (simulator, pool) = upstream(true);
    let stack = stack(&simulator, &pool, Some(eager()));
    warm_up(&stack).await;
    slow(&simulator, 1.0, 60 * SECOND);
    for by_deadline in [false, true] {
        let (request, context) = watched();
        if by_deadline {
            context.limit(Instant::now() + 5 * SECOND);
            let response = stack.clone().oneshot(request).await.unwrap();
            assert!(!response.status().is_success());
        } else {
            let call = stack.clone().oneshot(request);
            assert!(time::timeout(5 * SECOND, call).await.is_err());
        }
        assert_eq!(context.ledger().attempts().len(), 2);
        assert_eq!(simulator.counts().in_flight, 0);
        assert!(pool.endpoints().iter().all(|endpoint| endpoint.figures().in_flight() == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_selector_it_works_around_any_service_and_the_first_to_answer_wins() {
    let probe = Probe::new(Act::ok().delay(100 * MILLI));
    let hedge = eager();
    let handle = hedge.handle();
    let service = hedge.layer(probe.clone());
    let call = || service.clone().oneshot(Request::new(Full::<Bytes>::default()));
    for _ in 0..30 {
        call().await.unwrap().into_body().collect().await.unwrap();
    }
    assert_eq!(handle.stats().hedges, 0);
    probe.script([Act::Hang, Act::ok().delay(10 * MILLI)]);
    let started = Instant::now();
    call().await.unwrap().into_body().collect().await.unwrap();
    assert!(started.elapsed() < 150 * MILLI, "{:?}", started.elapsed());
    // the first wins when the second is slower still
    probe.script([Act::ok().delay(500 * MILLI), Act::Hang]);
    let started = Instant::now();
    call().await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(started.elapsed(), 500 * MILLI);
    // and both fail: the error is the last one's
    probe.script([Act::Fail { delay: 300 * MILLI }, Act::Fail { delay: 400 * MILLI }]);
    assert!(call().await.is_err());
    let stats = handle.stats();
    assert_eq!((stats.requests, stats.hedges, stats.won, stats.failed), (33, 3, 1, 1));
    assert_eq!((probe.calls(), probe.unready_calls(), probe.in_flight(), probe.reserved()), (36, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn retries_above_in_a_stack_of_ones_own_are_not_hedged_again() {
    let probe = Probe::new(Act::ok().delay(100 * MILLI));
    let hedge = eager();
    let handle = hedge.handle();
    let service = ServiceBuilder::new().layer(RetryLayer::new()).layer(hedge).service(probe.clone());
    let call = || service.clone().oneshot(Request::new(Full::<Bytes>::default()));
    for _ in 0..30 {
        call().await.unwrap().into_body().collect().await.unwrap();
    }
    probe.set(Act::status(503).delay(SECOND));
    let answer: Result<_, BoxError> = call().await;
    assert_eq!(answer.unwrap().status(), 503);
    assert_eq!((probe.calls(), handle.stats().hedges), (33, 1));
}
