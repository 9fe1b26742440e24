//! Where a rest is written: whom it holds for.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::{
    endpoint::{Endpoint, EndpointId},
    events::Whose,
    outcome::Scope,
    request::RequestContext,
};

/// The account of an endpoint: by name, or the endpoint alone while nobody has named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::select) enum AccountId {
    Named(Box<str>),
    Alone(EndpointId),
}

impl AccountId {
    pub(in crate::select) fn of(endpoint: &Endpoint) -> Self {
        endpoint.account().map_or(Self::Alone(endpoint.id()), |name| Self::Named(name.into()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Key(EndpointId),
    Workspace(Box<str>),
    Account(AccountId),
    FreeTier(AccountId),
    AccountModel(AccountId, u64),
    Pool(u64),
    Egress,
}

impl Place {
    /// Where a fault of `scope` on `endpoint` is kept; `None` for the request's own.
    pub(super) fn of(scope: Scope, endpoint: &Endpoint, request: &RequestContext) -> Option<Self> {
        Some(match scope {
            Scope::Request => return None,
            Scope::Key => Self::Key(endpoint.id()),
            Scope::Workspace => match endpoint.key().workspace_name() {
                Some(name) => Self::Workspace(name.into()),
                None => Self::Key(endpoint.id()),
            },
            Scope::Account => Self::Account(AccountId::of(endpoint)),
            Scope::FreeTier => Self::FreeTier(AccountId::of(endpoint)),
            Scope::AccountModel => Self::AccountModel(AccountId::of(endpoint), model_of(request)),
            Scope::Pool => Self::Pool(route_of(endpoint, request)),
            Scope::Egress => Self::Egress,
        })
    }

    pub(super) fn pool(endpoint: &Endpoint, request: &RequestContext) -> Self {
        Self::Pool(route_of(endpoint, request))
    }

    pub(super) fn account_model(endpoint: &Endpoint, request: &RequestContext) -> Self {
        Self::AccountModel(AccountId::of(endpoint), model_of(request))
    }

    pub(super) fn shelf(&self) -> usize {
        match self {
            Self::Key(_) | Self::Workspace(_) | Self::Account(_) => 0,
            Self::FreeTier(_) | Self::AccountModel(..) => 1,
            Self::Pool(_) | Self::Egress => 2,
        }
    }

    /// Whether it is of a model that a client named.
    pub(super) fn is_of_model(&self) -> bool {
        matches!(self, Self::AccountModel(..) | Self::Pool(_))
    }

    /// Its name, where a fault of `request` on `endpoint` is kept here.
    pub(super) fn name(&self, endpoint: &Endpoint, request: &RequestContext) -> Whose {
        let key = endpoint.key();
        let account = || endpoint.account().or(Some(key.name()));
        let model = request.asks().model.as_deref();
        match self {
            Self::Key(_) => Whose::key(endpoint),
            Self::Workspace(name) => Whose::new(Scope::Workspace, Some(name)),
            Self::Account(_) => Whose::new(Scope::Account, account()),
            Self::FreeTier(_) => Whose::new(Scope::FreeTier, account()),
            Self::AccountModel(..) => Whose::new(Scope::AccountModel, account()).of_model(model),
            Self::Pool(_) => Whose::new(Scope::Pool, key.base().and_then(http::Uri::host)).of_model(model),
            Self::Egress => Whose::new(Scope::Egress, None),
        }
    }
}

fn model_of(request: &RequestContext) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.asks().model.hash(&mut hasher);
    hasher.finish()
}

/// The provider pool behind a request: its model and its routing wishes, through this base URL.
fn route_of(endpoint: &Endpoint, request: &RequestContext) -> u64 {
    let mut hasher = DefaultHasher::new();
    let asks = request.asks();
    (&asks.model, asks.provider).hash(&mut hasher);
    endpoint.key().base().hash(&mut hasher);
    hasher.finish()
}
