//! The line of those who wait for a key.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{task::JoinHandle, time::Instant};
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_openrouter::{
    ApiKey, ConcurrencyLimitLayer, Endpoint, KeySelect, KeySelectLayer, Rejected, RequestContext, endpoint_fn,
    error::Why,
    limit::ConcurrencyLimit,
    outcome::{Cause, Fault, Outcome, OutcomeCell, Rest, Scope},
    request::Priority,
    select::{Filter, Fit, Pool, filter_fn},
};

fn key(index: usize) -> ApiKey {
    ApiKey::new(format!("key-{index}")).unwrap().label(format!("k{index}"))
}

fn pool(count: usize) -> Pool {
    Pool::new((0..count).map(key)).unwrap()
}

fn asking(model: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    RequestContext::of(&mut request).set_body(format!("{{\"model\":\"{model}\"}}").into());
    request
}

fn context(request: &Request<Full<Bytes>>) -> &RequestContext {
    RequestContext::get(request.extensions()).unwrap()
}

/// An upstream that answers after a while, and remembers who came when.
#[derive(Clone, Default)]
struct Upstream {
    takes: Duration,
    /// The first so many calls get this fault.
    faults: Arc<Mutex<Vec<Fault>>>,
    starts: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Upstream {
    fn taking(millis: u64) -> Self {
        Self { takes: Duration::from_millis(millis), ..Self::default() }
    }

    fn failing_once(fault: Fault) -> Self {
        let upstream = Self::default();
        upstream.faults.lock().unwrap().push(fault);
        upstream
    }

    fn starts(&self) -> Vec<(Instant, String)> {
        self.starts.lock().unwrap().clone()
    }

    fn names(&self) -> Vec<String> {
        self.starts().into_iter().map(|(_, name)| name).collect()
    }
}

impl Service<Request<Full<Bytes>>> for Upstream {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let name = request.headers().get("name").map_or("", |name| name.to_str().unwrap()).to_owned();
        self.starts.lock().unwrap().push((Instant::now(), name));
        let (fault, takes) = (self.faults.lock().unwrap().pop(), self.takes);
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            let mut response = Response::new(Full::from("ok"));
            if let Some(fault) = fault {
                let cell = OutcomeCell::new();
                cell.end(Outcome::Fault(fault));
                response.extensions_mut().insert(cell);
            }
            Ok(response)
        })
    }
}

type Limited = KeySelect<ConcurrencyLimit<Upstream>>;

/// A selector whose keys take `cap` requests at once.
fn limited(pool: &Pool, cap: usize, upstream: &Upstream) -> Limited {
    layer(pool, cap).layer(upstream.clone())
}

type Caps = tower_openrouter::select::EndpointFn<fn(&Endpoint) -> ConcurrencyLimitLayer>;

fn layer(pool: &Pool, cap: usize) -> KeySelectLayer<Caps> {
    let per_key: fn(&Endpoint) -> ConcurrencyLimitLayer = match cap {
        1 => |_| ConcurrencyLimitLayer::new(1).unwrap(),
        2 => |_| ConcurrencyLimitLayer::new(2).unwrap(),
        _ => |_| ConcurrencyLimitLayer::new(100_000).unwrap(),
    };
    KeySelectLayer::new(pool.clone(), endpoint_fn(per_key)).max_waiters(100_000)
}

/// Counts how often a task was woken.
struct Counted<F>(Pin<Box<F>>, Arc<AtomicUsize>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, SeqCst);
        self.0.as_mut().poll(cx)
    }
}

struct Run {
    service: Limited,
    polls: Arc<AtomicUsize>,
}

impl Run {
    fn new(service: &Limited) -> Self {
        Self { service: service.clone(), polls: Arc::default() }
    }

    /// Sends a request; the time when it got an answer or was refused.
    async fn send(&self, request: Request<Full<Bytes>>) -> JoinHandle<Result<Instant, Rejected>> {
        let service = self.service.clone();
        let call = async move {
            let result = service.oneshot(request).await;
            match result {
                Ok(response) => response.into_body().collect().await.map(drop).unwrap(),
                Err(error) => return Err(Rejected::find(&*error).expect("by us").clone()),
            }
            Ok(Instant::now())
        };
        let task = tokio::spawn(Counted(Box::pin(call), self.polls.clone()));
        tokio::task::yield_now().await;
        task
    }

    async fn named(&self, name: &str, priority: Priority) -> JoinHandle<Result<Instant, Rejected>> {
        let mut request = asking("a");
        request.headers_mut().insert("name", name.parse().unwrap());
        context(&request).set_priority(priority);
        self.send(request).await
    }
}

async fn all(tasks: Vec<JoinHandle<Result<Instant, Rejected>>>) -> Vec<Result<Instant, Rejected>> {
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

/// One slot every so often, for all keys together.
struct Slots {
    next: Mutex<Instant>,
    every: Duration,
    judged: Arc<AtomicUsize>,
}

impl Filter for Slots {
    fn judge(&self, _: &Endpoint, _: &RequestContext, now: Instant) -> Fit {
        self.judged.fetch_add(1, SeqCst);
        let next = *self.next.lock().unwrap();
        if next > now { Fit::NotBefore(next) } else { Fit::Yes }
    }

    fn kind(&self, _: &RequestContext) -> Option<u64> {
        Some(0)
    }

    fn reserves(&self) -> bool {
        true
    }

    fn reserve(&self, _: &Endpoint, _: &RequestContext, now: Instant) -> Option<u64> {
        let mut next = self.next.lock().unwrap();
        (*next <= now).then(|| *next += self.every)?;
        Some(0)
    }
}

#[tokio::test(start_paused = true)]
async fn r044_a_higher_class_goes_first_and_equals_in_order_of_arrival() {
    let (pool, upstream) = (pool(1), Upstream::taking(10));
    let run = Run::new(&limited(&pool, 1, &upstream));
    let mut tasks = vec![run.named("running", Priority::Low).await];
    for (name, class) in [("l1", Priority::Low), ("n1", Priority::Normal), ("h1", Priority::High)] {
        tasks.push(run.named(name, class).await);
    }
    for (name, class) in [("h2", Priority::High), ("n2", Priority::Normal), ("l2", Priority::Low)] {
        tasks.push(run.named(name, class).await);
    }
    assert_eq!(run.service.waiting(), 6);
    assert_eq!(pool.waiting(), [(Priority::High, 2), (Priority::Normal, 2), (Priority::Low, 2)]);
    assert!(all(tasks).await.iter().all(Result::is_ok));
    assert!(pool.waiting().iter().all(|(_, waiting)| *waiting == 0));
    assert_eq!(upstream.names(), ["running", "h1", "h2", "n1", "n2", "l1", "l2"]);
}

#[tokio::test(start_paused = true)]
async fn r044_a_low_class_does_not_starve() {
    let upstream = Upstream::taking(1000);
    let run = Run::new(&limited(&pool(1), 1, &upstream));
    let mut tasks = vec![run.named("running", Priority::High).await, run.named("low", Priority::Low).await];
    for _ in 0..25 {
        tasks.push(run.named("high", Priority::High).await);
        tokio::time::sleep(Duration::from_millis(990)).await;
    }
    assert!(all(tasks).await.iter().all(Result::is_ok));
    let place = upstream.names().iter().position(|name| name == "low").unwrap();
    assert!((19..=22).contains(&place), "after {place} others that came within 20 s");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_those_who_wait_for_the_same() {
    let upstream = Upstream::taking(10);
    let run = Run::new(&limited(&pool(2), 1, &upstream));
    let mut tasks = Vec::new();
    for number in 0..100 {
        tasks.push(run.named(&number.to_string(), Priority::Normal).await);
        if number % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    }
    assert!(all(tasks).await.iter().all(Result::is_ok));
    let order: Vec<usize> = upstream.names().iter().map(|name| name.parse().unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_model_or_account_holds_up_no_other() {
    let only = |index: usize, model: &str| key(index).models([model]).unwrap();
    let pool = Pool::new([only(0, "a"), only(1, "b"), only(2, "b").tags(["eu"])]).unwrap();
    let upstream = Upstream::taking(1000);
    let run = Run::new(&limited(&pool, 1, &upstream));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(run.send(asking("a")).await);
    }
    for model in ["b", "b"] {
        tasks.push(run.send(asking(model)).await);
    }
    let demanding = asking("b");
    context(&demanding).require(["eu"]);
    tasks.push(run.send(demanding).await);
    tasks.push(run.send(asking("b")).await);
    let seconds: Vec<_> = all(tasks).await.into_iter().map(|served| (served.unwrap() - start).as_secs()).collect();
    assert_eq!(seconds, [1, 2, 3, 4, 1, 1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_behind_one_retry_after_come_spread_and_never_early() {
    for keys in [1, 10] {
        let hint = Duration::from_secs(10);
        // the address is refused, so that all keys come back at once
        let fault = Fault::new(Cause::PlatformLimit, Scope::Egress).rest(Rest::hinted(hint));
        let upstream = Upstream::failing_once(fault);
        let run = Run::new(&limited(&pool(keys), 100_000, &upstream));
        let start = Instant::now();
        run.send(asking("a")).await.await.unwrap().unwrap();
        let mut tasks = Vec::new();
        for _ in 0..200 {
            tasks.push(run.send(asking("a")).await);
        }
        assert_eq!(run.service.waiting(), 200);
        assert!(all(tasks).await.iter().all(Result::is_ok));
        let after: Vec<_> = upstream.starts()[1..].iter().map(|(at, _)| (*at - start).as_millis()).collect();
        assert!(after.iter().all(|millis| (10_000..13_000).contains(millis)), "{after:?}");
        let mut peak = 0;
        for from in &after {
            peak = peak.max(after.iter().filter(|millis| (*from..from + 100).contains(millis)).count());
        }
        println!("{keys} keys: peak {peak} of 200 in any 100 ms");
        assert!(peak <= 40, "{peak} of 200 in 100 ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_of_a_filter_is_used_when_it_is_free_by_one_and_wakes_a_handful() {
    let (upstream, judged) = (Upstream::taking(500), Arc::new(AtomicUsize::new(0)));
    let pool = Pool::new((0..100).map(|index| key(index).account("acme"))).unwrap();
    let (start, every) = (Instant::now(), Duration::from_millis(70));
    let slots = Slots { next: Mutex::new(start), every, judged: judged.clone() };
    let service = layer(&pool, 2).filter(slots).max_wait(Duration::from_secs(600)).layer(upstream.clone());
    let run = Run::new(&service);
    let mut tasks = Vec::new();
    for _ in 0..1000 {
        tasks.push(run.send(asking("a")).await);
    }
    let (polls, judgements) = (run.polls.swap(0, SeqCst), judged.swap(0, SeqCst));
    println!("to join: {polls} polls, {judgements} verdicts of 1,000 with 100 keys");
    tokio::time::sleep(every * 500 + Duration::from_millis(30)).await;
    let served = upstream.starts().len() - 1;
    // one poll at the end of its answer is each request's own
    let wakes = run.polls.load(SeqCst) as f64 / served as f64 - 1.0;
    println!("{served} slots, {wakes:.2} wakes each, {} verdicts each", judged.load(SeqCst) / served);
    assert_eq!(served, 500);
    assert!(wakes <= 4.0, "{wakes} wakes a slot");
    for (slot, (at, _)) in upstream.starts().iter().enumerate() {
        let late = *at - (start + every * slot as u32);
        assert!(late <= Duration::from_millis(1), "slot {slot} was used {late:?} late");
    }
    drop(tasks);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_behind_a_thousand_keys_are_woken_one_a_release() {
    let upstream = Upstream::taking(1000);
    let pool = pool(1000);
    let judged = Arc::new(AtomicUsize::new(0));
    struct Judge(Arc<AtomicUsize>);
    impl Filter for Judge {
        fn judge(&self, _: &Endpoint, _: &RequestContext, _: Instant) -> Fit {
            self.0.fetch_add(1, SeqCst);
            Fit::Yes
        }
        fn kind(&self, _: &RequestContext) -> Option<u64> {
            Some(0)
        }
    }
    let service = layer(&pool, 1).filter(Judge(judged.clone())).layer(upstream.clone());
    let run = Run::new(&service);
    let mut tasks = Vec::new();
    for _ in 0..1000 {
        tasks.push(run.send(asking("a")).await);
    }
    judged.store(0, SeqCst);
    for _ in 0..10_000 {
        tasks.push(run.send(asking("a")).await);
    }
    let judgements = judged.swap(0, SeqCst) as f64 / 10_000.0;
    println!("verdicts for each who joins: {judgements:.2}");
    assert!(judgements < 2.0, "{judgements}");
    run.polls.store(0, SeqCst);
    let start = Instant::now();
    assert!(all(tasks).await.iter().all(Result::is_ok));
    let wakes = run.polls.load(SeqCst) as f64 / 10_000.0;
    println!("polls for each release: {wakes:.2}, verdicts {:.2}", judged.load(SeqCst) as f64 / 10_000.0);
    // one for the release, one for the answer of the one that was served
    assert!(wakes <= 3.0, "{wakes}");
    assert_eq!(start.elapsed().as_secs(), 11, "as fast as can be");
}

#[tokio::test(start_paused = true)]
async fn what_a_filter_reserved_and_gives_back_wakes_whom_it_suffices_for() {
    /// So much at once, for all keys together; a request takes as much as its model says.
    struct Purse(Mutex<u64>);
    fn cost(request: &RequestContext) -> u64 {
        request.asks().model.as_deref().unwrap().parse().unwrap()
    }
    impl Filter for Purse {
        fn judge(&self, _: &Endpoint, request: &RequestContext, _: Instant) -> Fit {
            if *self.0.lock().unwrap() >= cost(request) { Fit::Yes } else { Fit::Full }
        }
        fn kind(&self, _: &RequestContext) -> Option<u64> {
            Some(0)
        }
        fn reserves(&self) -> bool {
            true
        }
        fn reserve(&self, _: &Endpoint, request: &RequestContext, _: Instant) -> Option<u64> {
            let mut left = self.0.lock().unwrap();
            *left = left.checked_sub(cost(request))?;
            Some(cost(request))
        }
        fn settle(&self, _: &Endpoint, amount: u64, _: &tower_openrouter::select::Ended) -> bool {
            *self.0.lock().unwrap() += amount;
            false
        }
    }
    let upstream = Upstream::taking(1000);
    let pool = Pool::new((0..50).map(|index| key(index).account("acme"))).unwrap();
    let service =
        layer(&pool, 1).filter(Purse(Mutex::new(10))).max_wait(Duration::from_secs(3600)).layer(upstream.clone());
    let run = Run::new(&service);
    let start = Instant::now();
    let first = run.send(asking("10")).await;
    let mut tasks = Vec::new();
    for _ in 0..200 {
        tasks.push(run.send(asking("2")).await);
    }
    // no key suffices for it, and it keeps nobody back
    let dear = run.send(asking("11")).await;
    run.polls.store(0, SeqCst);
    first.await.unwrap().unwrap();
    let ends: Vec<_> = all(tasks).await.into_iter().map(|served| (served.unwrap() - start).as_secs()).collect();
    // ten go into five at a time
    assert_eq!(ends, (0..200).map(|index| 2 + index / 5).collect::<Vec<_>>());
    let wakes = run.polls.load(SeqCst) as f64 / 200.0;
    println!("wakes for each release: {wakes:.2}");
    assert!(wakes <= 4.0, "{wakes}");
    dear.abort();
}

#[tokio::test(start_paused = true)]
async fn r045_who_leaves_with_an_offer_in_hand_passes_it_on() {
    let upstream = Upstream::taking(100);
    let run = Run::new(&limited(&pool(1), 1, &upstream));
    let first = run.send(asking("a")).await;
    let mut leaving = Box::pin(run.service.clone().oneshot(asking("a")));
    let woken = Arc::new(AtomicUsize::new(0));
    {
        struct Woken(Arc<AtomicUsize>);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let waker = std::task::Waker::from(Arc::new(Woken(woken.clone())));
        assert!(leaving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let behind = run.send(asking("a")).await;
    first.await.unwrap().unwrap();
    tokio::task::yield_now().await;
    assert!(woken.load(SeqCst) >= 1 && upstream.starts().len() == 1, "it is for the one that leaves now");
    drop(leaving);
    let start = Instant::now();
    behind.await.unwrap().unwrap();
    assert_eq!((start.elapsed().as_millis(), run.service.waiting()), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn who_would_be_served_too_late_is_refused_at_once_and_told_when() {
    let upstream = Upstream::taking(100);
    let run = Run::new(&limited(&pool(1), 1, &upstream));
    let (start, mut tasks) = (Instant::now(), Vec::new());
    // three times of what can be served, for a minute
    for number in 0..1800_u32 {
        tokio::time::sleep_until(start + Duration::from_millis(1000) * number / 30).await;
        let (task, sent) = (run.send(asking("a")).await, Instant::now());
        tasks.push(tokio::spawn(async move { (task.await.unwrap(), sent.elapsed()) }));
    }
    let (mut served, mut at_once, mut late) = (Vec::new(), 0, 0);
    for task in tasks {
        match task.await.unwrap() {
            (Ok(_), took) => served.push(took - Duration::from_millis(100)),
            (Err(refusal), took) if took <= Duration::from_millis(100) => {
                at_once += 1;
                let after = refusal.after().expect("says when").as_secs();
                assert!(refusal.why() == Why::NoKey && (25..45).contains(&after), "{refusal}");
            }
            (Err(refusal), took) => {
                late += 1;
                assert!(refusal.why() == Why::NoKey && took <= Duration::from_secs(30), "{refusal} {took:?}");
            }
        }
    }
    served.sort_unstable();
    let p99 = served[served.len() * 99 / 100];
    println!("{} served, p99 of their waits {p99:?}; {at_once} refused at once, {late} later", served.len());
    // a minute, and what stands in line at its end
    assert!(p99 <= Duration::from_secs(30) && (840..=900).contains(&served.len()), "{p99:?} {}", served.len());
    // those who came while the rate wavered
    assert!(at_once > 800 && late * 20 <= at_once, "{late} and {at_once}");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_for_a_prediction_while_nearly_all_can_be_served() {
    for seed in 0..5 {
        let upstream = Upstream::taking(100);
        let run = Run::new(&limited(&pool(1), 1, &upstream));
        let (mut rng, mut at, mut tasks) = (fastrand::Rng::with_seed(seed), Instant::now(), Vec::new());
        for _ in 0..3000 {
            // Poisson arrivals at 0.95 of what can be served
            at += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / 9.5);
            tokio::time::sleep_until(at).await;
            tasks.push(run.send(asking("a")).await);
        }
        let results = all(tasks).await;
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn hope_that_is_gone_is_told_at_once() {
    let pool = Pool::new([key(0).models(["a"]).unwrap(), key(1).models(["b"]).unwrap()]).unwrap();
    let run = Run::new(&limited(&pool, 1, &Upstream::taking(60_000)));
    let mut tasks = Vec::new();
    for model in ["a", "a", "a", "b", "b"] {
        tasks.push(run.send(asking(model)).await);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let start = Instant::now();
    pool.remove("k0");
    let waiting = tasks.split_off(1);
    let mut waiting = waiting.into_iter();
    for task in waiting.by_ref().take(2) {
        assert_eq!(task.await.unwrap().unwrap_err().why(), Why::NoKey);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(waiting.next().is_some_and(|running| !running.is_finished()));
    assert!(waiting.next().is_some_and(|other| !other.is_finished()), "it waits for another key");
}

#[tokio::test(start_paused = true)]
async fn hope_that_a_long_rest_takes_is_told_soon() {
    let hint = Duration::from_secs(600);
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(hint));
    let upstream = Upstream { takes: Duration::from_secs(5), ..Upstream::failing_once(fault) };
    let run = Run::new(&limited(&pool(1), 1, &upstream));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..100 {
        tasks.push(run.send(asking("a")).await);
    }
    tasks.remove(0).await.unwrap().unwrap();
    for refused in all(tasks).await {
        assert_eq!(refused.unwrap_err().after().map(|after| after.as_secs()), Some(600));
    }
    assert!(start.elapsed() <= Duration::from_millis(5100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rest_lifted_by_hand_serves_those_who_wait() {
    let fault = Fault::new(Cause::KeyLimit, Scope::Key).rest(Rest::hinted(Duration::from_secs(20)));
    let (pool, upstream) = (pool(1), Upstream::failing_once(fault));
    let run = Run::new(&limited(&pool, 1, &upstream));
    run.send(asking("a")).await.await.unwrap().unwrap();
    let mut tasks = Vec::new();
    for _ in 0..5 {
        tasks.push(run.send(asking("a")).await);
    }
    let start = Instant::now();
    pool.reset("k0");
    assert!(all(tasks).await.iter().all(Result::is_ok));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_filter_that_does_not_say_what_it_reads_is_heeded_for_each() {
    let pool = pool(2);
    let upstream = Upstream::taking(100);
    // by a property no group knows of
    let filter = filter_fn(|endpoint: &Endpoint, request: &RequestContext, _: Instant| {
        let own = request.asks().user.as_deref() == Some(endpoint.key().name());
        if own { Fit::Yes } else { Fit::No }
    });
    let run = Run::new(&layer(&pool, 1).filter(filter).layer(upstream.clone()));
    let of = |user: &str| {
        let mut request = Request::new(Full::default());
        RequestContext::of(&mut request).set_body(format!("{{\"model\":\"a\",\"user\":\"{user}\"}}").into());
        request
    };
    let start = Instant::now();
    let mut tasks = Vec::new();
    for user in ["k0", "k0", "k0", "k1", "k1"] {
        tasks.push(run.send(of(user)).await);
    }
    let ends: Vec<_> = all(tasks).await.into_iter().map(|served| (served.unwrap() - start).as_millis()).collect();
    assert_eq!(ends, [100, 200, 300, 100, 200]);
}

/// Callers of every kind that come, wait, and leave at random: whoever stays is served, and nothing is left behind.
#[tokio::test(start_paused = true)]
async fn r045_nobody_is_forgotten_whatever_the_others_do() {
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let keys = (0..4).map(|index| {
            let key = key(index).account(format!("account-{}", index / 2));
            if index == 3 { key.models(["a"]).unwrap() } else { key }
        });
        let pool = Pool::new(keys).unwrap();
        let upstream = Upstream::taking(rng.u64(1..50));
        for _ in 0..rng.usize(0..20) {
            let scope = [Scope::Key, Scope::Account, Scope::AccountModel, Scope::Egress][rng.usize(..4)];
            let rest = Rest::hinted(Duration::from_millis(rng.u64(1..3000)));
            upstream.faults.lock().unwrap().push(Fault::new(Cause::KeyLimit, scope).rest(rest));
        }
        let every = Duration::from_millis(rng.u64(1..30));
        let slots = Slots { next: Mutex::new(Instant::now()), every, judged: Arc::default() };
        let service = layer(&pool, 1 + rng.usize(..2)).max_wait(Duration::from_secs(3600));
        let service = if rng.bool() { service.filter(slots) } else { service }.layer(upstream.clone());
        let run = Run::new(&service);
        let mut tasks = Vec::new();
        for _ in 0..200 {
            let request = asking(["a", "b", "c"][rng.usize(..3)]);
            context(&request).set_priority(Priority::ALL[rng.usize(..3)]);
            let task = run.send(request).await;
            if rng.u8(..4) == 0 {
                let patience = Duration::from_millis(rng.u64(..400));
                let abort = task.abort_handle();
                tokio::spawn(async move {
                    tokio::time::sleep(patience).await;
                    abort.abort();
                });
            } else {
                tasks.push(task);
            }
            if rng.u8(..3) == 0 {
                tokio::time::sleep(Duration::from_millis(rng.u64(..20))).await;
            }
        }
        let served = tokio::time::timeout(Duration::from_secs(120), all(tasks));
        let served = served.await.unwrap_or_else(|_| panic!("seed {seed}: somebody was forgotten: {service:?}"));
        assert!(served.iter().all(Result::is_ok), "seed {seed}: {served:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(service.waiting(), 0, "seed {seed}");
    }
}
