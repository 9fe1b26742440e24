//! `openrouter-rs`.

use futures_util::StreamExt;
use openrouter_rs::OpenRouterClient;
use openrouter_rs::api::chat::{ChatCompletionRequest, Message};
use openrouter_rs::error::OpenRouterError;
use openrouter_rs::types::Role;

use super::{KEY, MODEL, TOKENS};

fn client(base: &str) -> OpenRouterClient {
    OpenRouterClient::builder().base_url(base).api_key(KEY).build().unwrap()
}

fn asking(model: &str) -> ChatCompletionRequest {
    ChatCompletionRequest::builder()
        .model(model)
        .messages(vec![Message::new(Role::User, "Say six words.")])
        .build()
        .unwrap()
}

pub(crate) async fn chats(base: &str) {
    let answer = client(base).chat().create(&asking(MODEL)).await.unwrap();
    let text = answer.choices[0].content().unwrap();
    assert_eq!(text.split_whitespace().count(), TOKENS);
    let usage = answer.usage.unwrap();
    assert_eq!(usage.completion_tokens as usize, TOKENS);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert!(usage.cost.unwrap() > 0.0);
}

pub(crate) async fn streams(base: &str) {
    let mut chunks = client(base).chat().stream(&asking(MODEL)).await.unwrap();
    let (mut text, mut usage) = (String::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.unwrap();
        for choice in &chunk.choices {
            text.push_str(choice.content().unwrap_or_default());
        }
        usage = chunk.usage.or(usage);
    }
    assert_eq!(text.split_whitespace().count(), TOKENS);
    assert_eq!(usage.unwrap().completion_tokens as usize, TOKENS);
}

pub(crate) async fn lists_models(base: &str) {
    let models = client(base).models().list().await.unwrap();
    assert!(models.iter().any(|model| model.id == MODEL));
}

pub(crate) async fn is_shown(base: &str, asked: u16, status: u16) {
    let asked = asking(&format!("fail/{asked}"));
    let error = client(base).chat().create(&asked).await.unwrap_err();
    let OpenRouterError::Api(error) = error else {
        panic!("{status}: {error:?}");
    };
    assert_eq!(error.status, status);
    assert_eq!(error.api_code, Some(i64::from(status)));
    assert!(!error.message.is_empty());
}
