//! The library's default stack as it is configured, over all keys and over those of each route.

use std::{fmt, num::NonZeroU32};

use http_body::Body;
use tokio::runtime::Handle;
use tower::{BoxError, ServiceBuilder, util::BoxCloneSyncService};
use tower_openrouter::{
    ApiKey, Balancer, BufferLayer, CommitGateLayer, DeadlineLayer, KeepAliveLayer, ModelRouter, OpenRouter,
    RespondLayer, RetryLayer, TimeoutsLayer,
    breaker::{BreakerPolicy, TripPolicy},
    buffer::ReplayBody,
    endpoint::Money,
    openrouter::{OnFullPool, PreferenceError, ProviderLayer, ProviderPreferences},
    pace::{PacePolicy, PaceScope, Rate},
    retry::{Backoff, RetryBudget},
    select::{
        CreditFloor, CreditLimit, LeastInFlight, MostCredit, Pacing, PeakEwma, Pick, Pool, PriorityTiers, Rendezvous,
        RoundRobin, SmoothWeighted, Sticky, WeightedRandom,
    },
    stack::{BalancerBuilder, BalancerHandle},
    stream::HearOutLayer,
};

use super::{
    Transport,
    config::{
        Breaker, Configuration, Credit, Dollars, Limits, Pace, PaceScopeName, PickName, Retry, Select, Settings, Size,
        Span, Stream, Timeouts, Trouble, Unrouted, Waiting, WhenFull,
    },
    routed::Routes,
};

type Builder<P> = BalancerBuilder<P>;
type AnyPick = Box<dyn Pick>;

/// The stacks of one configuration, to be put before the upstream, and what the next configuration may take over from them.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Over all keys.
    pub(crate) all: Builder<AnyPick>,
    /// Over those of each route, with its patterns.
    routes: Vec<(Vec<String>, Builder<AnyPick>)>,
    pool: Pool,
    retry: RetryLayer,
    buffer: BufferLayer,
    pacing: Option<Pacing>,
}

impl Stack {
    /// What has not changed since `before` is taken over with all it knows: keys with their figures, rests and breakers, the
    /// budget of retries, the memory of bodies.
    pub(crate) fn build(
        configuration: &Configuration,
        before: Option<(&Self, &Configuration)>,
    ) -> Result<Self, Trouble> {
        let Configuration { settings, keys, .. } = configuration;
        // at another upstream they are not the same keys
        let before = before.map(|(before, old)| (before, &old.settings));
        let before = before.filter(|(_, old)| old.upstream() == settings.upstream());
        let pool = match before {
            None => Pool::new(keys.iter().cloned()),
            Some((before, _)) => before.pool.share(keys.iter().cloned()),
        };
        let pool = pool.map_err(|error| Trouble::from(error.to_string()))?;
        let retry = match before {
            Some((before, old)) if old.retry == settings.retry => before.retry.clone(),
            _ => retry(&settings.retry)?,
        };
        let pacing = match before {
            Some((before, old)) if old.pace == settings.pace => before.pacing.clone(),
            _ => pacing(&settings.pace)?,
        };
        let limits = &settings.limits;
        let buffer = match before {
            Some((before, old)) if old.limits == *limits => before.buffer.clone(),
            _ => buffer(limits).budget(limits.memory.0),
        };
        let deadline = DeadlineLayer::new(settings.deadline.get()).map_err(|error| Trouble::with("deadline", error))?;
        let mut common = Balancer::builder(pool.clone())
            .breaker(breaker(&settings.breaker)?)
            .retry(retry.clone())
            .buffer(buffer.clone())
            .deadline(deadline)
            .timeouts(timeouts(&settings.timeouts)?)
            .commit_gate(commit_gate(&settings.stream));
        if let Some(pacing) = &pacing {
            // one for all routes, as they spend the same quotas
            common = common.filter(pacing.clone());
        }
        if let Some(cap) = limits.max_in_flight {
            common = common.max_in_flight(cap.get()).map_err(|error| Trouble::with("limits.max_in_flight", error))?;
        }
        if let Some((before, old)) = before
            && old.breaker == settings.breaker
        {
            common = common.keep(&before.handle());
        }
        let preferences = provider(settings, &settings.provider).map_err(|error| Trouble::with("provider", error))?;
        let common = common.provider(preferences);
        let all = select(common.clone(), &settings.select, settings.waiting, &settings.credit, keys)?;
        let mut routes = Vec::new();
        for (at, route) in settings.routes.iter().enumerate() {
            let group: Vec<_> = route.group(keys).cloned().collect();
            let (how, waiting) = (route.select(&settings.select), route.waiting(settings.waiting));
            let select = select(common.clone(), &how, waiting, &settings.credit, &group)?;
            // the bodies are in memory already, within the budget of the whole
            let mut builder = select.buffer(self::buffer(limits).budget(u64::MAX));
            if let Some(own) = &route.provider {
                let preferences = provider(settings, own).map_err(|error| route_trouble(at, &error))?;
                builder = builder.provider(preferences);
            }
            let group = pool.share(group).map_err(|error| route_trouble(at, &error))?;
            routes.push((route.models.clone(), builder.pool(group)));
        }
        Ok(Self { all, routes, pool, retry, buffer, pacing })
    }

    /// What the stages over all keys can be asked and told.
    pub(crate) fn handle(&self) -> BalancerHandle {
        self.all.handle()
    }

    /// The routes before `leaf`, where anything depends on the model.
    pub(crate) fn routes<T: Transport, B>(
        &self,
        settings: &Settings,
        leaf: &OpenRouter<T>,
    ) -> Result<Option<Routes<B>>, Trouble>
    where
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        if self.routes.is_empty() && settings.models.fallback.is_empty() {
            return Ok(None);
        }
        let mut router = ModelRouter::<Balancer<ReplayBody>>::new();
        for (models, builder) in &self.routes {
            let balancer = builder.clone().build(leaf.clone());
            router = router.routes(models.iter().map(String::as_str), balancer);
        }
        if settings.models.unrouted == Unrouted::AllKeys {
            let all = self.all.clone().buffer(buffer(&settings.limits).budget(u64::MAX));
            router = router.fallback(all.build(leaf.clone()));
        }
        let router = router.fallback_models(settings.models.fallback.iter().map(String::as_str)).build();
        let router = router.map_err(|error| Trouble::with("models", error))?;
        let service = ServiceBuilder::new().layer(RespondLayer::new()).layer(self.buffer.clone()).service(router);
        Ok(Some(BoxCloneSyncService::new(service)))
    }
}

fn route_trouble(at: usize, what: &dyn fmt::Display) -> Trouble {
    Trouble::in_entry("routes", at, format_args!("[[routes]] number {}: {what}", at + 1))
}

fn breaker(settings: &Breaker) -> Result<BreakerPolicy, Trouble> {
    let trouble = |error| Trouble::with("breaker", error);
    let trip = TripPolicy::failures(settings.failures.get(), settings.window.get()).map_err(trouble)?;
    BreakerPolicy::new(trip).cooldown(settings.cooldown.get(), settings.longest().get()).map_err(trouble)
}

fn timeouts(settings: &Timeouts) -> Result<TimeoutsLayer, Trouble> {
    let layer = TimeoutsLayer::default().headers(settings.headers.get());
    let layer = layer.and_then(|layer| layer.first_output(settings.first_output.get()));
    let layer = layer.and_then(|layer| layer.gap(settings.gap.get()));
    layer.and_then(|layer| layer.total(settings.total.get())).map_err(|error| Trouble::with("timeouts", error))
}

/// What hears answers out whose clients have left, on this runtime's tasks; `None` where nothing does.
pub(crate) fn hear_out(settings: &Timeouts) -> Option<HearOutLayer> {
    let Timeouts { hear_out: Span(time), hear_out_bytes: Size(bytes), .. } = *settings;
    let runtime = (!time.is_zero()).then(Handle::current)?;
    Some(HearOutLayer::new(move |rest| drop(runtime.spawn(rest))).time(time).bytes(bytes))
}

/// How fast; `None` when that is nobody's business.
fn pacing(settings: &Pace) -> Result<Option<Pacing>, Trouble> {
    let trouble = |error| Trouble::with("pace", error);
    let rate = |per_minute: NonZeroU32, burst: NonZeroU32| {
        Rate::per_minute(per_minute.get().into()).and_then(|rate| rate.burst(burst.get())).map_err(trouble)
    };
    let mut policy = PacePolicy::default().scope(match settings.scope {
        PaceScopeName::Key => PaceScope::Key,
        PaceScopeName::Account => PaceScope::Account,
        PaceScopeName::Pool => PaceScope::Pool,
    });
    let Pace { requests_per_minute, tokens_per_minute, requests_per_day, .. } = settings;
    if let Some(requests) = *requests_per_minute {
        policy = policy.requests(rate(requests, settings.burst)?);
    }
    if let Some(tokens) = *tokens_per_minute {
        policy = policy.tokens(rate(tokens, tokens)?);
    }
    if let Some(requests) = *requests_per_day {
        policy = policy.per_day(requests.get().into()).map_err(trouble)?;
    }
    if !settings.learn && requests_per_minute.is_none() && tokens_per_minute.is_none() && requests_per_day.is_none() {
        return Ok(None);
    }
    Ok(Some(Pacing::new(policy.learn(settings.learn).map_err(trouble)?)))
}

fn commit_gate(settings: &Stream) -> CommitGateLayer {
    let Stream { hold: Span(time), hold_bytes: Size(bytes), .. } = *settings;
    CommitGateLayer::new().hold(time).hold_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// What opens streams that have nothing to say yet.
pub(crate) fn keep_alive(settings: &Stream) -> Result<KeepAliveLayer, Trouble> {
    let layer = KeepAliveLayer::new().after(settings.keep_alive_after.0).interval(settings.keep_alive_interval.get());
    layer.map_err(|error| Trouble::with("stream.keep_alive_interval", error))
}

fn retry(settings: &Retry) -> Result<RetryLayer, Trouble> {
    let trouble = |error| Trouble::with("retry", error);
    let backoff = Backoff::new(settings.min_backoff.get(), settings.max_backoff.get()).map_err(trouble)?;
    let budget = RetryBudget::new(settings.budget_ratio.0, settings.budget_per_second).map_err(trouble)?;
    let layer = RetryLayer::new().attempts(settings.attempts).map_err(trouble)?;
    Ok(layer.backoff(backoff).budget(budget).wait_cap(settings.longest_hint.0).retry_unclear(settings.unclear))
}

/// What is put into requests that do not say.
fn provider(settings: &Settings, preferences: &ProviderPreferences) -> Result<ProviderLayer, PreferenceError> {
    let (models, retry) = (&settings.models, &settings.retry);
    let mut layer = ProviderLayer::new(preferences.clone())?.on_full_pool(match retry.when_provider_full {
        WhenFull::Wait => OnFullPool::Wait,
        WhenFull::IgnoreProvider => OnFullPool::IgnoreFailed,
        WhenFull::NextModel => OnFullPool::NextModel(retry.next_models.iter().map(|model| (**model).into()).collect()),
    })?;
    if !models.upstream_fallback.is_empty() {
        layer = layer.models(models.upstream_fallback.iter().map(String::as_str))?;
    }
    match models.variant {
        Some(variant) => layer.variant(variant),
        None => Ok(layer),
    }
}

fn buffer(limits: &Limits) -> BufferLayer {
    BufferLayer::new().body_limit(limits.body_limit.0).replay_cap(limits.replay_cap.0)
}

/// How a stack selects among `keys`.
fn select<P: Pick>(
    builder: Builder<P>,
    select: &Select,
    waiting: Waiting,
    credit: &Credit,
    keys: &[ApiKey],
) -> Result<Builder<AnyPick>, Trouble> {
    let is_tiered = keys.iter().any(|key| key.tier_of() != keys[0].tier_of());
    let pick = pick(select);
    let mut builder = builder
        .pick(if is_tiered { Box::new(PriorityTiers::new(pick)) } else { pick })
        .max_wait(waiting.max_wait.0)
        .max_waiters(waiting.max_waiters)
        .max_ejected(select.max_ejected.0)
        .and_then(|builder| builder.panic_below(select.panic_below.0))
        .map_err(|error| Trouble::with("select", error))?;
    if credit.floor.0 > 0.0 {
        builder = builder.filter(CreditFloor::new(Money::from_usd(credit.floor.0)));
    }
    if credit.limit {
        builder = builder.filter(CreditLimit::new().max_tokens_unsaid(credit.max_tokens_unsaid));
    }
    Ok(builder)
}

fn pick(select: &Select) -> AnyPick {
    let money = |amount: Dollars| Money::from_usd(amount.0);
    let inner: AnyPick = match select.pick {
        PickName::LeastInFlight => Box::new(LeastInFlight::default()),
        PickName::PeakEwma => Box::new(PeakEwma::default()),
        PickName::RoundRobin => Box::new(RoundRobin::default()),
        PickName::Weighted => Box::new(SmoothWeighted::default()),
        PickName::WeightedRandom => Box::new(WeightedRandom::default()),
        PickName::MostCredit => Box::new(MostCredit::default()),
        PickName::Sticky => {
            let sticky = Sticky::new(money(select.sticky_floor));
            Box::new(match select.sticky_back {
                Some(back) => sticky.back(money(back)),
                None => sticky,
            })
        }
    };
    if select.sessions { Box::new(Rendezvous::new(inner)) } else { inner }
}
