//! Keeps what is known of keys, accounts and prices fresh.
//!
//! A balancer that picks by credit, or keeps off keys that have spent theirs, must know what each may still spend. Its own
//! requests tell only what they cost; others spend too, caps are raised, credit is bought. [`AccountPoller`] asks: `GET /key`
//! for each key of a [`Pool`], `GET /credits` once for each account, `GET /models` for prices. What it learns goes to each
//! endpoint's [`credit`](Endpoint::credit) and to the pool's [`prices`](Pool::prices), from which filters and picks read it.
//!
//! - It is gentle: questions are jittered, spaced, few at once, and asked ever more seldom of who does not answer (R87).
//! - It is apart from traffic: what fails here counts against no key, and holds no request up. What was known stays (R86).
//! - A key that a request puts in doubt is asked about soon, such as after a 401, which has been seen on valid keys: if the
//!   upstream accepts the key when asked, its rest ends; so does that of a key given up for dead.
//! - A key that an operator has [isolated](Pool::isolate) is not asked about.
//! - It is one future, and spawns nothing. It sees keys that come and go, and ends when the pool is gone (R89); to drop it is
//!   to stop it, at any point.
//!
//! It is not needed where no pick or filter looks at money: answers then tell all there is to know.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Empty;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tower::{BoxError, Service};

use crate::{
    endpoint::{AdminState, Endpoint, EndpointId, Spendable},
    openrouter::{
        AccountClient, LookupError,
        account::{Credits, KeyInfo, ModelInfo},
    },
    select::{Pool, WeakPool},
};

mod schedule;

use schedule::{Reply, Schedule};

/// Time between two questions about the same key or account. OpenRouter names no limit for `GET /key`; once or twice a
/// minute is what its users settle for.
const INTERVAL: Duration = Duration::from_secs(60);
/// Shortest interval that can be set.
const SHORTEST: Duration = Duration::from_secs(1);
/// Time between two questions about prices: the list may be used for an hour, by its `Cache-Control`.
const PRICES: Duration = Duration::from_secs(60 * 60);

/// Asks about the keys of a pool, again and again. See the [module](self).
///
/// ```
/// use tower_openrouter::{AccountPoller, ApiKey, OpenRouter, select::Pool};
/// # use tower_openrouter::simulator::{Scenario, Simulator};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tower::BoxError> {
/// # let simulator = Simulator::new(Scenario::default())?;
/// # let (secret, transport) = (simulator.keys()[0].secret.clone(), simulator.service());
/// let pool = Pool::new([ApiKey::new(secret)?.label("a")])?;
/// tokio::spawn(AccountPoller::new(&pool, OpenRouter::new(transport)).run());
///
/// tokio::time::sleep(std::time::Duration::from_secs(3)).await;
/// let now = tokio::time::Instant::now();
/// println!("{} left", pool.endpoints()[0].credit().spendable(now));
/// println!("{:?}", pool.prices().get("acme/swift-1"));
/// # assert!(pool.prices().get("acme/swift-1").is_some());
/// # Ok(())
/// # }
/// ```
///
/// More often, and less patient:
///
/// ```
/// # use std::time::Duration;
/// # use tower_openrouter::{AccountPoller, ApiKey, OpenRouter, openrouter::AccountClient, select::Pool};
/// # let transport = tower_openrouter::simulator::Simulator::new(Default::default())?.service();
/// # let pool = Pool::new([ApiKey::new("sk-or-v1-a")?])?;
/// let client = AccountClient::new(OpenRouter::new(transport)).timeout(Duration::from_secs(2));
/// let poller = AccountPoller::with_client(&pool, client).interval(Duration::from_secs(30))?;
/// # let _ = poller;
/// # Ok::<(), tower::BoxError>(())
/// ```
#[must_use = "it asks nothing until `run` is awaited or spawned"]
pub struct AccountPoller<S> {
    pool: WeakPool,
    news: watch::Receiver<()>,
    client: AccountClient<S>,
    interval: Duration,
}

/// The interval given is too short.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the interval between two questions about a key is {0:?}: it must be 1 s or more, and 60 s is the default")]
pub struct TooShort(Duration);

impl<S> AccountPoller<S> {
    /// Asks about the keys of `pool` over `leaf`, an [`OpenRouter`](crate::OpenRouter) service as a rule. The pool is not kept.
    pub fn new(pool: &Pool, leaf: S) -> Self {
        Self::with_client(pool, AccountClient::new(leaf))
    }

    /// The same with a client that is set up already.
    pub fn with_client(pool: &Pool, client: AccountClient<S>) -> Self {
        Self { pool: pool.downgrade(), news: pool.news(), client, interval: INTERVAL }
    }

    /// Sets the mean time between two questions about the same key or account; default 60 s, since OpenRouter names no limit
    /// and once or twice a minute is gentle.
    ///
    /// # Errors
    /// When it is shorter than a second.
    pub fn interval(mut self, interval: Duration) -> Result<Self, TooShort> {
        if interval < SHORTEST {
            return Err(TooShort(interval));
        }
        self.interval = interval;
        Ok(self)
    }
}

impl<S> fmt::Debug for AccountPoller<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountPoller")
            .field("client", &self.client)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum About {
    Key(EndpointId),
    Balance(Owner),
    Prices,
}

/// An account, or a key whose account has no name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Named(Box<str>),
    Alone(EndpointId),
}

impl Owner {
    fn of(endpoint: &Endpoint) -> Self {
        endpoint.account().map_or(Self::Alone(endpoint.id()), |name| Self::Named(name.into()))
    }
}

enum Answer {
    Key(Endpoint, Result<KeyInfo, LookupError>),
    Balance(Endpoint, Result<Credits, LookupError>),
    Prices(Result<Vec<ModelInfo>, LookupError>),
}

type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A question under way.
struct Running {
    about: About,
    asked: Instant,
    answer: Pending,
}

enum Event {
    Answered(Running, Box<Answer>),
    News,
    Due,
    Gone,
}

impl<S, B> AccountPoller<S>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Asks until the pool is gone. To be spawned, or awaited beside other things; dropping it stops it.
    pub async fn run(mut self) {
        let mut schedule = Schedule::new(self.interval, Instant::now());
        let mut running = Vec::new();
        let mut known = Arc::default();
        schedule.add(About::Prices, Instant::now());
        loop {
            let Some(pool) = self.pool.upgrade() else { return };
            let now = Instant::now();
            let endpoints = pool.endpoints();
            if !Arc::ptr_eq(&endpoints, &known) {
                keep(&mut schedule, &mut running, &endpoints, now);
                known = endpoints;
            }
            for endpoint in known.iter().filter(|endpoint| endpoint.take_doubt()) {
                // asked about no more while it was isolated
                schedule.add(About::Key(endpoint.id()), now);
                schedule.hurry(&About::Key(endpoint.id()), now);
                schedule.hurry(&About::Balance(Owner::of(endpoint)), now);
            }
            while let Some(about) = schedule.take(now) {
                match self.ask(&about, &known, schedule.failures(&about)) {
                    Some(answer) => running.push(Running { about, asked: now, answer }),
                    // it is isolated, or all keys of the account have gone or turned out to be another's
                    None => schedule.retain(|other| *other != about),
                }
            }
            drop(pool);
            match next(&mut running, &mut self.news, schedule.wake()).await {
                Event::Answered(Running { about, asked, .. }, answer) => {
                    let Some(pool) = self.pool.upgrade() else { return };
                    let now = Instant::now();
                    let reply = self.heed(&pool, &mut schedule, *answer, asked);
                    schedule.done(&about, reply, now, fastrand::f64());
                }
                Event::News | Event::Due => {}
                Event::Gone => return,
            }
        }
    }

    fn ask(&self, about: &About, endpoints: &[Endpoint], failures: u32) -> Option<Pending> {
        let client = self.client.clone();
        Some(match about {
            About::Key(id) => {
                let endpoint =
                    endpoints.iter().find(|endpoint| endpoint.id() == *id && !is_isolated(endpoint))?.clone();
                Box::pin(async move {
                    let found = client.key(endpoint.key()).await;
                    Answer::Key(endpoint, found)
                })
            }
            About::Balance(owner) => {
                // the next of its keys each time, since not all of them may be allowed to ask
                let may = |endpoint: &&Endpoint| Owner::of(endpoint) == *owner && !is_isolated(endpoint);
                let of_owner = || endpoints.iter().filter(may);
                let nth = (failures as usize).checked_rem(of_owner().count())?;
                let endpoint = of_owner().nth(nth)?.clone();
                Box::pin(async move {
                    let found = client.credits(endpoint.key()).await;
                    Answer::Balance(endpoint, found)
                })
            }
            About::Prices => Box::pin(async move { Answer::Prices(client.models().await) }),
        })
    }

    /// Puts what was told where it is looked for, and says when to ask again.
    fn heed(&self, pool: &Pool, schedule: &mut Schedule<About>, answer: Answer, asked: Instant) -> Reply {
        match answer {
            Answer::Key(endpoint, Ok(KeyInfo { account, report, .. })) => {
                if let Some(account) = &account {
                    endpoint.learn_account(account);
                }
                endpoint.credit().report_key(report, asked);
                schedule.add(About::Balance(Owner::of(&endpoint)), Instant::now());
                pool.vouch(&endpoint, asked);
                pool.freed(&endpoint);
                Reply::Told(self.interval)
            }
            Answer::Balance(endpoint, Ok(credits)) => {
                endpoint.credit().report_balance(Spendable::Money(credits.balance()), asked);
                pool.freed(&endpoint);
                Reply::Told(self.interval)
            }
            Answer::Prices(Ok(models)) => {
                let priced = models.iter().filter_map(|model| Some((model.id.clone(), model.price()?)));
                pool.prices().set(priced);
                Reply::Told(PRICES)
            }
            Answer::Key(endpoint, Err(error)) | Answer::Balance(endpoint, Err(error)) => {
                tracing::debug!(key = endpoint.key().name(), %error, "what the key may spend was not learned");
                reply(&error)
            }
            Answer::Prices(Err(error)) => {
                tracing::debug!(%error, "what models cost was not learned");
                reply(&error)
            }
        }
    }
}

/// Whether nothing that carries its key may leave.
fn is_isolated(endpoint: &Endpoint) -> bool {
    endpoint.admin_state() == AdminState::Isolated
}

/// Keeps to the endpoints of the pool.
fn keep(schedule: &mut Schedule<About>, running: &mut Vec<Running>, endpoints: &[Endpoint], now: Instant) {
    let ids: std::collections::HashSet<_> = endpoints.iter().map(Endpoint::id).collect();
    let stays = |about: &About| match about {
        About::Key(id) | About::Balance(Owner::Alone(id)) => ids.contains(id),
        About::Balance(Owner::Named(_)) | About::Prices => true,
    };
    schedule.retain(stays);
    running.retain(|running| stays(&running.about));
    endpoints.iter().for_each(|endpoint| schedule.add(About::Key(endpoint.id()), now));
}

fn reply(error: &LookupError) -> Reply {
    let hint = error.fault().and_then(|fault| fault.rest).filter(|rest| rest.hinted).map(|rest| rest.duration);
    match error.status() {
        Some(StatusCode::TOO_MANY_REQUESTS) => Reply::TooMany(hint),
        _ if hint.is_some() => Reply::TooMany(hint),
        _ => Reply::Failed,
    }
}

/// Whatever comes first.
async fn next(running: &mut Vec<Running>, news: &mut watch::Receiver<()>, wake: Option<Instant>) -> Event {
    let mut changed = pin!(news.changed());
    let mut due = pin!(async {
        match wake {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    });
    poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(answer) = running[at].answer.as_mut().poll(cx) {
                return Poll::Ready(Event::Answered(running.swap_remove(at), Box::new(answer)));
            }
        }
        match changed.as_mut().poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Event::News),
            Poll::Ready(Err(_)) => return Poll::Ready(Event::Gone),
            Poll::Pending => {}
        }
        due.as_mut().poll(cx).map(|()| Event::Due)
    })
    .await
}
