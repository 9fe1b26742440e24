//! An axum app that gets key selection and retry.
//!
//! The app was there before, with its state, handlers, errors and tower-http's layers. What it posts to a model needs several
//! keys, some of which are refused now and then, and more callers come than the keys can bear. So a stack of layers is put
//! under `/v1/chat/completions`, and the same stack is the client of the handler `/title`.
//!
//! What the stack refuses is an error inside it. axum wants services that cannot fail, and tower's answer to that is a
//! `HandleErrorLayer` with a handler for each kind of error; here [`RespondLayer`] goes on top, and refusals are answers: 429
//! or 503 with `Retry-After`, 504, 413, with a JSON body in OpenRouter's shape.
//!
//! **Overload.** Each key serves two requests at once here, and its permit lasts until the body of the answer is over. A full
//! key is *not ready*, so another is picked; when all are full there are two things to do. By default requests wait, in order
//! of arrival, up to [`max_wait`](KeySelectLayer::max_wait) and [`max_waiters`](KeySelectLayer::max_waiters): that is
//! backpressure, and good for callers with patience. With `max_waiters(0)` none waits and the rest is shed at once, as below:
//! good where somebody else retries, such as a load balancer in front. A queue without bounds would be neither.
//!
//! `cargo run --example axum`, with keys in `OPENROUTER_API_KEYS` or, without, on the simulator.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use tower_http::{cors::CorsLayer, trace::TraceLayer};
use tower_openrouter::{
    ApiKey, AuthorizeLayer, BufferLayer, ConcurrencyLimitLayer, Endpoint, KeySelectLayer, LoadMonitorLayer, OpenRouter,
    RespondLayer, RetryLayer, endpoint_fn, openrouter::HyperTransport, select::Pool,
};

mod upstream;

/// Requests at once on each key.
const PER_KEY: usize = 2;

/// The stack, for a handler: it cannot fail, so nothing is left to handle.
type Models = BoxCloneSyncService<Request<Body>, Response, Infallible>;

fn models(keys: Vec<ApiKey>, base_url: &str) -> Result<Models, BoxError> {
    let per_key = endpoint_fn(|endpoint: &Endpoint| {
        ServiceBuilder::new()
            .layer(LoadMonitorLayer::endpoint(endpoint))
            .layer(ConcurrencyLimitLayer::new(PER_KEY).expect("it is not 0"))
            .layer(AuthorizeLayer::new(endpoint.key()))
            .into_inner()
    });
    let stack = ServiceBuilder::new()
        .map_response(|response: http::Response<_>| response.map(Body::new))
        .layer(RespondLayer::new())
        .layer(BufferLayer::new())
        .layer(RetryLayer::new())
        .layer(KeySelectLayer::new(Pool::new(keys)?, per_key).max_waiters(0))
        .service(OpenRouter::builder().base_url(base_url).build(HyperTransport::new())?);
    Ok(BoxCloneSyncService::new(stack))
}

// --- the app -----------------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct App {
    models: Models,
    model: &'static str,
    titles: Arc<AtomicU64>,
}

fn router(app: App) -> Router {
    Router::new()
        .route("/title", post(title))
        .route("/titles", get(async |State(app): State<App>| app.titles.load(Ordering::Relaxed).to_string()))
        .route_service("/v1/chat/completions", app.models.clone())
        .layer(TraceLayer::new_for_http())
        .layer(CorsLayer::permissive())
        .with_state(app)
}

/// Asks a model for a title. Its own errors are the app's, a refusal of the stack is passed on as it is.
async fn title(State(app): State<App>, text: String) -> Result<Response, AppError> {
    if text.is_empty() {
        return Err(AppError::NoText);
    }
    let Ok(answer) = app.models.oneshot(chat(app.model, &format!("A title for: {text}"))).await;
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let body = answer.into_body().collect().await.map_err(AppError::Broken)?.to_bytes();
    let completion: Completion = serde_json::from_slice(&body).map_err(AppError::Odd)?;
    app.titles.fetch_add(1, Ordering::Relaxed);
    Ok(Json(json!({ "title": completion.choices[0].message.content })).into_response())
}

#[derive(Deserialize)]
struct Completion {
    choices: [Choice; 1],
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: String,
}

#[derive(Debug, thiserror::Error)]
enum AppError {
    #[error("there is no text to find a title for")]
    NoText,
    #[error("the answer broke off")]
    Broken(#[source] axum::Error),
    #[error("the answer is not what was asked for")]
    Odd(#[source] serde_json::Error),
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let status = if matches!(self, Self::NoText) { StatusCode::BAD_REQUEST } else { StatusCode::BAD_GATEWAY };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

// --- what it is like -----------------------------------------------------------------------------------------------------

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let upstream = upstream::upstream().await?;
    let keys = upstream.keys.len();
    let models = models(upstream.keys, &upstream.base_url)?;
    let app = router(App { models, model: upstream.model, titles: Arc::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app.clone()).into_future());

    // over the network, as any client
    let client = reqwest::Client::new();
    let answer = client.post(format!("{address}/title")).body("A long walk in the rain").send().await?;
    assert_eq!((answer.status().as_u16(), answer.headers()["access-control-allow-origin"].to_str()?), (200, "*"));
    println!("/title: {}", answer.text().await?);
    let answer = client.post(format!("{address}/title")).send().await?;
    assert_eq!(answer.status(), 400);
    println!("/title without text: {}", answer.text().await?);
    for _ in 0..keys {
        let chat = chat(upstream.model, "Hello").into_body().collect().await?.to_bytes();
        let answer = client.post(format!("{address}/v1/chat/completions")).body(chat).send().await?;
        assert_eq!(answer.status(), 200, "a key that is refused is not the caller's trouble");
        answer.bytes().await?;
    }
    if let Some(simulator) = &upstream.simulator {
        let seen = simulator.counts().keys.into_iter().map(|(key, tally)| (key, tally.attempts));
        println!("attempts by key: {:?}", seen.collect::<Vec<_>>());
    }

    // twice as many at once as the keys bear; nobody reads the answers until all have come, so no permit is given back
    let load = 2 * PER_KEY * keys;
    let answers = join_all((0..load).map(|_| app.clone().oneshot(chat(upstream.model, "Hello")))).await;
    let (served, shed): (Vec<_>, Vec<_>) = answers.into_iter().flatten().partition(|answer| answer.status() == 200);
    println!("{load} at once: {} served, {} shed", served.len(), shed.len());
    assert_eq!(served.len() + shed.len(), load);
    assert!(!served.is_empty() && served.len() <= PER_KEY * keys, "what the keys bear is served");
    assert!(shed.len() >= load / 2, "the other half at least is refused");
    for answer in shed {
        assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (429, &b"1"[..]));
        let body: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        assert_eq!(body["error"]["metadata"]["limit_source"], "balancer", "{body}");
    }
    Ok(())
}

fn chat(model: &str, text: &str) -> Request<Body> {
    let chat = json!({ "model": model, "max_tokens": 20, "messages": [{ "role": "user", "content": text }] });
    Request::post("/v1/chat/completions").body(chat.to_string().into()).expect("it is well formed")
}
