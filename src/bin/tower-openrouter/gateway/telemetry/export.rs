//! Spans to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! The exporter reads the variables that its specification names: `OTEL_EXPORTER_OTLP_ENDPOINT` and `…_HEADERS`,
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…` for its queue. That queue is bounded:
//! when the collector is slow or gone, spans are lost and counted, and no request waits.

use std::{env, error::Error, fmt, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry::{global::set_text_map_propagator, trace::TracerProvider};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tokio::{
    runtime::{Handle, Runtime},
    time::timeout,
};
use tower::{BoxError, ServiceExt};
use tower_openrouter::openrouter::HyperTransport;
use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer, filter::Targets, fmt as log, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::super::log::OneLine;

const SERVICE: &str = "tower-openrouter";
/// The spans that are exported.
const SPANS: &str = "tower_openrouter::spans";
/// How long the collector has for a batch, and for the last one.
const PATIENCE: Duration = Duration::from_secs(10);
const LAST: Duration = Duration::from_secs(2);
/// More than any collector answers.
const LONGEST_ANSWER: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Export(SdkTracerProvider);

impl Export {
    /// Logs by `filter`, and exports spans whatever is logged.
    pub(super) fn start(filter: EnvFilter, runtime: &Handle) -> Result<Self, Box<dyn Error>> {
        let client = Client { transport: HyperTransport::new(), runtime: runtime.clone() };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
        let mut resource = Resource::builder();
        let names_service = |name, mark: &str| env::var(name).is_ok_and(|value: String| value.contains(mark));
        if !names_service("OTEL_SERVICE_NAME", "") && !names_service("OTEL_RESOURCE_ATTRIBUTES", "service.name=") {
            resource = resource.with_service_name(SERVICE);
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        let spans = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(SPANS, Level::DEBUG));
        let to = OneLine::default();
        let lines = log::layer().with_writer(to).with_ansi(to.colours).with_filter(filter);
        tracing_subscriber::registry().with(spans).with(lines).init();
        set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider))
    }

    /// Sends what has not been sent, on a thread of its own: the collector is spoken to on the runtime.
    pub(super) fn stop(self, runtime: &Runtime) {
        let stopped = runtime.block_on(runtime.spawn_blocking(move || self.0.shutdown_with_timeout(LAST)));
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Speaks to the collector on the gateway's runtime: the exporter has a thread of its own, and no runtime.
struct Client {
    transport: HyperTransport<Full<Bytes>>,
    runtime: Handle,
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let transport = self.transport.clone();
        let asked = async move {
            let response = transport.oneshot(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::from_parts(head, body))
        };
        // its timer, too, is the runtime's
        let sending = self.runtime.spawn(async { timeout(PATIENCE, asked).await? });
        Box::pin(async move { sending.await? })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
