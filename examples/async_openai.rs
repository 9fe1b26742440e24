//! `async-openai` over several OpenRouter keys, without a process between.
//!
//! Most programs call OpenRouter with a client library, which knows one key and tries again on that one. `async-openai` lets
//! one replace how it sends its requests by a tower service. So the balancer goes inside: its users keep their typed requests
//! and streams, and every request goes out with whichever key can serve it. Such a service takes the place of the library's
//! own retries, too.
//!
//! Libraries that take a base URL and nothing else are pointed at the gateway in place of OpenRouter (`tower-openrouter
//! gateway`, the binary of this crate).
//!
//! `cargo run --example async_openai`, with keys in `OPENROUTER_API_KEYS` or, without, on the simulator.

use async_openai::{
    Client,
    config::OpenAIConfig,
    error::OpenAIError,
    middleware::HttpRequestFactory,
    types::chat::{ChatCompletionRequestUserMessage, CreateChatCompletionRequest, CreateChatCompletionRequestArgs},
};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use tower::{BoxError, ServiceExt, service_fn};
use tower_openrouter::{Balancer, OpenRouter, openrouter::HyperTransport, select::Pool};

mod upstream;

/// A client that sends through `balancer`. It wants an address and a key of its own; neither is used.
fn client(balancer: Balancer<reqwest::Body>) -> Client<OpenAIConfig> {
    let config = OpenAIConfig::new().with_api_base("http://balancer/v1").with_api_key("none");
    Client::with_config(config).with_http_service(service_fn(move |request: HttpRequestFactory| {
        let balancer = balancer.clone();
        async move {
            let request: http::Request<reqwest::Body> =
                request.build().await?.try_into().map_err(OpenAIError::Reqwest)?;
            let Ok(response) = balancer.oneshot(request).await; // refusals are answers, too
            let response = response.map(|body| reqwest::Body::wrap_stream(body.into_data_stream()));
            Ok::<_, OpenAIError>(response.into())
        }
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let upstream = upstream::upstream().await?;
    let leaf = OpenRouter::builder().base_url(upstream.base_url).build(HyperTransport::new())?;
    let balancer = Balancer::builder(Pool::new(upstream.keys)?).build(leaf);
    let client = client(balancer.clone());
    let request = CreateChatCompletionRequestArgs::default()
        .model(upstream.model)
        .max_completion_tokens(20_u32)
        .messages([ChatCompletionRequestUserMessage::from("Twenty words on rain.").into()])
        .build()?;

    let answer = client.chat().create(request.clone()).await?;
    let text = answer.choices[0].message.content.as_deref().unwrap_or_default();
    println!("whole:  {text}");
    assert!(!text.is_empty());

    let streamed = CreateChatCompletionRequest { stream: Some(true), ..request.clone() };
    let mut chunks = client.chat().create_stream(streamed).await?;
    print!("stream: ");
    let mut deltas = 0;
    while let Some(chunk) = chunks.next().await {
        for delta in chunk?.choices.iter().filter_map(|choice| choice.delta.content.as_deref()) {
            print!("{delta}");
            deltas += usize::from(!delta.is_empty());
        }
    }
    println!();
    assert!(deltas > 1, "it came in pieces");

    for _ in 0..8 {
        client.chat().create(request.clone()).await?;
    }
    let snapshot = balancer.handle().snapshot();
    for key in &snapshot.endpoints {
        println!("{:<8} {:?}", key.key, key.measures.outcomes);
    }
    assert_eq!(snapshot.total.outcomes["complete"], 10, "none of them failed, whatever a key was told");
    if let Some(simulator) = upstream.simulator {
        let sent = simulator.requests();
        let foreign = |value: &http::HeaderValue| value == "Bearer none";
        assert!(!sent.iter().any(|request| request.headers.get("authorization").is_some_and(foreign)));
        let served = simulator.counts().keys.values().filter(|tally| tally.attempts > 0).count();
        assert!(served > 1, "several keys served");
    }
    Ok(())
}
