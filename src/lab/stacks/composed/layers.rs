//! Each layer on any other: what is around a request's way is boxed between them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{
    BoxError, Layer, Service, ServiceExt,
    layer::layer_fn,
    util::{BoxCloneSyncService, option_layer},
};

use super::{
    super::super::{LabBody, World},
    order::{Order, Place},
};
use crate::{
    Endpoint, HedgeLayer, KeepAliveLayer, LoadMonitorLayer, ModelRouter, RespondLayer,
    buffer::ReplayBody,
    lab::stack::erase,
    openrouter::AuthorizeLayer,
    route::{RouteError, Routes},
    select::{Pick, endpoint_fn},
    stack::{
        BalancerBuilder,
        settings::{SettingError, Settings},
    },
    stream::HearOutLayer,
};

/// Any part of a stack.
pub(super) type Erased = BoxCloneSyncService<Request<ReplayBody>, Response<LabBody>, BoxError>;

/// The same for bodies as clients have them.
pub(super) fn replayable(
    service: Erased,
) -> impl Service<Request<Full<Bytes>>, Response = Response<LabBody>, Error = BoxError, Future: Send> + Clone + Send + Sync
{
    service.map_request(|request: Request<Full<Bytes>>| {
        // it is there already
        let whole = |body: Full<Bytes>| body.collect().now_or_never().map(|Ok(whole)| whole.to_bytes());
        request.map(|body| whole(body).unwrap_or_default().into())
    })
}

/// The layers as they are set, to be put around a service.
#[derive(Clone)]
pub(super) struct Layers {
    builder: BalancerBuilder<Box<dyn Pick>>,
    keep_alive: KeepAliveLayer,
    hear_out: Option<HearOutLayer>,
    fallback_models: Vec<String>,
    hedge: Option<HedgeLayer>,
}

impl Layers {
    pub(super) fn new(
        settings: &Settings,
        builder: BalancerBuilder<Box<dyn Pick>>,
        hear_out: Option<HearOutLayer>,
    ) -> Result<Self, SettingError> {
        let keep_alive = settings.stream.keep_alive()?;
        let fallback_models = settings.models.fallback.clone();
        Ok(Self { hedge: builder.hedging(), builder, keep_alive, hear_out, fallback_models })
    }

    /// All of `order` over the leaf.
    pub(super) fn stack(mut self, order: &Order, world: &World) -> Erased {
        if !order.has(Place::Retry) {
            // nor has what it allows anybody
            self.hedge = self.builder.stages.hedge.clone();
        }
        let select = self.builder.select.clone();
        let (layers, below) = (self.clone(), Arc::new(order.below.clone()));
        let per_key = endpoint_fn(move |endpoint: &Endpoint| {
            let (layers, below, endpoint) = (layers.clone(), below.clone(), endpoint.clone());
            layer_fn(move |inner: Erased| layers.put_all(&below, Some(&endpoint), inner))
        });
        let selecting = erase(select.per_key(per_key).layer(erase(world.leaf())));
        self.put_all(&order.above, None, selecting)
    }

    /// Around `inner`, the first outermost.
    pub(super) fn put_all(&self, places: &[Place], endpoint: Option<&Endpoint>, inner: Erased) -> Erased {
        places.iter().rev().fold(inner, |inner, place| self.put(*place, endpoint, inner))
    }

    fn put(&self, place: Place, endpoint: Option<&Endpoint>, inner: Erased) -> Erased {
        let stages = &self.builder.stages;
        match (place, endpoint) {
            (Place::KeepAlive, _) => erase(self.keep_alive.layer(inner)),
            (Place::HearOut, _) => match &self.hear_out {
                Some(hear_out) => erase(hear_out.layer(inner)),
                None => inner,
            },
            (Place::Respond, _) => erase(RespondLayer::new().layer(inner)),
            (Place::Deadline, _) => erase(stages.deadline.layer(inner)),
            (Place::Buffer, _) => erase(stages.buffer.layer(inner)),
            (Place::Route, _) => erase(routes(inner, &self.fallback_models).expect("checked when the stack was read")),
            (Place::Retry, _) => erase(stages.retry.layer(inner)),
            (Place::Provider, _) => erase(stages.provider.layer(inner)),
            (Place::Hedge, _) => erase(option_layer(self.hedge.clone()).layer(inner)),
            (Place::CommitGate, _) => erase(stages.gate.layer(inner)),
            (Place::Timeouts, _) => erase(stages.timeouts.layer(inner)),
            (Place::Monitor, Some(endpoint)) => erase(LoadMonitorLayer::endpoint(endpoint).layer(inner)),
            (Place::Breaker, Some(endpoint)) => erase(stages.per_key(endpoint).breaker.layer(inner)),
            (Place::Limit, Some(endpoint)) => erase(stages.per_key(endpoint).limit.layer(inner)),
            (Place::Authorize, Some(endpoint)) => erase(AuthorizeLayer::new(endpoint.key()).layer(inner)),
            // an order has these nowhere else, and selection is what it is cut at
            (Place::Select | Place::Monitor | Place::Breaker | Place::Limit | Place::Authorize, _) => inner,
        }
    }
}

/// Asks `inner` for these models, in turn, where the one asked for cannot be served.
pub(super) fn routes<S>(inner: S, models: &[String]) -> Result<Routes<S>, RouteError> {
    ModelRouter::new().fallback(inner).fallback_models(models.iter().map(String::as_str)).build()
}
