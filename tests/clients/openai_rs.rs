//! `async-openai`.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessage, CreateChatCompletionRequest, CreateChatCompletionRequestArgs,
};
use futures_util::StreamExt;
use serde_json::Value;

use super::{KEY, MODEL, TOKENS};

fn client(base: &str) -> Client<OpenAIConfig> {
    let config = OpenAIConfig::new().with_api_base(base).with_api_key(KEY);
    Client::with_config(config)
}

fn asking(model: &str) -> CreateChatCompletionRequest {
    CreateChatCompletionRequestArgs::default()
        .model(model)
        .messages([ChatCompletionRequestUserMessage::from("Say six words.").into()])
        .build()
        .unwrap()
}

pub(crate) async fn chats(base: &str) {
    let answer = client(base).chat().create(asking(MODEL)).await.unwrap();
    let text = answer.choices[0].message.content.as_deref().unwrap();
    assert_eq!(text.split_whitespace().count(), TOKENS);
    let usage = answer.usage.unwrap();
    assert_eq!(usage.completion_tokens as usize, TOKENS);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
}

pub(crate) async fn streams(base: &str) {
    let mut chunks = client(base)
        .chat()
        .create_stream(CreateChatCompletionRequest { stream: Some(true), ..asking(MODEL) })
        .await
        .unwrap();
    let (mut text, mut usage) = (String::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.unwrap();
        for choice in &chunk.choices {
            text.push_str(choice.delta.content.as_deref().unwrap_or_default());
        }
        usage = chunk.usage.or(usage);
    }
    assert_eq!(text.split_whitespace().count(), TOKENS);
    assert_eq!(usage.unwrap().completion_tokens as usize, TOKENS);
}

/// The typed call wants `owned_by`, which OpenRouter does not send; its users take the untyped one.
pub(crate) async fn lists_models(base: &str) {
    let list: Value = client(base).models().list_byot().await.unwrap();
    let models = list["data"].as_array().unwrap();
    assert!(models.iter().any(|model| model["id"] == MODEL));
}

/// The crate knows OpenAI's string codes only, and hands OpenRouter's body over as it came.
pub(crate) async fn is_shown(base: &str, asked: u16, status: u16) {
    let asked = asking(&format!("fail/{asked}"));
    let error = client(base).chat().create(asked).await.unwrap_err();
    let body = match error {
        OpenAIError::ApiError(error) if error.status_code == status => error.api_error.message,
        OpenAIError::JSONDeserialize(_, body) if status < 500 => body,
        other => panic!("{status}: {other:?}"),
    };
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["error"]["code"], status, "{body}");
    assert!(!body["error"]["message"].as_str().unwrap().is_empty());
}
