//! What an operator sees of requests and attempts from outside: spans, and figures for a metrics system.
//!
//! A balancer hides failures, which is its purpose: a request that succeeded may have cost four attempts, and a key that is dead
//! for an hour shows in no answer. Where requests and attempts are counted together, or failures are timed with
//! successes, the numbers say the opposite of what happens. Here each has its own series, and only successes enter the times
//! that dashboards draw. What clients may choose freely cannot grow the number of series.
//!
//! Three parts, each of use alone:
//!
//! - [`ObserveLayer`], above the retries: one span for each request and, with the feature `metrics`, its figures.
//! - [`LoadMonitorLayer`](crate::LoadMonitorLayer), in the stack of each key: one span for each attempt.
//! - [`BalancerHandle::record_metrics`](crate::stack::BalancerHandle::record_metrics) (feature `metrics`), called when figures
//!   are read: what every key did and how it stands, why requests went to other keys, who waits.
//!
//! # Metrics
//!
//! They go to the [`metrics`](https://docs.rs/metrics) facade, so any of its exporters can take them. Install the recorder
//! before the first request; [`describe`] gives it units and descriptions. Without a recorder every write is a test of a
//! pointer, and without the feature `metrics` nothing is compiled.
//!
//! Of requests, as their callers see them:
//!
//! | name, after `tower_openrouter_` | kind, unit | labels | near |
//! | --- | --- | --- | --- |
//! | `requests_total` | counter | `operation`, `model`, `outcome`, `error_type` | Kong `ai_llm_requests_total` |
//! | `requests_in_flight` | gauge | | LiteLLM `litellm_in_flight_requests` |
//! | `request_duration_seconds` | histogram, s; successes only, to the end of the body | `operation`, `model` | OpenTelemetry `gen_ai.client.operation.duration` |
//! | `time_to_first_output_seconds` | histogram, s; successes only | `operation`, `model` | OpenTelemetry `gen_ai.server.time_to_first_token` |
//! | `request_failed_duration_seconds` | histogram, s; all but successes | `operation`, `outcome` | |
//! | `tokens_total` | counter | `operation`, `model`, `type` | OpenTelemetry `gen_ai.client.token.usage` |
//! | `cost_nano_usd_total` | counter, 10⁻⁹ US dollars | `operation`, `model` | Kong `ai_llm_cost_total` |
//!
//! Of attempts, each on one key, and of the keys:
//!
//! | name, after `tower_openrouter_` | kind, unit | labels | near |
//! | --- | --- | --- | --- |
//! | `attempts_total` | counter; started | `key` | |
//! | `attempts_ended_total` | counter | `key`, `outcome`, `error_type` | Envoy `upstream_rq` |
//! | `attempts_in_flight` | gauge | `key` | onwards `onwards_model_inflight` |
//! | `key_tokens_total` | counter | `key`, `type` | |
//! | `key_cost_nano_usd_total` | counter, 10⁻⁹ US dollars | `key` | |
//! | `key_recent_first_output_seconds` | gauge, s; leaps to peaks, decays within 10 s | `key` | |
//! | `key_up` | gauge; 1 unless it rests or its breaker is shut | `key` | Bifrost `bifrost_provider_key_up` |
//! | `key_rest_seconds` | gauge, s; what is left of its rest | `key` | LiteLLM `litellm_deployment_cooled_down` |
//! | `key_breaker_state` | gauge; 0 closed, 1 half-open, 2 open, 3 isolated by hand, -1 switched off | `key` | LiteLLM `litellm_deployment_state` |
//! | `key_breaker_trips_total` | counter | `key` | model-hotel `modelhotel_circuit_breaker_opens_total` |
//! | `key_spendable_usd` | gauge, US dollars; where that is counted, infinite without a limit | `key` | |
//! | `keys` | gauge; how many there are | `state`: `up`, `resting`, `shut` | kms `kms_active_keys`, `kms_cooldown_keys` |
//! | `keys_resting` | gauge; how many rest for which cause | `error_type` | |
//! | `rests` | gauge; how many rests there are that no single key has | `scope`: `workspace`, `account`, `free_tier`, `account_model`, `pool`, `egress` | |
//!
//! Of what was done about failures, and of who waits:
//!
//! | name, after `tower_openrouter_` | kind, unit | labels | near |
//! | --- | --- | --- | --- |
//! | `key_rotations_total` | counter; attempts on another key at once, by the cause they followed | `error_type` | Bifrost `bifrost_key_rotation_events_total` |
//! | `retries_total` | counter; attempts after a wait, by the cause they followed | `error_type` | Bifrost `bifrost_request_retries` |
//! | `retry_budget_refusals_total` | counter | | Envoy `upstream_rq_retry_overflow` |
//! | `given_up_total` | counter; failed answers passed on | `reason` | model-hotel `modelhotel_failover_exhausted_total` |
//! | `hedges_total`, `hedges_won_total` | counter; where that is on | | |
//! | `panic_picks_total` | counter; requests to a key that was out because it fails | | Envoy `lb_healthy_panic` |
//! | `requests_waiting` | gauge; who waits for a key | `priority` | LiteLLM `litellm_request_queue_time_seconds` |
//!
//! `operation` is `chat`, `text_completion`, `embeddings`, `models` or `other`, as OpenTelemetry names them. `model` is what
//! the request asks for; the first [1000](ObserveLayer::models) have a value of their own, the others share `other`, and where
//! none is named it is `none`. `outcome` is `success`, `failed`, `refused` (by a layer of ours; nothing was sent) or `left` (the
//! caller did not wait). `error_type` is empty for successes, else the [cause](crate::outcome::Cause), the
//! [reason](crate::error::Why) of the refusal, or `client_gone`. `key` is the key's label, and `type` is `input` or `output`.
//!
//! So the series of requests number at most some 85 for each value of `model`, and in practice some 40. Those of keys follow
//! the pool: give each reading a recorder of its own, as [`record_metrics`](crate::stack::BalancerHandle::record_metrics) shows,
//! and a key that was removed is gone with the next one.
//!
//! # Spans
//!
//! A span `request` from the call to the end of the body, and in it a span `attempt` for each attempt: target
//! `tower_openrouter::spans`, level `DEBUG`. Attributes are those of OpenTelemetry's conventions for generative AI and HTTP
//! where these have one:
//!
//! - both: `gen_ai.operation.name`, `gen_ai.request.model`, `http.response.status_code`, `outcome`, `error.type`, and for
//!   exporters `otel.name`, `otel.kind`, `otel.status_code`;
//! - `request`: `http.request.method`, `url.path`, `request_id` (the header `x-request-id`), `attempts`, `key` (the label of
//!   the last), `time_to_first_output_ms`;
//! - `attempt`: `key`, `gen_ai.provider.name`, `gen_ai.response.model`, `gen_ai.usage.input_tokens`,
//!   `gen_ai.usage.output_tokens`, `cost_usd`, `server.address`, `server.port`, `scope` and `rest_ms` of a fault.
//!
//! An attempt is named by operation and model, as the conventions have it; a request, whose body is not read yet as its span
//! begins, by the operation. Tokens and cost stand on attempts alone, each of which is billed, so that who adds up spans adds nothing twice. Keys go
//! by their labels; of headers only the id is told, and of bodies only the names of models.
//!
//! # Examples
//!
//! ```
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::{BodyExt, Full};
//! use tower::{Layer, ServiceExt};
//! use tower_openrouter::{ApiKey, Balancer, ObserveLayer, OpenRouter, observe, select::Pool};
//! # use tower_openrouter::simulator::{Scenario, Simulator};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! # let simulator = Simulator::new(Scenario::default())?;
//! # let (secret, transport) = (simulator.keys()[0].secret.clone(), simulator.service());
//! let builder = metrics_exporter_prometheus::PrometheusBuilder::new().set_buckets(&observe::BUCKETS)?;
//! let recorder = builder.build_recorder();
//! let handle = recorder.handle();
//! metrics::set_global_recorder(recorder)?;
//! observe::describe();
//!
//! let balancer = Balancer::builder(Pool::new([ApiKey::new(secret)?.label("a")])?).build(OpenRouter::new(transport));
//! let service = ObserveLayer::new().layer(balancer.clone());
//! let body = r#"{"model":"acme/swift-1","messages":[{"role":"user","content":"hello"}]}"#;
//! let request = Request::post("/v1/chat/completions").body(Full::<Bytes>::from(body))?;
//! service.oneshot(request).await?.into_body().collect().await?;
//!
//! assert!(handle.render().contains(
//!     r#"tower_openrouter_requests_total{operation="chat",model="acme/swift-1",outcome="success",error_type=""} 1"#
//! ));
//! # Ok(()) }
//! ```

mod layer;
#[cfg(feature = "metrics")]
pub(crate) mod name;
#[cfg(feature = "metrics")]
mod series;
mod watch;

pub use layer::{Observe, ObserveFuture, ObserveLayer};
#[cfg(feature = "metrics")]
pub use name::{BUCKETS, describe};
pub use watch::Watch;
