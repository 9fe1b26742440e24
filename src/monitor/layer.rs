use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{LoadMonitor, Measures, service::Monitored};
use crate::{
    endpoint::{Endpoint, Figures},
    outcome::{Classify, Judge},
};

/// Measures a service; see the [module](super) for what and how.
///
/// Around any service, with figures of its own:
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{BoxError, ServiceBuilder, ServiceExt};
/// use tower_openrouter::LoadMonitorLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let monitor = LoadMonitorLayer::new();
/// let handle = monitor.handle();
/// let service = ServiceBuilder::new()
///     .layer(monitor)
///     .service_fn(|_: Request<()>| async { Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("hello")))) });
///
/// let response = service.oneshot(Request::new(())).await?;
/// assert_eq!(handle.figures().in_flight(), 1, "until the body ends");
/// response.into_body().collect().await?;
/// assert_eq!((handle.figures().in_flight(), handle.figures().succeeded()), (0, 1));
/// # Ok(())
/// # }
/// ```
///
/// In the stack of one key, with somebody else to say what an answer means:
///
/// ```
/// use tower_openrouter::{ApiKey, Endpoint, LoadMonitorLayer, Snapshot, outcome::Grpc};
///
/// let endpoint = Endpoint::new(ApiKey::new("sk-or-v1-0123")?.label("team-a"));
/// let layer = LoadMonitorLayer::endpoint(&endpoint).classify(Grpc);
/// # let _ = layer;
/// let snapshot = Snapshot::of([&endpoint]);
/// assert_eq!(snapshot.endpoints[0].key.as_ref(), "team-a");
/// assert!(serde_json::to_string(&snapshot)?.contains("\"attempts\":0"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct LoadMonitorLayer {
    place: Place,
    classify: Judge,
}

/// Where to write.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Endpoint(Endpoint),
    Own(Arc<Figures>),
}

impl Place {
    pub(super) fn figures(&self) -> &Figures {
        match self {
            Self::Endpoint(endpoint) => endpoint.figures(),
            Self::Own(figures) => figures,
        }
    }
}

impl LoadMonitorLayer {
    /// A monitor with figures of its own, shared by all services it makes.
    pub fn new() -> Self {
        Self::at(Place::Own(Arc::default()))
    }

    /// A monitor that writes the figures of `endpoint`.
    pub fn endpoint(endpoint: &Endpoint) -> Self {
        Self::at(Place::Endpoint(endpoint.clone()))
    }

    fn at(place: Place) -> Self {
        Self { place, classify: Judge::default() }
    }

    /// Sets who judges answers that carry no outcome, and errors; default
    /// [`HttpStatus`](crate::outcome::HttpStatus).
    #[must_use]
    pub fn classify(mut self, classify: impl Classify) -> Self {
        self.classify = Judge::new(classify);
        self
    }

    /// Reads what the layer measures.
    pub fn handle(&self) -> MonitorHandle {
        MonitorHandle(self.place.clone())
    }
}

impl Default for LoadMonitorLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LoadMonitorLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadMonitorLayer").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for LoadMonitorLayer {
    type Service = LoadMonitor<S>;

    fn layer(&self, inner: S) -> LoadMonitor<S> {
        LoadMonitor::new(inner, Monitored { place: self.place.clone(), classify: self.classify.clone() })
    }
}

/// Reads what a [`LoadMonitorLayer`] measures.
#[derive(Debug, Clone)]
pub struct MonitorHandle(Place);

impl MonitorHandle {
    /// The figures.
    pub fn figures(&self) -> &Figures {
        self.0.figures()
    }

    /// A copy of them that serialises.
    pub fn measures(&self) -> Measures {
        Measures::of(self.figures())
    }
}
