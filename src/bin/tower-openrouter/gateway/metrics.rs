//! `/metrics`: what the gateway counts, in Prometheus' text form.
//!
//! Two recorders make the page. One lives as long as the process and takes what requests write as they end. What keys did is
//! counted anyway; it is put into a recorder of the reading's own, so that a key that was removed is gone from the page.

use std::{error::Error, sync::OnceLock, time::Duration};

use axum::{body::Body, extract::State};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{task::spawn_blocking, time::sleep};
use tower_openrouter::{answer::Shape, observe, stack::BalancerHandle};

use super::{admin::Admin, live::Live, refusal::refuse};

/// The recorder of the process, to be read.
static REQUESTS: OnceLock<PrometheusHandle> = OnceLock::new();
/// How often times that were noted are put into their buckets, whether or not anybody reads them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Has requests counted from here on.
pub(super) fn install() -> Result<(), Box<dyn Error>> {
    let recorder = PrometheusBuilder::new().set_buckets(&observe::BUCKETS)?.build_recorder();
    let handle = REQUESTS.get_or_init(|| recorder.handle());
    metrics::set_global_recorder(recorder)?;
    observe::describe();
    tokio::spawn(async move {
        loop {
            sleep(UPKEEP).await;
            handle.run_upkeep();
        }
    });
    Ok(())
}

/// The page, for whom the admin token lets in.
pub(super) async fn page(State(admin): State<Live<Admin>>, headers: HeaderMap) -> Response<Body> {
    let admin = admin.now();
    if !admin.access.allows(&headers) {
        return refuse(Shape::Chat, StatusCode::UNAUTHORIZED, "Missing or wrong admin token");
    }
    // with thousands of keys it takes a while, in which requests should not have to wait
    let Ok(text) = spawn_blocking(move || text(&admin.balancer)).await else {
        return refuse(Shape::Chat, StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    };
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(balancer: &BalancerHandle) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        observe::describe();
        balancer.record_metrics();
    });
    let requests = REQUESTS.get().map(PrometheusHandle::render).unwrap_or_default();
    requests + &recorder.handle().render()
}
