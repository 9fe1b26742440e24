//! A pipeline of one's own: another order than the default stack's, with layers of tower and tower-http in it.
//!
//! Who has a tower stack has layers already: what sheds load, what times out, what traces. They need not be given up for ours,
//! nor stand outside of them. From the outside in:
//!
//! | layer | of | what for |
//! | --- | --- | --- |
//! | `Respond` | us | errors become answers |
//! | `map_err` | tower | what tower's layers refuse, in our words: the answer is then 429, and not 502 |
//! | `LoadShed` | tower | what finds no room is refused and does not queue |
//! | `ConcurrencyLimit` | us | four answers at once, each until its body is over |
//! | `Buffer`, `Retry` | us | |
//! | `Timeout` | tower | *below* the retry, so for each attempt |
//! | `KeySelect` | us | |
//! | `Trace` | tower-http | for each key: a span that names it |
//! | `LoadMonitor`, `Authorize` | us | for each key |
//!
//! `cargo run --example custom_pipeline`: on the simulator, which is in the process and can be told to be slow.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tower::{
    BoxError, ServiceBuilder, ServiceExt, load_shed::error::Overloaded, timeout::error::Elapsed,
    util::BoxCloneSyncService,
};
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tower_openrouter::{
    ApiKey, AuthorizeLayer, BufferLayer, ConcurrencyLimitLayer, Endpoint, KeySelectLayer, LoadMonitorLayer, OpenRouter,
    Rejected, RespondLayer, RetryLayer, Snapshot,
    buffer::ReplayBody,
    endpoint_fn,
    error::{UpstreamError, UpstreamErrorKind, Why},
    select::{LeastInFlight, Pool},
    simulator::{Fault, Scenario, Simulator, SimulatorService, What},
};
use tracing::{Level, info_span};

type Body = UnsyncBoxBody<Bytes, BoxError>;
type Pipeline = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, Infallible>;

fn pipeline(pool: Pool, transport: SimulatorService) -> Result<Pipeline, BoxError> {
    let per_key = endpoint_fn(|endpoint: &Endpoint| {
        let key = endpoint.key().name().to_owned();
        let trace = TraceLayer::new_for_http()
            .make_span_with(move |_: &Request<ReplayBody>| info_span!("attempt", key))
            .on_response(DefaultOnResponse::new().level(Level::INFO));
        ServiceBuilder::new()
            .layer(trace)
            .layer(LoadMonitorLayer::endpoint(endpoint))
            .layer(AuthorizeLayer::new(endpoint.key()))
            .into_inner()
    });
    let stack = ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(|body| BodyExt::map_err(body, Into::into).boxed_unsync()))
        .layer(RespondLayer::new())
        .map_err(shed)
        .load_shed()
        .layer(ConcurrencyLimitLayer::new(4)?)
        .layer(BufferLayer::new())
        .layer(RetryLayer::new())
        .map_err(late)
        .timeout(Duration::from_secs(1))
        .layer(KeySelectLayer::new(pool, per_key).pick(LeastInFlight::default()))
        .service(OpenRouter::new(transport));
    Ok(BoxCloneSyncService::new(stack))
}

/// A limit's refusal, where it is tower that refuses.
fn shed(error: BoxError) -> BoxError {
    match error.is::<Overloaded>() {
        true => Rejected::new(Why::LimitReached, "four answers are under way: come back a little later").into(),
        false => error,
    }
}

/// An attempt that may have run, so that the retry does not repeat it unasked.
fn late(error: BoxError) -> BoxError {
    match error.is::<Elapsed>() {
        true => UpstreamError::new(UpstreamErrorKind::HeadersTimeout, error).into(),
        false => error,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_ansi(false).with_max_level(Level::INFO).with_target(false).without_time().init();
    let simulator = Simulator::new(Scenario::default())?;
    let mut keys = Vec::new();
    for key in simulator.keys() {
        keys.push(ApiKey::new(key.secret)?.label(key.label).account(key.account));
    }
    let pool = Pool::new(keys)?;
    let pipeline = pipeline(pool.clone(), simulator.service())?;

    println!("eight at once, where four may run:");
    let answers = join_all((0..8).map(|_| pipeline.clone().oneshot(chat()))).await;
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    println!("{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 4, "as many as the limit admits");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 4, "shed, though the limit itself would wait");
    for answer in answers {
        answer.into_body().collect().await?; // to its end, where the permit is given back
    }

    println!("one that the upstream is slow to accept:");
    simulator.inject(Fault::new(What::Slow { factor: 1.0, accept_ms: 60_000.0, first_token_ms: 0.0 }).times(1))?;
    let Ok(answer) = pipeline.clone().oneshot(chat()).await;
    let status = answer.status();
    println!("{status}: {}", String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()));
    assert_eq!(status, 504, "tower's timeout, told as what it means");

    let total = Snapshot::of(&*pool.endpoints()).total;
    println!("{} attempts: {:?}", total.attempts, total.outcomes);
    assert_eq!(total.outcomes["complete"], 4);
    Ok(())
}

fn chat() -> Request<Full<Bytes>> {
    let chat =
        r#"{"model":"acme/swift-1","stream":true,"max_tokens":8,"messages":[{"role":"user","content":"Hello"}]}"#;
    Request::post("/v1/chat/completions").body(chat.into()).expect("it is well formed")
}
