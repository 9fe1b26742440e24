//! A program with a `reqwest::Client` of its own that is to use several OpenRouter keys.
//!
//! A call to a model is a POST, and an answer that streams is a row of events; neither takes a client library. What such calls
//! lack is what to do when a key is refused. Here the program keeps its `reqwest::Client`, with its TLS, proxy and pool, and
//! the balancer goes between: `ask` and `stream` are all there is to it, with the types that this program needs.
//!
//! `cargo run --example reqwest_client`, with keys in `OPENROUTER_API_KEYS` or, without, on the simulator. For the types of
//! the whole API see the example `async_openai`.

use std::{future::ready, pin::pin};

use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tower::{BoxError, ServiceExt};
use tower_openrouter::{Balancer, OpenRouter, openrouter::ReqwestTransport, select::Pool, stack::BalancerBody};

mod upstream;

#[derive(Clone, Copy, Serialize)]
struct Chat<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    messages: [Message<'a>; 1],
}

#[derive(Clone, Copy, Serialize)]
struct Message<'a> {
    role: &'a str,
    content: &'a str,
}

/// A whole answer, or a piece of one.
#[derive(Deserialize)]
struct Answer<T> {
    choices: Vec<T>,
}

#[derive(Deserialize)]
struct Whole {
    message: Text,
}

#[derive(Deserialize)]
struct Delta {
    delta: Text,
}

#[derive(Deserialize)]
struct Text {
    #[serde(default)]
    content: Option<String>,
}

type Client = Balancer<Full<Bytes>>;

async fn send(client: &Client, chat: &Chat<'_>) -> Result<http::Response<BalancerBody>, BoxError> {
    let request = Request::post("/v1/chat/completions").body(Full::from(serde_json::to_vec(chat)?))?;
    let response = client.clone().oneshot(request).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, error) = (response.status(), response.into_body().collect().await?.to_bytes());
    Err(format!("{status}: {}", String::from_utf8_lossy(&error)).into())
}

/// The whole answer.
async fn ask<T: DeserializeOwned>(client: &Client, chat: &Chat<'_>) -> Result<T, BoxError> {
    Ok(serde_json::from_slice(&send(client, chat).await?.into_body().collect().await?.to_bytes())?)
}

/// The answer as it comes. A stream that breaks off is an error, not an end.
async fn stream(
    client: &Client,
    chat: &Chat<'_>,
) -> Result<impl Stream<Item = Result<Answer<Delta>, BoxError>> + use<>, BoxError> {
    let events = send(client, chat).await?.into_body().into_data_stream().eventsource();
    // read past the end marker to the end of the body, where the balancer knows that all is well
    let deltas = events.filter(|event| ready(!event.as_ref().is_ok_and(|event| event.data == "[DONE]")));
    Ok(deltas.map(|event| Ok(serde_json::from_str(&event?.data)?)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let upstream = upstream::upstream().await?;
    let transport = ReqwestTransport::new(reqwest::Client::new());
    let leaf = OpenRouter::builder().base_url(upstream.base_url).build(transport)?;
    let client: Client = Balancer::builder(Pool::new(upstream.keys)?).build(leaf);

    let messages = [Message { role: "user", content: "Twenty words on rain." }];
    let chat = Chat { model: upstream.model, max_tokens: 20, stream: false, messages };
    let answer: Answer<Whole> = ask(&client, &chat).await?;
    let text = answer.choices[0].message.content.as_deref().unwrap_or_default();
    println!("whole:  {text}");
    assert!(!text.is_empty());

    let mut deltas = pin!(stream(&client, &Chat { stream: true, ..chat }).await?);
    let mut words = Vec::new();
    while let Some(answer) = deltas.next().await {
        words.extend(answer?.choices.into_iter().filter_map(|choice| choice.delta.content));
    }
    println!("stream: {}", words.concat());
    assert!(words.len() > 1, "it came in pieces");

    let refused =
        ask::<Answer<Whole>>(&client, &Chat { model: "nobody/nothing", ..chat }).await.map(|_| ()).unwrap_err();
    println!("error:  {refused}");
    if upstream.simulator.is_some() {
        let total = client.handle().snapshot().total;
        println!("{} attempts: {:?}", total.attempts, total.outcomes);
        assert_eq!(total.outcomes["complete"], 2);
    }
    Ok(())
}
