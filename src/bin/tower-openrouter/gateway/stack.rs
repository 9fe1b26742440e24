//! The library's default stack as it is configured, over all keys and over those of each route.

use std::fmt;

use http_body::Body;
use tokio::runtime::Handle;
use tower::{BoxError, ServiceBuilder, util::BoxCloneSyncService};
use tower_openrouter::{
    Balancer, ModelRouter, OpenRouter, RespondLayer,
    buffer::ReplayBody,
    select::{Pick, Pool},
    stack::{
        BalancerBuilder, BalancerHandle,
        settings::{Settings as Policies, Shared, Timeouts, Unrouted},
    },
    stream::HearOutLayer,
};

use super::{
    Transport,
    config::{Configuration, Settings, Trouble},
    routed::Routes,
};

type Builder = BalancerBuilder<Box<dyn Pick>>;

/// The stacks of one configuration, to be put before the upstream, and what the next configuration may take over from them.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Over all keys.
    pub(crate) all: Builder,
    /// Over those of each route, with its patterns.
    routes: Vec<(Vec<String>, Builder)>,
    pool: Pool,
    /// One for all routes, as they spend the same quotas.
    shared: Shared,
}

impl Stack {
    /// What has not changed since `before` is taken over with all it knows: keys with their figures, rests and breakers, the
    /// budget of retries, what is late, what runs at once, the memory of bodies.
    pub(crate) fn build(
        configuration: &Configuration,
        before: Option<(&Self, &Configuration)>,
    ) -> Result<Self, Trouble> {
        let Configuration { settings, keys, .. } = configuration;
        let policies = settings.policies();
        // at another upstream they are not the same keys
        let before = before.map(|(before, old)| (before, &old.settings));
        let before = before.filter(|(_, old)| old.upstream() == settings.upstream());
        let pool = match before {
            None => Pool::new(keys.iter().cloned()),
            Some((before, _)) => before.pool.share(keys.iter().cloned()),
        };
        let pool = pool.map_err(|error| Trouble::from(error.to_string()))?;
        let shared = match before {
            None => Shared::new(&policies)?,
            Some((before, old)) => before.shared.renew(&old.policies(), &policies)?,
        };
        let mut common = Balancer::builder(pool.clone());
        if let Some((before, old)) = before
            && old.breaker == settings.breaker
        {
            common = common.keep(&before.handle());
        }
        let all = policies.stack(common.clone(), &shared)?;
        let mut routes = Vec::new();
        for (at, route) in settings.routes.iter().enumerate() {
            let trouble = |what: &dyn fmt::Display| {
                Trouble::in_entry("routes", at, format_args!("[[routes]] number {}: {what}", at + 1))
            };
            let own = Policies {
                select: route.select(&settings.select),
                waiting: route.waiting(settings.waiting),
                provider: route.provider.as_ref().unwrap_or(&settings.provider).clone(),
                ..policies.clone()
            };
            let group = pool.share(route.group(keys).cloned()).map_err(|error| trouble(&error))?;
            let builder = own.stack(common.clone().pool(group), &shared).map_err(|error| trouble(&error.what()))?;
            // the bodies are in memory already, within the budget of the whole
            routes.push((route.models.clone(), builder.buffer(policies.limits.buffer().budget(u64::MAX))));
        }
        Ok(Self { all, routes, pool, shared })
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
            let all = self.all.clone().buffer(settings.limits.buffer().budget(u64::MAX));
            router = router.fallback(all.build(leaf.clone()));
        }
        let router = router.fallback_models(settings.models.fallback.iter().map(String::as_str)).build();
        let router = router.map_err(|error| Trouble::with("models", error))?;
        let service =
            ServiceBuilder::new().layer(RespondLayer::new()).layer(self.shared.buffer.clone()).service(router);
        Ok(Some(BoxCloneSyncService::new(service)))
    }
}

/// What hears answers out whose clients have left, on this runtime's tasks; `None` where nothing does.
pub(crate) fn hear_out(settings: &Timeouts) -> Option<HearOutLayer> {
    let runtime = Handle::current();
    settings.hear_out(move |rest| drop(runtime.spawn(rest)))
}
