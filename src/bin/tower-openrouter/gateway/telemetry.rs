//! Where the gateway's own words go: log lines to standard error and, with the feature `otel`, spans to the OpenTelemetry
//! collector that the environment names.

use std::error::Error;

use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use super::log::OneLine;

#[cfg(feature = "otel")]
mod callers;
#[cfg(feature = "otel")]
mod export;

#[cfg(feature = "otel")]
pub(super) use callers::OfCallers;

/// The variables that name a collector: for spans, and for everything.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// What has to be told that the process ends.
#[derive(Debug)]
pub(super) struct Telemetry {
    #[cfg(feature = "otel")]
    export: Option<export::Export>,
}

impl Telemetry {
    /// From here on it is written down what happens.
    pub(super) fn start(runtime: &Runtime) -> Result<Self, Box<dyn Error>> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let named = ENDPOINTS.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        #[cfg(feature = "otel")]
        if named.is_some() {
            return Ok(Self { export: Some(export::Export::start(filter, runtime.handle())?) });
        }
        let _ = runtime;
        let log = OneLine::default();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(log).with_ansi(log.colours).init();
        if let Some(name) = named {
            tracing::warn!("{name} is set, and this binary exports no spans: build it with the feature otel");
        }
        Ok(Self {
            #[cfg(feature = "otel")]
            export: None,
        })
    }

    /// Sends what has not been sent.
    pub(super) fn stop(self, runtime: &Runtime) {
        #[cfg(feature = "otel")]
        if let Some(export) = self.export {
            export.stop(runtime);
        }
        let _ = runtime;
    }
}
